"""The Inception Score: how sure a classifier is of each sample, and how many classes it sees (Salimans et al. 2016).

    IS = exp(mean_i KL(p(y | x_i) || p(y)))

n samples, k classes; float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class InceptionScore:
    """Mean and (population) standard deviation over the splits; with one split the deviation is 0."""

    mean: float
    std: float


class InceptionSums:
    """The running sums of a score over `count` samples that come in order, split by split; memory is splits x k.

    With H the mean of sum_y p log p, the exponent of a split is H - sum_y m log m, m the mean of p.
    """

    def __init__(self, count: int, *, splits: int = 1, shuffle_seed: int | None = None) -> None:
        """`shuffle_seed` permutes the samples first: torch-fidelity does, with 2020; TGANv2 and the first code do not.
        Raises ValueError with fewer samples than splits."""
        if not 1 <= splits <= count:
            raise ValueError(f"{splits} splits of {count} samples")
        self.count, self.splits, self.seen = count, splits, 0
        place = np.arange(count)
        if shuffle_seed is not None:
            # The legacy generator: the permutation is part of torch-fidelity's definition.
            place = np.argsort(np.random.RandomState(shuffle_seed).permutation(count))
        ends = np.array([(i + 1) * count // splits for i in range(splits)])
        self._split = np.searchsorted(ends, place, side="right")
        self._sizes = np.bincount(self._split, minlength=splits)
        self._entropy = np.zeros(splits)
        self._p: NDArray[np.float64] | None = None

    def add(self, logits: NDArray[np.floating]) -> None:
        """logits (n, k) before the softmax, the next n samples."""
        if logits.ndim != 2 or self.seen + len(logits) > self.count:
            raise ValueError(
                f"logits must be `n k`, {self.count} in all, got {logits.shape} after {self.seen}"
            )
        logits = logits.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        if self._p is None:
            self._p = np.zeros((self.splits, logits.shape[1]))
        split = self._split[self.seen : self.seen + len(logits)]
        np.add.at(self._entropy, split, (p * log_p).sum(axis=1))
        np.add.at(self._p, split, p)
        self.seen += len(logits)

    def score(self) -> InceptionScore:
        """Mean and deviation over the splits. Raises ValueError before all samples came."""
        if self._p is None or self.seen != self.count:
            raise ValueError(f"{self.seen} of {self.count} samples")
        mean = self._p / self._sizes[:, None]
        # A class that no sample shows has mean 0 and contributes 0 x log 0 = 0.
        log_mean = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
        scores = np.exp(self._entropy / self._sizes - (mean * log_mean).sum(axis=1))
        return InceptionScore(float(scores.mean()), float(scores.std()))


def inception_score(
    logits: NDArray[np.floating], *, splits: int = 1, shuffle_seed: int | None = None
) -> InceptionScore:
    """logits (n, k) before the softmax -> the score of each of `splits` equal runs of samples, then mean and deviation."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be `n k`, got {logits.shape}")
    sums = InceptionSums(len(logits), splits=splits, shuffle_seed=shuffle_seed)
    sums.add(logits)
    return sums.score()
