"""The text that belongs to each video of a folder: from a file of prompts, or from what the videos' runs say of themselves.

A file of prompts has one prompt a line, in the order of the videos' sorted names; or it is a table (`.csv` with a head, or
`.jsonl`) whose rows name the video (`video` or `file`: the path below the folder, with or without suffix) and its text
(`prompt`, `caption` or `text`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mavcli.errors import InputError, counted
from mavcli.evaluation.clips import Folder
from mavcli.evaluation.described import Described, run_of

_VIDEO = ("video", "file", "name")
_TEXT = ("prompt", "caption", "text")


def prompts_of(folder: Folder, file: Path | None) -> list[str]:
    """One text for each file of `folder`. Raises InputError naming the first video without one, or a count that is off."""
    if file is None:
        return [_own(folder, i) for i in range(len(folder))]
    if file.suffix.lower() in (".csv", ".jsonl"):
        return _from_table(folder, file)
    lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
    if len(lines) != folder.found:
        raise InputError(
            f"{file} holds {counted(len(lines), 'prompt')}, "
            f"`{folder.root}` {counted(folder.found, folder.kind.removesuffix('s'))}",
            hint="one line a video in the order of their names, or a table with `video` and `prompt`",
        )
    return [lines[place] for place in folder.places]


def _own(folder: Folder, index: int) -> str:
    path = folder.files[index]
    prompt = Described(path, folder.name(index), run_of(path)).prompt
    if prompt is None:
        raise InputError(f"`{path}` does not say which prompt it was made from", hint="--prompts FILE")
    return prompt


def _from_table(folder: Folder, file: Path) -> list[str]:
    texts: dict[str, str] = {}
    for line, row in _rows(file):
        video = next((row[key] for key in _VIDEO if row.get(key)), None)
        text = next((row[key] for key in _TEXT if row.get(key)), None)
        if not isinstance(video, str) or not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{file}:{line}: wanted a `video` and its `prompt`, found {', '.join(row) or 'nothing'}"
            )
        if texts.setdefault(video, text.strip()) != text.strip():
            raise InputError(f"{file}:{line}: `{video}` has another prompt further up")
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


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = _text(file)
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines())
        for row in reader:
            yield reader.line_num, row
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}:{number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{file}:{number}: wanted an object with `video` and `prompt`")
        yield number, row


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text: byte {error.start} is no character") from error
