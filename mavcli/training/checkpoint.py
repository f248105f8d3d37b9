"""Checkpoints that a kill cannot damage: written aside, hashed, synced, renamed, verified; only then are old ones pruned.

A checkpoint is a folder `step-NNNNNNN` with the state (network, moving average, optimiser) and `manifest.json` (step, recipe,
size and SHA-256 of every file). The state is `state.safetensors`, or where FSDP cut it `shards/NNNNN.safetensors`, a file of each
process, which is read back on any number of processes. A folder that does not match its manifest does not count, and is said
aloud. People share such folders, so nothing in one is a pickle: torch.distributed.checkpoint would write one and run it.

There is no random state to keep: every draw is a function of (seed, stage, step, row), see `draws.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from mavcli.errors import DiskError, DivergedError, MavError, WeightsError
from mavcli.files import (
    describe_file,
    remove_tree,
    rename,
    sweep,
    sync_tree,
    temporary_path,
    whole_path,
    write_text,
)
from mavcli.training.distributed import Group, local

KEEP = 2
SCHEMA = 3
"""Of the manifest. 2 differs in its shards only, which were a pickle. `manifest_sha256` must mean the same in every later one."""
_READABLE = (2, SCHEMA)
_NAME = re.compile(r"step-(\d{7,})")
_STATE, _SHARDS, _PICKLE = "state.safetensors", "shards", "shards/.metadata"
_FILES = "files.json"
_SHARES = "shares"  # key in the metadata of a shard


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
            return {name: share.shape for file in self._shards() for name, share in _shares_in(file).items()}
        with _opened(self.path / _STATE) as file:
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
            self._read_shards(targets)
            return
        with _opened(self.path / _STATE) as file, torch.no_grad():
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
            with _opened(self.path / _STATE) as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        targets: dict[str, Tensor] = {}
        for path in self._shards():
            with _opened(path) as file:
                for name, share in _shares_in(path).items():
                    if name not in targets:
                        dtype = file.get_tensor(name).dtype
                        targets[name] = torch.zeros(share.shape, dtype=dtype)
        self.read_into(targets)
        return targets

    def files(self) -> list[list[str]]:
        """The files that the training began with, of each folder, as `FolderSource.order` names them; nothing of an older mav."""
        path = self.path / _FILES
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def _read_shards(self, targets: dict[str, Tensor]) -> None:
        """Copy the rows that this process holds of each tensor, whichever files they are in."""
        filled = dict.fromkeys(targets, 0)
        for path in self._shards():
            shares = _shares_in(path)
            with _opened(path) as file, torch.no_grad():
                for name, share in shares.items():
                    target, start = local(targets[name]), _first_row(targets[name])
                    if not share.shape:
                        target.copy_(file.get_tensor(name))
                        continue
                    low = max(start, share.first)
                    high = min(start + len(target), share.first + share.rows)
                    if low < high:
                        rows = file.get_slice(name)[low - share.first : high - share.first]
                        target[low - start : high - start].copy_(rows)
                        filled[name] += high - low
        short = [n for n, t in targets.items() if t.ndim and filled[n] != len(local(t))]
        if short:
            raise WeightsError(f"the shards in {self.path} lack rows of `{short[0]}`")

    def _shards(self) -> list[Path]:
        return [self.path / name for name in sorted(self.manifest["files"]) if name.startswith(_SHARDS)]

    @property
    def _sharded(self) -> bool:
        return _STATE not in self.manifest["files"]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; WeightsError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file: {error}") from error


@dataclass(frozen=True)
class _Share:
    """Rows [first, first + rows) of a tensor of `shape`, which one process held."""

    shape: tuple[int, ...]
    first: int
    rows: int


def _shares_in(path: Path) -> dict[str, _Share]:
    """What a shard holds, by its own words; WeightsError where these make no sense."""
    shares = {}
    try:
        with _opened(path) as file:
            told = json.loads((file.metadata() or {})[_SHARES])
            for name in file.keys():  # noqa: SIM118
                own = tuple(file.get_slice(name).get_shape())
                shape, first = tuple(map(int, told[name]["shape"])), int(told[name]["first"])
                if own[1:] != shape[1:] or len(own) != len(shape) or not 0 <= first <= first + sum(own[:1]):
                    raise ValueError(f"`{name}` is no share of its tensor")
                shares[name] = _Share(shape, first, sum(own[:1]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path} is no shard of a checkpoint: {error}") from error
    return shares


def _first_row(tensor: Tensor) -> int:
    """Number of the first row of this process's share; FSDP cuts the first dimension into equal parts, the last one short."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh, (placement,) = tensor.device_mesh, tensor.placements
    if not (isinstance(placement, Shard) and placement.dim == 0):
        raise TypeError(f"a tensor that is cut as {placement}, wanted Shard(0)")
    return min(mesh.get_local_rank() * -(-len(tensor) // mesh.size()), len(tensor))


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    manifest: dict[str, Any],
    *,
    files: Sequence[Sequence[str]] = (),
    group: Group | None = None,
) -> Path:
    """Write `folder/step-NNNNNNN` and prune all but the newest two; `manifest["step"]` names it, `files` is what it trains on.

    Every process of `group` calls this. Raises DivergedError for tensors that are not finite, DiskError when there is no
    room; the older ones stay.
    """
    group = group or Group()
    final = folder / f"step-{manifest['step']:07d}"
    staging = group.gather(temporary_path(final, suffix=""))[0]
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    try:
        _together(group, folder, lambda: _refuse_infinite(tensors))
        if group.first:
            _together(group, folder, lambda: _make_room(folder, staging, tensors))
        else:
            group.agree()
        if sharded:
            _together(group, folder, lambda: _write_shard(staging / _SHARDS, tensors, group))
        whole = {} if sharded else tensors
        if group.first:
            told = json.dumps(list(files)) if files else None
            commit = functools.partial(_commit, folder, staging, final, whole, manifest, told, group.world)
            _together(group, folder, commit)
        else:
            group.agree()
    finally:
        if group.first:
            remove_tree(staging)
    return final


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that matches its manifest, and a line for each one that had to be skipped.

    Raises WeightsError for one that another version of mav wrote, DiskError for one that this user may not read.
    """
    skipped: list[str] = []
    for path in reversed(_folders(folder)):
        manifest = read_manifest(path)
        if manifest is not None:
            return Checkpoint(path, manifest), skipped
        skipped.append(f"{path} is damaged and was skipped")
    return None, skipped


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint folder if every file is as it says, else None. Reads everything. Raises as `newest_checkpoint`."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.pop("manifest_sha256", None) != _digest(manifest):
            return None
        if (schema := manifest.get("schema")) not in _READABLE:
            raise WeightsError(
                f"{path} was written by another version of mav: its schema is {schema}, this one reads {SCHEMA}",
                hint="go on with that version, or start a new run from the weights: "
                "`--set train.stages.STAGE.start=FILE --set train.out=...`",
            )
        if path.name != f"step-{manifest['step']:07d}":
            return None
        if _PICKLE in manifest["files"]:
            raise WeightsError(
                f"{path} has its shards listed by a pickle, as an older mav wrote it, and a pickle may hold code",
                hint="with that mav go on for a step with `sharding=ddp`, or start a new run from the weights: "
                "`--set train.stages.STAGE.start=FILE --set train.out=...`",
            )
        found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if not file.is_dir()}
        del found["manifest.json"]
        if found.keys() == manifest["files"].keys() and all(
            not file.is_symlink() and describe_file(file) == manifest["files"][name]
            for name, file in found.items()
        ):
            return manifest
    except PermissionError as error:
        raise DiskError(
            f"{error.filename or path} may not be read by this user",
            hint=f"ask its owner to permit it: chmod -R u+rwX,g+rwX {path.parent}",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return None


def remove_stale(folder: Path, *, exports: Path | None = None) -> None:
    """Delete what killed processes left half-written in a run's folder, and among the weights of `exports` too."""
    for place in (folder, folder / "samples", *([exports.parent] if exports is not None else [])):
        sweep(place, again=True)


def _together(group: Group, folder: Path, action: Callable[[], None]) -> None:
    """Do it here, and fail if it failed in any process: none waits for one that has given up."""
    failure: MavError | None = None
    try:
        action()
    except MavError as error:
        failure = error
    except (OSError, SafetensorError) as error:  # the library's own name for a write that failed
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
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


def _write_shard(folder: Path, tensors: Mapping[str, Tensor], group: Group) -> None:
    """This process's shares of what FSDP cut; the first one adds what is whole in each."""
    mine = {n: t for n, t in tensors.items() if isinstance(t, DTensor) or group.first}
    shares = {n: {"shape": list(t.shape), "first": _first_row(t)} for n, t in mine.items()}
    folder.mkdir(exist_ok=True)
    values = {name: local(tensor) for name, tensor in mine.items()}
    _write_tensors(folder / f"{group.rank:05d}.safetensors", values, {_SHARES: json.dumps(shares)})


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with whole_path(path, durable=False) as temporary:  # synced with the whole folder
        save_file(whole, temporary, metadata)


def _commit(
    folder: Path,
    staging: Path,
    final: Path,
    tensors: Mapping[str, Tensor],
    manifest: dict[str, Any],
    data: str | None,
    world: int,
) -> None:
    if data is not None:
        write_text(staging / _FILES, data)
    if tensors:
        _write_tensors(staging / _STATE, tensors, {})
    files = sorted(file for file in staging.rglob("*") if file.is_file())
    described = {file.relative_to(staging).as_posix(): describe_file(file) for file in files}
    body = {**manifest, "schema": SCHEMA, "world_size": world, "files": described}
    text = json.dumps({"manifest_sha256": _digest(body), **body}, indent=1)
    write_text(staging / "manifest.json", text)
    sync_tree(staging)
    aside = temporary_path(final, suffix="")
    if final.exists():  # a damaged one that this training started over from
        rename(final, aside)
    rename(staging, final)
    if read_manifest(final) is None:
        raise DiskError(f"{final} does not read back as it was written; older checkpoints were kept")
    remove_tree(aside)
    # A later one is damaged too; it must not push out a whole one.
    for old in [path for path in _folders(folder) if path.name <= final.name][:-KEEP]:
        remove_tree(old)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _folders(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:])
    )
