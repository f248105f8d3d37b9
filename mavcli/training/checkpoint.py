"""Checkpoints that a kill cannot damage: written aside, hashed, synced, renamed, verified; only then are old ones pruned.

A checkpoint is a folder `step-NNNNNNN` with `state.safetensors` (network, EMA, optimiser) and `manifest.json` (step,
recipe, hash of the state). A folder without a matching hash does not count, and is said aloud.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mavcli.errors import DiskError, DivergedError
from mavcli.weights.provenance import file_sha256

KEEP = 2
_NAME = re.compile(r"step-(\d{7})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path / "state.safetensors")


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Path:
    """Write `folder/step-NNNNNNN` and prune all but the newest two; `manifest["step"]` names it.

    Raises DivergedError for tensors that are not finite, DiskError when there is no room; the older ones stay.
    """
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise DivergedError(
            f"{len(bad)} tensors are not finite, the first is `{bad[0]}`; the checkpoint was not written"
        )
    final = folder / f"step-{manifest['step']:07d}"
    staging = folder / f".tmp-{manifest['step']:07d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed = int(2.2 * sum(t.numel() * t.element_size() for t in tensors.values()))
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiskError(
                f"{folder} has {free / 1e6:.0f} MB free, a checkpoint needs {needed / 1e6:.0f} MB"
            )
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        state = staging / "state.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, state)
        text = json.dumps({**manifest, "sha256": file_sha256(state)}, indent=1)
        (staging / "manifest.json").write_text(text, encoding="utf-8")
        for path in (state, staging / "manifest.json", staging):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        _sync(folder)
    except (
        OSError,
        SafetensorError,
    ) as error:  # safetensors has an error of its own for a disk that fills up
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DiskError(f"cannot write a checkpoint to {folder}: {reason}; older ones were kept") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if read_manifest(final) is None:
        raise DiskError(f"{final} does not read back as it was written; older checkpoints were kept")
    # A later one is a damaged one that this training started over from; it must not push out a whole one.
    for old in [path for path in _folders(folder) if path.name <= final.name][:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose hash matches, and a line for each one that had to be skipped."""
    skipped: list[str] = []
    for path in reversed(_folders(folder)):
        manifest = read_manifest(path)
        if manifest is not None:
            return Checkpoint(path, manifest), skipped
        skipped.append(f"{path} is damaged and was skipped")
    return None, skipped


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint folder if its state is whole, else None."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["sha256"] == file_sha256(path / "state.safetensors"):
            return manifest
    return None


def remove_stale(folder: Path) -> None:
    """Delete what killed processes left half-written."""
    for path in folder.glob(".tmp-*"):
        pid = int(path.name.rsplit("-", 1)[-1])
        if pid != os.getpid() and not _alive(pid):
            shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
