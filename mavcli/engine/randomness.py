"""Noise that depends on what it is for and on nothing else: invariants 7 and 8 of the design.

Every frame's noise is drawn on the CPU from a key of its own, (seed, stage, sample, frame, step). So the size of a batch,
the cut into windows or chunks, the device and a resumed run cannot change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

START = -1
"""The step of x_T; a sampler counts its own from 0."""


@dataclass(frozen=True)
class Draw:
    """Which of the endless results of one command: `sample` counts those of one seed."""

    seed: int
    sample: int = 0


def gaussian(shape: Sequence[int], draw: Draw, *, stage: str, frame: int | str, step: int) -> Tensor:
    """Standard normal float32 noise of `shape` for one frame of one stage at one step, on the CPU.

    Philox takes the whole 128-bit key; torch's own CPU generator would use 32 bits of it.
    """
    name = f"{draw.seed}/{stage}/{draw.sample}/{frame}/{step}"
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest())
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def video_noise(
    shape: Sequence[int], rows: Sequence[tuple[Draw, Sequence[int]]], *, stage: str, step: int
) -> Tensor:
    """(b, f, *shape): a row for each (draw, numbers of its frames), each frame by its own number."""
    return torch.stack(
        [
            torch.stack([gaussian(shape, draw, stage=stage, frame=i, step=step) for i in frames])
            for draw, frames in rows
        ]
    )


def shared_noise(shape: Sequence[int], draws: Sequence[Draw], *, stage: str, step: int) -> Tensor:
    """(b, 1, *shape): one tensor for all frames of a video (SR_h: "the same noise for every frame", section 3.2)."""
    return torch.stack([gaussian(shape, draw, stage=stage, frame="all", step=step)[None] for draw in draws])
