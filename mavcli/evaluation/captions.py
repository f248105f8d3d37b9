"""The text that belongs to each video of a folder: from a file of prompts, or from what the videos' runs say of themselves.

A file of prompts has one prompt a line, in the order of the videos' sorted names; or it is a table (`mavcli.data.tables`)
whose rows name the video (`video` or `file`: the path below the folder, with or without suffix) and its text (`prompt`,
`caption` or `text`).
"""

from __future__ import annotations

from pathlib import Path

from mavcli.data.captions import read_lines
from mavcli.data.tables import TABLES, Table
from mavcli.errors import InputError, counted
from mavcli.evaluation.clips import Folder
from mavcli.evaluation.described import Described, run_of

_VIDEO = ("video", "file", "name")
_TEXT = ("prompt", "caption", "text")


def prompts_of(folder: Folder, file: Path | None) -> list[str]:
    """One text for each file of `folder`. Raises InputError naming the first video without one, or a count that is off."""
    if file is None:
        return [_own(folder, i) for i in range(len(folder))]
    if file.suffix.lower() in TABLES:
        return _from_table(folder, file)
    lines = [line for _, line in read_lines(file)]
    if len(lines) != folder.found:
        raise InputError(
            f"{file} holds {counted(len(lines), 'prompt')}, "
            f"`{folder.root}` {counted(folder.found, folder.kind.removesuffix('s'))}",
            hint="one line a video in the order of their names, or a table with `video` and `prompt`",
        )
    return [lines[place] for place in folder.places]


def _own(folder: Folder, index: int) -> str:
    path = folder.files[index]
    told = Described(path, folder.name(index), *run_of(path))
    if told.prompt is None:
        why = f": {told.fault}" if told.fault else ""
        raise InputError(f"`{path}` does not say which prompt it was made from{why}", hint="--prompts FILE")
    return told.prompt


def _from_table(folder: Folder, file: Path) -> list[str]:
    texts: dict[str, str] = {}
    table = Table(file, keys=_VIDEO, texts=_TEXT)
    if not table.fits:
        raise table.misfit()
    for line, video, text, fault in table.rows():
        if fault is not None:
            raise InputError(f"`{file}:{line}` {fault}")
        if not isinstance(video, str) or not video or not text:
            raise InputError(f"`{file}:{line}` lacks a {'prompt' if video else 'video'}, wanted both")
        if texts.setdefault(video, text) != text:
            raise InputError(f"`{file}:{line}`: `{video}` has another prompt further up")
    found = []
    for i in range(len(folder)):
        name = folder.name(i)
        known = next(
            (key for key in (name, str(Path(name).with_suffix("")), Path(name).name) if key in texts), None
        )
        if known is None:
            raise InputError(f"{file} has no prompt for `{name}`")
        found.append(texts[known])
    return found
