"""What a training writes down: `metrics.jsonl` always, TensorBoard's files where the recipe asks."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mavcli.errors import DiskError, RecipeError
from mavcli.files import append_line, write_text

T = TypeVar("T")
_FPS_EDGES = (0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0, 24.0, 30.0, float("inf"))


class Metrics:
    """`metrics.jsonl`: one object a line; lines of steps that a resumed run repeats are dropped."""

    def __init__(self, folder: Path, start: int, *, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self._fps = torch.zeros(len(_FPS_EDGES) - 1, dtype=torch.int64)
        with self._disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                lines = self.path.read_text(encoding="utf-8").splitlines()
                kept = "".join(f"{line}\n" for line in lines if _step_of(line) <= start)
                write_text(self.path, kept, overwrite=True)
        self._board = _open_board(folder / "tensorboard", start) if tensorboard else None

    def write(self, *, step: int, **values: float | dict[str, int]) -> None:
        """One line; numbers go to TensorBoard too. A number that is not finite is `null`: JSON has no word for it."""
        told = {"step": step, **{k: finite(v) for k, v in values.items()}, "time": round(time.time(), 1)}
        append_line(self.path, json.dumps(told, allow_nan=False))
        if self._board is not None:
            for name, value in values.items():
                if not isinstance(value, dict):
                    self._board.add_scalar(name, value, step)
            self._board.flush()

    def count_fps(self, fps: Tensor | None) -> None:
        """Remember the frame rates (b,) of a batch's clips."""
        if fps is not None:
            self._fps += torch.histogram(fps.float().cpu(), torch.tensor(_FPS_EDGES)).hist.long()

    def fps_histogram(self) -> dict[str, int]:
        """`{"4-6": 12, ...}` clips by frame rate since the last call, without empty bins."""
        names = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(_FPS_EDGES)]
        found = {name: int(n) for name, n in zip(names, self._fps, strict=True) if n}
        self._fps.zero_()
        return found

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(
                f"cannot write {self.path}: {error.strerror or error}",
                hint="free some space or permit writing there, or choose another folder with `--out`",
            ) from error


def finite(value: T) -> T | None:
    """`value`, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            "`train.tensorboard` is set, and TensorBoard is not installed",
            hint="pip install 'mavcli[tensorboard]', or --set train.tensorboard=false",
        ) from error
    return SummaryWriter(str(folder), purge_step=start + 1)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
