"""What trainings there are and how far each is, from what they wrote: `metrics.jsonl`, manifests and the lock. No torch."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

State = Literal["running", "stopped", "done", "diverged"]

_DEPTH = 4  # folders below the one that is asked for
_QUIET = 3.0  # intervals between two lines after which a training without a lock counts as stopped


@dataclass(frozen=True)
class Run:
    """One training. None is what its files do not tell, `steps_left_s` the seconds that it still needs at its speed."""

    folder: Path
    stage: str
    state: State
    step: int
    steps: int | None
    saved: int | None
    """The step of the newest checkpoint, from which it goes on."""
    loss: float | None
    held_out: float | None
    steps_per_s: float | None
    left_s: float | None
    written: float
    """Unix time of the last line."""


def find_runs(root: Path) -> list[Run]:
    """Every training below `root`, the one that wrote last first; damaged lines and manifests are passed over."""
    found = [read_run(path.parent) for path in _metrics(root, _DEPTH)]
    return sorted(found, key=lambda run: -run.written)


def read_run(folder: Path, *, now: float | None = None) -> Run:
    """The training that writes to `folder`."""
    path = folder / "metrics.jsonl"
    lines = list(_objects(path))
    manifest = _newest_manifest(folder)
    logged = [line for line in lines if "steps_per_s" in line]
    step = max([int(line["step"]) for line in lines], default=0)
    steps = _last(lines, "steps") or _at(manifest, "training", "steps")
    speeds = [speed for line in logged[-5:] if (speed := _number(line, "steps_per_s"))]
    speed = median(speeds) if speeds else None
    written = _last(lines, "time") or path.stat().st_mtime
    state = _state(folder, lines, step=step, steps=steps, age=(now or time.time()) - written)
    left = None if steps is None or speed is None or state == "done" else max(0.0, steps - step) / speed
    saved = _number(manifest, "step")
    return Run(
        folder=folder,
        stage=str(manifest.get("stage", folder.name)),
        state=state,
        step=step,
        steps=None if steps is None else int(steps),
        saved=None if saved is None else int(saved),
        loss=_last(lines, "loss"),
        held_out=_last(lines, "held_out"),
        steps_per_s=speed,
        left_s=left,
        written=written,
    )


def loss_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of the `loss` (a moving mean) and of the `held out` loss of the training in `folder`; none is left out."""
    lines = list(_objects(folder / "metrics.jsonl"))
    found = {
        name: [(line["step"], value) for line in lines if (value := _number(line, key)) is not None]
        for name, key in (("loss", "loss"), ("held out", "held_out"))
    }
    return {name: points for name, points in found.items() if points}


def _state(folder: Path, lines: list[dict[str, Any]], *, step: int, steps: float | None, age: float) -> State:
    held = _is_locked(folder / ".lock")
    if held:
        return "running"
    if steps is not None and step >= steps:
        return "done"
    if lines and "not_finite" in lines[-1]:
        return "diverged"
    times = [t for line in lines[-6:] if (t := _number(line, "time")) is not None]
    usual = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    return "running" if held is None and age < max(60.0, _QUIET * usual) else "stopped"


def _is_locked(path: Path) -> bool | None:
    """Whether a training holds the lock of its folder; None where that cannot be asked."""
    try:
        import fcntl

        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except (ImportError, OSError):
        return None


def _metrics(root: Path, depth: int) -> Iterator[Path]:
    """Every `metrics.jsonl` in `root` and `depth` levels below; links are not followed."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name == "metrics.jsonl" and entry.is_file():
            yield Path(entry.path)
        elif depth and entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "step-")):
            yield from _metrics(Path(entry.path), depth - 1)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole: a kill may have cut the last one."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and _number(value, "step") is not None:
                    yield value


def _newest_manifest(folder: Path) -> dict[str, Any]:
    for path in sorted(folder.glob("step-*/manifest.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict) and _number(value, "step") is not None:
                return value
    return {}


def _last(lines: list[dict[str, Any]], key: str) -> float | None:
    return next((value for line in reversed(lines) if (value := _number(line, key)) is not None), None)


def _at(value: dict[str, Any], *keys: str) -> float | None:
    for key in keys[:-1]:
        value = value.get(key, {})
        if not isinstance(value, dict):
            return None
    return _number(value, keys[-1])


def _number(line: dict[str, Any], key: str) -> float | None:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
