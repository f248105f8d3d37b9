"""Intervals: Wilson's for shares, the bootstrap's for everything that is computed from samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000


class Interval(NamedTuple):
    """Ends of a 95 % interval."""

    low: float
    high: float


def wilson(right: int, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927): its ends lie in [0, 1], also when all or none are right."""
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"{right} of {total} is no share")
    p, z2 = right / total, z * z
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The 95 % interval of `statistic` over samples drawn anew with replacement (Efron 1979), centred on the score.

    `statistic` takes how often each of `count` samples (or groups of samples) is drawn, (count,) whole numbers; all ones
    give the score itself. A resample repeats samples, which raises Fréchet distances and lowers inception scores by more
    than their spread, so that plain percentiles may lie beside the score: here their mean is moved onto it. A pure
    function of `count`, `seed`, `resamples` and what `statistic` returns. Raises ValueError below two samples.
    """
    if count < 2:
        raise ValueError(f"a bootstrap needs at least 2 samples, got {count}")
    rng = np.random.default_rng(seed)
    values = [statistic(rng.multinomial(count, np.full(count, 1 / count))) for _ in range(resamples)]
    low, high = np.quantile(values, (0.025, 0.975))
    shift = statistic(np.ones(count, int)) - float(np.mean(values))
    return Interval(float(low) + shift, float(high) + shift)


class Median(NamedTuple):
    """The median of samples and the ends of its 95 % interval, which two sources are needed for."""

    value: float
    low: float | None
    high: float | None


def median(values: Sequence[float], groups: Sequence[object] | None = None) -> Median:
    """The median of `values`; for the interval whole `groups` are drawn together, each value by itself where none are given."""
    found = np.array(values, float)
    names = range(len(found)) if groups is None else groups
    at: dict[object, list[int]] = {}
    for index, group in enumerate(names):
        at.setdefault(group, []).append(index)
    middle = float(np.median(found))
    if len(at) < 2:
        return Median(middle, None, None)
    members = list(at.values())

    def drawn(times: np.ndarray) -> float:
        return float(
            np.median(np.concatenate([np.repeat(found[m], n) for m, n in zip(members, times, strict=True)]))
        )

    low, high = bootstrap(drawn, len(members))
    return Median(middle, low, high)
