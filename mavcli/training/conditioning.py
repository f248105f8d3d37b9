"""What video stages draw beside the clip: the frame rate's curriculum and ↑F's masks (Make-A-Video, sections 3.2.2, 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mavcli.recipe.schema import FpsCurriculum, Masks


def draw_fps(rng: np.random.Generator, curriculum: FpsCurriculum, progress: float) -> float:
    """Frames per second at `progress` in [0, 1] of training: from mostly high rates (little motion) to mostly low ones."""
    a = curriculum.start[0] + (curriculum.end[0] - curriculum.start[0]) * progress
    b = curriculum.start[1] + (curriculum.end[1] - curriculum.start[1]) * progress
    return curriculum.low + (curriculum.high - curriculum.low) * float(rng.beta(a, b))


def draw_known(rng: np.random.Generator, masks: Masks, frames: int) -> np.ndarray:
    """(f,) bool: which frames ↑F is given, for a task drawn by its share."""
    tasks = ("interpolate", "endpoints", "forward", "backward", "animate", "generate")
    shares = np.array([getattr(masks, task) for task in tasks], dtype=float)
    task = tasks[int(rng.choice(len(tasks), p=shares / shares.sum()))]
    known = np.zeros(frames, dtype=bool)
    if task == "interpolate":
        skip = int(rng.choice(masks.skips(frames)))
        known[::skip] = True
    elif task == "endpoints":
        known[[0, -1]] = True
    elif task in ("forward", "backward"):
        count = int(rng.integers(1, frames))
        known[slice(None, count) if task == "forward" else slice(-count, None)] = True
    elif task == "animate":
        known[0] = True
    return known


def masked_video(x: Tensor, known: Tensor) -> Tensor:
    """x (b, f, 3, h, w), known (b, f) bool -> (b, f, 4, h, w): unknown frames zeroed, then 1 where a frame is known."""
    mask = known[:, :, None, None, None].to(x.dtype)
    return torch.cat([x * mask, mask.expand(*x.shape[:2], 1, *x.shape[3:])], dim=2)
