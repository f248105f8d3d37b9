"""What the stages of earlier runs made, kept so that it need not be made again.

An entry's name is a hash of everything that determines it: the stage's settings, its weights, its input, the seed. So the
same stage with the same input is found again, whichever command asks: a draft is finished, a broken run goes on. Entries
are whole or absent; a damaged one is made anew; the longest unused go first when the folder is full.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mavcli import stopping
from mavcli.errors import DiskError
from mavcli.files import finished_files, make_folder, write_bytes

LIMIT = 2_000_000_000
"""Bytes that are kept at most."""


def content_key(value: Any) -> str:
    """Hex SHA-256 of settings (anything JSON) in which tensors stand for their shape, type and bytes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_tensor_digest).encode()).hexdigest()


def _tensor_digest(value: object) -> str:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} cannot be part of a key")
    plain = value.detach().cpu().contiguous()
    digest = hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    return f"{plain.dtype} {list(plain.shape)} {digest}"


class Work:
    """A folder of stage outputs. Nothing about it can fail a run: what cannot be read or written is made anew."""

    def __init__(self, folder: Path, *, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def get(self, key: str) -> Tensor | None:
        """The tensor kept under `key`, or None."""
        path = self._path(key)
        try:
            with safe_open(path, "pt") as file:
                tensor: Tensor = file.get_tensor("output")
                metadata = file.metadata() or {}
            if metadata.get("sha256") != _tensor_digest(tensor):
                raise ValueError("damaged")
            os.utime(path)
            return tensor
        except OSError:  # absent, or not to be opened now; that says nothing of its bytes
            return None
        except (SafetensorError, ValueError, KeyError, RuntimeError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep `tensor` under `key`, and let the longest unused entries go while the folder is over its limit."""
        stopping.check()  # what was being stopped may have made it
        plain = tensor.detach().cpu().contiguous()
        path = self._path(key)
        # a full or foreign disk: the run goes on without a memory
        with contextlib.suppress(DiskError, OSError):
            make_folder(self.folder)
            entry = save({"output": plain}, metadata={"sha256": _tensor_digest(plain)})
            write_bytes(path, entry, overwrite=True, durable=False)
            self._prune(spare=path)

    def size(self) -> int:
        """Bytes that are kept."""
        return sum(size for _, size, _ in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, file), the longest unused first."""
        found = []
        for path in finished_files(self.folder, "*.safetensors"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _prune(self, *, spare: Path) -> None:
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.limit:
                return
            if path != spare:
                path.unlink(missing_ok=True)
                total -= size
