"""Rows of numbers kept on disk under digests: what was computed once need not be computed again, by any process.

A folder holds immutable files of records, each a key, a row and a check of both. Processes add files and never change one,
so there is nothing to lock: a file is whole or absent, and a row that does not match its check counts as absent.

n rows of w numbers each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mavcli import stopping
from mavcli.engine.work import content_key
from mavcli.errors import DiskError
from mavcli.files import finished_files, make_folder, write_bytes

KEY_BYTES, CHECK_BYTES = 16, 8
AT_ONCE = 8 << 20
"""Bytes of new rows that are held back until they make a file; a kill costs no more than these."""

Row = NDArray[np.float32]


class KeptRows:
    """One folder of rows, all of the same `width`. Nothing about it can fail a run: `note` says why it keeps no more."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], width: int, *, limit: int) -> None:
        """`facts` (JSON values) is everything but the key that decides a row: other facts have a folder of their own
        under `folder`, which may hold `limit` bytes in all; with 0, nothing is read or written."""
        self.root, self.limit = folder, limit
        self._record = np.dtype(
            [("key", "u1", KEY_BYTES), ("check", "u1", CHECK_BYTES), ("row", "<f4", width)]
        )
        self.folder = folder / content_key({**facts, "width": width})[:32]
        self.found = self.made = 0
        """Rows that were there, and rows that were not."""
        self.note: str | None = None
        self._places: dict[bytes, tuple[str, int]] = {}
        self._known: set[str] = set()
        self._used: set[str] = set()
        self._new: dict[bytes, Row] = {}
        self.refresh()

    def get(self, key: bytes) -> Row | None:
        """The row (w,) kept under `key`, or None."""
        row = self._new.get(key)
        if row is None and key in self._places:
            row = self._read(key, *self._places[key])
        if row is None:
            self.made += 1
        else:
            self.found += 1
        return row

    def put(self, key: bytes, row: Row) -> None:
        """Keep a row (w,) under `key`; it is on disk at the latest after `flush`."""
        stopping.check()  # what was being stopped may have made it
        if self.limit == 0 or self.note is not None:
            return
        self._new[key] = np.array(row, np.float32)
        if len(self._new) * self._record.itemsize >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is new, and see what other processes have written."""
        if self._new:
            records = np.empty(len(self._new), self._record)
            for record, (key, row) in zip(records, self._new.items(), strict=True):
                record["key"], record["row"] = _bytes(key), row
                record["check"] = _bytes(_check(key, row))
            self._write(records.tobytes())
            self._new = {}
        self.refresh()
        for name in self._used:
            with contextlib.suppress(OSError):
                os.utime(self.folder / name)

    def refresh(self) -> None:
        """See what other processes have written."""
        if self.limit == 0:
            return
        names = {path.name for path in finished_files(self.folder, "*.rows")}
        for name in sorted(names - self._known):
            self._index(name)
        self._known = names

    def _index(self, name: str) -> None:
        try:
            keys = np.memmap(self.folder / name, self._record, "r")["key"].tobytes()
        except FileNotFoundError:
            return
        except (OSError, ValueError):  # not a whole number of records
            self._discard(name)
            return
        for number, at in enumerate(range(0, len(keys), KEY_BYTES)):
            self._places[keys[at : at + KEY_BYTES]] = (name, number * self._record.itemsize)

    def _read(self, key: bytes, name: str, offset: int) -> Row | None:
        try:
            with open(self.folder / name, "rb") as file:
                file.seek(offset)
                record = np.frombuffer(file.read(self._record.itemsize), self._record)[0]
            row = np.array(record["row"])
            if record["key"].tobytes() != key or record["check"].tobytes() != _check(key, row):
                raise ValueError("damaged")
        except FileNotFoundError:  # another process made room
            self._forget(name)
            return None
        except (OSError, ValueError, IndexError):
            self._discard(name)
            return None
        self._used.add(name)
        return row

    def _discard(self, name: str) -> None:
        """A damaged file goes, with all its rows: they are made again."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._places = {key: place for key, place in self._places.items() if place[0] != name}
        self._used.discard(name)

    def _write(self, data: bytes) -> None:
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.rows"
        try:
            if not self._make_room(len(data)):
                self.note = (
                    f"{self.root} holds {self.limit / 1e9:g} GB, the most it may; what is new is not kept"
                )
                return
            make_folder(self.folder)
            write_bytes(path, data, overwrite=True, durable=False)
            self._used.add(path.name)
        except DiskError as error:
            self.note = f"nothing new is kept in {self.root}: {error.message}"

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes more fit, after letting go the longest unused files that this run did not need.

        Its own stay: rows are drawn at random, and a folder that forgets the oldest of too many would find none of them.
        """
        files = []
        for path in finished_files(self.root, "*/*.rows"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total = size + sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total <= self.limit:
                break
            if not (path.parent == self.folder and path.name in self._used):
                path.unlink(missing_ok=True)
                total -= bytes_
        return total <= self.limit


def _check(key: bytes, row: Row) -> bytes:
    return hashlib.blake2b(row.tobytes(), key=key, digest_size=CHECK_BYTES).digest()


def _bytes(value: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(value, np.uint8)
