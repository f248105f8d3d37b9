"""Videos of a folder and what their runs say of them: the sidecar beside the file, else the tags inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavcli.data.places import walk
from mavcli.errors import InputError
from mavcli.media.video import read_metadata

PLAYED = (".mp4", ".m4v", ".mov", ".webm")
"""Suffixes of what a browser plays."""


@dataclass(frozen=True)
class Described:
    """One video. `name` is its path below the folder, without the suffix; `run` is its `mav_run`, empty for others' files."""

    path: Path
    name: str
    run: Mapping[str, Any]

    @property
    def prompt(self) -> str | None:
        """The text it was made from."""
        text = self.run.get("prompt")
        return text if isinstance(text, str) and text.strip() else None


def described_videos(folder: Path) -> list[Described]:
    """Every video below `folder` that a browser plays, by name; hidden files and folders are left out.

    Raises InputError when the folder is none, cannot be read, or holds no such video.
    """
    if not folder.is_dir():
        what = "is a file, wanted a folder" if folder.exists() else "does not exist"
        raise InputError(f"`{folder}` {what}", hint='mav generate "a dog surfing" -n 4 -o FOLDER')
    found = [path for path in walk(folder) if path.suffix.lower() in PLAYED]
    if not found:
        raise InputError(
            f"`{folder}` holds no video that a browser plays, wanted {', '.join(PLAYED[:-1])} or {PLAYED[-1]}",
            hint="an .mkv is made playable by `ffmpeg -i in.mkv -pix_fmt yuv420p out.mp4`",
        )
    return [
        Described(path, path.relative_to(folder).with_suffix("").as_posix(), run_of(path)) for path in found
    ]


def run_of(path: Path) -> Mapping[str, Any]:
    """What made the video; nothing where neither a sidecar nor a tag tells."""
    try:
        text = path.with_suffix(".json").read_text(encoding="utf-8")
    except FileNotFoundError:
        text = read_metadata(path).get("mav_run", "")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read `{path.with_suffix('.json')}`: {str(error).lower()}") from error
    if not text:
        return {}
    try:
        run = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"what is told of `{path}` is no JSON: {str(error).lower()}",
            hint=f"remove {path.with_suffix('.json').name}, or make the video again",
        ) from error
    return run if isinstance(run, dict) else {}
