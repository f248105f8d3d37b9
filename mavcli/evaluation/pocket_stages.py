"""How far each stage of the cascade is from rendered clips: Fréchet distances in the judge's feature space.

After D^t its 16 frames are read by the judge of pictures, after ↑F, SR_l^t and SR_h the 15 that stand in the middle
between them, and so are the frames of rendered clips of the same prompts with other scenes, at the size of the stage. A second set of rendered clips against the
first gives the floor: what two sets of this many frames differ by. The judge sees 64 pixels, so after super-resolution
the figure says whether the picture is still right, not how sharp it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mavcli.engine.cascade import Cascade
from mavcli.engine.randomness import Draw
from mavcli.evaluation.classifier import Classifier
from mavcli.evaluation.frechet import Moments, frechet_distance
from mavcli.evaluation.pocket import Prompt, rendered_clip

FEWEST_CLIPS = 22
"""15 frames of each must be more than the 320 features, or the covariances have no full rank."""
_FRAMES = 16


@dataclass(frozen=True)
class StageDistance:
    """The distance after one stage, and the floor that two sets of rendered frames have at this size."""

    stage: str
    size: int
    frames: int
    distance: float
    floor: float


def stage_distances(
    cascade: Cascade, judge: Classifier, prompts: Sequence[Prompt], *, fps: float, seed: int
) -> list[StageDistance]:
    """The chain of every prompt, stage by stage, against rendered clips. Raises ValueError below 22 prompts."""
    if len(prompts) < FEWEST_CLIPS:
        raise ValueError(
            f"a Fréchet distance over 320 features needs at least {FEWEST_CLIPS} clips, not {len(prompts)}"
        )
    drawn: dict[str, Moments] = {}
    sizes: dict[str, int] = {}
    for prompt in prompts:
        for stage, clip in _stages(cascade, prompt, fps=fps, seed=seed):
            drawn.setdefault(stage, Moments()).add(_features(judge, clip))
            sizes[stage] = clip.shape[-1]
    keys_fps = fps / cascade.skip
    truth = {size: _rendered(judge, prompts, keys_fps, size, seed + 1) for size in set(sizes.values())}
    other = {size: _rendered(judge, prompts, keys_fps, size, seed + 2) for size in set(sizes.values())}

    def apart(a: Moments, b: Moments) -> float:
        return frechet_distance(a.gaussian(), b.gaussian())

    return [
        StageDistance(
            stage,
            sizes[stage],
            moments.count,
            apart(moments, truth[sizes[stage]]),
            apart(other[sizes[stage]], truth[sizes[stage]]),
        )
        for stage, moments in drawn.items()
    ]


def _stages(cascade: Cascade, prompt: Prompt, *, fps: float, seed: int) -> list[tuple[str, Tensor]]:
    """What each stage made of the prompt: 16 frames (f, 3, h, w), `frame_skip` apart."""
    draws = [Draw(seed, prompt.sample)]
    base = cascade.decode(cascade.image_embedding([prompt.text], draws), draws, fps=fps)
    filled = cascade.fill_up(base, draws, fps=fps, frames=cascade.natural_frames)
    small = cascade.sr_l(filled, draws, fps=fps)
    found = [("D^t", base), ("↑F", filled), ("SR_l^t", small), ("SR_h", cascade.sr_h(small, draws))]
    skipped = {
        name
        for name, part in (("SR_l^t", cascade.parts.sr_l), ("SR_h", cascade.parts.sr_h))
        if part.kind == "none"
    }
    # Known frames pass ↑F unchanged: after it, the frames between the keys are read.
    middle = cascade.skip // 2
    return [
        (name, clip[0] if name == "D^t" else clip[0, middle :: cascade.skip])
        for name, clip in found
        if name not in skipped
    ]


@torch.no_grad()
def _features(judge: Classifier, clip: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = judge.features(clip[:_FRAMES]).double().numpy()
    return found


def _rendered(judge: Classifier, prompts: Sequence[Prompt], fps: float, size: int, seed: int) -> Moments:
    moments = Moments()
    for prompt in prompts:
        clip = rendered_clip(prompt, fps=fps, frames=_FRAMES, size=size, seed=seed)
        moments.add(_features(judge, clip))
    return moments
