"""The random numbers of a training step: every picture or clip of it has a generator of its own.

A row's generator is a function of (seed, stage, step, number of the row in the whole step), so the number of processes, the
cut into micro-batches and a resumed run change no draw (invariants 8 and 9 of the design).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Noise, diffusion steps and dropout of `count` rows, the first of which is number `first` of its step.

    Everything is drawn on the CPU. `seeds` has one number below 2**63 for each row, for layers that draw on a device.
    """

    def __init__(
        self, seed: int, *, stage: str, step: int, first: int = 0, count: int = 1, held_out: bool = False
    ) -> None:
        keys = [_key(f"{seed}/{stage}/{step}/{int(held_out)}/{first + row}") for row in range(count)]
        self.seeds = [key >> 65 for key in keys]
        self._first = first
        # Philox takes the whole 128-bit key; torch's own CPU generator would use 32 bits of it.
        self._generators = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def integers(self, high: int, *, strata: int = 1) -> Tensor:
        """(b,) int64 in [0, high); row i of the step draws from part i mod `strata` of as many equal parts."""
        rows = [(self._first + i) % strata for i in range(len(self._generators))]
        lows = [row * high // strata for row in rows]
        highs = [max((row + 1) * high // strata, low + 1) for row, low in zip(rows, lows, strict=True)]
        return torch.tensor(
            [int(g.integers(a, b)) for g, a, b in zip(self._generators, lows, highs, strict=True)]
        )

    def uniform(self) -> Tensor:
        """(b,) float32 in [0, 1)."""
        return torch.tensor([generator.random(dtype=np.float32) for generator in self._generators])

    def normal(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        """Standard normal float32 of `shape` = (b, ...), drawn on the CPU and then put on `device`."""
        noise = torch.empty(tuple(shape), dtype=torch.float32, pin_memory=device.type == "cuda")
        rows = list(zip(noise.numpy(), self._generators, strict=True))
        if device.type == "cpu":
            for row in rows:
                _fill(row)
            return noise
        list(_drawing().map(_fill, rows))  # a GPU would wait for one core that draws
        return noise.to(device, non_blocking=True)


def _fill(row: tuple[np.ndarray, np.random.Generator]) -> None:
    row[1].standard_normal(out=row[0], dtype=np.float32)


@functools.cache
def _drawing() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="noise")


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest())
