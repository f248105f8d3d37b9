"""Values that other repositories and papers state, recomputed: scores of printed numbers at once, the others with weights.

Scores of printed features or logits need no network and are always recomputed. Those of clips that anyone can make need
I3D's weights: they close the gap that reference numbers on stand-in weights leave, that a weight file is the published one,
and that its code and ours agree on it. Those of videos that have to be at hand are listed with the command that scores them.

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

from mavcli.evaluation.frechet import Gaussian, Moments, frechet_distance, gaussian_of
from mavcli.evaluation.i3d import I3D, SIDE, default_eps, load_i3d
from mavcli.evaluation.inception_score import inception_score
from mavcli.report import Report

_AT_ONCE = 4

Clips = Callable[[], Iterator[tuple[Tensor, int]]]
"""Batches of clips, and how often each batch stands in the set."""


@dataclass(frozen=True)
class Row:
    """A stated value beside the one that was found; `found` is None where it was not computed, and `command` does it."""

    name: str
    source: str
    stated: float
    found: float | None
    within: float
    """Relative: the digits that are stated, and what eps and resize of the stating code allow."""
    command: str = ""

    @property
    def off(self) -> float | None:
        """Relative difference."""
        return None if self.found is None else abs(self.found - self.stated) / abs(self.stated)

    @property
    def met(self) -> bool | None:
        return None if self.off is None else self.off <= self.within

    @property
    def verdict(self) -> str:
        if self.met is None:
            return self.command
        return "met" if self.met else f"not met, {100 * self.within:.2g} % allowed"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "off": self.off, "met": self.met}


# -- without a network ------------------------------------------------------------------------------------------------------


def of_printed_numbers() -> list[Row]:
    """What follows from features and logits that stand in the sources, which allow the error of their own tests."""
    real, made = np.ones((100, 2)), np.full((100, 2), 9.0)
    real[:50, 0], made[50:, 0] = 2, 2
    few, moved = np.array([[1, 2], [1, 2], [1, 2]], float), np.array([[2, 2], [1, 2], [1, 2]], float)
    logits = np.array([[1.0, 2.0, 3.0], [-1.0, 5.0, 3.1]])
    return [
        Row(
            "FID of 100 features of 2 numbers",
            "google/compare_gan compare_gan/metrics/fid_score_test.py",
            89.091,
            frechet_distance(gaussian_of([real]), gaussian_of([made])),
            1e-4 / 89.091,
        ),
        Row(
            "FID of 3 features of 2 numbers",
            "Project-MONAI/MONAI tests/test_compute_fid_metric.py",
            0.4444,
            frechet_distance(gaussian_of([few]), gaussian_of([moved])),
            1e-4 / 0.4444,
        ),
        Row(
            "inception score of 2 rows of 3 logits",
            "torchgan/torchgan test/test_metrics.py",
            1.24357,
            inception_score(logits).mean,
            5e-5 / 1.24357,
        ),
    ]


# -- clips that anyone can make ---------------------------------------------------------------------------------------------

_WITH_I3D = "mav eval published --weights i3d_torchscript.pt"


@dataclass(frozen=True)
class Stated:
    """A Fréchet Video Distance, the two sets of clips it is of, and how near two codes can be expected to come."""

    name: str
    source: str
    value: float
    real: Clips
    generated: Clips
    clips: int
    """That the network reads, of both sets."""
    within: float
    """Relative, as `Row.within`."""

    def row(self, found: float | None) -> Row:
        return Row(self.name, self.source, self.value, found, self.within, _WITH_I3D)


def constant(value: float, *, clips: int, frames: int) -> Clips:
    """`clips` clips of one grey, in [-1, 1]: one that stands in the set so often."""

    def make() -> Iterator[tuple[Tensor, int]]:
        yield torch.full((1, 3, frames, SIDE, SIDE), float(value)), clips

    return make


def noise(seed: int, *, clips: int, frames: int) -> Clips:
    """Uniform noise in [0, 1] as it is: numpy's legacy `RandomState(seed).rand(b, f, h, w, 3)`, a few clips at a time."""

    def make() -> Iterator[tuple[Tensor, int]]:
        rng = np.random.RandomState(seed)
        for start in range(0, clips, _AT_ONCE):
            drawn = rng.rand(min(_AT_ONCE, clips - start), frames, SIDE, SIDE, 3).astype(np.float32)
            yield torch.from_numpy(drawn).permute(0, 4, 1, 2, 3).contiguous(), 1

    return make


_JUNYAO = "JunyaoHu/common_metrics_on_video_quality README, 8 clips of zeros and of ones"
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
            2,
            0.025,  # "about 131"; the port below states 133.7 of such clips
        )
    ]
    for length, value in enumerate(_BY_LENGTH, start=10):
        found.append(
            Stated(
                f"common metrics, {length} frames",
                _JUNYAO,
                value,
                constant(-1, clips=8, frames=length),
                constant(1, clips=8, frames=length),
                2,
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


def without_weights() -> list[Row]:
    """The rows of `check` before any weights are there: nothing found."""
    return [value.row(None) for value in stated_values(eps=1e-3)]


def check(path: Path, *, device: torch.device, report: Report, eps: float | None = None) -> list[Row]:
    """Every stated value of clips that can be made, beside the one that the weights in `path` give."""
    eps = default_eps(path) if eps is None else eps
    network = load_i3d(path, eps=eps).to(device)
    values = stated_values(eps=eps)
    report.stage("stated values", sum(value.clips for value in values))
    rows = []
    for value in values:
        sides = [_gaussian(network, side, device, report) for side in (value.real, value.generated)]
        rows.append(value.row(frechet_distance(*sides)))
    return rows


@torch.inference_mode()
def _gaussian(network: I3D, clips: Clips, device: torch.device, report: Report) -> Gaussian:
    moments = Moments()
    for batch, times in clips():
        features = network(batch.to(device)).float().cpu().numpy()
        moments.add(np.repeat(features, times, axis=0))
        report.advance(len(batch))
    return moments.gaussian()


# -- videos that have to be at hand -----------------------------------------------------------------------------------------


def of_videos() -> list[Row]:
    """What is stated of videos that `mav` cannot make, with the command that scores them."""
    songwei = "songweige/content-debiased-fvd issue 2, UCF-101 against its example videos, 2,048 clips"
    paper = "Make-A-Video, table 1, MSR-VTT; its samples are not public"
    fvd = "mav eval fvd UCF101 EXAMPLES --port cd-fvd --weights i3d_pretrained_400.pt --count 2048"
    return [
        Row("cd-fvd example, I3D", songwei, 3383.964558389454, None, 1e-4, fvd),
        Row("FID of Make-A-Video", paper, 13.17, None, 5e-4, "mav eval fid MSRVTT SAMPLES"),
        Row("CLIPSIM of Make-A-Video", paper, 0.3049, None, 2e-4, "mav eval clipsim SAMPLES"),
    ]
