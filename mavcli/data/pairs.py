"""Still images, and images with captions, for the networks that never see video (Make-A-Video, section 3.1).

h w pixels, uint8. Captions stand in a text beside each image, in JSONL, CSV or Parquet tables, or in tar shards as
webdataset has them; which it is is detected.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mavcli.data.captions import MAX_TEXT, TEXT_FILES, BadTextError, caption_in, captioned
from mavcli.data.index import Progress, indexed
from mavcli.data.places import (
    IMAGES,
    Listing,
    Place,
    drawn_slot,
    find_media,
    is_url,
    media,
    reading,
    reasons,
    slots_of,
    used,
)
from mavcli.data.tables import TABLES, Table
from mavcli.errors import InputError
from mavcli.media.frames import Fit, Frames, fit
from mavcli.media.image import read_image


@dataclass(frozen=True)
class Picture:
    """A picture that decodes."""

    place: Place
    width: int
    height: int
    sha256: str
    duplicate_of: str | None = None
    """Name of the first picture of the folder with the same bytes."""
    warnings: tuple[str, ...] = ()

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
        self._slots, _ = slots_of(range(len(self.pictures)))
        if needed:
            _refuse_empty(self.root, len(self.pictures), self.rejected, "image", "train.data.image")

    def __len__(self) -> int:
        return len(self.pictures)

    def only(self, images: Iterable[int | None]) -> ImageFolder:
        """The same folder with some of its images; None is one that is drawn and cannot be read."""
        part = copy.copy(self)
        part._slots, kept = slots_of(images)
        part.pictures = [self.pictures[i] for i in kept]
        return part

    @property
    def used(self) -> str:
        """`used 40 of 42 images (2 rejected: mav data check DIR)`, for the command line."""
        return used(len(self.pictures), self.rejected, "images", self.root)

    def draw(self, rng: np.random.Generator, *, size: int, fit: Fit = "crop") -> Frames:
        """One image, drawn uniformly: uint8 (size, size, 3). A pure function of the generator's state and the folder.

        Raises Unreadable where the drawn one cannot be read any more.
        """
        return _fitted(self.pictures[drawn_slot(rng, self._slots)], size, fit)


class PairFolder:
    """Images with captions. `layout` says how the captions were found.

    First match wins: a `*.jsonl`, `*.csv`, `*.tsv` or `*.parquet` directly in the folder whose columns are a file (file,
    image, path, file_name; in Parquet also the image's bytes) and a caption (caption, text, prompt), several of them
    joined; else a `.txt`, `.caption` or `.json` (with one of the caption's columns) beside each image, any nesting, or in
    the same tar shard (`mavcli.data.captions` says which belongs to which). A file may stand in a table several times,
    with other words. Raises InputError when nothing is usable.
    """

    def __init__(self, root: str | os.PathLike[str], *, keep_bytes: int = 20 << 30,
                 progress: Progress | None = None, again: bool = False, needed: bool = True) -> None:  # fmt: skip
        """As `ImageFolder`."""
        listing = find_media(root, _is_wanted, keep_bytes=keep_bytes)
        self.root = listing.root
        self.rejected: dict[str, str] = dict(listing.rejected)
        """Name (or `table:line`) -> why it is not used."""
        every = [
            Table(Path(place.path))
            for place in listing.places
            if place.size is None and "/" not in place.name and place.name.lower().endswith(TABLES)
        ]
        tables = [table for table in every if table.fits]
        if tables:
            self.layout = "captions from " + ", ".join(f"`{table.path.name}`" for table in tables)
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
        self._slots, _ = slots_of(range(len(self.pairs)))
        if needed:
            if not self.pairs and every and not tables:
                raise every[0].misfit()
            _refuse_empty(
                self.root, len(self.pairs), self.rejected, "image with a caption", "train.data.pairs"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def only(self, pairs: Iterable[int | None]) -> PairFolder:
        """The same folder with some of its pairs; None is one that is drawn and cannot be read."""
        part = copy.copy(self)
        part._slots, kept = slots_of(pairs)
        part.pairs = [self.pairs[i] for i in kept]
        return part

    @property
    def used(self) -> str:
        """`used 40 of 42 pairs (2 rejected: mav data check DIR), captions from `captions.csv``, for the command line."""
        return f"{used(len(self.pairs), self.rejected, 'pairs', self.root)}, {self.layout}"

    def draw(self, rng: np.random.Generator, *, size: int, fit: Fit = "crop") -> tuple[Frames, str]:
        """One pair, drawn uniformly: uint8 (size, size, 3) and its caption. As `ImageFolder.draw`."""
        pair = self.pairs[drawn_slot(rng, self._slots)]
        return _fitted(pair.picture, size, fit), pair.caption


def _fitted(picture: Picture, size: int, rule: Fit) -> Frames:
    with reading(picture.place):
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
            tuple(found["warnings"]),
        )
    return known, note


def _is_wanted(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return suffix in IMAGES or suffix in TABLES or suffix in TEXT_FILES


def _layout(listing: Listing) -> str:
    members = sum(place.size is not None for place in listing.places)
    if members == 0:
        return "captions from a text beside each image"
    return "captions from tar shards" + (" and texts beside images" if members < len(listing.places) else "")


def _beside(listing: Listing, rejected: dict[str, str]) -> Iterator[tuple[Place, str]]:
    """(image, caption) of every image with words of its own, beside its file or in its shard."""
    images = {place.name: place for place in listing.places if place.name.lower().endswith(tuple(IMAGES))}
    texts = {place.name: place for place in listing.places if place.name.lower().endswith(TEXT_FILES)}

    def caption(name: str) -> str | None:
        if texts[name].size is not None:  # shards are read once for all of theirs
            if name in listing.bad_captions:
                raise BadTextError(listing.bad_captions[name])
            return listing.captions.get(name)
        try:
            with open(texts[name].path, "rb") as file:
                return caption_in(name, file.read(MAX_TEXT + 1))
        except OSError as error:
            raise BadTextError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error

    for name, said, why in captioned(images, list(texts), caption):
        where = "beside it" if images[name].size is None else "of the same name in its shard"
        if said is None:
            rejected[name] = why or f"has no `.txt`, `.caption` or `.json` with a caption {where}"
        else:
            yield images[name], said


def _table(table: Table, rejected: dict[str, str]) -> Iterator[tuple[Place, str]]:
    folder = table.path.parent
    for line, image, caption, fault in table.rows():
        where = f"{table.path.name}:{line}"
        if fault is not None:
            rejected[where] = fault
        elif not image:
            rejected[where] = "names no file"
        elif not caption:
            rejected[where] = "has an empty caption"
        elif isinstance(image, Place):
            yield image, caption
        elif is_url(image):
            rejected[where] = "names a URL, wanted a file"
        elif not (folder / image).is_file():
            rejected[where] = "names a file that does not exist"
        else:
            yield Place(image, str(folder / image)), caption


def _refuse_empty(root: str, count: int, rejected: dict[str, str], what: str, key: str) -> None:
    if count == 0:
        raise InputError(
            f"`{root}` holds no usable {what}: {reasons(rejected)}",
            hint=f"mav data check {root}"
            if rejected
            else f"give a folder of PNG, JPEG or WebP files; `{key}` names it",
        )
