"""Weight files that say what they are: safetensors with one JSON header under the metadata key `mav`.

A stage's weights are `NAME.safetensors`, or shards `NAME-00001-of-0000N.safetensors` that all carry the same header.
Headers are read without torch and without touching the tensors, so listing files costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from mavcli.errors import DiskError, MavError, WeightsError, one_line
from mavcli.files import make_folder, remove, together, whole_file
from mavcli.recipe.schema import STAGES
from mavcli.specs import (
    ClassifierSpec,
    ClipSpec,
    MotionJudgeSpec,
    PriorSpec,
    SamplerSpec,
    ScheduleSpec,
    Spec,
    UNetSpec,
)
from mavcli.weights.reading import Reading, TensorFile, changed, record, recorded
from mavcli.weights.safety import TensorInfo, check_name, read_safetensors_index

if TYPE_CHECKING:
    from torch import Tensor

MAX_SHARD_BYTES = 16_000_000
ROLES = (*STAGES, "classifier", "motion")
"""What weights can be: one of the eight stages, or the judge of `mav eval`, which takes no part in generation."""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors")
_FEW_LAYERS = 1000
_SMALL = 1_000_000
"""Layers, and sizes of a layer, that can be built without thinking whether the file has them."""
# They change how a network is trained or run, not which tensors it has or what these mean.
_NOT_COMPARED = frozenset({"dropout"})


Line = Annotated[str, AfterValidator(one_line)]
"""A text that a file brings along, as it may be shown on a terminal."""


class Parent(Spec):
    """Weights that these were started from, or that were frozen beside them. `licence` is empty where it was not recorded."""

    role: Line
    content_sha256: Line
    step: int = Field(0, ge=0)
    source: Line = ""
    licence: Line = ""


class SourceFile(Spec):
    """A file of somebody else's that an importer read."""

    name: Line
    sha256: Line


class Inflation(Spec):
    """What turned an image network into one for video, and the proof that it says the same of every frame.

    `difference` is, for each frame of a random clip, the largest difference from the image network in float32.
    """

    parameters: int = Field(ge=0, description="of the network, all of them")
    added: int = Field(ge=0, description="parameters that the image network has not")
    difference: tuple[float, ...]
    size: int = Field(ge=1, description="pixels a side of the clip")
    trained: bool = Field(False, description="the temporal layers were trained before these channels came")


class Met(Spec):
    """What a training drew of its clips: what a network is told beyond that, it never learnt.

    `fps` are the lowest and the highest frame rate of a clip that moves; `frame_skips` how far apart known frames stood.
    """

    fps: tuple[float, float]
    frame_skips: tuple[int, ...] = ()


class WeightsHeader(Spec):
    """What a weight file says about itself.

    `role` is one of ROLES; `spec` describes the network and is a ClipSpec, PriorSpec, UNetSpec or that of a judge, by role.
    `content_sha256` is over the tensors (`content_sha256()` below) and is filled in by `save_weights`.
    """

    format: Literal[1] = Field(1, alias="schema")
    role: str
    spec: ClipSpec | PriorSpec | UNetSpec | ClassifierSpec | MotionJudgeSpec
    schedule: ScheduleSpec | None = None
    sampler: SamplerSpec | None = Field(
        None, description="how their publisher samples them; of imported weights alone"
    )
    recipe_sha256: Line = Field("", description="of the resolved recipe that trained them")
    step: int = Field(0, ge=0)
    samples_seen: int = Field(0, ge=0)
    parents: tuple[Parent, ...] = ()
    licence: Line = "Apache-2.0"
    source: Line = Field("", description="the command or the address that they come from")
    importer: Line = Field("", description="what turned a published checkpoint into these weights")
    imported_from: tuple[SourceFile, ...] = ()
    inflation: Inflation | None = Field(
        None, description="of layers that nothing has trained yet; training leaves it out"
    )
    met: Met | None = Field(None, description="of a stage that trains on clips; older files do not say")
    content_sha256: Line = ""

    # On the field and not on the model: a validator before the whole model would turn JSON's lists into wrong tuples.
    @field_validator("spec", mode="before")
    @classmethod
    def _spec_by_role(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict):
            value = _without_retired(value)
            return spec_class(info.data.get("role", "")).model_validate_json(json.dumps(value))
        return value

    @model_validator(mode="after")
    def _spec_fits_role(self) -> Self:
        if self.role not in ROLES:
            raise ValueError(
                f"unknown role `{one_line(self.role, limit=80)}`; the roles are {', '.join(ROLES)}"
            )
        if not isinstance(self.spec, spec_class(self.role)):
            raise ValueError(f"role `{self.role}` with a {type(self.spec).__name__}")
        return self

    def as_parent(self) -> Parent:
        return Parent(
            role=self.role,
            content_sha256=self.content_sha256,
            step=self.step,
            source=self.source,
            licence=self.licence,
        )


_RETIRED = {"num_classes": None, "text_layers": 16, "text_heads": 8, "text_vocabulary": 50257}
"""Fields that a U-Net's spec once had, for class-conditional ADM and for GLIDE, with the values of every other network."""


def _without_retired(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` of a U-Net's header as it is written today. Raises ValueError for a network that is no longer taken."""
    if "model_channels" not in spec:
        return spec
    if spec.get("num_classes") is not None or spec.get("text") == "glide":
        kind = "a GLIDE" if spec.get("text") == "glide" else "a class-conditional ADM"
        raise ValueError(
            f"{kind} network, which nothing in this method tells what to draw, is no longer taken"
        )
    return {name: value for name, value in spec.items() if name not in _RETIRED}


def spec_class(
    role: str,
) -> type[ClipSpec] | type[PriorSpec] | type[UNetSpec] | type[ClassifierSpec] | type[MotionJudgeSpec]:
    """The description that the networks of a role have."""
    others = {
        "clip": ClipSpec,
        "prior": PriorSpec,
        "classifier": ClassifierSpec,
        "motion": MotionJudgeSpec,
    }
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
    extra = sorted(index for index in found if not 1 <= index <= count)
    if extra:
        raise WeightsError(
            f"{found[extra[0]]} is one too many, the set has {count} shards",
            hint="delete the whole set and get it again",
        )
    missing = [index for index in range(1, count + 1) if index not in found]
    if missing:
        raise WeightsError(
            f"{path} lacks {len(missing)} of its {count} shards, the first is {_shard_path(path, missing[0], count).name}",
            hint="fetch or copy every shard of the set",
        )
    return [found[index] for index in range(1, count + 1)]


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raises DiskError where weights, whole or in shards, are at `target` already and `force` is not given."""
    if weight_files(target) and not force:
        raise DiskError(f"{target} exists", hint="--force overwrites it, --out chooses another folder")


def read_header(path: Path | str) -> WeightsHeader:
    """What `path` (a file, or the common name of shards) says about itself; reads no tensor and imports no torch.

    Raises WeightsError when it is missing, damaged or not one of ours.
    """
    found = [read_safetensors_index(file) for file in _existing_files(Path(path))]
    headers = {metadata.get("mav") for metadata, _ in found}
    if len(headers) > 1:
        raise WeightsError(
            f"the shards of {path} come from different saves", hint="delete them and get all of them again"
        )
    header = _parsed_header(headers.pop(), Path(path))
    tensors = [info for _, index in found for info in index.values()]
    _check_size(header.spec, len(tensors), sum(info.parameters for info in tensors), Path(path))
    return header


def _check_size(spec: Spec, tensors: int, parameters: int, path: Path) -> None:
    """Refuse a description of far more than the file holds, before anything is built by it. Raises WeightsError."""
    if spec.fewest_layers > max(tensors, _FEW_LAYERS):
        raise WeightsError(
            f"{path} does not fit its own description: a network of {spec.fewest_layers} layers or more in {tensors} tensors"
        )
    for name, value in spec:
        values = value if isinstance(value, tuple) else (value,)
        numbers = [abs(number) for number in values if isinstance(number, int | float)]
        if numbers and max(numbers) > max(parameters, _SMALL):
            raise WeightsError(
                f"{path} does not fit its own description: `{name}` is {max(numbers):g} in a file of {parameters} numbers"
            )


def _parsed_header(text: str | None, path: Path) -> WeightsHeader:
    if text is None:
        raise WeightsError(
            f"{path} has no `mav` header, so nothing says which network it belongs to",
            hint="weights from elsewhere are imported first, not used as they are",
        )
    try:
        return WeightsHeader.model_validate_json(text)
    except ValidationError as error:
        raise WeightsError(f"{path} has a header that cannot be read: {_first_fault(error)}") from error


@contextlib.contextmanager
def as_described(path: Path) -> Iterator[None]:
    """Building the network that `path` describes: whatever fails at that is the description's fault. Raises WeightsError."""
    try:
        yield
    except MavError:
        raise
    except Exception as error:  # torch and open_clip raise whatever the numbers lead them to
        told = one_line(str(error) or type(error).__name__, limit=200)
        raise WeightsError(f"{path} describes no network that can be built: {told}") from error


def read_index(path: Path | str) -> dict[str, TensorInfo]:
    """Name -> type and shape of every tensor in `path` or its shards; reads no tensor and imports no torch."""
    index: dict[str, TensorInfo] = {}
    for file in _existing_files(Path(path)):
        for name, info in read_safetensors_index(file)[1].items():
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

    The files are one commit; older forms of the same name go when they appear,
    and shards of two saves are told apart by `content_sha256`. A tensor larger than `max_shard_bytes` has a shard alone.
    Types are kept. Each tensor is asked for twice, for its digest and to be written, and no two are held at once: a mapping
    that makes them when asked never holds a network. Raises WeightsError on nan, inf, no tensors, or a name that looks like
    a path; DiskError on a full disk.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or _SHARD.fullmatch(path.name):
        raise WeightsError(f"{path.name} is no name for weights, `NAME.safetensors` is")
    if not tensors:
        raise WeightsError(f"no tensors to write to {path}")
    digest = hashlib.sha256()
    entries: dict[str, _Entry] = {}
    for name in sorted(tensors):
        entries[name], tensor = _Entry.of(name, tensors, path)
        _digest_tensor(digest, name, tensor)
    header = header.model_copy(update={"content_sha256": digest.hexdigest()})
    text = header.model_dump_json(by_alias=True)

    overhead = 8 + len(json.dumps(text)) + 64
    shards: list[list[str]] = [[]]
    filled = overhead
    for name, entry in entries.items():
        # The index entry: name, type, shape, two offsets; 128 bytes are more than it ever takes beside the name.
        size = entry.bytes + len(name) + 128
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = overhead
        shards[-1].append(name)
        filled += size

    targets = (
        [path] if len(shards) == 1 else [_shard_path(path, i + 1, len(shards)) for i in range(len(shards))]
    )
    make_folder(path.parent)
    with together():
        for target, shard in zip(targets, shards, strict=True):
            with whole_file(target, overwrite=True) as file:
                _write_tensors(file, {name: entries[name] for name in shard}, tensors, {"mav": text})
        for old in _all_forms(path):
            if old not in targets:
                remove(old)
    return targets


def write_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` as one safetensors file of another code's, without a header of ours, whole or not at all.

    As in `save_weights`, each tensor is asked for twice and no two are held at once; the errors are the same.
    """
    entries = {name: _Entry.of(name, tensors, path)[0] for name in sorted(tensors)}
    make_folder(path.parent)
    with whole_file(path, overwrite=True) as file:
        _write_tensors(file, entries, tensors, {})


@dataclass(frozen=True)
class _Entry:
    """A tensor as the index of a file will describe it; `width` is the bytes of one number."""

    dtype: str
    shape: tuple[int, ...]
    width: int
    bytes: int

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Tensor], path: Path) -> tuple[_Entry, Tensor]:
        """The entry of `name`, and its tensor on the CPU; raises WeightsError on nan, inf or a name that is a path."""
        check_name(name, path)
        tensor = tensors[name].detach().cpu()
        if not _is_finite(tensor):
            raise WeightsError(
                f"`{name}` holds nan or inf, {path} was not written", hint="go back to an earlier checkpoint"
            )
        width = tensor.element_size()
        return cls(_dtype_name(tensor), tuple(tensor.shape), width, tensor.numel() * width), tensor


def _write_tensors(
    file: IO[bytes], entries: Mapping[str, _Entry], tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """The bytes of one safetensors file."""
    # wide numbers first, so that every tensor is aligned to its own width
    order = sorted(entries, key=lambda name: (-entries[name].width, name))
    index: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in order:
        entry = entries[name]
        offsets = [end, end + entry.bytes]
        index[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        end += entry.bytes
    head = json.dumps(index).encode()
    head += b" " * (-len(head) % 8)  # the format aligns the first tensor
    file.write(struct.pack("<Q", len(head)) + head)
    for name in order:
        file.write(_tensor_bytes(tensors[name].detach().cpu()))


def load_weights(
    path: Path | str,
    *,
    expect_role: str | Iterable[str] | None = None,
    expect_spec: Spec | None = None,
    expect_sha256: str | None = None,
    hint: str | None = None,
) -> dict[str, Tensor]:
    """The tensors of `path` or of its shards, on the CPU and in the type they are stored in.

    They are the ones that the header's `content_sha256` is of: what was read is what was digested. `expect_role` is the stage
    (or the stages) that they must come from, `expect_spec` the network that must take them, with every field that differs
    named; `expect_sha256` is what the header said when the run began. `hint` is the command that gets them, shown when they are
    missing or do not fit. Raises WeightsError when they are missing, damaged, of another stage or network, or hold nan or inf.
    """
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
    _expect(expect_sha256, header, path)
    tensors: dict[str, Tensor] = {}
    readings: list[Reading] = []
    for file in _existing_files(path):
        opened = _opened(file, header)
        for name in opened:
            _once(name, tensors, file)
            tensors[name] = opened.read(name)
        readings.append(opened.reading())
    _verify(path, header, readings, tensors, hint=hint)
    return tensors


class StoredTensors(Mapping[str, "Tensor"]):
    """The tensors of a safetensors file, or of its shards, of anybody's; each is read when it is asked for and not kept.

    Raises WeightsError where the files are missing or damaged, or are not what they were when this was made.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._files: dict[str, Path] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        self._at_hand: TensorFile | None = None
        for file in _existing_files(self.path):
            opened = TensorFile(file)
            self._stamps[file] = opened.stamp
            for name in opened:
                _once(name, self._files, file)
                self._files[name] = file

    def __getitem__(self, name: str) -> Tensor:
        tensor, opened = self._read(name)
        if opened.stamp_now() != self._stamps[opened.path]:
            raise changed(opened.path)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _read(self, name: str) -> tuple[Tensor, TensorFile]:
        file = self._files[name]
        if self._at_hand is None or self._at_hand.path != file:
            self._at_hand = TensorFile(file)
        if name not in self._at_hand.index:
            raise changed(file)
        return self._at_hand.read(name), self._at_hand


class StoredWeights(StoredTensors):
    """As `StoredTensors`, of weights of our own: those that their header's digest is of.

    All are read once at the beginning and digested (where no earlier run did so, or `again` is given); one that is another when
    it is asked for is refused. `sha256` is the digest that the header had when it was first read. Raises WeightsError also where the digest is another, or they hold nan or inf.
    """

    def __init__(self, path: Path | str, *, sha256: str | None = None, again: bool = False) -> None:
        self.header = read_header(path)
        _expect(sha256, self.header, Path(path))
        super().__init__(path)
        self._sums: dict[str, int] = {}
        readings: list[Reading] = []
        for file in self._stamps:
            opened = _opened(file, self.header)
            for name in opened:
                opened.read(name)
            readings.append(opened.reading())
            self._sums.update(opened.sums)
        if not self._sums.keys() >= self._files.keys():
            raise changed(self.path)
        _verify(self.path, self.header, readings, self, again=again)

    def __getitem__(self, name: str) -> Tensor:
        tensor, opened = self._read(name)
        if opened.sums[name] != self._sums[name]:
            raise changed(opened.path)
        return tensor


def _expect(sha256: str | None, header: WeightsHeader, path: Path) -> None:
    """Raises WeightsError where `header` is not the one that was read when the run began, whose digest was `sha256`."""
    if sha256 not in (None, header.content_sha256):
        raise WeightsError(
            f"{path} holds other weights than when this run began",
            hint="the same command again uses those that are there now",
        )


def _opened(file: Path, header: WeightsHeader) -> TensorFile:
    """`file`, whose header must still be `header`."""
    opened = TensorFile(file)
    if _parsed_header(opened.metadata.get("mav"), file) != header:
        raise changed(file)
    return opened


def _once(name: str, known: Mapping[str, object], file: Path) -> None:
    if name in known:
        raise WeightsError(f"{file} repeats the tensor `{name}` of another shard")


def _verify(
    path: Path,
    header: WeightsHeader,
    readings: Sequence[Reading],
    tensors: Mapping[str, Tensor],
    *,
    hint: str | None = None,
    again: bool = False,
) -> None:
    """Raises WeightsError unless `tensors`, read as `readings`, are finite and those that the header's digest is of.

    What an earlier run found so is not computed again, but for `again`.
    """
    unknown = [reading for reading in readings if recorded(reading) != header.content_sha256]
    if not unknown and not again:
        return
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if not _is_finite(tensor):
            raise WeightsError(f"{path} holds nan or inf in `{name}`", hint=hint)
        _digest_tensor(digest, name, tensor)
    if digest.hexdigest() != header.content_sha256:
        # of a set that was whole in an earlier run, the files that are still as they were then are not to blame
        where = unknown[0].path if len(unknown) == 1 else path
        raise WeightsError(
            f"{where} is damaged: its tensors are not those that its header describes",
            hint=hint or f"get the file again; `mav weights check {path}` says whether it is whole",
        )
    for reading in unknown:
        record(reading, header.content_sha256)


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
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _digest_tensor(digest, name, tensors[name].detach().cpu())
    return digest.hexdigest()


def _digest_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name}:{str(tensor.dtype).removeprefix('torch.')}:{list(tensor.shape)}\n".encode())
    digest.update(_tensor_bytes(tensor))


def _tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor on the CPU, in its own memory where that is contiguous."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def index_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Name -> type and shape of tensors, as a file that held them would say."""
    return {name: TensorInfo(_dtype_name(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}


def _is_finite(tensor: Tensor) -> bool:
    """Whether no number is nan or inf, by the smallest and the largest: 30 times faster than to look at each in turn."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch has no extremes of 8-bit floats
    low, high = wide.aminmax()  # nan, where there is one
    return bool(low.isfinite() and high.isfinite())


def _dtype_name(tensor: Tensor) -> str:
    """safetensors' spelling of a tensor's type."""
    import torch

    names = {
        torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
        torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip
    if tensor.dtype not in names:
        raise WeightsError(f"no place for numbers of type {tensor.dtype} in a weight file")
    return names[tensor.dtype]


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


def _brief(value: object) -> str:
    if isinstance(value, Spec):
        return f"a {type(value).__name__}"
    if isinstance(value, tuple):
        value = f"{len(value)} entries" if len(value) > 8 else "[" + ", ".join(map(str, value)) + "]"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return one_line(text, limit=200)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return one_line(f"{where}: {fault['msg']}" if where else fault["msg"], limit=400)
