"""Where training data lies: files of a folder, members of tar shards on disk, members of shards behind a URL.

A place is read as bytes from an offset on. Nothing is ever unpacked: what a shard calls its members names no file here.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mavcli.errors import InputError
from mavcli.media.image import describe, hint_for
from mavcli.media.passing import not_read

IMAGES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".webp",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
    )
)
"""Endings of still images."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of one sample are: a whole file, or `size` bytes of a tar shard from `offset` on."""

    name: str
    """For people, and unique in its folder: the relative path, or `shard.tar/member`."""
    path: str
    """A file of this machine, or a URL."""
    offset: int = 0
    size: int | None = None
    """None for a whole file."""
    cell: tuple[int, str, int] | None = None
    """Row group, column and row of a Parquet table that holds the bytes."""
    version: str = ""
    """Of a shard behind a URL: what changes when the shard does."""

    @property
    def remote(self) -> bool:
        return is_url(self.path)


class Unreadable(InputError):
    """A file that was drawn from cannot be read any more. `name` is its own, empty where that was known before.

    Whoever draws samples draws another one.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"`{name}` cannot be read any more: {why}")
        self.name, self.why = name, why


Slots = Sequence[int | None]
"""What is drawn from: numbers of files, and None for those that a training began with and that are gone since."""


def slots_of(files: Iterable[int | None]) -> tuple[Slots, list[int]]:
    """The slots of a part of a folder, whose own numbers begin at 0, and the numbers that its files had in the whole."""
    slots: list[int | None] = []
    kept: list[int] = []
    for file in files:
        slots.append(None if file is None else len(kept))
        if file is not None:
            kept.append(file)
    return slots, kept


def drawn_slot(rng: np.random.Generator, slots: Slots) -> int:
    """The number of a file, drawn uniformly. Raises Unreadable for one that is gone."""
    file = slots[int(rng.integers(len(slots)))]
    if file is None:
        raise Unreadable("", "it was gone when the training went on")
    return file


def refuse_gone(place: Place) -> None:
    """Raises Unreadable where the file is not there any more."""
    if not place.remote and not Path(place.path).exists():
        raise Unreadable(place.name, "it is gone")


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """Read a place's file that decoded before. Raises Unreadable."""
    refuse_gone(place)
    try:
        yield
    except InputError as error:
        raise Unreadable(place.name, error.message) from error
    except OSError as error:
        raise Unreadable(place.name, (error.strerror or str(error)).lower()) from error


@dataclass
class Listing:
    """What a folder, an archive or a pattern of them holds."""

    root: str
    """Absolute, or a URL: for messages and as the name of the cache."""
    places: list[Place] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    """Name -> why it is passed over."""
    captions: dict[str, str] = field(default_factory=dict)
    """Name of a text member of a shard -> the caption in it."""
    bad_captions: dict[str, str] = field(default_factory=dict)
    """Name of a text member of a shard -> why it is no caption."""


_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


def is_packed(name: str) -> bool:
    """Whether a name is that of a compressed tar."""
    return _PACKED.search(name) is not None


def is_url(text: str) -> bool:
    return "://" in text


def find_media(root: str | os.PathLike[str], wanted: Callable[[str], bool], *,
               keep_bytes: int = 20 << 30) -> Listing:  # fmt: skip
    """All files under a folder and all members of tar shards whose name is `wanted`, sorted by name.

    `root` is a folder (any nesting; `.tar` files in it are read as shards), one `.tar`, a pattern of them
    (`shards/{000..099}.tar`, `*.tar`), or a URL of either. Raises InputError when there is no such thing.
    """
    from mavcli.data import shards

    text = os.fspath(root)
    if is_url(text):
        listing = Listing(text)
        named = [(url, url.rsplit("/", 1)[-1]) for url in shards.expand(text)]
    elif any(c in Path(text).name for c in "*?{") or text.lower().endswith(".tar"):
        listing = Listing(os.path.abspath(text))
        named = [(os.path.abspath(path), os.path.basename(path)) for path in shards.expand(text)]
    else:
        listing = Listing(os.path.abspath(text))
        named = []
        if Path(text).is_file():
            found = describe(text) or "a file"
            raise InputError(
                f"`{text}` is {found}, wanted a folder or plain tar shards", hint=hint_for(found)
            )
        for path in walk(Path(text)):
            name = path.relative_to(text).as_posix()
            if is_packed(name):
                listing.rejected[name] = (
                    "is a compressed tar, wanted a plain one, which can be read anywhere inside"
                )
            elif path.suffix.lower() == ".tar":
                named.append((str(path), name))
            elif wanted(path.name):
                listing.places.append(Place(name, str(path)))
    for shard, name in named:
        shards.list_shard(listing, shard, name, wanted, keep_bytes=keep_bytes)
    listing.places.sort(key=lambda place: place.name)
    return listing


def read_bytes(place: Place) -> bytes:
    """The bytes of a place. Raises InputError when they cannot be had."""
    from mavcli.data import shards

    if place.remote:
        return shards.read_remote(place)
    if place.cell is not None:
        from mavcli.data.tables import read_cell

        return read_cell(place.path, *place.cell)
    try:
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            data = file.read(-1 if place.size is None else place.size)
    except OSError as error:
        not_read(place.path, error)
    if place.size is not None and len(data) != place.size:
        raise InputError(f"`{place.path}` ends inside of `{place.name}`", hint="copy or download it again")
    return data


def media(place: Place) -> Path | bytes:
    """What the readers of `mavcli.media` take: the path of a file, the bytes of a member."""
    whole = place.size is None and place.cell is None and not place.remote
    return Path(place.path) if whole else read_bytes(place)


def walk(root: Path, *, others: list[Path] | None = None) -> list[Path]:
    """All regular files under `root`, sorted by relative path, hidden ones left out, links followed without loops.

    What is no regular file (a pipe, a link to nothing) is added to `others`. Raises InputError when `root` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"`{root.absolute()}` is no folder, wanted one with training data")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.extend(Path(folder, name) for name in names if not name.startswith("."))
    found.sort(key=lambda path: path.relative_to(root).as_posix())
    regular = [path for path in found if path.is_file()]
    if others is not None:
        others += sorted(set(found) - set(regular))
    return regular


def reasons(rejected: dict[str, str]) -> str:
    """`3 x is an empty file; 1 x ...`, the most frequent first; `no files` for none."""
    counted = Counter(rejected.values())
    lines = [f"{count} x {reason}" for reason, count in counted.most_common(5)]
    rest = len(counted) - len(lines)
    return "; ".join([*lines, *([f"{rest} other reasons"] if rest > 0 else [])]) or "no files"


def used(count: int, rejected: dict[str, str], what: str, root: str) -> str:
    """`used 412 of 431 clips (19 rejected: mav data check ROOT)`."""
    line = f"used {count} of {count + len(rejected)} {what}"
    return f"{line} ({len(rejected)} rejected: mav data check {root})" if rejected else line
