"""Values that other repositories state for clips that anyone can make, recomputed with the real weights of I3D.

They close the gap that reference numbers on stand-in weights leave: that a weight file is the published one, and that its
code and ours agree on it.

b clips, f frames, h w pixels; clips are float32 (b, 3, f, 224, 224), already what the network reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavcli.evaluation.frechet import Gaussian, Moments, frechet_distance
from mavcli.evaluation.i3d import I3D, SIDE, default_eps, load_i3d
from mavcli.report import Report

_AT_ONCE = 4

Clips = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Stated:
    """A value, the two sets of clips it is of, and how near two codes can be expected to come."""

    name: str
    source: str
    value: float
    real: Clips
    generated: Clips
    clips: int
    """Of both sets."""
    within: float
    """Relative: the digits that are stated, and what eps and resize of the stating code allow."""


@dataclass(frozen=True)
class Row:
    """A stated value beside the one that was found."""

    name: str
    source: str
    stated: float
    found: float
    within: float

    @property
    def off(self) -> float:
        """Relative difference."""
        return abs(self.found - self.stated) / abs(self.stated)

    @property
    def met(self) -> bool:
        return self.off <= self.within

    @property
    def verdict(self) -> str:
        return "met" if self.met else f"not met, {100 * self.within:.2g} % allowed"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "off": self.off, "met": self.met}


def constant(value: float, *, clips: int, frames: int) -> Clips:
    """`clips` clips of one grey, in [-1, 1]."""

    def make() -> Iterator[Tensor]:
        for start in range(0, clips, _AT_ONCE):
            yield torch.full((min(_AT_ONCE, clips - start), 3, frames, SIDE, SIDE), float(value))

    return make


def noise(seed: int, *, clips: int, frames: int) -> Clips:
    """Uniform noise in [0, 1] as it is: numpy's legacy `RandomState(seed).rand(b, f, h, w, 3)`, a few clips at a time."""

    def make() -> Iterator[Tensor]:
        rng = np.random.RandomState(seed)
        for start in range(0, clips, _AT_ONCE):
            drawn = rng.rand(min(_AT_ONCE, clips - start), frames, SIDE, SIDE, 3).astype(np.float32)
            yield torch.from_numpy(drawn).permute(0, 4, 1, 2, 3).contiguous()

    return make


_JUNYAO = "JunyaoHu/common_metrics_on_video_quality README, 8 clips of zeros and of ones, {} frames"
_BY_LENGTH = (
    569.2296293622766,
    486.3584254441098,
    551.9610501807822,
    146.36638178542628,
    172.85453222258292,
    133.70311962583372,
    152.91750309134142,
    357.7402855012116,
    382.4668646785276,
    306.73840379649727,
    338.4151811780684,
    78.17255931098194,
    82.33446642508818,
    64.5885972265882,
    66.06281151704604,
    314.4803706985065,
    316.6870909853734,
    288.97196946254184,
    287.7805184515251,
    152.1524775765185,
    151.2564750365302,
)
"""FVD of StyleGAN-V's port for clips of 10, 11, ... 30 frames."""


def stated_values(*, eps: float) -> list[Stated]:
    """What a network with BatchNorm's `eps` can be held to; all were computed with 1e-3."""
    exact = eps == 1e-3
    near = 1e-4 if exact else 0.02
    found = [
        Stated(
            "tensorflow example",
            "google-research/frechet_video_distance/example.py, 16 clips of black and of white, 15 frames",
            131.0,
            constant(-1, clips=16, frames=15),
            constant(1, clips=16, frames=15),
            32,
            0.01 if exact else 0.02,  # "about 131"
        )
    ]
    for length in (10, 16, 24, 30):
        found.append(
            Stated(
                f"common metrics, {length} frames",
                _JUNYAO.format(length),
                _BY_LENGTH[length - 10],
                constant(-1, clips=8, frames=length),
                constant(1, clips=8, frames=length),
                16,
                near,
            )
        )
    found.append(
        Stated(
            "fvd-comparison",
            "universome/fvd-comparison README, 128 clips of uniform noise, RandomState 2 and 1, 16 frames, not rescaled",
            10.138084766713924,
            noise(2, clips=128, frames=16),
            noise(1, clips=128, frames=16),
            256,
            near,
        )
    )
    return found


def check(path: Path, *, device: torch.device, report: Report, eps: float | None = None) -> list[Row]:
    """Every stated value beside the one that the weights in `path` give."""
    eps = default_eps(path) if eps is None else eps
    network = load_i3d(path, eps=eps).to(device)
    values = stated_values(eps=eps)
    report.stage("stated values", sum(value.clips for value in values))
    rows = []
    for value in values:
        sides = [_gaussian(network, side, device, report) for side in (value.real, value.generated)]
        rows.append(Row(value.name, value.source, value.value, frechet_distance(*sides), value.within))
    return rows


@torch.inference_mode()
def _gaussian(network: I3D, clips: Clips, device: torch.device, report: Report) -> Gaussian:
    moments = Moments()
    for batch in clips():
        moments.add(network(batch.to(device)).float().cpu().numpy())
        report.advance(len(batch))
    return moments.gaussian()
