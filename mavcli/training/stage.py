"""What a training stage is: a frozen declaration that one loop runs (design, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mavcli.diffusion.schedule import Schedule
from mavcli.models.clip import Clip
from mavcli.recipe.schema import Recipe, StageTraining
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec


@dataclass(frozen=True)
class Batch:
    """One step's samples. pixels (b, f, h, w, 3) uint8, f = 1 for pictures; fps (b,) and known (b, f) for video."""

    pixels: Tensor
    captions: tuple[str, ...] = ()
    fps: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """What a loss needs beside the batch; built once for a run."""

    stage: str
    recipe: Recipe
    config: StageTraining
    network: nn.Module
    device: torch.device
    schedule: Schedule | None = None
    clip: Clip | None = None


@dataclass(frozen=True)
class Stage:
    """One of the eight stages.

    `parents` are the stages whose weights it starts from, the first that exists; `parent_needed` forbids scratch.
    `needs_clip` says that the frozen towers take part. `loss(task, batch, generator)` draws all its randomness from
    `generator` (on the CPU) and returns the loss of each sample (b,), or a scalar.
    """

    name: str
    title: str
    source: str
    data: Literal["image", "pairs", "video"]
    network: Callable[[Recipe], ClipSpec | PriorSpec | UNetSpec]
    loss: Callable[[Task, Batch, torch.Generator], Tensor]
    size: Callable[[Recipe], int]
    preview: Callable[[Task, Batch, torch.Generator], Tensor] | None = None
    parents: tuple[str, ...] = ()
    parent_needed: bool = False
    needs_clip: bool = False
    masks: bool = False
    schedule: Callable[[Recipe], Schedule] | None = None
    prepare: Callable[[Task, Batch], None] = field(default=lambda task, batch: None)
