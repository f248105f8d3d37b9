"""Still images, and images with captions, for the networks that never see video (Make-A-Video, section 3.1).

h w pixels, uint8. Captions stand in a `.txt` beside each image or in one JSONL or CSV table; which it is is detected.
"""

from __future__ import annotations

import copy
import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mavcli.data.clips import reasons, walk
from mavcli.errors import InputError
from mavcli.media.frames import Fit, Frames, fit
from mavcli.media.image import image_size, read_image

FILE_COLUMNS = ("file", "image", "path", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "text")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Pair:
    """An image file and what it shows, in words."""

    path: Path
    caption: str


class ImageFolder:
    """The still images of a folder, however nested, in the order of their relative paths.

    Headers are read on opening; a file that later fails to decode joins `rejected` and another is drawn in its place.
    Raises InputError when nothing is usable, with the reasons counted.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.paths: list[Path] = []
        self.rejected: dict[str, str] = {}
        """Relative path -> why the file is not used."""
        for path in walk(self.root):
            if path.suffix.lower() in _SUFFIXES and _usable(
                path, path.relative_to(self.root).as_posix(), self.rejected
            ):
                self.paths.append(path)
        _refuse_empty(self.root, len(self.paths), self.rejected, "image", "train.data.image")

    def __len__(self) -> int:
        return len(self.paths)

    def only(self, images: Iterable[int]) -> ImageFolder:
        """The same folder with some of its images."""
        part = copy.copy(self)
        part.paths = [self.paths[i] for i in images]
        return part

    @property
    def used(self) -> str:
        """`used 40 of 42 images: 2 x ...`, for the command line."""
        return _used(len(self.paths), self.rejected, "images")

    def draw(self, rng: np.random.Generator, *, size: int, fit: Fit = "crop") -> Frames:
        """One image, drawn uniformly: uint8 (size, size, 3). A pure function of the generator's state and the folder."""
        return _draw(rng, self.paths, size, fit, self.root, self.rejected)[0]


class PairFolder:
    """Images with captions. `layout` says how the captions were found.

    First match wins: a `*.jsonl` or `*.csv` directly in the folder whose columns are a file (file, image, path,
    file_name) and a caption (caption, text), several of them joined; else a `.txt` beside each image, any nesting.
    A file may stand in a table several times, with other words. Raises InputError when nothing is usable.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.rejected: dict[str, str] = {}
        """Relative path (or `table:line`) -> why it is not used."""
        self.pairs: list[Pair] = []
        files = walk(self.root)
        tables = [path for path in files if path.parent == self.root and _is_table(path)]
        if tables:
            self.layout = "captions from " + ", ".join(f"`{path.name}`" for path in tables)
            for table in tables:
                self._read_table(table)
        else:
            self.layout = "captions from a `.txt` beside each image"
            self._read_texts(files)
        _refuse_empty(self.root, len(self.pairs), self.rejected, "image with a caption", "train.data.pairs")

    def __len__(self) -> int:
        return len(self.pairs)

    def only(self, pairs: Iterable[int]) -> PairFolder:
        """The same folder with some of its pairs."""
        part = copy.copy(self)
        part.pairs = [self.pairs[i] for i in pairs]
        return part

    @property
    def used(self) -> str:
        """`used 40 of 42 pairs, captions from `captions.csv`: 2 x ...`, for the command line."""
        return _used(len(self.pairs), self.rejected, "pairs", self.layout)

    def draw(self, rng: np.random.Generator, *, size: int, fit: Fit = "crop") -> tuple[Frames, str]:
        """One pair, drawn uniformly: uint8 (size, size, 3) and its caption. As `ImageFolder.draw`."""
        picture, index = _draw(rng, [pair.path for pair in self.pairs], size, fit, self.root, self.rejected)
        return picture, self.pairs[index].caption

    def _read_table(self, table: Path) -> None:
        known: dict[Path, bool] = {}
        for line, name, caption in _rows(table):
            place = f"{table.name}:{line}"
            path = self.root / name
            if not name:
                self.rejected[place] = "names no file"
            elif not caption:
                self.rejected[place] = "has an empty caption"
            elif not path.is_file():
                self.rejected[place] = "names a file that does not exist"
            else:
                if path not in known:
                    known[path] = _usable(path, place, self.rejected)
                if known[path]:
                    self.pairs.append(Pair(path, caption))

    def _read_texts(self, files: list[Path]) -> None:
        for path in files:
            if path.suffix.lower() not in _SUFFIXES:
                continue
            name = path.relative_to(self.root).as_posix()
            text = path.with_suffix(".txt")
            if not text.is_file():
                self.rejected[name] = "has no `.txt` beside it"
                continue
            caption = " ".join(_text(text).split())
            if not caption:
                self.rejected[name] = "has an empty caption"
            elif _usable(path, name, self.rejected):
                self.pairs.append(Pair(path, caption))


def _draw(rng: np.random.Generator, paths: list[Path], size: int, rule: Fit, root: Path,
          rejected: dict[str, str]) -> tuple[Frames, int]:  # fmt: skip
    for _ in range(64):  # a damaged file fails every time, so the draw stays a function of the generator
        index = int(rng.integers(len(paths)))
        try:
            return fit(read_image(paths[index]), size, rule=rule), index
        except InputError as error:
            rejected[os.path.relpath(paths[index], root)] = _reason(error, paths[index])
    raise InputError(f"`{root.absolute()}` gave 64 damaged images in a row: {reasons(rejected)}")


def _usable(path: Path, name: str, rejected: dict[str, str]) -> bool:
    try:
        image_size(path)
    except InputError as error:
        rejected[name] = _reason(error, path)
        return False
    return True


def _reason(error: InputError, path: Path) -> str:
    return error.message.replace(f"`{path}`", "").strip()


def _used(count: int, rejected: dict[str, str], what: str, layout: str | None = None) -> str:
    line = f"used {count} of {count + len(rejected)} {what}" + (f", {layout}" if layout else "")
    return f"{line}: {reasons(rejected)}" if rejected else line


def _refuse_empty(root: Path, count: int, rejected: dict[str, str], what: str, key: str) -> None:
    if count == 0:
        raise InputError(
            f"`{root.absolute()}` holds no usable {what}: {reasons(rejected)}",
            hint=f"give a folder of PNG, JPEG or WebP files; `{key}` names it",
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"`{path}` is not UTF-8 text that can be read", hint="save it again as UTF-8"
        ) from error


def _is_table(path: Path) -> bool:
    if path.suffix.lower() not in (".jsonl", ".csv"):
        return False
    return next(_rows(path), None) is not None


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """(line, file, caption) of every row; nothing when the columns are others. Raises InputError for broken tables."""
    text = _text(table)
    if table.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines())
        header = [(column or "").strip().lower() for column in reader.fieldnames or []]
        file = next((column for column in FILE_COLUMNS if column in header), None)
        caption = next((column for column in CAPTION_COLUMNS if column in header), None)
        if file is None or caption is None:
            return
        reader.fieldnames = header
        for row in reader:
            yield reader.line_num, (row[file] or "").strip(), " ".join((row[caption] or "").split())
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"`{table}:{number}` is not JSON: {error}", hint="one JSON object a line"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"`{table}:{number}` is not a JSON object", hint="one JSON object a line")
        file = next((key for key in FILE_COLUMNS if key in record), None)
        caption = next((key for key in CAPTION_COLUMNS if key in record), None)
        if file is None or caption is None:
            if number == 1:
                return  # another kind of JSONL
            raise InputError(
                f"`{table}:{number}` lacks a file or a caption, wanted {FILE_COLUMNS} and {CAPTION_COLUMNS}"
            )
        yield number, str(record[file] or "").strip(), " ".join(str(record[caption] or "").split())
