"""What a data folder can give a training: exact counts, true rates, cuts, copies, and why files are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mavcli.data.clips import NO_MEDIA, Source, VideoFolder
from mavcli.data.index import Progress
from mavcli.data.pairs import ImageFolder, PairFolder, Picture
from mavcli.data.places import IMAGES, Place, find_media, media
from mavcli.errors import InputError
from mavcli.media.frames import Frames, contact_sheet, fit
from mavcli.media.image import is_animation
from mavcli.recipe.schema import FpsCurriculum

DataKind = Literal["video", "pairs", "image"]
_ANIMATIONS = frozenset((".gif", ".png", ".webp", ".avif"))
"""Endings of pictures that may be animations."""
_SHOWN = 64
_CELL = 128
_RATES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 48, 60, 120, 240)


@dataclass(frozen=True)
class Drawable:
    """What a rate of the curriculum can draw."""

    fps: float
    clips: int
    """Files that hold a clip at this rate."""
    samples: int
    """Frames at which such a clip can begin, over all files."""


@dataclass(frozen=True)
class Row:
    """One usable file. For a picture `frames` is 1 and the rest is empty."""

    name: str
    frames: int
    fps: float | None
    seconds: float | None
    width: int
    height: int
    codec: str | None
    uneven: bool
    cuts: tuple[int, ...]
    static: bool
    duplicate_of: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What `check_data` found."""

    root: str
    kind: DataKind
    used: str
    rows: list[Row]
    rejected: dict[str, str]
    """Name -> why it trains nothing."""
    fps: dict[str, int]
    """Frames per second, rounded -> files."""
    drawable: list[Drawable] = field(default_factory=list)
    sheet: Frames | None = None
    """uint8 (h, w, 3): a frame of each file, or of 64 of them."""
    rates: list[tuple[float, float]] = field(default_factory=list)
    """Of each video, the lowest and the highest frame rate at which it gives a clip."""
    note: str | None = None
    """Why what was found could not be kept."""


def check_data(root: str, *, kind: DataKind | None = None, frames: int = 16,
               curriculum: FpsCurriculum | None = None, asked: Sequence[float] = (), keep_bytes: int = 20 << 30,
               progress: Progress | None = None, again: bool = False) -> Checked:  # fmt: skip
    """Read a folder, shards or a URL as training would and say what there is; `kind` is found out where it is None.

    `frames` is the length of the clips that `drawable` counts, at rates of the curriculum and at those `asked`; `again` believes nothing that is cached. Raises
    InputError when there is no such folder; one with nothing usable comes back with its `rejected`.
    """
    kind = kind or find_kind(root, keep_bytes=keep_bytes)
    if kind != "video":
        opener = PairFolder if kind == "pairs" else ImageFolder
        folder = opener(root, keep_bytes=keep_bytes, progress=progress, again=again, needed=False)
        pictures = (
            [pair.picture for pair in folder.pairs] if isinstance(folder, PairFolder) else folder.pictures
        )
        return Checked(
            root=folder.root,
            kind=kind,
            used=folder.used,
            rows=[_picture_row(picture) for picture in pictures],
            rejected=folder.rejected,
            fps={},
            sheet=_picture_sheet(pictures),
            note=folder.note,
        )
    videos = VideoFolder(root, keep_bytes=keep_bytes, progress=progress, again=again, needed=False)
    limits = curriculum or FpsCurriculum()
    rates = sorted(
        {limits.low, *(float(r) for r in _RATES if limits.low < r < limits.high), limits.high, *asked}
    )
    return Checked(
        root=videos.root,
        kind="video",
        used=videos.used,
        rows=[_video_row(source) for source in videos.sources],
        rejected=videos.rejected,
        fps={str(rate): n for rate, n in sorted(Counter(round(s.fps) for s in videos.sources).items())},
        drawable=[drawable(videos, frames=frames, fps=rate) for rate in rates],
        sheet=_video_sheet(videos),
        rates=[videos.bounds(i, frames=frames) for i in range(len(videos))],
        note=videos.note,
    )


def find_kind(root: str, *, keep_bytes: int = 20 << 30) -> DataKind:
    """What a folder is meant for: video when most media in it are no still pictures, pairs when pictures have captions.

    Of many pictures of formats that may be animations, 64 are looked at.
    """
    listing = find_media(root, lambda name: Path(name).suffix.lower() not in NO_MEDIA, keep_bytes=keep_bytes)
    pictures = [place for place in listing.places if Path(place.name).suffix.lower() in IMAGES]
    perhaps = [place for place in pictures if Path(place.name).suffix.lower() in _ANIMATIONS]
    shown = [perhaps[i] for i in _some(len(perhaps))] if perhaps else []
    moving = sum(_moves(place) for place in shown) / max(len(shown), 1)
    still = len(pictures) - moving * len(perhaps)
    if still * 2 < len(listing.places) or not still:
        return "video"
    return "pairs" if len(PairFolder(root, keep_bytes=keep_bytes, needed=False)) else "image"


def _moves(place: Place) -> bool:
    """Whether a picture is an animation; one that cannot be read counts as still, and is rejected later with its reason."""
    try:
        return is_animation(media(place))
    except InputError:
        return False


def drawable(videos: VideoFolder, *, frames: int, fps: float) -> Drawable:
    """How many files, and how many starts in them, give a clip of `frames` frames at `fps`."""
    clips = samples = 0
    for number, source in enumerate(videos.sources):
        lowest, highest = videos.bounds(number, frames=frames)
        if not lowest * (1 - 1e-9) <= fps <= highest:
            continue
        starts = sum(
            int(((source.times >= first - 1e-9) & (source.times <= last + 1e-9)).sum())
            for first, last in source.stretches(frames=frames, fps=fps)
        )
        clips += starts > 0
        samples += starts
    return Drawable(fps, clips, samples)


def _video_row(source: Source) -> Row:
    return Row(
        name=source.name,
        frames=len(source.times),
        fps=source.fps,
        seconds=source.span + 1 / source.fps,
        width=source.width,
        height=source.height,
        codec=source.codec,
        uneven=source.vfr,
        cuts=source.cuts,
        static=source.static,
        duplicate_of=source.duplicate_of,
        warnings=source.warnings,
    )


def _picture_row(picture: Picture) -> Row:
    return Row(
        picture.name, 1, None, None, picture.width, picture.height, None, False, (), False,
        picture.duplicate_of, picture.warnings,
    )  # fmt: skip


def _some(count: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(count, _SHOWN)).round().astype(np.intp))


def _video_sheet(videos: VideoFolder) -> Frames | None:
    if not videos.sources:
        return None
    shown = [(int(i), videos.sources[i]) for i in _some(len(videos.sources))]
    middles = [videos.frames_of(i, [len(source.times) // 2], size=_CELL)[0] for i, source in shown]
    return contact_sheet(
        np.stack(middles), labels=[_label(s.name, f"{s.fps:.3g} fps") for _, s in shown], cell=_CELL
    )


def _picture_sheet(pictures: Sequence[Picture]) -> Frames | None:
    if not pictures:
        return None
    shown = [pictures[i] for i in _some(len(pictures))]
    small = [fit(picture.pixels(), _CELL, rule="pad") for picture in shown]
    return contact_sheet(np.stack(small), labels=[_label(p.name) for p in shown], cell=_CELL)


def _label(name: str, *more: str) -> str:
    """The end of a name, as much as fits below a picture."""
    room = 18 - sum(len(word) + 2 for word in more)
    base = name.rsplit("/", 1)[-1]
    shown = base if len(base) <= room else f"~{base[1 - room :]}"
    # the sheet's font has no more than this
    return ", ".join(["".join(c if " " <= c <= "~" else "?" for c in shown), *more])
