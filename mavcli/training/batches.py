"""Batch number `step` of a stage, or one process's share of it, out of a `Source`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mavcli.data.clips import Redrawn
from mavcli.data.loader import DrawnClip, Source, WorldSource, batch_generator, open_source
from mavcli.recipe.load import LoadedRecipe
from mavcli.recipe.schema import Recipe
from mavcli.report import Report
from mavcli.training.conditioning import draw_fps, draw_known
from mavcli.training.stage import Batch, Stage

STILL_FPS = 240.0
"""The frame rate that a clip without any motion is told to have: far above those of video."""


def stage_source(stage: Stage, loaded: LoadedRecipe, *, report: Report | None = None) -> Source:
    """What a stage's samples are drawn from; pictures too where a stage for video sees stills. Raises as `open_source`."""
    recipe = loaded.recipe
    config = recipe.stage(stage.name)
    return open_source(
        recipe.train.data,
        stage.data,
        stage=stage.name,
        base=loaded.path.parent,
        stills=stage.data == "video" and bool(config.image_batch or config.still_clips),
        report=report,
    )


class Batches(Dataset[Batch]):
    """Batch number `step` of a stage; asking twice gives the same.

    With `processes` > 1 it is the share of process `rank`: the shares of all are the batch that one process would draw.
    """

    def __init__(
        self,
        source: Source,
        stage: Stage,
        recipe: Recipe,
        *,
        held_out: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.source = source.held_out() if held_out else source
        self.stage, self.recipe, self.held_out = stage, recipe, held_out
        self.config = recipe.stage(stage.name)
        self.count = self.config.batch_size // processes
        self.first = rank * self.count

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        stage, config = self.stage, self.config
        size = config.crop or stage.size(self.recipe)
        rngs = [
            batch_generator(
                self.recipe.train.seed, stage=stage.name, step=step, index=i, held_out=self.held_out
            )
            for i in range(self.first, self.first + self.count)
        ]
        if stage.data == "video" and not self._is_still(step):
            return self._video(rngs, step, size)
        if stage.data == "pairs":
            sources = [self.source.of(rng, still=True) for rng in rngs]
            pairs = [source.pair(rng, size) for source, rng in zip(sources, rngs, strict=True)]
            return Batch(
                _stack([p[0][None] for p in pairs]),
                captions=tuple(p[1] for p in pairs),
                first=self.first,
                sources=_names(sources),
            )
        if stage.data == "video":  # stills: as many pictures as a batch of clips has frames
            rngs = [g for rng in rngs for g in rng.spawn(config.frames)]
            known = torch.zeros(len(rngs), 1, dtype=torch.bool) if stage.masks else None
            return self._pictures(rngs, size, known=known, first=self.first * config.frames)
        return self._pictures(rngs, size, known=None, first=self.first)

    def _pictures(
        self, rngs: list[np.random.Generator], size: int, *, known: torch.Tensor | None, first: int
    ) -> Batch:
        full = self.stage.size(self.recipe)
        sources = [self.source.of(rng, still=True) for rng in rngs]
        pictures = [source.image(rng, full)[None] for source, rng in zip(sources, rngs, strict=True)]
        cut = [_crop(picture, size, rng) for picture, rng in zip(pictures, rngs, strict=True)]
        return Batch(_stack(cut), known=known, first=first, sources=_names(sources))

    def _video(self, rngs: list[np.random.Generator], step: int, size: int) -> Batch:
        config, stage = self.config, self.stage
        progress = min(1.0, step / max(1, config.steps))
        full = stage.size(self.recipe)
        clips, fps, known, captions, redrawn = [], [], [], [], Redrawn()
        sources = []
        captioned = stage.told_by_captions(self.recipe)
        for rng in rngs:
            wanted = draw_fps(rng, config.fps, progress)
            caption = ""
            still = bool(config.still_clips) and rng.random() < config.still_clips
            source = self.source.of(rng, still=still)
            if still:
                clip = self._still_clip(source, rng, full)
            elif captioned:
                assert isinstance(source, WorldSource)  # `check_stage` lets no other come here
                clip, caption = source.captioned_clip(rng, frames=config.frames, fps=wanted, size=full)
            else:
                clip = source.clip(rng, frames=config.frames, fps=wanted, size=full)
            sources.append(source)
            clips.append(_crop(clip.frames, size, rng))
            fps.append(clip.fps)
            captions.append(caption)
            redrawn += clip.redrawn
            if stage.masks:
                known.append(draw_known(rng, config.masks, config.frames))
        return Batch(
            _stack(clips),
            captions=tuple(captions) if captioned else (),
            fps=torch.tensor(fps),
            known=torch.from_numpy(np.stack(known)) if known else None,
            first=self.first,
            redrawn=redrawn,
            sources=_names(sources),
        )

    def _still_clip(self, source: Source, rng: np.random.Generator, size: int) -> DrawnClip:
        picture = source.image(rng, size)
        return DrawnClip(np.repeat(picture[None], self.config.frames, axis=0), STILL_FPS)

    def _is_still(self, step: int) -> bool:
        """Whether a video stage sees pictures at this step: a share of the steps, evenly spread."""
        share = self.config.image_batch
        return int((step + 1) * share) > int(step * share)


def _names(sources: Sequence[Source]) -> tuple[str, ...]:
    return tuple(name for source in sources for name in source.names)


def _stack(frames: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames))


def _crop(frames: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of `size` pixels out of frames (f, h, w, 3), the same for all frames."""
    h, w = frames.shape[1:3]
    if (h, w) == (size, size):
        return frames
    top, left = int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1))
    return frames[:, top : top + size, left : left + size]
