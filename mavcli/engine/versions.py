"""Which mav this is, and which libraries: what was made by others is not handed out as made by these."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    """Of everything that can change a result."""
    names = ("mavcli", "torch", "numpy", "av", "pillow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


@functools.cache
def code_sha256() -> str:
    """Of the package's own sources, the command line's aside, which make nothing: a checkout changes without its version."""
    return sources_sha256(_PACKAGE)


def sources_sha256(package: Path) -> str:
    """SHA-256 over the names and bytes of all modules of `package` but those of its folder `cli`."""
    digest = hashlib.sha256()
    for file in _sources(package):
        data = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()}:{len(data)}\n".encode() + data)
    return digest.hexdigest()


def _sources(package: Path) -> Iterator[Path]:
    """Sorted; empty where the package lies in an archive, whose version alone then tells."""
    return (file for file in sorted(package.rglob("*.py")) if file.relative_to(package).parts[0] != "cli")
