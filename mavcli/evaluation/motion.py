"""How a clip moves: figures that need no network, beside those of rendered clips and of shuffled frames.

f frames, c channels, h w pixels; clips are float32 (f, c, h, w) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
    clip = clip.double()
    first = clip.diff(dim=0)
    step = float(first.abs().mean())
    rest = clip - clip.mean(dim=0, keepdim=True)
    power = float(rest.square().mean())
    if power < 1e-12:
        return Motion(0.0, 1.0, 0.0)
    coherence = float((rest[1:] * rest[:-1]).mean()) / power
    return Motion(step / 2, coherence, float(first.diff(dim=0).abs().mean()) / step)


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
