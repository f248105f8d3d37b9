"""Checkpoints that a kill cannot damage: written aside, hashed, synced, renamed, verified; only then are old ones pruned.

A checkpoint is a folder `step-NNNNNNN` with the state (network, moving average, optimiser) and `manifest.json` (step, recipe,
size and SHA-256 of every file). The state is `state.safetensors`, or where FSDP cut it, `shards/` of
`torch.distributed.checkpoint`, which is read back on any number of processes. A folder that does not match its manifest
does not count, and is said aloud. `shards/` holds a pickle: a run's folder is for its own machine, weights are for others.

There is no random state to keep: every draw is a function of (seed, stage, step, row), see `draws.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from mavcli.errors import DiskError, DivergedError, MavError, WeightsError
from mavcli.training.distributed import Group, local
from mavcli.weights.provenance import file_sha256

KEEP = 2
SCHEMA = 2
_NAME = re.compile(r"step-(\d{7,})")
_STAGING = re.compile(r"\.tmp-\d+-(\d+)-[0-9a-f]+")
_TEMPORARY = re.compile(r"\..+\.(\d+)(?:-[0-9a-f]+)?\.tmp(?:\.\w+)?")  # of weights, metrics and pictures
_STATE, _SHARDS = "state.safetensors", "shards"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> whole shape of every tensor."""
        if self._sharded:
            entries = dcp.FileSystemReader(self.path / _SHARDS).read_metadata().state_dict_metadata
            return {n: tuple(e.size) for n, e in entries.items() if isinstance(e, TensorStorageMetadata)}
        with safe_open(self.path / _STATE, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def read_into(self, targets: dict[str, Tensor]) -> None:
        """Fill tensors of the state's names and shapes; with FSDP each process reads its own shares.

        Raises WeightsError when a name or a shape is another one.
        """
        shapes = self.shapes()
        odd = sorted(
            name for name in targets.keys() | shapes.keys() if name not in targets or name not in shapes
        )
        odd += [name for name in targets if name in shapes and tuple(targets[name].shape) != shapes[name]]
        if odd:
            raise WeightsError(
                f"{self.path} is of another network: {len(odd)} tensors differ, the first is `{odd[0]}`"
            )
        if self._sharded:
            alone = not torch.distributed.is_initialized()
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that this process is alone
                dcp.load(
                    dict(targets), storage_reader=dcp.FileSystemReader(self.path / _SHARDS), no_dist=alone
                )
            return
        with safe_open(self.path / _STATE, framework="pt") as file, torch.no_grad():
            for name, target in targets.items():
                value = file.get_tensor(name).to(target.device)
                if isinstance(target, DTensor):
                    share = distribute_tensor(
                        value, target.device_mesh, target.placements, src_data_rank=None
                    )
                    value = share.to_local()
                local(target).copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state in memory."""
        if not self._sharded:
            return load_file(self.path / _STATE)
        entries = dcp.FileSystemReader(self.path / _SHARDS).read_metadata().state_dict_metadata
        targets = {
            name: torch.zeros(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.read_into(targets)
        return targets

    @property
    def _sharded(self) -> bool:
        return _STATE not in self.manifest["files"]


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], manifest: dict[str, Any], *, group: Group | None = None
) -> Path:
    """Write `folder/step-NNNNNNN` and prune all but the newest two; `manifest["step"]` names it.

    Every process of `group` calls this. Raises DivergedError for tensors that are not finite, DiskError when there is no
    room; the older ones stay.
    """
    group = group or Group()
    final = folder / f"step-{manifest['step']:07d}"
    staging = folder / f".tmp-{manifest['step']:07d}-{os.getpid()}-{secrets.token_hex(4)}"
    staging = group.gather(staging)[0]
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    try:
        _together(group, folder, lambda: _refuse_infinite(tensors))
        if group.first:
            _together(group, folder, lambda: _make_room(folder, staging, tensors))
        else:
            group.agree()
        if sharded:
            _together(group, folder, lambda: _write_shards(staging / _SHARDS, tensors))
        whole = {} if sharded else tensors
        if group.first:
            _together(group, folder, lambda: _commit(folder, staging, final, whole, manifest, group.world))
        else:
            group.agree()
    finally:
        if group.first:
            shutil.rmtree(staging, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that matches its manifest, and a line for each one that had to be skipped.

    Raises WeightsError for one that another version of mav wrote.
    """
    skipped: list[str] = []
    for path in reversed(_folders(folder)):
        manifest = read_manifest(path)
        if manifest is not None:
            return Checkpoint(path, manifest), skipped
        skipped.append(f"{path} is damaged and was skipped")
    return None, skipped


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint folder if every file is as it says, else None. Reads everything."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        schema = manifest.get("schema", 1)
        if schema != SCHEMA:
            raise WeightsError(
                f"{path} was written by another version of mav: its schema is {schema}, this one reads {SCHEMA}",
                hint="go on with that version, or start a new run from the weights: "
                "`--set train.stages.STAGE.start=FILE --set train.out=...`",
            )
        digest = manifest.pop("manifest_sha256")
        if digest != _digest(manifest) or path.name != f"step-{manifest['step']:07d}":
            return None
        found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if not file.is_dir()}
        del found["manifest.json"]
        if found.keys() == manifest["files"].keys() and all(
            not file.is_symlink() and _described(file) == manifest["files"][name]
            for name, file in found.items()
        ):
            return manifest
    return None


def remove_stale(folder: Path, *, exports: Path | None = None) -> None:
    """Delete what killed processes left half-written in a run's folder, and among the weights of `exports` too."""
    for path in folder.glob(".tmp-*"):
        match = _STAGING.fullmatch(path.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
    files = [*folder.glob(".*.tmp*"), *folder.glob("samples/.*.tmp*")]
    files += exports.parent.glob(f".{exports.stem}*.tmp") if exports is not None else []
    for path in files:
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _alive(int(match[1])):
            path.unlink(missing_ok=True)


def _together(group: Group, folder: Path, action: Callable[[], None]) -> None:
    """Do it here, and fail if it failed in any process: none waits for one that has given up."""
    failure: MavError | None = None
    try:
        action()
    except MavError as error:
        failure = error
    except (OSError, SafetensorError, CheckpointException) as error:  # two libraries with errors of their own
        causes = list(error.failures.values()) if isinstance(error, CheckpointException) else []
        cause: BaseException = next((c[0] for c in causes if isinstance(c[0], OSError)), error)
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        failure = DiskError(
            f"cannot write a checkpoint to {folder}: {reason}; older ones were kept",
            hint="free some space or permit writing there, then run the same command again",
        )
        failure.__cause__ = error
    group.agree(failure)


def _refuse_infinite(tensors: Mapping[str, Tensor]) -> None:
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(local(tensor)).all())
    ]
    if bad:
        raise DivergedError(
            f"{len(bad)} tensors are not finite, the first is `{bad[0]}`; the checkpoint was not written"
        )


def _make_room(folder: Path, staging: Path, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = int(2.2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"{folder} has {free / 1e6:.0f} MB free, a checkpoint needs {needed / 1e6:.0f} MB",
            hint="free some space, then run the same command again",
        )
    staging.mkdir()


def _write_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(path, overwrite=False))


def _commit(
    folder: Path,
    staging: Path,
    final: Path,
    tensors: Mapping[str, Tensor],
    manifest: dict[str, Any],
    world: int,
) -> None:
    if tensors:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, staging / _STATE)
    files = sorted(file for file in staging.rglob("*") if file.is_file())
    described = {file.relative_to(staging).as_posix(): _described(file) for file in files}
    body = {**manifest, "schema": SCHEMA, "world_size": world, "files": described}
    text = json.dumps({"manifest_sha256": _digest(body), **body}, indent=1)
    (staging / "manifest.json").write_text(text, encoding="utf-8")
    for path in (*files, staging / "manifest.json", *{file.parent for file in files}, staging):
        _sync(path)
    if final.exists():  # a damaged one that this training started over from
        final.rename(staging.with_name(f"{staging.name}0"))
    staging.rename(final)
    _sync(folder)
    if read_manifest(final) is None:
        raise DiskError(f"{final} does not read back as it was written; older checkpoints were kept")
    shutil.rmtree(staging.with_name(f"{staging.name}0"), ignore_errors=True)
    # A later one is damaged too; it must not push out a whole one.
    for old in [path for path in _folders(folder) if path.name <= final.name][:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _described(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": file_sha256(file)}


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _folders(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:])
    )


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
