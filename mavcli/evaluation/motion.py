"""How a clip moves: figures that need no network, beside those of rendered clips and of shuffled frames.

f frames, c channels, h w pixels; clips are float32 (f, c, h, w) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mavcli.errors import InputError, counted
from mavcli.media.frames import Frames, to_float

_AT_ONCE = 1 << 22
"""Numbers of a clip that are in memory in float64, 32 MiB."""


@dataclass(frozen=True)
class Motion:
    """motion: mean absolute difference of neighbouring frames, as a share of the range from black to white.
    coherence: lag-1 autocorrelation over time of what differs from the clip's mean picture, -1 to 1.
    flicker: mean absolute second difference over the mean absolute first one; 0 for even motion, 1.73 for noise."""

    motion: float
    coherence: float
    flicker: float


def motion_of(clip: Tensor) -> Motion:
    """The figures of one clip (f, c, h, w), f at least 3; a still has coherence 1 and flicker 0."""
    if clip.ndim != 4 or len(clip) < 3:
        raise ValueError(f"motion needs a clip `f c h w` of at least 3 frames, got {tuple(clip.shape)}")
    return _figures(clip.split(_rows(len(clip), clip.shape[-1]), dim=2))[0]


def _rows(frames: int, width: int) -> int:
    """How many rows of pixels are taken at once: a long clip of large frames in float64 would not fit in memory."""
    return max(1, _AT_ONCE // (3 * frames * width))


def _figures(strips: Iterable[Tensor]) -> tuple[Motion, float]:
    """The figures of a clip that comes in strips of rows (f, c, rows, w), and how much its mean brightness changes."""
    step = turn = power = together = 0.0
    level, size = torch.zeros(1, dtype=torch.float64), 0
    for strip in strips:
        x = strip.double()
        first, rest = x.diff(dim=0), x - x.mean(dim=0, keepdim=True)
        step += float(first.abs().sum())
        turn += float(first.diff(dim=0).abs().sum())
        power += float(rest.square().sum())
        together += float((rest[1:] * rest[:-1]).sum())
        level, size = level + x.sum(dim=(1, 2, 3)), size + x[0].numel()
    frames = len(level)
    step, power = step / ((frames - 1) * size), power / (frames * size)
    if power < 1e-12:
        return Motion(0.0, 1.0, 0.0), 0.0
    coherence = together / ((frames - 1) * size) / power
    flicker = turn / ((frames - 2) * size) / step
    return Motion(step / 2, coherence, flicker), float((level / size).diff().abs().mean()) / 2


def shuffled(clip: Tensor, *, seed: int) -> Tensor:
    """The same frames in another order: the control that any claim of motion must beat."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(clip)))
    return clip[order]


def mean_motion(clips: Sequence[Motion]) -> Motion:
    """The mean of each figure."""
    if not clips:
        raise ValueError("no clips to average over")
    values = np.array([(m.motion, m.coherence, m.flicker) for m in clips])
    motion, coherence, flicker = values.mean(axis=0).tolist()
    return Motion(motion, coherence, flicker)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho; ties share their mean rank, and a constant row has correlation 0."""
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"a rank correlation needs two rows of one length above 1, got {len(x)} and {len(y)}"
        )
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def _ranks(values: Sequence[float]) -> np.ndarray:
    row = np.asarray(values, dtype=float)
    return np.array([(row < v).sum() + ((row == v).sum() + 1) / 2 for v in row])


FIGURES = ("motion", "coherence", "flicker", "brightness")
"""The figures of `MotionFigures`, in the order of its columns: those of `Motion`, and how much the mean brightness of a frame
changes from one to the next, as a share of the range from black to white."""


class MotionFigures:
    """The figures of a clip as a `FeatureNetwork`: one row a clip, a column for each of `FIGURES`."""

    facts: Mapping[str, Any] = {"name": "motion figures", "version": 1, "figures": list(FIGURES)}

    def prepare(self, frames: Frames) -> Tensor:
        """frames (f, h, w, 3) uint8, f at least 3 -> (1, 4). Raises InputError for fewer."""
        if len(frames) < 3:
            raise InputError(f"a clip of {counted(len(frames), 'frame')}, motion needs at least 3")
        rows = _rows(len(frames), frames.shape[2])
        strips = (to_float(frames[:, top : top + rows]) for top in range(0, frames.shape[1], rows))
        found, brightness = _figures(strips)
        return torch.tensor([[found.motion, found.coherence, found.flicker, brightness]])

    def features(self, prepared: Tensor) -> Tensor:
        return prepared


@dataclass(frozen=True)
class Spread:
    """How a figure is spread over clips: mean, standard deviation, and three percentiles."""

    mean: float
    std: float
    p5: float
    median: float
    p95: float


@dataclass(frozen=True)
class Beside:
    """A figure of one set beside that of another.

    difference: of the means. above: the share of pairs in which the first set's clip has more, ties half, 0.5 for sets that
    are alike (Mann and Whitney). distance: the largest gap between the two distributions, 0 to 1 (Kolmogorov, Smirnov)."""

    difference: float
    above: float
    distance: float


def spread_of(values: NDArray[np.floating]) -> Spread:
    """values (n,), n at least 1."""
    row = np.asarray(values, np.float64)
    p5, median, p95 = np.percentile(row, (5, 50, 95)).tolist()
    return Spread(float(row.mean()), float(row.std()), p5, median, p95)


def beside(values: NDArray[np.floating], reference: NDArray[np.floating]) -> Beside:
    """values (n,) beside reference (m,)."""
    a, b = np.sort(np.asarray(values, np.float64)), np.sort(np.asarray(reference, np.float64))
    below, upto = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    above = float((below + upto).mean()) / (2 * len(b))
    places = np.concatenate([a, b])
    gap = np.searchsorted(a, places, side="right") / len(a) - np.searchsorted(b, places, side="right") / len(
        b
    )
    return Beside(float(a.mean() - b.mean()), above, float(np.abs(gap).max()))
