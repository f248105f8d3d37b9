"""An `os` that fails at a chosen call: what `mavcli.files` is given to show that nothing is lost at any of its points."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mavcli import files

CUT = (
    "makedirs",
    "mkdir",
    "open",
    "write",
    "ftruncate",
    "fsync",
    "chmod",
    "link",
    "replace",
    "rename",
    "unlink",
)
"""The calls that change a disk; an `open` that only reads is counted too, since disks fail there as well."""


class FaultyOs:
    """`os`, whose `at`th call of those that are `CUT` fails as `kind` says.

    `kind` is an errno (the call does nothing and raises), "kill" (of a write half the bytes arrive, then SIGKILL) or
    "short" (a write takes half of the bytes and says so). `at` 0 fails never, and only counts `calls`.
    """

    def __init__(self, kind: int | str = "kill", at: int = 0) -> None:
        self.kind, self.at = kind, at
        self.calls = 0
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CUT:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            self.names.append(name)
            if self.calls != self.at:
                return real(*arguments, **options)
            if self.kind == "kill":
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "short":
                if name == "write" and len(arguments[1]) > 1:
                    return real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                return real(*arguments, **options)
            assert isinstance(self.kind, int)
            raise OSError(self.kind, os.strerror(self.kind))

        return call


@contextmanager
def faults(kind: int | str = "kill", at: int = 0) -> Iterator[FaultyOs]:
    """`mavcli.files` on a `FaultyOs` while the body runs."""
    faulty = FaultyOs(kind, at)
    real, files.os = files.os, faulty  # type: ignore[assignment]
    try:
        yield faulty
    finally:
        files.os = real
