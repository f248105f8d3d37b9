"""Batch number `step` of a stage, or one process's share of it, out of a `Source`."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset

from mavcli.data.clips import Redrawn
from mavcli.data.loader import DrawnClip, Source, WorldSource, batch_generator, open_source
from mavcli.data.places import Unreadable
from mavcli.errors import InputError
from mavcli.recipe.load import LoadedRecipe
from mavcli.recipe.schema import Recipe
from mavcli.report import Report
from mavcli.training.conditioning import draw_fps, draw_known
from mavcli.training.stage import Batch, Stage, pair_keys

STILL_FPS = 240.0
"""The frame rate that a clip without any motion is told to have: far above those of video."""


_ATTEMPTS = 256
"""To draw a sample whose file can be read: if half of all are gone, all of these fail once in 10^77."""


@dataclass(frozen=True)
class _Row:
    """One sample: frames (f, h, w, 3) uint8, and of a clip its rate and which frames (f,) are known."""

    frames: np.ndarray
    sources: tuple[str, ...]
    fps: float | None = None
    known: np.ndarray | None = None
    caption: str | None = None
    redrawn: Redrawn = field(default=Redrawn())
    seen: np.ndarray | None = None
    """What CLIP is shown, at its own size (s, s, 3), where that is not the network's."""


def stage_source(stage: Stage, loaded: LoadedRecipe, *, report: Report | None = None) -> Source:
    """What a stage's samples are drawn from; pictures too where a stage for video sees stills. Raises as `open_source`."""
    recipe = loaded.recipe
    config = recipe.stage(stage.name)
    return open_source(
        recipe.train.data,
        stage.data,
        stage=stage.name,
        base=loaded.path.parent,
        stills=stage.data == "video"
        and bool(config.image_batch or config.still_clips or config.pictures_beside),
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
        self.look = stage.look(recipe)
        self.lost: dict[str, str] = {}
        """Files that were drawn in this process and could not be read, with the reason."""

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        """Raises InputError where no file can be read any more."""
        stage, config = self.stage, self.config
        size = config.crop or stage.size(self.recipe)
        lost: dict[str, str] = {}
        samples = range(self.first, self.first + self.count)
        if stage.data == "video" and not self._is_still(step):
            rows = [
                self._row(lambda rng: self._clip(rng, step, size), self._generators(step, i), lost)
                for i in samples
            ]
        elif stage.data == "video":  # stills: as many pictures as a batch of clips has frames
            rows = [
                self._row(lambda rng: self._picture(rng, size), generators, lost)
                for i in samples
                for generators in self._spawned(step, i)
            ]
        else:
            draw = self._pair if stage.data == "pairs" else self._picture
            rows = [self._row(lambda rng: draw(rng, size), self._generators(step, i), lost) for i in samples]
        moving = rows[0].fps is not None
        beside = self._beside(step, size, lost) if moving and config.pictures_beside else None
        self.lost |= lost
        batch = _joined(rows, first=self.first * len(rows) // self.count)
        keys = pair_keys(batch.pixels, batch.captions) if stage.comparable is not None else None
        return dataclasses.replace(batch, keys=keys, lost=tuple(lost.items()), beside=beside)

    def _beside(self, step: int, size: int, lost: dict[str, str]) -> Batch:
        """The pictures of a step of clips, numbered after all its clips, those of other processes too."""
        each = self.config.pictures_beside
        first = self.config.batch_size + self.first * each
        rows = [
            self._row(lambda rng: self._picture(rng, size), self._generators(step, i), lost)
            for i in range(first, first + self.count * each)
        ]
        return _joined(rows, first=first)

    def _generators(self, step: int, index: int) -> Callable[[int], np.random.Generator]:
        """The generator of a sample's every attempt."""
        seed, stage, held_out = self.recipe.train.seed, self.stage.name, self.held_out
        return lambda attempt: batch_generator(
            seed, stage=stage, step=step, index=index, held_out=held_out, attempt=attempt
        )

    def _spawned(self, step: int, index: int) -> Iterator[Callable[[int], np.random.Generator]]:
        """The same for each of the stills that stand for one clip."""
        generators = self._generators(step, index)
        spawned = functools.cache(lambda attempt: generators(attempt).spawn(self.config.frames))
        for number in range(self.config.frames):
            yield lambda attempt, number=number: spawned(attempt)[number]  # type: ignore[misc]

    def _row(
        self,
        draw: Callable[[np.random.Generator], _Row],
        generators: Callable[[int], np.random.Generator],
        lost: dict[str, str],
    ) -> _Row:
        """What `draw` makes with the first generator that meets a file which can be read; the others' go to `lost`."""
        for attempt in range(_ATTEMPTS):
            try:
                return draw(generators(attempt))
            except Unreadable as error:
                if error.name:
                    lost[error.name] = error.why
        name, why = next(iter(lost.items()), ("", "none of the files that it began with is there"))
        raise InputError(
            f"of {_ATTEMPTS} draws in a row none met a file that can be read"
            + (f": `{name}`: {why}" if name else f": {why}"),
            hint="see that the folder of the training data is there and can be read",
        )

    def _picture(self, rng: np.random.Generator, size: int) -> _Row:
        source = self.source.of(rng, still=True)
        picture, seen = self._image(source, rng, self.stage.size(self.recipe))
        known = np.zeros(1, dtype=bool) if self.stage.masks else None
        return _Row(_crop(picture[None], size, rng), source.names, known=known, seen=seen)

    def _image(
        self, source: Source, rng: np.random.Generator, size: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """A picture, and the same at the size that CLIP is shown: equal generators draw equal pictures."""
        seen = None if self.look is None else source.image(copy.deepcopy(rng), self.look)
        return source.image(rng, size), seen

    def _pair(self, rng: np.random.Generator, size: int) -> _Row:
        source = self.source.of(rng, still=True)
        picture, caption = source.pair(rng, size)
        return _Row(picture[None], source.names, caption=caption)

    def _clip(self, rng: np.random.Generator, step: int, size: int) -> _Row:
        config, stage = self.config, self.stage
        full = stage.size(self.recipe)
        wanted = draw_fps(rng, config.fps, min(1.0, step / max(1, config.steps)))
        caption = "" if stage.told_by_captions(self.recipe) else None
        still = bool(config.still_clips) and rng.random() < config.still_clips
        source = self.source.of(rng, still=still)
        if still:
            clip = self._still_clip(source, rng, full)
        elif caption is not None:
            assert isinstance(source, WorldSource)  # `check_stage` lets no other come here
            clip, caption = source.captioned_clip(
                rng, frames=config.frames, fps=wanted, size=full, look=self.look
            )
        else:
            clip = source.clip(rng, frames=config.frames, fps=wanted, size=full, look=self.look)
        frames = _crop(clip.frames, size, rng)
        known = draw_known(rng, config.masks, config.frames) if stage.masks else None
        first = 0 if known is None else int(known.argmax())
        seen = clip.seen if not first or clip.shown is None else clip.shown(first)
        return _Row(frames, source.names, clip.fps, known, caption, clip.redrawn, seen)

    def _still_clip(self, source: Source, rng: np.random.Generator, size: int) -> DrawnClip:
        picture, seen = self._image(source, rng, size)
        return DrawnClip(np.repeat(picture[None], self.config.frames, axis=0), STILL_FPS, seen=seen)

    def _is_still(self, step: int) -> bool:
        """Whether a video stage sees pictures at this step: a share of the steps, evenly spread."""
        share = self.config.image_batch
        return int((step + 1) * share) > int(step * share)


def _joined(rows: Sequence[_Row], *, first: int) -> Batch:
    """The samples as one batch, whose first row has the number `first` in the step."""
    known = [row.known for row in rows if row.known is not None]
    seen = [row.seen for row in rows if row.seen is not None]
    return Batch(
        torch.from_numpy(np.stack([row.frames for row in rows])),
        captions=tuple(row.caption for row in rows if row.caption is not None),
        fps=torch.tensor([row.fps for row in rows]) if rows[0].fps is not None else None,
        known=torch.from_numpy(np.stack(known)) if known else None,
        first=first,
        redrawn=sum((row.redrawn for row in rows), Redrawn()),
        sources=tuple(name for row in rows for name in row.sources),
        seen=torch.from_numpy(np.stack(seen)) if seen else None,
    )


def _crop(frames: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of `size` pixels out of frames (f, h, w, 3), the same for all frames."""
    h, w = frames.shape[1:3]
    if (h, w) == (size, size):
        return frames
    top, left = int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1))
    return frames[:, top : top + size, left : left + size]
