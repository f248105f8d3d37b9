"""Weight files that say what they are: safetensors with one JSON header under the metadata key `mav`.

A stage's weights are `NAME.safetensors`, or shards `NAME-00001-of-0000N.safetensors` that all carry the same header.
Headers are read without torch and without touching the tensors, so listing files costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from mavcli.errors import DiskError, WeightsError
from mavcli.recipe.schema import STAGES
from mavcli.specs import ClassifierSpec, ClipSpec, PriorSpec, ScheduleSpec, Spec, UNetSpec

if TYPE_CHECKING:
    from torch import Tensor

MAX_SHARD_BYTES = 16_000_000
ROLES = (*STAGES, "classifier")
"""What weights can be: one of the eight stages, or the judge of `mav eval`, which takes no part in generation."""
_MAX_INDEX_BYTES = 100_000_000  # the format's own limit
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
# They change how a network is trained or run, not which tensors it has or what these mean.
_NOT_COMPARED = frozenset({"dropout"})


class Parent(Spec):
    """Weights that these were started from."""

    role: str
    content_sha256: str
    step: int = Field(0, ge=0)
    source: str = ""


class WeightsHeader(Spec):
    """What a weight file says about itself.

    `role` is one of ROLES; `spec` describes the network and is a ClipSpec, PriorSpec, UNetSpec or ClassifierSpec by role.
    `content_sha256` is over the tensors (`content_sha256()` below) and is filled in by `save_weights`.
    """

    format: Literal[1] = Field(1, alias="schema")
    role: str
    spec: ClipSpec | PriorSpec | UNetSpec | ClassifierSpec
    schedule: ScheduleSpec | None = None
    recipe_sha256: str = Field("", description="of the resolved recipe that trained them")
    step: int = Field(0, ge=0)
    samples_seen: int = Field(0, ge=0)
    parents: tuple[Parent, ...] = ()
    licence: str = "Apache-2.0"
    source: str = Field("", description="the command or the address that they come from")
    content_sha256: str = ""

    # On the field and not on the model: a validator before the whole model would turn JSON's lists into wrong tuples.
    @field_validator("spec", mode="before")
    @classmethod
    def _spec_by_role(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict):
            return spec_class(info.data.get("role", "")).model_validate_json(json.dumps(value))
        return value

    @model_validator(mode="after")
    def _spec_fits_role(self) -> Self:
        if self.role not in ROLES:
            raise ValueError(f"unknown role `{self.role}`; the roles are {', '.join(ROLES)}")
        if not isinstance(self.spec, spec_class(self.role)):
            raise ValueError(f"role `{self.role}` with a {type(self.spec).__name__}")
        return self

    def as_parent(self) -> Parent:
        return Parent(role=self.role, content_sha256=self.content_sha256, step=self.step, source=self.source)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the file's index describes it; `dtype` in safetensors' spelling (`BF16`)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def spec_class(role: str) -> type[ClipSpec] | type[PriorSpec] | type[UNetSpec] | type[ClassifierSpec]:
    """The description that the networks of a role have."""
    others = {"clip": ClipSpec, "prior": PriorSpec, "classifier": ClassifierSpec}
    return others.get(role, UNetSpec)  # type: ignore[return-value]


def weight_files(path: Path | str) -> list[Path]:
    """The files that hold `path` (`DIR/NAME.safetensors`): itself, or its shards in order; empty when there are none.

    Raises WeightsError when shards are missing or when both forms lie side by side.
    """
    path = Path(path)
    shards: dict[int, dict[int, Path]] = {}
    if path.parent.is_dir():
        for entry in path.parent.iterdir():
            match = _SHARD.fullmatch(entry.name)
            if match and match["stem"] == path.stem:
                shards.setdefault(int(match["count"]), {})[int(match["index"])] = entry
    forms = len(shards) + path.is_file()
    if forms > 1:
        raise WeightsError(
            f"{path} exists in more than one form: {', '.join(_forms(path, shards))}",
            hint="keep the newest and delete the others",
        )
    if not shards:
        return [path] if path.is_file() else []
    ((count, found),) = shards.items()
    missing = [index for index in range(1, count + 1) if index not in found]
    if missing:
        raise WeightsError(
            f"{path} lacks {len(missing)} of its {count} shards, the first is {_shard_path(path, missing[0], count).name}",
            hint="fetch or copy every shard of the set",
        )
    return [found[index] for index in range(1, count + 1)]


def read_header(path: Path | str) -> WeightsHeader:
    """What `path` (a file, or the common name of shards) says about itself; reads no tensor and imports no torch.

    Raises WeightsError when it is missing, damaged or not one of ours.
    """
    headers = {_parse_index(file)[0] for file in _existing_files(Path(path))}
    if len(headers) > 1:
        raise WeightsError(
            f"the shards of {path} come from different saves", hint="delete them and get all of them again"
        )
    (text,) = headers
    if text is None:
        raise WeightsError(
            f"{path} has no `mav` header, so nothing says which network it belongs to",
            hint="weights from elsewhere are imported first, not used as they are",
        )
    try:
        return WeightsHeader.model_validate_json(text)
    except ValidationError as error:
        raise WeightsError(f"{path} has a header that cannot be read: {_first_fault(error)}") from error


def read_index(path: Path | str) -> dict[str, TensorInfo]:
    """Name -> type and shape of every tensor in `path` or its shards; reads no tensor and imports no torch."""
    index: dict[str, TensorInfo] = {}
    for file in _existing_files(Path(path)):
        for name, info in _parse_index(file)[1].items():
            if name in index:
                raise WeightsError(f"{file} repeats the tensor `{name}` of another shard")
            index[name] = info
    return index


def save_weights(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    header: WeightsHeader,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Write `tensors` as `path`, or as shards of at most `max_shard_bytes` a file, and return what was written.

    A file appears whole or not at all (temporary file, fsync, rename); older forms of the same name are removed last,
    and shards of two saves are told apart by `content_sha256`. A tensor larger than `max_shard_bytes` has a shard alone.
    Types are kept. Raises WeightsError on nan, inf, no tensors, or a name that looks like a path; DiskError on a full disk.
    """
    import torch
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors" or _SHARD.fullmatch(path.name):
        raise WeightsError(f"{path.name} is no name for weights, `NAME.safetensors` is")
    if not tensors:
        raise WeightsError(f"no tensors to write to {path}")
    # `clone` unties tensors that share memory, which the format refuses.
    ready = {name: tensors[name].detach().to("cpu", copy=True).contiguous() for name in sorted(tensors)}
    for name, tensor in ready.items():
        _check_name(name, path)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"`{name}` holds nan or inf, {path} was not written", hint="go back to an earlier checkpoint"
            )
    header = header.model_copy(update={"content_sha256": content_sha256(ready)})
    text = header.model_dump_json(by_alias=True)

    overhead = 8 + len(json.dumps(text)) + 64
    shards: list[dict[str, Tensor]] = [{}]
    filled = overhead
    for name, tensor in ready.items():
        # The index entry: name, type, shape, two offsets; 128 bytes are more than it ever takes beside the name.
        size = tensor.numel() * tensor.element_size() + len(name) + 128
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = overhead
        shards[-1][name] = tensor
        filled += size

    targets = (
        [path] if len(shards) == 1 else [_shard_path(path, i + 1, len(shards)) for i in range(len(shards))]
    )
    staged: list[tuple[Path, Path]] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, shard in zip(targets, shards, strict=True):
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            staged.append((temporary, target))
            with open(temporary, "wb") as file:
                file.write(save(shard, metadata={"format": "pt", "mav": text}))
                file.flush()
                os.fsync(file.fileno())
        for temporary, target in staged:
            os.replace(temporary, target)
        for old in _all_forms(path):
            if old not in targets:
                old.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return targets


def load_weights(
    path: Path | str,
    *,
    expect_role: str | Iterable[str] | None = None,
    expect_spec: Spec | None = None,
    hint: str | None = None,
) -> dict[str, Tensor]:
    """The tensors of `path` or of its shards, on the CPU and in the type they are stored in.

    `expect_role` is the stage (or the stages) that they must come from, `expect_spec` the network that must take them;
    every field that differs is named. `hint` is the command that gets them, shown when they are missing or do not fit.
    Raises WeightsError when they are missing, damaged, of another stage or network, or hold nan or inf.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    roles = (expect_role,) if isinstance(expect_role, str) else tuple(expect_role or ())
    if not weight_files(path):
        what = f"`{roles[0]}` weights" if roles else "weights"
        raise WeightsError(
            f"{path} does not exist, these {what} are needed",
            hint=hint or (f"mav train-stage {roles[0]} RECIPE" if roles else "mav weights ls"),
        )
    header = read_header(path)
    if roles and header.role not in roles:
        raise WeightsError(
            f"{path} holds `{header.role}` weights, `{'` or `'.join(roles)}` is needed", hint=hint
        )
    if expect_spec is not None:
        differences = compare_specs(header.spec, expect_spec)
        if differences:
            raise WeightsError(f"{path} belongs to another network: {'; '.join(differences)}", hint=hint)
    read_index(path)  # refuses tensors that occur twice, and names that are paths
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} is damaged: {error}", hint=hint) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path} holds nan or inf in `{name}`", hint=hint)
    return tensors


def compare_specs(found: Spec, wanted: Spec) -> list[str]:
    """Each field in which two network descriptions differ, in words; empty when the same tensors serve both."""
    if type(found) is not type(wanted):
        return [f"a {type(found).__name__}, a {type(wanted).__name__} is wanted"]
    faults = []
    for name in type(found).model_fields:
        old, new = getattr(found, name), getattr(wanted, name)
        if old != new and name not in _NOT_COMPARED:
            faults.append(f"`{name}` is {_brief(old)}, {_brief(new)} is wanted")
    return faults


def content_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes in the order of the names: the same however they are split."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{str(tensor.dtype).removeprefix('torch.')}:{list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as lower-case hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path | str) -> bool:
    """Whether the tensors are the ones that the header was written for. Reads everything."""
    return content_sha256(load_weights(path)) == read_header(path).content_sha256


def common_name(file: Path | str) -> Path:
    """`DIR/NAME.safetensors` of a file that may be a shard."""
    file = Path(file)
    match = _SHARD.fullmatch(file.name)
    return file.with_name(f"{match['stem']}.safetensors") if match else file


def _shard_path(path: Path, index: int, count: int) -> Path:
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}.safetensors")


def _forms(path: Path, shards: Mapping[int, object]) -> list[str]:
    return ([path.name] if path.is_file() else []) + [f"{count} shards" for count in sorted(shards)]


def _all_forms(path: Path) -> list[Path]:
    return [
        entry
        for entry in path.parent.iterdir()
        if entry.suffix == ".safetensors" and common_name(entry) == path
    ]


def _existing_files(path: Path) -> list[Path]:
    files = weight_files(path)
    if not files:
        raise WeightsError(f"{path} does not exist", hint="mav weights ls")
    return files


def _sync_folder(folder: Path) -> None:
    # The renames themselves must reach the disk. Not every file system can sync a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_name(name: str, path: Path) -> None:
    if not _NAME.fullmatch(name) or ".." in name:
        raise WeightsError(f"{path} has a tensor with the unusable name {name!r}")


def _parse_index(file: Path) -> tuple[str | None, dict[str, TensorInfo]]:
    """The `mav` header's text, and the tensors, of one file. The bytes are not trusted."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > min(size - 8, _MAX_INDEX_BYTES):
                raise WeightsError(f"{file} is no safetensors file, or is cut short")
            raw = stream.read(length)
        index = json.loads(raw, object_pairs_hook=_unique)
        metadata = index.pop("__metadata__", {})
        tensors = {
            name: TensorInfo(str(v["dtype"]), tuple(int(n) for n in v["shape"])) for name, v in index.items()
        }
        ends = [int(v["data_offsets"][1]) for v in index.values()]
        text = metadata.get("mav")
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise WeightsError(f"{file} has a damaged index: {error}") from error
    if max(ends, default=0) != size - 8 - length:
        raise WeightsError(
            f"{file} is damaged: {size} bytes, its index describes {8 + length + max(ends, default=0)}"
        )
    for name in tensors:
        _check_name(name, file)
    return text if isinstance(text, str) else None, tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _brief(value: object) -> str:
    if isinstance(value, Spec):
        return f"a {type(value).__name__}"
    if isinstance(value, tuple):
        value = f"{len(value)} entries" if len(value) > 8 else "[" + ", ".join(map(str, value)) + "]"
        return str(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else fault["msg"]
