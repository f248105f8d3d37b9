"""Still images, and images with captions, for the networks that never see video (Make-A-Video, section 3.1).

h w pixels, uint8. Captions stand in a `.txt` beside each image, in JSONL, CSV or Parquet tables, or in tar shards as
webdataset has them; which it is is detected.
"""

from __future__ import annotations

import copy
import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mavcli.data.index import Progress, indexed
from mavcli.data.places import IMAGES, Listing, Place, find_media, is_url, media, reasons, used
from mavcli.data.tables import CAPTION_COLUMNS, FILE_COLUMNS, parquet_rows
from mavcli.errors import InputError
from mavcli.media.frames import Fit, Frames, fit
from mavcli.media.image import read_image

_TABLES = {".jsonl", ".csv", ".parquet"}
_CAPTION_FILES = (".txt", ".caption", ".json")


@dataclass(frozen=True)
class Picture:
    """A picture that decodes."""

    place: Place
    width: int
    height: int
    sha256: str
    duplicate_of: str | None = None
    """Name of the first picture of the folder with the same bytes."""

    @property
    def name(self) -> str:
        return self.place.name

    def pixels(self) -> Frames:
        """uint8 (h, w, 3). Raises InputError when the file has changed since it was read."""
        return read_image(media(self.place))


@dataclass(frozen=True)
class Pair:
    """A picture and what it shows, in words."""

    picture: Picture
    caption: str

    @property
    def name(self) -> str:
        return self.picture.name


class ImageFolder:
    """The still images of a folder, however nested, or of tar shards, in the order of their names.

    Each is decoded once and what was found is kept (`mavcli.data.index`). Raises InputError when nothing is usable,
    with the reasons counted.
    """

    def __init__(self, root: str | os.PathLike[str], *, keep_bytes: int = 20 << 30,
                 progress: Progress | None = None, again: bool = False, needed: bool = True) -> None:  # fmt: skip
        """`progress(done, of)` is called as files become known; `keep_bytes` bounds the shards of other machines kept
        on disk; `again` decodes every file anew; with `needed` false an empty folder is no error."""
        listing = find_media(root, lambda name: Path(name).suffix.lower() in IMAGES, keep_bytes=keep_bytes)
        self.root = listing.root
        self.rejected: dict[str, str] = dict(listing.rejected)
        """Name -> why the file is not used."""
        known, self.note = _pictures(listing.root, listing.places, self.rejected, keep_bytes, progress, again)
        self.pictures = list(known.values())
        if needed:
            _refuse_empty(self.root, len(self.pictures), self.rejected, "image", "train.data.image")

    def __len__(self) -> int:
        return len(self.pictures)

    def only(self, images: Iterable[int]) -> ImageFolder:
        """The same folder with some of its images."""
        part = copy.copy(self)
        part.pictures = [self.pictures[i] for i in images]
        return part

    @property
    def used(self) -> str:
        """`used 40 of 42 images (2 rejected: mav data check DIR)`, for the command line."""
        return used(len(self.pictures), self.rejected, "images", self.root)

    def draw(self, rng: np.random.Generator, *, size: int, fit: Fit = "crop") -> Frames:
        """One image, drawn uniformly: uint8 (size, size, 3). A pure function of the generator's state and the folder."""
        return _fitted(self.pictures[int(rng.integers(len(self.pictures)))], size, fit)


class PairFolder:
    """Images with captions. `layout` says how the captions were found.

    First match wins: a `*.jsonl`, `*.csv` or `*.parquet` directly in the folder whose columns are a file (file, image,
    path, file_name; in Parquet also the image's bytes) and a caption (caption, text), several of them joined; else a
    `.txt` beside each image, any nesting, and the members of tar shards that share a name up to its first dot: an
    image, and a `.txt`, `.caption` or `.json` with one of the caption's columns. A file may stand in a table several
    times, with other words. Raises InputError when nothing is usable.
    """

    def __init__(self, root: str | os.PathLike[str], *, keep_bytes: int = 20 << 30,
                 progress: Progress | None = None, again: bool = False, needed: bool = True) -> None:  # fmt: skip
        """As `ImageFolder`."""
        listing = find_media(root, _is_wanted, keep_bytes=keep_bytes)
        self.root = listing.root
        self.rejected: dict[str, str] = dict(listing.rejected)
        """Name (or `table:line`) -> why it is not used."""
        tables = [
            Path(place.path)
            for place in listing.places
            if place.size is None and "/" not in place.name and _is_table(Path(place.path))
        ]
        if tables:
            self.layout = "captions from " + ", ".join(f"`{path.name}`" for path in tables)
            named = [row for table in tables for row in _table(table, self.rejected)]
        else:
            self.layout = _layout(listing)
            named = list(_beside(listing, self.rejected))
        places = {place.name: place for place, _ in named}
        known, self.note = _pictures(
            listing.root, list(places.values()), self.rejected, keep_bytes, progress, again
        )
        self.pairs = [Pair(known[place.name], caption) for place, caption in named if place.name in known]
        """In the order of the tables, or of the names."""
        if needed:
            _refuse_empty(
                self.root, len(self.pairs), self.rejected, "image with a caption", "train.data.pairs"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def only(self, pairs: Iterable[int]) -> PairFolder:
        """The same folder with some of its pairs."""
        part = copy.copy(self)
        part.pairs = [self.pairs[i] for i in pairs]
        return part

    @property
    def used(self) -> str:
        """`used 40 of 42 pairs (2 rejected: mav data check DIR), captions from `captions.csv``, for the command line."""
        return f"{used(len(self.pairs), self.rejected, 'pairs', self.root)}, {self.layout}"

    def draw(self, rng: np.random.Generator, *, size: int, fit: Fit = "crop") -> tuple[Frames, str]:
        """One pair, drawn uniformly: uint8 (size, size, 3) and its caption. As `ImageFolder.draw`."""
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        return _fitted(pair.picture, size, fit), pair.caption


def _fitted(picture: Picture, size: int, rule: Fit) -> Frames:
    return fit(picture.pixels(), size, rule=rule)


def _pictures(root: str, places: list[Place], rejected: dict[str, str], keep_bytes: int,
              progress: Progress | None, again: bool) -> tuple[dict[str, Picture], str | None]:  # fmt: skip
    """Name -> picture of the places that decode; the others go to `rejected`. And why the facts could not be kept."""
    facts, note = indexed(root, places, kind="image", progress=progress, keep_bytes=keep_bytes, again=again)
    first: dict[str, str] = {}
    known: dict[str, Picture] = {}
    for place, found in zip(places, facts, strict=True):
        if "reason" in found:
            rejected[place.name] = found["reason"]
            continue
        earlier = first.setdefault(found["sha256"], place.name)
        known[place.name] = Picture(
            place,
            found["width"],
            found["height"],
            found["sha256"],
            None if earlier == place.name else earlier,
        )
    return known, note


def _is_wanted(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return suffix in IMAGES or suffix in _TABLES or suffix in _CAPTION_FILES


def _layout(listing: Listing) -> str:
    members = sum(place.size is not None for place in listing.places)
    if members == 0:
        return "captions from a `.txt` beside each image"
    return "captions from tar shards" + (" and `.txt` files" if members < len(listing.places) else "")


def _beside(listing: Listing, rejected: dict[str, str]) -> Iterator[tuple[Place, str]]:
    """(image, caption) of every image with words of its own: a `.txt` beside a file, a member of the same key."""
    captions: dict[str, str] = {}
    texts = {place.name: place for place in listing.places if place.size is None}
    for name, words in listing.captions.items():
        captions.setdefault(_key(name), words)
    for place in listing.places:
        if Path(place.name).suffix.lower() not in IMAGES:
            continue
        if place.size is not None:
            found = captions.get(_key(place.name))
            missing = "has no `.txt`, `.caption` or `.json` with a caption of the same name in its shard"
        else:
            text = texts.get(str(Path(place.name).with_suffix(".txt")))
            found = None if text is None else " ".join(_text(Path(text.path)).split())
            missing = "has no `.txt` beside it"
        if found is None:
            rejected[place.name] = missing
        elif not found:
            rejected[place.name] = "has an empty caption"
        else:
            yield place, found


def _key(name: str) -> str:
    """A member's name up to the first dot behind its last slash, as webdataset has it."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _table(table: Path, rejected: dict[str, str]) -> Iterator[tuple[Place, str]]:
    for line, image, caption in _rows(table):
        where = f"{table.name}:{line}"
        if not image:
            rejected[where] = "names no file"
        elif not caption:
            rejected[where] = "has an empty caption"
        elif isinstance(image, Place):
            yield image, caption
        elif is_url(image):
            rejected[where] = "names a URL, wanted a file"
        elif not (table.parent / image).is_file():
            rejected[where] = "names a file that does not exist"
        else:
            yield Place(image, str(table.parent / image)), caption


def _refuse_empty(root: str, count: int, rejected: dict[str, str], what: str, key: str) -> None:
    if count == 0:
        raise InputError(
            f"`{root}` holds no usable {what}: {reasons(rejected)}",
            hint=f"mav data check {root}"
            if rejected
            else f"give a folder of PNG, JPEG or WebP files; `{key}` names it",
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"`{path}` is not UTF-8 text that can be read", hint="save it again as UTF-8"
        ) from error


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in _TABLES and next(_rows(path), None) is not None


def _rows(table: Path) -> Iterator[tuple[int, str | Place, str]]:
    """(line, file, caption) of every row; nothing when the columns are others. Raises InputError for broken tables."""
    if table.suffix.lower() == ".parquet":
        yield from parquet_rows(table)
        return
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
            record: Any = json.loads(line)
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
