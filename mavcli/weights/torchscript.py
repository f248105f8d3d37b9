"""The parameters of a TorchScript archive, read without running its code.

`i3d_torchscript.pt` and OpenAI's CLIP files are such archives: a zip with compiled code, and a pickle that describes the
module. Only the pickle is looked at, by an unpickler that knows tensors, plain containers and nothing else; a module of
the archive becomes a bag of its attributes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mavcli.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_MAX_PICKLE = 64_000_000
_DTYPES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
}
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def is_torchscript(path: Path | str) -> bool:
    """Whether a file is a TorchScript archive, by what is in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by dotted name, in the order in which the module holds them, on the CPU.

    Attributes that are no tensors are left out. Raises WeightsError when the archive is damaged, compressed, or wants more
    than tensors and containers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except WeightsError:
        raise
    except Exception as error:  # zip and pickle raise whatever the bytes lead them to
        text = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{path} cannot be read: {text[:300]}") from error


def _read(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    described = entries.get("data.pkl")
    if described is None:
        raise WeightsError(f"{path} is no TorchScript archive: it lacks `data.pkl`")
    # torch compresses the code of an archive and nothing else; a bomb would be compressed.
    for name, info in entries.items():
        if info.compress_type != zipfile.ZIP_STORED and not name.startswith("code/"):
            raise WeightsError(f"{path} is no archive that torch wrote: `{name}` in it is compressed")
    if described.file_size > _MAX_PICKLE:
        raise WeightsError(
            f"{path} describes its module in {described.file_size} bytes, which no network needs"
        )
    reader = _Reader(io.BytesIO(archive.read(described)), archive, entries)
    found: dict[str, Tensor] = {}
    _gather(reader.load(), "", found, set())
    if not found:
        raise WeightsError(
            f"{path} holds no parameters", hint="a frozen archive keeps none; get the original"
        )
    return found


def _gather(value: Any, prefix: str, found: dict[str, Tensor], seen: set[int]) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        found[prefix] = value
        return
    if not isinstance(value, _Bag | dict) or id(value) in seen:
        return
    seen.add(id(value))
    entries = value.attributes if isinstance(value, _Bag) else value
    for name, part in entries.items():
        if isinstance(name, str):
            _gather(part, f"{prefix}.{name}" if prefix else name, found, seen)


class _Bag:
    """A module or another object of the archive: attributes by name, no behaviour."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Knows tensors, lists and bags."""

    def __init__(
        self, file: io.BytesIO, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]
    ) -> None:
        super().__init__(file)
        self._archive, self._entries = archive, entries

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module.split(".")[0] == "__torch__":
            return type(name, (_Bag,), {})
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if module == "collections" and name == "OrderedDict":
            return dict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _tensor if name == "_rebuild_tensor_v2" else _parameter
        if module == "torch" and name in _DTYPES:
            return getattr(torch, _DTYPES[name])
        raise pickle.UnpicklingError(f"it wants `{module}.{name}`, which no weights need: it was not run")

    def persistent_load(self, pid: Any) -> Any:
        import torch

        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is no tensor")
        _, dtype, key, _, count = pid
        entry = self._entries.get(f"data/{key}")
        if (
            not isinstance(dtype, torch.dtype)
            or entry is None
            or entry.file_size != int(count) * dtype.itemsize
        ):
            raise pickle.UnpicklingError(f"the tensor data `{key}` is missing or cut short")
        if int(count) == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self._archive.read(entry)), dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    # A view beyond the storage is refused by torch itself.
    return storage.as_strided(tuple(size), tuple(stride), int(offset)).clone()


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data
