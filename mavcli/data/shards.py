"""Tar shards, on disk or behind a URL (fsspec), read in place: members are found once, then read by offset and size.

Nothing in a shard is unpacked to disk and nothing is unpickled; links, devices and sparse members are passed over. A
shard behind a URL is fetched once to learn what it holds. As long as all of them fit below the bound they stay in
`MAV_CACHE/shards/`; of those that do not, single samples are read by range, so a data set may be larger than the disk.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mavcli.data.captions import MAX_TEXT, TEXT_FILES, BadTextError, caption_in
from mavcli.data.index import Index
from mavcli.data.places import Listing, Place, is_packed, is_url
from mavcli.errors import InputError
from mavcli.files import make_folder, whole_path
from mavcli.media.image import describe, hint_for
from mavcli.media.passing import not_read
from mavcli.recipe.share import cache_dir

MAX_MEMBER = 1 << 30
"""Bytes of one member: it is read into memory whole."""
_MAX_PATTERN = 100_000
_ATTEMPTS = 4  # of one read over a network
_AFTER = "what comes after "


def expand(pattern: str) -> list[str]:
    """The shards that a pattern names: `{000..099}` and `{a,b}` as in a shell, `*` and `?` by what is there.

    A URL of a folder stands for the `.tar` files below it. Raises InputError when nothing is there.
    """
    found: list[str] = []
    for name in _braces(pattern):
        if is_url(name):
            found += _remote_names(name)
        elif any(c in name for c in "*?["):
            found += sorted(glob.glob(name, recursive=True))
        else:
            found.append(name)
    shards = [name for name in dict.fromkeys(found) if name.lower().endswith(".tar")]
    packed = [name for name in found if is_packed(name)]
    if packed and not shards:
        raise InputError(
            f"`{pattern}` names compressed tars, first `{packed[0]}`, wanted plain ones, which can be read anywhere inside",
            hint="unpack them first, such as `gunzip *.tar.gz`: what is left are the tars",
        )
    missing = [name for name in shards if not is_url(name) and not os.path.isfile(name)]
    if missing or not shards:
        what = (
            f"{len(missing)} shards that do not exist, first `{missing[0]}`" if missing else "no `.tar` shard"
        )
        raise InputError(
            f"`{pattern}` names {what}", hint="name plain tar files, such as `shards/{000..099}.tar`"
        )
    return shards


def list_shard(listing: Listing, path: str, name: str, wanted: Callable[[str], bool], *,
               keep_bytes: int) -> None:  # fmt: skip
    """Add the members of one shard whose name is `wanted`; what is wrong with the shard or a member goes to `rejected`."""
    try:
        shard, version = _shard(path, keep_bytes)
    except InputError as error:
        if is_url(path):
            raise  # a network that fails is no property of the data
        listing.rejected[name] = " ".join(error.message.replace(f"`{path}`", "").split())
        return
    for member, why in shard.rejected.items():
        if wanted(member) or member.startswith(_AFTER):
            listing.rejected[f"{name}/{member}"] = why
    for member, offset, size in shard.members:
        if wanted(member):
            listing.places.append(Place(f"{name}/{member}", path, offset, size, version=version))
    for member, caption in shard.captions.items():
        listing.captions[f"{name}/{member}"] = caption
    for member, why in shard.bad_captions.items():
        listing.bad_captions[f"{name}/{member}"] = why


def read_remote(place: Place) -> bytes:
    """The bytes of a member of a shard behind a URL: from the kept copy, else by range. Raises InputError."""
    kept = _kept(place.path, place.version)
    with suppress(OSError), open(kept, "rb") as file:
        file.seek(place.offset)
        data = file.read(-1 if place.size is None else place.size)
        if place.size is None or len(data) == place.size:
            return data
    system, path = _system(place.path)
    assert place.size is not None
    data = _patiently(
        place.path, lambda: system.cat_file(path, start=place.offset, end=place.offset + (place.size or 0))
    )
    if len(data) != place.size:
        raise InputError(f"`{place.path}` gave {len(data)} of {place.size} bytes of `{place.name}`")
    return bytes(data)


@contextmanager
def local_copy(url: str, version: str, *, keep_bytes: int) -> Iterator[str]:
    """A shard as a file of this machine for as long as it is needed, and for longer when all kept ones fit the bound."""
    kept = _kept(url, version)
    if not kept.is_file():
        system, path = _system(url)
        make_folder(kept.parent)
        with whole_path(kept, overwrite=True) as temporary:
            _patiently(url, lambda: system.get_file(path, str(temporary)))
    try:
        yield str(kept)
    finally:
        if _kept_bytes() > keep_bytes:
            kept.unlink(missing_ok=True)


def version_of(url: str) -> str:
    """What changes when the shard behind a URL does: size and, where the server tells, its tag or date."""
    system, path = _system(url)
    info: dict[str, Any] = _patiently(url, lambda: system.info(path))
    told = [
        str(info[key])
        for key in ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "created")
        if info.get(key)
    ]
    return hashlib.sha256("\n".join([str(info.get("size")), *told]).encode()).hexdigest()[:16]


@dataclass
class Shard:
    """What one tar holds."""

    members: list[tuple[str, int, int]] = field(default_factory=list)
    """(name, offset, size) of every plain file."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Name -> why the member is passed over."""
    captions: dict[str, str] = field(default_factory=dict)
    """Name of a text member -> the caption in it."""
    bad_captions: dict[str, str] = field(default_factory=dict)
    """Name of a text member -> why it is no caption."""


def _shard(path: str, keep_bytes: int) -> tuple[Shard, str]:
    """What a shard holds, from the cache or by reading it once, and the version of one behind a URL."""
    index = Index(f"tar {path}")
    version = version_of(path) if is_url(path) else ""
    if version:
        stamp = [int(version, 16)]
    else:
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns]
    index.load()
    known = index.get("", stamp)
    if known is not None:
        return Shard(**known), version
    if version:
        with local_copy(path, version, keep_bytes=keep_bytes) as local:
            shard = read_shard(local)
    else:
        shard = read_shard(path)
    index.put("", stamp, asdict(shard))
    index.save()
    return shard, version


def read_shard(path: str) -> Shard:
    """Every member of a tar. Raises InputError for what is no plain tar; one that is cut off gives what comes before."""
    shard = Shard()
    end = os.path.getsize(path)
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep a kilobyte for each
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    shard.rejected[name] = "is a link, a device or a sparse file, wanted plain members"
                elif name in seen:
                    shard.rejected[name] = "is a second member of that name"
                elif member.offset_data + member.size > end:
                    shard.rejected[name] = "is cut off at the end of the shard"
                elif member.size > MAX_MEMBER:
                    shard.rejected[name] = f"is a member of {member.size / 1e9:.1f} GB, wanted at most 1 GB"
                else:
                    seen.add(name)
                    shard.members.append((name, member.offset_data, member.size))
                    if name.lower().endswith(TEXT_FILES):
                        file = archive.extractfile(member)
                        try:
                            words = None if file is None else caption_in(name, file.read(MAX_TEXT + 1))
                        except BadTextError as error:
                            shard.bad_captions[name] = str(error)
                        else:
                            if words is not None:
                                shard.captions[name] = words
    except (tarfile.TarError, OSError, ValueError, RecursionError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:  # tarfile's own have no number
            not_read(path, error)
        if not shard.members:
            found = describe(path)
            raise InputError(
                f"`{path}` is {found or 'no tar archive that can be read'}, wanted a plain tar, which can be read "
                "anywhere inside",
                hint=hint_for(found) if found else None,
            ) from error
        why = " ".join(str(error).split())[:100]
        shard.rejected[f"{_AFTER}{shard.members[-1][0]}"] = f"the shard is damaged: {why}"
    return shard


def _braces(pattern: str) -> Iterator[str]:
    """`a{01..03}b` -> a01b, a02b, a03b; `{x,y}` -> x, y; several multiply."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    inside = found.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = int(span.group(1)), int(span.group(2))
        if last - first >= _MAX_PATTERN:
            raise InputError(f"`{{{inside}}}` names {last - first + 1} shards, wanted at most {_MAX_PATTERN}")
        choices = [str(i).zfill(len(span.group(1))) for i in range(first, last + 1)]
    else:
        choices = inside.split(",")
    for choice in choices:
        yield from _braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _remote_names(url: str) -> list[str]:
    if url.lower().endswith(".tar") and not any(c in url for c in "*["):
        return [url]
    system, path = _system(url)
    protocol = url.split("://", 1)[0]
    wanted = path if any(c in path for c in "*?[") else f"{path.rstrip('/')}/**/*.tar"
    names = _patiently(url, lambda: system.glob(wanted))
    return sorted(
        name if is_url(name) else f"{protocol}://{name.lstrip('/') if protocol != 'file' else name}"
        for name in names
    )


def _system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Raises InputError, with the extra that is missing."""
    protocol = url.split("://", 1)[0]
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
        return system, path
    except ImportError as error:
        raise InputError(
            f"`{url}` cannot be read: {protocol}:// needs a package that is not installed ({error})",
            hint="pip install 'mavcli[remote]'",
        ) from error
    except Exception as error:  # every file system has exceptions of its own
        raise InputError(
            f"`{url}` cannot be read: {' '.join(str(error).split())[:200]}",
            hint="s3://, https:// and hf:// are known, and what else fsspec has installed",
        ) from error


def _patiently(url: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, tried again a few times: networks fail for a moment. Raises InputError."""
    for attempt in range(_ATTEMPTS):
        try:
            return read()
        except FileNotFoundError as error:
            raise InputError(f"`{url}` does not exist") from error
        except PermissionError as error:
            raise InputError(
                f"`{url}` may not be read: {error}", hint="log in to the server first"
            ) from error
        except Exception as error:  # every file system has exceptions of its own
            if isinstance(error, OSError) and error.errno == 28:  # the disk here, not the network
                raise
            if attempt == _ATTEMPTS - 1:
                raise InputError(
                    f"`{url}` cannot be read, after {_ATTEMPTS} attempts: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:200]}"
                ) from error
            time.sleep(0.5 * 3**attempt)
    raise AssertionError


def _kept(url: str, version: str) -> Path:
    """Where the copy of a shard is kept, whether it is there or not."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", url.rsplit("/", 1)[-1])[-60:]
    mark = hashlib.sha256(f"{url} {version}".encode()).hexdigest()[:16]
    return cache_dir() / "shards" / f"{mark}-{name}"


def _kept_bytes() -> int:
    total = 0
    with suppress(OSError):
        for entry in os.scandir(cache_dir() / "shards"):
            with suppress(OSError):
                total += entry.stat().st_size
    return total
