"""safetensors that nobody vouches for: all that a file says of itself is checked before a tensor is touched.

The format carries no code, but its index is still a claim. Beyond the format's own rules, four things that it lets
pass are refused here: names that occur twice, names that are paths, empty tensors of enormous shape, and (when the
tensors are read, in `provenance.py`) values that are not finite. Needs no torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mavcli.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

MAX_INDEX_BYTES = 6_000_000
"""The format allows 100 MB; 6 MB describe 50 000 tensors."""
_MAX_BRACKETS = 200_000  # a tensor takes three; what holds more is made to be slow to read
_MAX_SIDE = 2**31
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_FLOATS = frozenset({"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,499}")
_ENTRY = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the file's index describes it; `dtype` in safetensors' spelling (`BF16`).

    `begin` is where its bytes begin, from the end of the index.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.parameters * _BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype in _FLOATS


def check_name(name: str, path: Path) -> None:
    """Raises WeightsError for a tensor name that could be anything but a name."""
    if not _NAME.fullmatch(name) or ".." in name:
        shown = repr(name if len(name) <= 80 else name[:77] + "...")
        raise WeightsError(f"{path} has a tensor with the unusable name {shown}")


def read_safetensors_index(file: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors of one file, from its first bytes; no tensor is read.

    Raises WeightsError, one line that names the fault, for a file that is not exactly what its index says.
    """
    try:
        with open(file, "rb") as stream:
            return read_index_of(stream, file)
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror or error}") from error


def read_index_of(stream: IO[bytes], file: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """As `read_safetensors_index`, of a file that is open at its start; it then stands at the first tensor.

    Raises OSError too.
    """
    size, raw = _index_bytes(stream, file)
    data = size - 8 - len(raw)
    if raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS:
        raise WeightsError(f"{file} has a damaged index: it holds more lists and maps than any network needs")
    try:
        index = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise WeightsError(f"{file} has a damaged index: it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise WeightsError(f"{file} has a damaged index: byte {error.start} is no UTF-8") from error
    except ValueError as error:
        raise WeightsError(f"{file} has a damaged index: {_brief(error)}") from error
    if not isinstance(index, dict):
        raise WeightsError(f"{file} has a damaged index: it is no map")
    metadata = index.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(f"{file} has a damaged index: its metadata is no map of texts")
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in index.items():
        check_name(name, file)
        info = tensors[name] = _entry(name, entry, file)
        places.append((info.begin, info.begin + info.bytes, name))
    _check_places(sorted(places), data, file)
    return metadata, tensors


def check_fit(index: Mapping[str, TensorInfo], state: Mapping[str, Tensor], path: Path) -> None:
    """Whether the tensors of `path` are those of a network with this state (its values are not looked at).

    Raises WeightsError with the first tensor that is missing, unknown, or of another shape or kind, and their number.
    """
    faults = [f"it lacks `{name}`" for name in sorted(set(state) - set(index))]
    faults += [f"it has `{name}`, which the network has not" for name in sorted(set(index) - set(state))]
    for name in sorted(set(index) & set(state)):
        info, wanted = index[name], state[name]
        if info.shape != tuple(wanted.shape):
            faults.append(f"`{name}` is {list(info.shape)}, {list(wanted.shape)} is wanted")
        elif info.is_float != wanted.is_floating_point():
            kind = "floating point is" if wanted.is_floating_point() else "whole numbers are"
            faults.append(f"`{name}` is {info.dtype}, {kind} wanted")
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise WeightsError(f"{path} does not fit its own description: {faults[0]}{more}")


def _index_bytes(stream: IO[bytes], file: Path) -> tuple[int, bytes]:
    """The file's size and the bytes of its index."""
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(9)
    if size == 0:
        raise WeightsError(f"{file} is empty", hint="get the file again")
    if prefix.startswith(b"version "):
        raise WeightsError(
            f"{file} is a pointer of Git LFS, not the file itself",
            hint="git lfs pull, or download the file",
        )
    if len(prefix) < 9 or prefix[8:] != b"{":
        raise WeightsError(f"{file} is no safetensors file")
    (length,) = struct.unpack("<Q", prefix[:8])
    if length > size - 8:
        raise WeightsError(
            f"{file} is no safetensors file, or is cut short: its index should have {length} bytes, "
            f"the whole file has {size}",
            hint="get the file again",
        )
    if length > MAX_INDEX_BYTES:
        raise WeightsError(
            f"{file} has an index of {length / 1e6:.0f} MB, at most {MAX_INDEX_BYTES / 1e6:.0f} MB are read"
        )
    raw = prefix[8:] + stream.read(length - 1)
    if len(raw) < length:
        raise WeightsError(f"{file} changed while it was read", hint="the same command again")
    return size, raw


def _entry(name: str, entry: Any, file: Path) -> TensorInfo:
    """One tensor of the index."""
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        raise WeightsError(f"{file} has a damaged index: `{name}` lacks its type, shape or place")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise WeightsError(f"{file} holds `{name}` in the unknown type {_brief(repr(dtype))}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int for n in shape):
        raise WeightsError(f"{file} has a damaged index: the shape of `{name}` is no list of whole numbers")
    if not all(0 <= n < _MAX_SIDE for n in shape):
        raise WeightsError(f"{file} has a damaged index: `{name}` has the impossible shape {shape}"[:500])
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise WeightsError(f"{file} has a damaged index: the place of `{name}` is no pair of whole numbers")
    begin, end = offsets
    info = TensorInfo(dtype, tuple(shape), begin)
    if not 0 <= begin <= end or end - begin != info.bytes:
        raise WeightsError(
            f"{file} is damaged: `{name}` of shape {shape} in {dtype} takes {info.bytes} bytes, its index gives it "
            f"{_brief(str(begin))} to {_brief(str(end))}"
        )
    return info


def _check_places(places: list[tuple[int, int, str]], data: int, file: Path) -> None:
    """The tensors must fill the `data` bytes behind the index, one right behind the other."""
    reached, last = 0, ""
    for begin, end, name in places:
        if begin < reached:
            raise WeightsError(f"{file} is damaged: `{last}` and `{name}` overlap")
        if begin > reached:
            raise WeightsError(
                f"{file} is damaged: {begin - reached} bytes before `{name}` belong to no tensor"
            )
        reached, last = end, name
    if reached > data:
        raise WeightsError(
            f"{file} is damaged or cut short: {data} bytes of tensors, its index describes {reached}",
            hint="get the file again",
        )
    if reached < data:
        raise WeightsError(f"{file} is damaged: {data - reached} bytes behind the last tensor belong to none")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} occurs twice")
        found[name] = value
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _brief(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else text[:197] + "..."
