"""Videos of a folder and what their runs say of them: the sidecar beside the file, else the tags inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavcli.data.places import walk
from mavcli.errors import InputError, NotReadError
from mavcli.evaluation.clips import VIDEOS
from mavcli.evaluation.playable import COPIES
from mavcli.media.video import read_metadata

_PLAYED = (".mp4", ".m4v", ".mov", ".webm")
"""Suffixes of what a browser may play; what is inside decides (`mavcli.evaluation.playable`)."""


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
    """Every video below `folder`, by name; hidden files and folders, and copies for browsers, are left out.

    Of several files with one name but for the suffix those that a browser plays are taken, where there are any: a GIF
    beside an MP4 is the same video. Raises InputError when the folder is none, cannot be read, or holds no video.
    """
    if not folder.is_dir():
        what = "is a file, wanted a folder" if folder.exists() else "does not exist"
        raise InputError(f"`{folder}` {what}", hint='mav generate "a dog surfing" -n 4 -o FOLDER')
    found = [
        path
        for path in walk(folder)
        if path.suffix.lower() in VIDEOS and COPIES not in path.relative_to(folder).parts
    ]
    played = {path.with_suffix("") for path in found if path.suffix.lower() in _PLAYED}
    found = [path for path in found if path.suffix.lower() in _PLAYED or path.with_suffix("") not in played]
    if not found:
        raise InputError(f"`{folder}` holds no video", hint='mav generate "a dog surfing" -n 4 -o FOLDER')
    return [
        Described(path, path.relative_to(folder).with_suffix("").as_posix(), run_of(path)) for path in found
    ]


def run_of(path: Path) -> Mapping[str, Any]:
    """What made the video; nothing where neither a sidecar nor a tag tells."""
    try:
        text = path.with_suffix(".json").read_text(encoding="utf-8")
    except FileNotFoundError:
        try:
            text = read_metadata(path).get("mav_run", "")
        except NotReadError:
            raise
        except InputError:  # a damaged file tells nothing; whoever shows it says so
            return {}
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
