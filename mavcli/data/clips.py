"""Unlabelled video for training (Make-A-Video, section 3.2: motion is learnt from video alone, without text).

f frames, h w pixels. A clip is drawn at a frame rate: frames whose timestamps lie `1 / fps` apart, each within half a
source frame of where it should be. Nothing is padded or repeated to make a clip longer than it is.
"""

from __future__ import annotations

import copy
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mavcli.errors import InputError
from mavcli.media.frames import Fit, Frames, fit
from mavcli.media.video import frame_times, nearest_frames, read_video, sample_at

_NO_MEDIA = {
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".md",
    ".yaml",
    ".yml",
    ".srt",
    ".vtt",
    ".npz",
    ".safetensors",
}


@dataclass(frozen=True)
class Source:
    """One usable file: when its frames are shown, seconds from the first, by decoding all of them."""

    path: Path
    times: NDArray[np.float64]
    warnings: tuple[str, ...] = ()

    @property
    def span(self) -> float:
        """Seconds from the first to the last frame."""
        return float(self.times[-1] - self.times[0])

    @property
    def fps(self) -> float:
        """Frames per second, by the median step."""
        return 1 / float(np.median(np.diff(self.times)))


@dataclass(frozen=True)
class Refused:
    """The drawn rate does not fit the drawn file: it lies outside [lowest, highest] frames per second."""

    clip: int
    fps: float
    lowest: float
    """Below this, the clip ends before the last frame is due: (frames - 1) / span."""
    highest: float
    """Above this, source frames would have to be shown twice; below `lowest` when the file is too short for any rate."""


@dataclass(frozen=True)
class Draw:
    """A clip at a frame rate: uint8 (f, size, size, 3)."""

    frames: Frames
    fps: float
    clip: int
    """Index of the file in `VideoFolder.sources`."""
    start: float
    """Seconds into the file."""


class VideoFolder:
    """The videos of a folder, however nested. Captions and names are never read.

    Every file is decoded once on opening, so `sources` holds what decodes, not what headers promise; the order is that
    of the sorted relative paths. Raises InputError when nothing is usable, with the reasons counted.
    """

    def __init__(self, root: str | os.PathLike[str], *, min_frames: int = 2, cache_bytes: int = 512 << 20,
                 report: Callable[[int, int], None] | None = None) -> None:  # fmt: skip
        """`report(done, of)` is called after each file; `cache_bytes` bounds the shrunken clips kept in memory."""
        self.root = Path(root)
        self.sources: list[Source] = []
        self.rejected: dict[str, str] = {}
        """Relative path -> why the file is not used."""
        self.redrawn: Counter[str] = Counter()
        """How often `draw_fitting` changed a drawn rate (`rate`) or, for want of any rate, the file (`clip`)."""
        self._cache: OrderedDict[tuple[int, int, Fit], Frames] = OrderedDict()
        self._cache_bytes = cache_bytes
        paths = [path for path in walk(self.root) if path.suffix.lower() not in _NO_MEDIA]
        for done, path in enumerate(paths, 1):
            notes: list[str] = []
            try:
                times = frame_times(path, warnings=notes)
            except InputError as error:
                self.rejected[self._relative(path)] = error.message.replace(f"`{path}`", "").strip()
            else:
                if len(times) < min_frames:
                    self.rejected[self._relative(path)] = (
                        f"has {len(times)} frames, wanted at least {min_frames}"
                    )
                else:
                    self.sources.append(Source(path, times, tuple(notes)))
            if report is not None:
                report(done, len(paths))
        if not self.sources:
            raise InputError(
                f"`{self.root.absolute()}` holds no usable video: {reasons(self.rejected)}",
                hint="give a folder of video files, any nesting; `train.data.video` names it",
            )

    def __len__(self) -> int:
        return len(self.sources)

    def only(self, clips: Iterable[int]) -> VideoFolder:
        """The same folder with some of its files, and counts and a cache of its own."""
        part = copy.copy(self)
        part.sources = [self.sources[i] for i in clips]
        part.redrawn, part._cache = Counter(), OrderedDict()
        return part

    @property
    def used(self) -> str:
        """`used 114 of 117 clips (2 x ...)`, for the command line."""
        line = f"used {len(self.sources)} of {len(self.sources) + len(self.rejected)} clips"
        return f"{line}: {reasons(self.rejected)}" if self.rejected else line

    def bounds(self, clip: int, *, frames: int) -> tuple[float, float]:
        """(lowest, highest) frames per second at which `frames` frames can be drawn from a file."""
        source = self.sources[clip]
        return (frames - 1) / max(
            source.span, 1e-9
        ), source.fps * 1.001  # 0.1 %: 30 from 29.97 repeats nothing

    def draw_clip(self, rng: np.random.Generator, *, frames: int, fps: float, size: int, fit: Fit = "crop",
                  clip: int | None = None) -> Draw | Refused:  # fmt: skip
        """Draw a file (uniformly, unless `clip` names it) and a start (uniformly), and take `frames` frames at `fps`.

        A pure function of the generator's state and the folder. Returns Refused when the rate does not fit the file.
        """
        chosen = int(rng.integers(len(self.sources))) if clip is None else clip
        source = self.sources[chosen]
        lowest, highest = self.bounds(chosen, frames=frames)
        # 1e-9: `lowest` itself must be accepted
        if not lowest * (1 - 1e-9) <= fps <= highest:
            return Refused(chosen, fps, lowest, highest)
        slack = max(0.0, source.span - (frames - 1) / fps)
        offsets = np.arange(frames) / fps
        for _ in range(16):  # only videos with gaps ever need a second start
            start = float(rng.uniform(0.0, slack)) if slack else 0.0
            index = nearest_frames(source.times, start + offsets)
            if index is not None and bool((np.diff(index) > 0).all()):
                return Draw(self._pixels(chosen, index, size, fit), fps, chosen, start)
        return Refused(chosen, fps, lowest, highest)

    def draw_fitting(self, rng: np.random.Generator, *, frames: int, fps: float, size: int,
                     fit: Fit = "crop") -> Draw:  # fmt: skip
        """`draw_clip` with the rule for misfits: a rate outside what the drawn file allows moves to the nearer bound; a
        file that allows none is drawn again. `redrawn` counts both; `Draw.fps` is the rate that was used.

        Raises InputError when no file of the folder has `frames` frames to give.
        """
        for _ in range(8 * len(self.sources)):
            got = self.draw_clip(rng, frames=frames, fps=fps, size=size, fit=fit)
            if isinstance(got, Refused) and got.lowest <= got.highest:
                nearer = min(max(fps, got.lowest), got.highest)
                if nearer != fps:
                    self.redrawn["rate"] += 1
                    got = self.draw_clip(rng, frames=frames, fps=nearer, size=size, fit=fit, clip=got.clip)
            if isinstance(got, Draw):
                return got
            self.redrawn["clip"] += 1
        longest = max(len(source.times) for source in self.sources)
        raise InputError(
            f"`{self.root.absolute()}` gives no clip of {frames} frames; its longest video has {longest}",
            hint="use longer videos, or set fewer `frames` for this stage",
        )

    def _pixels(self, clip: int, index: NDArray[np.intp], size: int, rule: Fit) -> Frames:
        source = self.sources[clip]
        if len(source.times) * size * size * 3 > self._cache_bytes // 4:  # too long to keep: decode the part
            return sample_at(
                source.path, source.times[index], transform=lambda picture: fit(picture, size, rule=rule)
            )
        key = (clip, size, rule)
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            kept = np.empty((len(source.times), size, size, 3), np.uint8)
            count = 0
            for _, picture in read_video(source.path, max_frames=len(kept)):
                kept[count] = fit(picture, size, rule=rule)
                count += 1
            if count < len(kept):
                raise InputError(
                    f"`{source.path}` has {count} frames, it had {len(kept)} when the folder was read"
                )
            self._cache[key] = kept
            while sum(entry.nbytes for entry in self._cache.values()) > self._cache_bytes:
                self._cache.popitem(last=False)
        return self._cache[key][index]

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def walk(root: Path) -> list[Path]:
    """All regular files under `root`, sorted by relative path, hidden ones left out, links followed without loops.

    Raises InputError when `root` is no folder.
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
    return sorted(
        (path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix()
    )


def reasons(rejected: dict[str, str]) -> str:
    """`3 x is an empty file; 1 x ...`, the most frequent first; `no files` for none."""
    counted = Counter(rejected.values())
    lines = [f"{count} x {reason}" for reason, count in counted.most_common(5)]
    rest = len(counted) - len(lines)
    return "; ".join([*lines, *([f"{rest} other reasons"] if rest > 0 else [])]) or "no files"
