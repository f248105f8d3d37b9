"""The bytes of weight files, read into memory of their own, and what is known of them from earlier.

safetensors' own `load_file` maps a file into memory: on the CPU its tensors change when the file does, after any check. Here
each tensor is read, and a sum (CRC-32) of its bytes is taken while they pass. So that the SHA-256 of all tensors, which costs
more, is computed once for a file and not in each run, `cache_dir()/digests` keeps for a path the file's size, times, inode,
its sums, and the digest that was found. All of them must be the same again: who rewrites a file changes its times, and a disk
that rots changes its sums. Of a file that was written just now nothing is kept, since the next change could have the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mavcli.errors import DiskError, WeightsError
from mavcli.files import file_sha256, is_settled, make_folder, stamp_of, write_bytes
from mavcli.recipe.share import cache_dir
from mavcli.weights.safety import read_index_of

if TYPE_CHECKING:
    from torch import Tensor

_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U16": "uint16",
    "I16": "int16", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64",
}  # fmt: skip
_PIECE = 1 << 20  # bytes that are read, and still in the processor's cache when they are summed
_MOST = 4096
"""Files that are remembered at most; the longest unused go."""


@dataclass(frozen=True)
class Reading:
    """A file as it was read. `stamp` is its size, times and place, None where it changed meanwhile; `sums` are of its bytes."""

    path: Path
    stamp: tuple[int, ...] | None
    sums: dict[str, int]
    facts: str
    """Hex SHA-256 of its index and its sums."""


class TensorFile:
    """One safetensors file, open for reading. Raises WeightsError where it cannot be read or is not what its index says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, int] = {}
        try:
            self._stream = open(path, "rb")  # noqa: SIM115
            weakref.finalize(self, self._stream.close)
            self.stamp = stamp_of(self._stream.fileno())
            self.metadata, self.index = read_index_of(self._stream, path)
            self._start = self._stream.tell()
        except OSError as error:
            raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error

    def __iter__(self) -> Iterator[str]:
        """The names of the tensors, in the order of their bytes."""
        return iter(sorted(self.index, key=lambda name: self.index[name].begin))

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own, on the CPU; its sum is then in `sums`."""
        import torch

        info = self.index[name]
        tensor = torch.empty(info.shape, dtype=getattr(torch, _TORCH[info.dtype]))
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        total = 0
        try:
            self._stream.seek(self._start + info.begin)
            for at in range(0, info.bytes, _PIECE):
                piece = data[at : at + _PIECE]
                if self._stream.readinto(piece) < len(piece):
                    raise changed(self.path)
                total = zlib.crc32(piece, total)
        except OSError as error:
            raise WeightsError(f"cannot read {self.path}: {error.strerror or error}") from error
        self.sums[name] = total
        return tensor

    def stamp_now(self) -> tuple[int, ...]:
        """Size, times and place of the file; `stamp` is what they were when it was opened."""
        return stamp_of(self._stream.fileno())

    def reading(self) -> Reading:
        """What was read up to now."""
        stamp = self.stamp if self.stamp == self.stamp_now() else None
        described = {
            name: [info.dtype, info.shape, info.begin, self.sums.get(name)]
            for name, info in self.index.items()
        }
        text = json.dumps([self.metadata, described], sort_keys=True)
        facts = hashlib.sha256(text.encode()).hexdigest()
        return Reading(self.path, stamp, dict(self.sums), facts)


@dataclass(frozen=True)
class Digested:
    """A file of another's that is read by another's reader, and the SHA-256 of what it held when this was made."""

    path: Path
    sha256: str
    stamp: tuple[int, ...]
    settled: bool
    """Whether a later change shows in the file's times."""

    @classmethod
    def of(cls, path: Path) -> Digested:
        """Raises WeightsError where it cannot be read."""
        try:
            stamp = stamp_of(path)
            found = cls(path, file_sha256(path), stamp, is_settled(*stamp[1:3]))
        except OSError as error:
            raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
        found.check()
        return found

    def check(self) -> None:
        """To be called when it was read: raises WeightsError where that may have been another file's bytes."""
        try:
            same = stamp_of(self.path) == self.stamp and (
                self.settled or file_sha256(self.path) == self.sha256
            )
        except OSError:
            same = False
        if not same:
            raise changed(self.path)


def changed(path: Path) -> WeightsError:
    """A file that was not the same from beginning to end."""
    return WeightsError(f"{path} changed while it was read", hint="the same command again")


def recorded(reading: Reading) -> str | None:
    """The digest that an earlier run found for the very file and bytes of `reading`, or None."""
    place = _place(reading.path)
    try:
        kept = json.loads(place.read_bytes())
        if kept["stamp"] != list(reading.stamp or ()) or kept["facts"] != reading.facts:
            return None
        os.utime(place)
        return str(kept["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def record(reading: Reading, sha256: str) -> None:
    """Remember the digest of what was read. Nothing is kept of a file that may still change unseen."""
    if reading.stamp is None or not is_settled(*reading.stamp[1:3]):
        return
    told = {
        "path": str(reading.path.absolute()),
        "stamp": reading.stamp,
        "facts": reading.facts,
        "sha256": sha256,
    }
    place = _place(reading.path)
    with contextlib.suppress(OSError, DiskError):  # a full or foreign disk: the next run computes it again
        make_folder(place.parent)
        _make_room(place.parent)
        write_bytes(place, json.dumps(told).encode(), overwrite=True, durable=False)


def _make_room(folder: Path) -> None:
    entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".json")]
    if len(entries) >= _MOST:
        for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime)[: _MOST // 4]:
            os.unlink(entry)


def _place(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return cache_dir() / "digests" / f"{name}.json"
