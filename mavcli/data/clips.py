"""Unlabelled video for training (Make-A-Video, section 3.2: motion is learnt from video alone, without text).

f frames, h w pixels. A clip is drawn at a frame rate: frames whose timestamps lie `1 / fps` apart, each within half a
source frame of where it should be, all of one scene. Nothing is padded or repeated to make a clip longer than it is.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mavcli.data.index import Progress, indexed
from mavcli.data.places import (
    Place,
    drawn_slot,
    find_media,
    media,
    reading,
    reasons,
    refuse_gone,
    slots_of,
    used,
)
from mavcli.data.scan import Facts, unpack, unpack_times
from mavcli.errors import InputError
from mavcli.media.frames import Fit, Frames, fit
from mavcli.media.video import frames_at, nearest_frames, read_video
from mavcli.media.video.times import RATE_TOLERANCE

LeaveOut = Literal["static", "duplicate"]

NO_MEDIA = frozenset(
    (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".yaml", ".yml", ".srt", ".vtt", ".caption", ".cls", ".npz",
     ".npy", ".safetensors", ".parquet", ".pkl", ".pickle", ".pyd")
)  # fmt: skip
"""Endings of files beside videos that nobody means as one; they are passed over without a word."""

_STARTS = 256  # tried in a video with uneven frames before it is given up


@dataclass(frozen=True)
class Redrawn:
    """How often a draw was not taken as drawn: another rate, or another file for want of any rate."""

    rate: int = 0
    clip: int = 0

    def __add__(self, other: Redrawn) -> Redrawn:
        return Redrawn(self.rate + other.rate, self.clip + other.clip)


@dataclass(frozen=True)
class Source:
    """One usable video, by decoding all of it."""

    place: Place
    times: NDArray[np.float64]
    """(f,) seconds from the first frame."""
    rate: Fraction
    """Frames per second by the timestamps; of uneven frames the median's."""
    cuts: tuple[int, ...]
    """Indices of the frames that begin a new scene; never 0."""
    static: bool
    keyframes: NDArray[np.int64]
    seekable: bool
    start: float
    """Timestamp of the first frame in the file, seconds."""
    sha256: str
    width: int
    height: int
    codec: str
    vfr: bool
    duplicate_of: str | None = None
    """Name of the first file of the folder with the same bytes."""
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def span(self) -> float:
        """Seconds from the first to the last frame."""
        return float(self.times[-1] - self.times[0])

    @cached_property
    def longest(self) -> float:
        """Seconds from the first to the last frame of the longest scene."""
        edges = [0, *self.cuts, len(self.times)]
        return max(float(self.times[b - 1] - self.times[a]) for a, b in pairwise(edges))

    def stretches(self, *, frames: int, fps: float) -> list[tuple[float, float]]:
        """(earliest start, latest start) of a clip in each scene that can hold one.

        A gap so long that no clip of this rate can step over it ends a stretch too.
        """
        gaps = np.flatnonzero(np.diff(self.times) > 1 / fps + 1 / self.fps) + 1
        edges = sorted({0, *self.cuts, *gaps.tolist(), len(self.times)})
        length = (frames - 1) / fps
        found = []
        for a, b in pairwise(edges):
            first, last = float(self.times[a]), float(self.times[b - 1])
            if last - first >= length * (1 - 1e-9):  # 1e-9: a clip that just fits must be accepted
                found.append((first, max(first, last - length)))
        return found


@dataclass(frozen=True)
class Refused:
    """The drawn rate does not fit the drawn file: it lies outside [lowest, highest] frames per second."""

    clip: int
    fps: float
    lowest: float
    """Below this, every scene ends before the last frame is due: (frames - 1) / longest scene."""
    highest: float
    """Above this, source frames would have to be shown twice; below `lowest` when the file is too short for any rate."""


@dataclass(frozen=True)
class Plan:
    """Which frames of a file make a clip."""

    clip: int
    """Index of the file in `VideoFolder.sources`."""
    index: NDArray[np.intp]
    """(f,) strictly ascending frame numbers."""
    fps: float
    start: float
    """Seconds into the file."""


@dataclass(frozen=True)
class Draw:
    """A clip at a frame rate: uint8 (f, size, size, 3)."""

    frames: Frames
    fps: float
    clip: int
    """Index of the file in `VideoFolder.sources`."""
    start: float
    """Seconds into the file."""
    redrawn: Redrawn = field(default=Redrawn())
    seen: Frames | None = None
    """The first frame at `look` pixels, where that was asked for: uint8 (look, look, 3)."""
    index: tuple[int, ...] = ()
    """Which frames of the file they are."""


class VideoFolder:
    """The videos of a folder, however nested, or of tar shards. Captions are never read.

    Every file is decoded once and what was found is kept (`mavcli.data.index`), so `sources` holds what decodes, not
    what headers promise; the order is that of the sorted names. Raises InputError when nothing is usable, with the
    reasons counted.
    """

    def __init__(self, root: str | os.PathLike[str], *, min_frames: int = 2, cache_bytes: int = 512 << 20,
                 leave_out: Sequence[LeaveOut] = (), keep_bytes: int = 20 << 30,
                 progress: Progress | None = None, again: bool = False, needed: bool = True) -> None:  # fmt: skip
        """`progress(done, of)` is called as files become known; `cache_bytes` bounds the shrunken clips kept in memory,
        `keep_bytes` the shards of other machines kept on disk; `again` decodes every file anew; with `needed` false an
        empty folder is no error."""
        listing = find_media(
            root, lambda name: Path(name).suffix.lower() not in NO_MEDIA, keep_bytes=keep_bytes
        )
        self.root = listing.root
        self.sources: list[Source] = []
        self.rejected: dict[str, str] = dict(listing.rejected)
        """Name -> why the file is not used."""
        self._cache: OrderedDict[tuple[int, int, Fit], Frames] = OrderedDict()
        self._cache_bytes = cache_bytes
        facts, self.note = indexed(
            listing.root, listing.places, kind="video", progress=progress, keep_bytes=keep_bytes, again=again
        )
        first: dict[str, str] = {}
        for place, found in zip(listing.places, facts, strict=True):
            source = found["reason"] if "reason" in found else _source(place, found, min_frames, first)
            if isinstance(source, Source):
                if source.static and "static" in leave_out:
                    source = "is static, and `train.data.leave_out` names that"
                elif source.duplicate_of is not None and "duplicate" in leave_out:
                    source = (
                        f"is a duplicate of `{source.duplicate_of}`, and `train.data.leave_out` names that"
                    )
            if isinstance(source, str):
                self.rejected[place.name] = source
            else:
                self.sources.append(source)
        self._slots, _ = slots_of(range(len(self.sources)))
        if needed and not self.sources:
            raise InputError(
                f"`{self.root}` holds no usable video: {reasons(self.rejected)}",
                hint=f"mav data check {self.root}" if self.rejected
                else "give a folder of video files, any nesting; `train.data.video` names it",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.sources)

    def only(self, clips: Iterable[int | None]) -> VideoFolder:
        """The same folder with some of its files, and a cache of its own; None is one that is drawn and cannot be read."""
        part = copy.copy(self)
        part._slots, kept = slots_of(clips)
        part.sources = [self.sources[i] for i in kept]
        part._cache = OrderedDict()
        return part

    @property
    def used(self) -> str:
        """`used 412 of 431 clips (19 rejected: mav data check DIR)`, for the command line."""
        return used(len(self.sources), self.rejected, "clips", self.root)

    def bounds(self, clip: int, *, frames: int) -> tuple[float, float]:
        """(lowest, highest) frames per second at which `frames` frames can be drawn from a file."""
        source = self.sources[clip]
        # 30 from 29.97 repeats nothing
        return (frames - 1) / max(source.longest, 1e-9), source.fps * (1 + RATE_TOLERANCE)

    def plan(
        self, rng: np.random.Generator, *, frames: int, fps: float, clip: int | None = None
    ) -> Plan | Refused:
        """Draw a file (uniformly, unless `clip` names it), a scene (by the room it leaves) and a start (uniformly).

        A pure function of the generator's state and the folder; nothing is decoded. Returns Refused when the rate does
        not fit the file.
        """
        chosen = drawn_slot(rng, self._slots) if clip is None else clip
        source = self.sources[chosen]
        if frames == 1:  # a still picture has no rate to meet
            index = np.array([rng.integers(len(source.times))], np.intp)
            return Plan(chosen, index, fps, float(source.times[index[0]]))
        lowest, highest = self.bounds(chosen, frames=frames)
        refused = Refused(chosen, fps, lowest, highest)
        if not lowest * (1 - 1e-9) <= fps <= highest:
            return refused
        stretches = source.stretches(frames=frames, fps=fps)
        if not stretches:
            return refused
        earliest, latest = np.array(stretches).T
        room = latest - earliest + 1 / source.fps  # a scene that just fits has a chance too
        offsets = np.arange(frames) / fps
        for _ in range(_STARTS):  # only videos with uneven frames ever need a second start
            scene = int(np.searchsorted(np.cumsum(room), rng.uniform(0.0, room.sum()), side="right"))
            scene = min(scene, len(room) - 1)
            start = float(rng.uniform(earliest[scene], latest[scene]))
            found = nearest_frames(source.times, start + offsets, step=1 / source.fps)
            if found is not None and bool((np.diff(found) > 0).all()):
                return Plan(chosen, found, fps, start)
        return refused

    def draw_clip(self, rng: np.random.Generator, *, frames: int, fps: float, size: int, fit: Fit = "crop",
                  clip: int | None = None) -> Draw | Refused:  # fmt: skip
        """`plan`, decoded. Raises Unreadable when the file has changed since it was read."""
        plan = self.plan(rng, frames=frames, fps=fps, clip=clip)
        if isinstance(plan, Refused):
            return plan
        return Draw(self._pixels(plan.clip, plan.index, size, fit)[0], plan.fps, plan.clip, plan.start)

    def draw_fitting(self, rng: np.random.Generator, *, frames: int, fps: float, size: int,
                     fit: Fit = "crop", look: int | None = None) -> Draw:  # fmt: skip
        """`draw_clip` with the rule for misfits: a rate outside what the drawn file allows moves to the nearer bound; a
        file that allows none is drawn again. `Draw.redrawn` counts both, and `Draw.fps` is the rate that was used. With
        `look`, `Draw.seen` is the first frame at so many pixels.

        Raises Unreadable when the drawn file cannot be read any more, InputError when none of the folder has `frames` frames
        of one scene to give.
        """
        redrawn = Redrawn()
        for _ in range(8 * len(self.sources) + 64):
            plan = self.plan(rng, frames=frames, fps=fps)
            refuse_gone(self.sources[plan.clip].place)
            if isinstance(plan, Refused) and plan.lowest <= plan.highest:
                nearer = min(max(fps, plan.lowest), plan.highest)
                if nearer != fps:
                    redrawn += Redrawn(rate=1)
                    plan = self.plan(rng, frames=frames, fps=nearer, clip=plan.clip)
            if isinstance(plan, Plan):
                pixels, seen = self._pixels(plan.clip, plan.index, size, fit, look)
                index = tuple(plan.index.tolist())
                return Draw(pixels, plan.fps, plan.clip, plan.start, redrawn, seen, index)
            redrawn += Redrawn(clip=1)
        longest = max(self.sources, key=lambda source: source.longest)
        raise InputError(
            f"`{self.root}` gives no clip of {frames} frames; its longest scene has "
            f"{round(longest.longest * longest.fps) + 1}",
            hint="use longer videos, or set fewer `frames` for this stage",
        )

    def frames_of(self, clip: int, index: Sequence[int], *, size: int, fit: Fit = "crop") -> Frames:
        """Some frames of a file, ascending: uint8 (len(index), size, size, 3)."""
        return self._pixels(clip, np.asarray(index, np.intp), size, fit)[0]

    def pictures(self, clip: int, index: Sequence[int]) -> Frames:
        """Some frames of a file, ascending, whole and in their own size: uint8 (len(index), h, w, 3)."""
        with reading(self.sources[clip].place):
            return self._part(clip, np.asarray(index, np.intp), 0, "crop", transform=lambda picture: picture)

    def frame_of(self, clip: int, number: int, *, size: int, fit: Fit = "crop") -> Frames:
        """One frame of a file, decoded for itself: uint8 (size, size, 3)."""
        with reading(self.sources[clip].place):
            return self._part(clip, np.array([number], np.intp), size, fit)[0]

    def _pixels(
        self, clip: int, index: NDArray[np.intp], size: int, rule: Fit, look: int | None = None
    ) -> tuple[Frames, Frames | None]:
        """The frames at `index`, ascending, at `size` pixels; and the first of them at `look` pixels."""
        source = self.sources[clip]
        with reading(source.place):  # one in memory counts as gone too when its file is
            if len(source.times) * size * size * 3 <= self._cache_bytes // 4:
                frames = self._kept(clip, size, rule)[index]
                return frames, None if look is None else self._part(clip, index[:1], look, rule)[0]
            seen: list[Frames] = []  # too long to keep: the part is decoded, and the picture fitted twice

            def both(picture: Frames) -> Frames:
                if look is not None and not seen:
                    seen.append(fit(picture, look, rule=rule))
                return fit(picture, size, rule=rule)

            frames = self._part(clip, index, size, rule, transform=both)
            return frames, seen[0] if seen else None

    def _part(
        self,
        clip: int,
        index: NDArray[np.intp],
        size: int,
        rule: Fit,
        *,
        transform: Callable[[Frames], Frames] | None = None,
    ) -> Frames:
        """Decode from the key frame before the first of `index` on."""
        source = self.sources[clip]
        before = source.keyframes[source.keyframes <= index[0]] if source.seekable else source.keyframes[:0]
        return frames_at(
            media(source.place),
            source.times[index],
            start=source.start,
            keyframe=float(source.times[before[-1]]) if len(before) else 0.0,
            transform=transform or (lambda picture: fit(picture, size, rule=rule)),
        )

    def _kept(self, clip: int, size: int, rule: Fit) -> Frames:
        """All frames of a file at `size` pixels, out of memory where they were decoded lately."""
        source, key = self.sources[clip], (clip, size, rule)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        kept = np.empty((len(source.times), size, size, 3), np.uint8)
        count = 0
        for _, picture in read_video(media(source.place), max_frames=len(kept)):
            kept[count] = fit(picture, size, rule=rule)
            count += 1
        if count < len(kept):
            raise InputError(f"`{source.name}` has {count} frames, it had {len(kept)} when it was read first")
        self._cache[key] = kept
        while sum(entry.nbytes for entry in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)
        return kept


def _source(place: Place, facts: Facts, min_frames: int, first: dict[str, str]) -> Source | str:
    """The usable video with these facts, or why it is none; `first` remembers which name had which bytes."""
    times = unpack_times(facts["times"])
    if len(times) < min_frames:
        return f"has {len(times)} frame{'s' * (len(times) != 1)}, wanted at least {min_frames}"
    earlier = first.setdefault(facts["sha256"], place.name)
    return Source(
        place=place,
        times=times,
        rate=Fraction(facts["rate"]),
        cuts=tuple(facts["cuts"]),
        static=facts["static"],
        keyframes=unpack(facts["keyframes"]),
        seekable=facts["seekable"],
        start=facts["start"],
        sha256=facts["sha256"],
        width=facts["width"],
        height=facts["height"],
        codec=facts["codec"],
        vfr=facts["vfr"],
        duplicate_of=None if earlier == place.name else earlier,
        warnings=tuple(facts["warnings"]),
    )
