"""What passes by itself: a reader that fails for want of memory, of file handles or of a disk that answers says nothing of a file.

Only facts of the bytes may be told of a file, or kept. Libraries mix the two: FFmpeg says `input/output error` of a file that
ends early and of a disk that fails, libjpeg says `broken data stream` where there was no memory. So the cause is asked for.
"""

from __future__ import annotations

import errno
from typing import NoReturn

from mavcli.errors import NotReadError, OutOfMemoryError

_NEEDED = 1 << 30
"""Bytes that a picture of 64 MP takes while it is decoded: it, twice, and a decoder's own."""
_MAYBE_DISK = frozenset(
    {errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOENT}
    | {errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.EAGAIN, errno.ENXIO, errno.ENODEV}
)
"""What FFmpeg says of disks, and some of it of damaged files too."""


def short_of_memory() -> bool:
    """Whether what a picture needs cannot be had now, as under `ulimit -v`; what the kernel would kill for is not seen."""
    import numpy as np

    try:
        np.empty(_NEEDED, np.uint8)  # address space alone: no page of it is touched
    except MemoryError:
        return True
    return False


def refuse_passing(name: str, error: BaseException | None, *, path: str | None = None) -> None:
    """Raise OutOfMemoryError or NotReadError where `error`, met while reading `name`, does not come from the bytes.

    `path` is the file, where there is one: it is read to its end where the error may be the disk's.
    """
    if short_of_memory():
        raise OutOfMemoryError(
            f"out of memory while reading `{name}`",
            hint="free some memory, or raise the limit of this process (`ulimit -v`)",
        ) from error
    if path is not None and isinstance(error, OSError) and error.errno in _MAYBE_DISK:
        try:
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass
        except OSError as cause:
            not_read(name, cause)


def not_read(name: str, error: OSError) -> NoReturn:
    """Raise NotReadError in the system's own words."""
    raise NotReadError(f"cannot read `{name}`: {(error.strerror or str(error)).lower()}") from error
