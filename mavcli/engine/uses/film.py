"""Videos that go by: read frame by frame, enlarged piece by piece, and handed on as they come.

However long a video is, what is held of it are its frames as the networks see them (12 kB each at 64 pixels) and a few at their
full size. f frames, s pixels a side of the networks' square.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mavcli.engine.cascade import Cascade, Seen
from mavcli.engine.randomness import Draw
from mavcli.engine.windows import halo_windows
from mavcli.media.frames import Fit, Frames, to_float, to_uint8
from mavcli.media.scenes import Scenes
from mavcli.media.video import Sound, find_sound, read_video, survey

_PIECE, _HALO = 128, 8
"""Frames of SR_l^t's pieces, and how many on each side of one are only seen."""
_AT_ONCE = 16
"""Frames of SR_h's pieces."""


@dataclass(frozen=True)
class Film:
    """A video as it comes: `count` frames (h, w, 3) uint8 that can be walked through once, and the sound under them."""

    frames: Iterable[Frames]
    count: int
    fps: Fraction | float
    sound: Sound | None = None


def whole(frames: Frames, fps: Fraction | float) -> Film:
    """A video whose frames (f, h, w, 3) are all there."""
    return Film(frames, len(frames), fps)


@dataclass(frozen=True)
class Footage:
    """A video file, read once: all that is known of it but its pictures."""

    path: Path
    times: NDArray[np.float64]
    """(f,) seconds from the first frame."""
    rate: Fraction
    """Frames per second; the median's where they are uneven."""
    uneven: bool
    size: tuple[int, int]
    """(height, width) as shown."""
    cuts: tuple[int, ...]
    """Frames that begin a new scene; never 0."""
    sound: Sound | None
    warnings: tuple[str, ...] = ()
    last: float = 0.0
    """Seconds that the last frame stands; 0 for as long as any other."""

    def __len__(self) -> int:
        return len(self.times)

    def pictures(self) -> Iterator[Frames]:
        """Its frames (h, w, 3), read again. Raises InputError."""
        for _, picture in read_video(self.path, max_frames=len(self)):
            yield picture

    def places(self, factor: int = 1) -> tuple[NDArray[np.intp], int]:
        """(the frame of an even video at `factor` times the rate that each frame is, how many that video has).

        It lasts as long as this one, to the end of its last frame. Where two frames fall on one place, the second has none: -1.
        """
        rate = float(self.rate) * factor
        at = np.rint(self.times * rate).astype(np.intp) if self.uneven else np.arange(len(self)) * factor
        places = np.where(np.diff(at, prepend=-1) > 0, at, -1)
        return places, int(places.max()) + max(factor, round(self.last * rate))


def read_through(path: Path, visit: Callable[[Frames], None]) -> Footage:
    """Read a video once, and show each of its frames (h, w, 3) to `visit`. Raises InputError."""
    scenes = Scenes()
    found = survey(path, visit=scenes.see, show=visit)
    joined = any("start again" in text for text in found.warnings)
    return Footage(
        path=path,
        times=found.times,
        rate=found.rate,
        uneven=found.vfr,
        size=(found.height, found.width),
        cuts=tuple(scenes.cuts),
        # of parts with clocks of their own nobody knows what sounds when
        sound=None if joined else find_sound(path, origin=found.start),
        warnings=tuple(found.warnings),
        last=found.duration - float(found.times[-1]),
    )


class Enlarged:
    """SR_h . SR_l^t over a long video, scene by scene, its frames (s', s', 3) uint8 one after the other.

    `video` (f, s, s, 3) uint8; `scenes` are where its scenes begin, 0 first. SR_l^t is done at once and its frames wait on the
    disk, in a file without a name; SR_h follows as they are asked for, from frame `start` on.
    """

    def __init__(
        self, cascade: Cascade, video: Frames, draws: Sequence[Draw], *, fps: float,
        scenes: Sequence[int] = (0,), first: int = 0, start: int = 0,
    ) -> None:  # fmt: skip
        self._cascade, self._draws, self._count, self._start = cascade, draws, len(video), start
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this does, and has no name)
        with cascade.piecewise() if len(video) > _PIECE or len(scenes) > 1 else nullcontext():
            for begin, end in pairwise([*scenes, len(video)]):
                for window in halo_windows(end - begin, length=_PIECE, halo=_HALO):
                    seen = video[begin + window.start : begin + window.stop]
                    number = first + begin + window.start
                    large = cascade.sr_l(to_float(seen)[None], draws, fps=fps, first=number)
                    taken = to_uint8(large[0, window.first - window.start : window.last - window.start])
                    self._shape = taken.shape[1:]
                    self._file.write(taken.tobytes())

    def __iter__(self) -> Iterator[Frames]:
        each = int(np.prod(self._shape))
        self._file.seek(self._start * each)
        with self._cascade.piecewise():
            for begin in range(self._start, self._count, _AT_ONCE):
                count = min(_AT_ONCE, self._count - begin)
                data = np.frombuffer(bytearray(self._file.read(count * each)), np.uint8)
                small = to_float(data.reshape(count, *self._shape))
                yield from to_uint8(self._cascade.sr_h(small[None], self._draws)[0])
        self._file.close()


def cost_of_enlarged(cascade: Cascade, scenes: Sequence[int], count: int, *, start: int = 0) -> float:
    """What `Enlarged` costs on the bar of `cascade`."""
    lengths = [end - begin for begin, end in pairwise([*scenes, count])]
    pieces = [w.length for n in lengths for w in halo_windows(n, length=_PIECE, halo=_HALO)]
    low = sum(cascade.cost_of_super("sr_l", n) for n in pieces)
    return low + cascade.cost_of_super("sr_h", count - start)


def seen_by_clip(cascade: Cascade, frames: Iterable[tuple[int, Frames]], *, fit: Fit) -> Seen:
    """Place -> CLIP image embedding of a source's own frames (h, w, 3), taken at the size that CLIP reads.

    Nothing where CLIP reads what D draws: then the frames as the networks see them are what CLIP is shown.
    """
    if cascade.look == cascade.size:
        return {}
    return {place: cascade.embed_pictures(frame[None], fit=fit)[0] for place, frame in frames}


def tensor(frame: Frames) -> torch.Tensor:
    """(h, w, 3) uint8 -> (1, 3, h, w) in [-1, 1]."""
    return to_float(frame[None])


def picture(x: torch.Tensor) -> Frames:
    """(1, 3, h, w) in [-1, 1] -> (h, w, 3) uint8."""
    return to_uint8(x)[0]
