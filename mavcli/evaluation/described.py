"""Videos of a folder and what their runs say of them: the sidecar beside the file, else the tags inside it.

Whatever else lies in the folder: what cannot be used tells nothing, and is told of in words.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavcli.data.places import walk
from mavcli.errors import InputError
from mavcli.evaluation.clips import VIDEOS
from mavcli.evaluation.playable import COPIES
from mavcli.files import reading
from mavcli.media.video import read_metadata

_PLAYED = (".mp4", ".m4v", ".mov", ".webm")
"""Suffixes of what a browser may play; what is inside decides (`mavcli.evaluation.playable`)."""
_LARGEST_SIDECAR = 8 << 20


@dataclass(frozen=True)
class Described:
    """One video. `name` is its path below the folder, without the suffix; `run` is its `mav_run`, empty for others' files.

    `fault` is why what is told of it is left out, in words.
    """

    path: Path
    name: str
    run: Mapping[str, Any]
    fault: str | None = None

    @property
    def prompt(self) -> str | None:
        """The text it was made from."""
        text = self.run.get("prompt")
        return text if isinstance(text, str) and text.strip() else None


def described_videos(folder: Path, *, faults: list[str] | None = None) -> list[Described]:
    """Every video below `folder`, by name; hidden files and folders, and copies for browsers, are left out.

    Of several files with one name but for the suffix those that a browser plays are taken, where there are any: a GIF
    beside an MP4 is the same video. What is left out for a fault is told to `faults`. Raises InputError when the folder is
    none, cannot be read, or holds no video.
    """
    found = videos_below(folder, faults=faults)
    if not found:
        raise InputError(f"`{folder}` holds no video", hint='mav generate "a dog surfing" -n 4 -o FOLDER')
    videos = [
        Described(path, path.relative_to(folder).with_suffix("").as_posix(), *run_of(path)) for path in found
    ]
    if faults is not None:
        faults += [video.fault for video in videos if video.fault]
    return videos


def videos_below(folder: Path, *, faults: list[str] | None = None) -> list[Path]:
    """The files that `described_videos` takes. Raises InputError when the folder is none."""
    if not folder.is_dir():
        what = "is a file, wanted a folder" if folder.exists() else "does not exist"
        raise InputError(f"`{folder}` {what}", hint='mav generate "a dog surfing" -n 4 -o FOLDER')
    others: list[Path] = []
    found = [
        path
        for path in walk(folder, others=others)
        if path.suffix.lower() in VIDEOS and COPIES not in path.relative_to(folder).parts
    ]
    if faults is not None:
        faults += [
            f"`{path}` is no regular file, left out" for path in others if path.suffix.lower() in VIDEOS
        ]
    played = {path.with_suffix("") for path in found if path.suffix.lower() in _PLAYED}
    return [path for path in found if path.suffix.lower() in _PLAYED or path.with_suffix("") not in played]


def run_of(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """What made the video, and why what is told of it is left out; nothing where neither a sidecar nor a tag tells.

    A JSON file of another program counts where it has a `prompt`.
    """
    sidecar = path.with_suffix(".json")
    beside = os.path.lexists(sidecar)
    try:
        if beside:
            source, text = f"`{sidecar}`", _read_sidecar(sidecar)
        else:
            source, text = f"the tag `mav_run` of `{path}`", read_metadata(path).get("mav_run", "")
    except InputError as error:
        return (
            {},
            f"{error.message}, left out" if beside else None,
        )  # a damaged video is told of by whoever shows it
    if not text:
        return {}, None
    try:
        run = json.loads(text)
    except (ValueError, RecursionError):
        return {}, f"{source} is no JSON that can be read, left out"
    if not isinstance(run, dict) or not ("mav_run" in run or isinstance(run.get("prompt"), str)):
        return {}, f"{source} is of another program and tells no `prompt`, left out"
    return run, None


def _read_sidecar(path: Path) -> str:
    """Raises InputError."""
    if not path.is_file():
        raise InputError(f"`{path}` is no regular file")
    with reading(path), open(path, "rb") as file:
        data = file.read(_LARGEST_SIDECAR + 1)
    if len(data) > _LARGEST_SIDECAR:
        raise InputError(f"`{path}` is larger than the {_LARGEST_SIDECAR >> 20} MiB that a sidecar may have")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` is no UTF-8 text") from error
