"""The Fréchet distance between two sets of features, each taken for a Gaussian (Dowson and Landau 1982; FID, FVD).

    d(1, 2) = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

Everything is float64. Mean and covariance are gathered batch by batch, so memory does not grow with the number of
samples, and without sums of squares, so a mean far from zero costs no digits (Chan, Golub, LeVeque 1983).

n samples, d features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Covariance = Literal["unbiased", "biased"]
"""`unbiased` divides by n - 1 (pytorch-fid, clean-fid, torch-fidelity, torchmetrics, VideoGPT, cd-fvd's and StyleGAN-V's
ports that call `numpy.cov`); `biased` by n (StyleGAN2/3's and StyleGAN-V's own `FeatureStats`, which cd-fvd took over)."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """mean (d,), covariance (d, d), and of how many samples."""

    mean: Array
    covariance: Array
    count: int


class Moments:
    """Running mean and scatter of rows; `add` any number of times, then `gaussian`."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Array | None = None
        self._scatter: Array | None = None

    def add(self, rows: NDArray[np.floating]) -> None:
        """rows (n, d), any floating type. Raises ValueError for another shape, or values that are not finite."""
        if rows.ndim != 2:
            raise ValueError(f"features must be `n d`, got {rows.shape}")
        if len(rows) == 0:
            return
        block = np.asarray(rows, np.float64)
        if not np.isfinite(block).all():
            raise ValueError("features hold values that are not finite")
        mean = block.mean(axis=0)
        block = block - mean
        self._join(len(rows), mean, block.T @ block)

    def merge(self, other: Moments) -> None:
        """Take in what `other` has gathered, as if its rows had been added here."""
        if other._mean is not None and other._scatter is not None:
            self._join(other.count, other._mean, other._scatter)

    def _join(self, count: int, mean: Array, scatter: Array) -> None:
        if self._mean is None or self._scatter is None:
            self._mean, self._scatter, self.count = mean.copy(), scatter.copy(), count
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"features of {len(mean)} numbers after features of {len(self._mean)}")
        total = self.count + count
        shift = mean - self._mean
        self._mean = self._mean + shift * (count / total)
        self._scatter += scatter
        self._scatter += np.outer(shift, shift) * (self.count * count / total)
        self.count = total

    def gaussian(self, covariance: Covariance = "unbiased") -> Gaussian:
        """Mean and covariance of what was added. Raises ValueError below two samples: one has no covariance."""
        if self._mean is None or self._scatter is None or self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        divisor = self.count - 1 if covariance == "unbiased" else self.count
        return Gaussian(self._mean, self._scatter / divisor, self.count)


def gaussian_of(batches: Iterable[NDArray[np.floating]], covariance: Covariance = "unbiased") -> Gaussian:
    """The Gaussian of batches of rows (n, d)."""
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    return moments.gaussian(covariance)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance between two Gaussians, at least 0.

    The trace of (S_1 S_2)^(1/2) is the sum of the singular values of S_1^(1/2) S_2^(1/2): symmetric roots alone, so no
    imaginary part to drop and no `eps` on the diagonal, also where there are fewer samples than features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} numbers beside features of {len(b.mean)}")
    shift = a.mean - b.mean
    overlap = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(shift @ shift + traces - 2 * overlap))


def _root(covariance: Array) -> Array:
    """R (d, r) with R R^T = covariance (d, d) of rank r."""
    values, vectors = np.linalg.eigh(covariance)
    # What rounding leaves in the null space would come back as its root, 1e-8 of the largest in each direction.
    floor = values[-1] * len(values) * np.finfo(np.float64).eps
    kept = values > max(floor, 0.0)
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root
