"""Files: the one module that writes, makes temporary files, digests and locks.

A file appears whole or not at all: it is written under a temporary name beside its place, synced, and given its name in one
step, which refuses a name that is taken unless the caller may overwrite. Several files become one commit inside
`together()`. A temporary name carries host, process and the time that the process started, so that a later run finds what
a dead one left behind: `sweep` removes it, and finishes a commit that was begun. Every call of the operating system here
goes through this module's `os`, where the tests cut it.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mavcli.errors import DiskError, InputError

_BLOCK = 1 << 20
_FOREIGN_LEFT_S = 7 * 86400.0
"""What another host's process has not touched for so long is taken for left behind."""
_NAME_BYTES = 120
_TICK_NS, _COARSE_NS = 20_000_000, 3_000_000_000
_MARK = re.compile(
    r"\..*\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>[0-9a-f]{8})-[0-9a-f]{8}\.(?:tmp(?:\.\w+)?|(?P<journal>journal))",
    re.DOTALL,
)
_LOCK = ".mavlock"
_HIDDEN = "0" * 8
"""Stands for the start of a process that is there and hides when it started."""


# -- digests and words --------------------------------------------------------------------------------------------------


def file_sha256(path: str | os.PathLike[str], *, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's bytes as lower-case hex; `advance` is told the bytes of each block. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(_BLOCK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """`{"size": bytes, "sha256": hex}` of a file. Raises OSError."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def is_as_described(path: Path, described: Any) -> bool:
    """Whether `path` is a regular file that `describe_file` would describe so; the size is asked first."""
    try:
        return (
            isinstance(described, dict)
            and path.is_file()
            and path.stat().st_size == described.get("size")
            and file_sha256(path) == described.get("sha256")
        )
    except OSError:
        return False


def stamp_of(file: Path | int) -> tuple[int, ...]:
    """What changes when a file does: size, time of the last writing, of the last change, inode, device. Raises OSError."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def is_settled(*times_ns: int) -> bool:
    """Whether a file with these times is so old that its next change gets another time, which a cache can then see.

    The kernel's clock ticks every 10 ms or more often; where times are whole milliseconds the file system's is coarser, two
    seconds on FAT.
    """
    last = max(times_ns)
    return time.time_ns() - last >= (_COARSE_NS if last % 1_000_000 == 0 else _TICK_NS)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of reading `path` into an InputError: `cannot read ...`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read `{os.fspath(path)}`: {reason(error)}") from error


@contextmanager
def writing(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of writing `target` into a DiskError: `cannot write ...`."""
    try:
        yield
    except OSError as error:
        raise disk_error(target, error) from error


def disk_error(target: str | os.PathLike[str], error: OSError) -> DiskError:
    """An OSError of writing in words, with advice where the disk is the cause."""
    space = "free some space, or choose another folder with `-o`"
    permission = "choose a folder that you may write to with `-o`"
    hints = {
        errno.ENOSPC: space,
        errno.EDQUOT: space,
        errno.EACCES: permission,
        errno.EPERM: permission,
        errno.EROFS: permission,
        errno.EIO: "look at the disk, or choose a folder on another one with `-o`",
        errno.ENAMETOOLONG: "choose a shorter name with `-o`",
    }
    return DiskError(f"cannot write `{os.fspath(target)}`: {reason(error)}", hint=hints.get(error.errno or 0))


def reason(error: OSError) -> str:
    """What an OSError says, in lower case and on one line."""
    return " ".join((error.strerror or str(error) or type(error).__name__).split()).lower()


def refuse_existing(target: Path, overwrite: bool, *, hint: str | None = None) -> None:
    """DiskError unless `target` may be created: it is there, is no regular file, or its folder is missing."""
    if target.is_dir():
        raise DiskError(f"`{target}` is a folder, wanted a file name")
    if os.path.lexists(target):
        if not overwrite:
            raise DiskError(
                f"`{target}` exists", hint=hint or "--force overwrites it, -o chooses another name"
            )
        if target.exists() and not target.is_file():
            raise DiskError(f"`{target}` is no regular file", hint="choose another name with `-o`")
    if not target.parent.is_dir():
        raise DiskError(f"`{target.parent}` is no folder", hint=f"mkdir -p {target.parent}")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; one that is there is fine. Raises DiskError."""
    with writing(folder):
        os.makedirs(folder, exist_ok=True)


# -- one file -----------------------------------------------------------------------------------------------------------


@contextmanager
def whole_path(
    target: str | os.PathLike[str], *, overwrite: bool = False, durable: bool = True
) -> Iterator[Path]:
    """A temporary path for a foreign writer (FFmpeg, safetensors, SQLite), which becomes `target` when the body ends well.

    It exists, is empty, lies beside `target` and has its suffix. Whatever the writer does to the file's mode, it ends with
    that of the umask. Not `durable` is for caches: the file is not synced, and no part of a commit. Inside `together()` the
    file appears with the others. Raises DiskError, also for an OSError of the body.
    """
    place = Path(target)
    refuse_existing(place, overwrite)
    place = place.resolve() if place.is_symlink() else place  # what the link names is written, the link stays
    sweep(place.parent)
    commit = _COMMIT.get() if durable else None
    temporary = temporary_path(place)
    kept = False
    try:
        with writing(target):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o666)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            yield temporary
            _set_mode(temporary, mode)
            if durable:
                _sync(temporary)
            if commit is not None:
                commit._stage(temporary, place, overwrite)
                kept = True
            else:
                _move(temporary, place, overwrite=overwrite)
                if durable:
                    _sync_folder(place.parent)
    finally:
        if not kept:
            with suppress(OSError):
                os.unlink(temporary)


@contextmanager
def whole_file(
    target: str | os.PathLike[str], *, overwrite: bool = False, durable: bool = True
) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `target` when the body ends well; as `whole_path`."""
    with whole_path(target, overwrite=overwrite, durable=durable) as temporary:
        sink = _Sink(os.open(temporary, os.O_WRONLY | os.O_TRUNC | _CLOEXEC))
        try:
            file = io.BufferedWriter(sink, _BLOCK)
            yield file
            file.flush()
        finally:
            sink.close()


def write_bytes(
    target: str | os.PathLike[str],
    data: bytes | bytearray | memoryview,
    *,
    overwrite: bool = False,
    durable: bool = True,
) -> None:
    """Write a whole file or none; as `whole_path`."""
    with whole_file(target, overwrite=overwrite, durable=durable) as file:
        file.write(data)


def write_text(
    target: str | os.PathLike[str], text: str, *, overwrite: bool = False, durable: bool = True
) -> None:
    """Write a whole UTF-8 file or none; what UTF-8 cannot hold is escaped; as `whole_path`."""
    write_bytes(target, text.encode("utf-8", "backslashreplace"), overwrite=overwrite, durable=durable)


def copy_file(source: Path, target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Copy the bytes of a file, whole or not at all; as `whole_path`."""
    with whole_file(target, overwrite=overwrite) as file, open(source, "rb") as given:
        shutil.copyfileobj(given, file, _BLOCK)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the disk allows it, else a copy; replaces `target`. Raises DiskError."""
    sweep(target.parent)
    temporary = temporary_path(target)
    try:
        os.link(source.resolve(), temporary)
        os.replace(temporary, target)
    except OSError:
        copy_file(source, target, overwrite=True)
    finally:
        with suppress(OSError):  # a link to the file that is there already leaves both names
            os.unlink(temporary)


def sealed(text: str, *, comment: str) -> str:
    """A text with a last line that says what it was: a comment (`# {}`, `<!-- {} -->`) with its SHA-256."""
    text = text.rstrip("\n") + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text + comment.format(f"mav rewrites this file while its text has the SHA-256 {digest}") + "\n"


def is_sealed(path: Path) -> bool:
    """Whether a text is as mav wrote it, by its seal: what somebody wrote or changed is theirs."""
    try:
        text, _, seal = path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
    except (OSError, ValueError):
        return False
    return hashlib.sha256(f"{text}\n".encode()).hexdigest() in seal


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file in one write; a line that a crash cut short stays behind, alone. Raises DiskError."""
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _CLOEXEC, 0o666)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            _write_all(
                descriptor, (b"\n" if torn else b"") + line.encode("utf-8", "backslashreplace") + b"\n"
            )
        finally:
            os.close(descriptor)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the body ends well; `target` may be there when it is empty.

    Everything in it is synced first. Raises DiskError, also for an OSError of the body.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DiskError(f"`{target}` exists", hint="choose the name of a folder that does not exist yet")
    make_folder(target.parent)
    sweep(target.parent)
    temporary = temporary_path(target, suffix="")
    try:
        with writing(target):
            os.mkdir(temporary)
            yield temporary
            sync_tree(temporary)
            os.rename(temporary, target)
            _sync_folder(target.parent)
    finally:
        remove_tree(temporary)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder`, and itself, durable. Raises OSError."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync_folder(Path(parent))


def rename(source: Path, target: Path) -> None:
    """Give a folder another name beside its own, durably. Raises OSError."""
    os.rename(source, target)
    _sync_folder(target.parent)


def remove_tree(folder: Path) -> None:
    """Delete a folder with all that is in it, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


def temporary_path(target: Path, *, suffix: str | None = None) -> Path:
    """A hidden name beside `target` with its suffix, which no other process takes and `sweep` knows for this one's."""
    end = target.suffix if suffix is None else suffix
    end = end if re.fullmatch(r"(\.\w{1,12})?", end) else ""
    stem = target.name.encode("utf-8", "surrogateescape")[:_NAME_BYTES].decode("utf-8", "ignore")
    return target.with_name(f".{stem}.{_own_mark()}-{secrets.token_hex(4)}.tmp{end}")


def finished_files(folder: Path, pattern: str, *, nested: bool = False) -> list[Path]:
    """Files of `folder` (`nested`: of its folders too) that match, in order of their names: none that a writer is still at, or left.

    A temporary file has its target's suffix, which foreign writers go by, so `*.safetensors` alone would find both.
    """
    found = folder.rglob(pattern) if nested else folder.glob(pattern)
    return sorted(path for path in found if not _MARK.fullmatch(path.name))


# -- several files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Staged:
    temporary: Path
    target: Path
    overwrite: bool


@dataclass
class Commit:
    """Files that appear together, when the body of `together()` ends well."""

    _staged: list[_Staged] = field(default_factory=list)
    _removed: list[tuple[Path, list[int]]] = field(default_factory=list)
    _shown: dict[Path, dict[str, Any]] = field(default_factory=dict)
    _journal: Path | None = None

    def describe(self, target: Path) -> dict[str, Any]:
        """`describe_file` of what `target` will be, or is already where it was shown."""
        if target in self._shown:
            return self._shown[target]
        staged = next(s for s in self._staged if s.target == target or s.target == target.resolve())
        return describe_file(staged.temporary)

    @contextmanager
    def shown_early(self, target: Path, *, overwrite: bool = False) -> Iterator[None]:
        """Files of the body appear at once, to be looked at; they go again when the commit comes to nothing.

        `target` is the file that the body writes. A later run takes it away when this process is killed.
        """
        refuse_existing(target, overwrite)
        mine = Commit()
        token = _COMMIT.set(mine)
        try:
            yield
        except BaseException:
            mine._drop()
            raise
        finally:
            _COMMIT.reset(token)
        (staged,) = mine._staged
        with writing(target):
            self._shown[staged.target] = describe_file(staged.temporary)
            try:
                self._write_journal(staged.target.parent, shown=True)
                _move(staged.temporary, staged.target, overwrite=overwrite)
            except BaseException:
                mine._drop()
                raise

    def remove(self, path: Path) -> None:
        """Delete `path` when the files appear, if it is then still what it is now."""
        found = _stamp(path)
        if found is not None:
            self._removed.append((path, found))

    def _stage(self, temporary: Path, target: Path, overwrite: bool) -> None:
        for earlier in [s for s in self._staged if s.target == target]:
            self._staged.remove(earlier)
            with suppress(OSError):
                os.unlink(earlier.temporary)
        self._staged.append(_Staged(temporary, target, overwrite))

    def _finish(self) -> None:
        if not self._staged and not self._removed:
            self._forget()
            return
        first = self._staged[0].target if self._staged else self._removed[0][0]
        folder = self._journal.parent if self._journal is not None else first.parent
        with writing(first):
            files = [
                {
                    "temporary": _spelt(staged.temporary, folder),
                    "path": _spelt(staged.target, folder),
                    "replaces": _stamp(staged.target) if staged.overwrite else None,
                }
                for staged in self._staged
            ]
            removed = [{"path": _spelt(path, folder), "stamp": found} for path, found in self._removed]
            self._write_journal(folder, files=files, removed=removed)
            try:
                taken = _roll_forward(folder, files, removed)
            except BaseException:
                if not self._take_back(files):
                    self._staged, self._shown, self._journal = [], {}, None  # the next run finishes
                raise
        if taken is not None:
            raise DiskError(f"`{taken}` exists", hint="--force overwrites it, -o chooses another name")
        self._shown = {}  # nothing is taken away any more
        for parent in {staged.target.parent for staged in self._staged}:
            _sync_folder(parent)
        with suppress(OSError):  # all is there: a journal that stays says nothing new
            self._forget()
        self._drop()

    def _take_back(self, files: list[dict[str, Any]]) -> bool:
        """Whether nothing of the commit stands any more; False where an older file was replaced already."""
        for staged, entry in zip(self._staged, files, strict=True):
            if entry["replaces"] is not None and not os.path.lexists(staged.temporary):
                return False
        _take_back([(staged.temporary, staged.target) for staged in self._staged])
        return True

    def _abandon(self) -> None:
        """Leave nothing behind. The journal goes before the files that it would give their names."""
        try:
            if self._shown and self._journal is not None:
                self._write_journal(self._journal.parent, shown=True)
            else:
                self._forget()
        except OSError:
            with suppress(OSError):
                self._forget()
            if self._journal is not None:
                return  # the next run finishes
        self._drop()
        for path, described in self._shown.items():
            if is_as_described(path, described):
                with suppress(OSError):
                    os.unlink(path)
        with suppress(OSError):
            self._forget()

    def _write_journal(
        self,
        folder: Path,
        *,
        files: list[dict[str, Any]] | None = None,
        removed: list[dict[str, Any]] | None = None,
        shown: bool = False,
    ) -> None:
        """From here on a later run knows what to do should this process die: finish `files`, or take away what is shown."""
        told = {
            "mav_journal": 1,
            "files": files or [],
            "removed": removed or [],
            "shown": [{"path": _spelt(p, folder), **d} for p, d in self._shown.items()] if shown else [],
        }
        if self._journal is None:
            self._journal = folder / f".commit.{_own_mark()}-{secrets.token_hex(4)}.journal"
        aside = temporary_path(self._journal, suffix="")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o666)
            try:
                _write_all(descriptor, json.dumps(told).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(aside, self._journal)
            _sync_folder(folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise

    def _drop(self) -> None:
        for staged in self._staged:
            with suppress(OSError):
                os.unlink(staged.temporary)

    def _forget(self) -> None:
        if self._journal is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._journal)
            self._journal = None


_COMMIT: ContextVar[Commit | None] = ContextVar("mav_commit", default=None)


@contextmanager
def together() -> Iterator[Commit]:
    """One commit of all durable files that are written in the body: they appear together when it ends well, or none does.

    A kill while they appear leaves a journal, with which the next `sweep` of the folder finishes. A file that was made or
    changed by another in between is never replaced. Inside another `together()` this is part of that. Raises DiskError.
    """
    outer = _COMMIT.get()
    if outer is not None:
        yield outer
        return
    commit = Commit()
    token = _COMMIT.set(commit)
    try:
        try:
            yield commit
        finally:
            _COMMIT.reset(token)
        commit._finish()
    except BaseException:
        commit._abandon()
        raise


def remove(path: Path) -> None:
    """Delete a file, inside `together()` when the others appear; one that is gone is fine. Raises DiskError."""
    commit = _COMMIT.get()
    if commit is not None:
        commit.remove(path)
        return
    with writing(path), suppress(FileNotFoundError):
        os.unlink(path)


def _roll_forward(folder: Path, files: list[dict[str, Any]], removed: list[dict[str, Any]]) -> Path | None:
    """Give every staged file its name, as often as it takes. Returns a place that somebody else has taken, or None.

    Where that place was free before, nothing appears; where it was to be replaced, theirs stays. Raises OSError.
    """
    placed: list[tuple[Path, Path]] = []
    taken: Path | None = None
    for entry in files:
        temporary, target = folder / entry["temporary"], folder / entry["path"]
        if not os.path.lexists(temporary):
            continue  # it has its name already
        found = _stamp(target)
        try:
            if found is None or entry["replaces"] is None:
                os.link(temporary, target)
            elif found == entry["replaces"]:
                os.replace(temporary, target)
                continue
            else:
                taken = target
                continue
        except FileExistsError:
            if not os.path.samestat(os.lstat(temporary), os.lstat(target)):
                _take_back(placed)
                return target
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                _take_back(placed)
                return target
            os.replace(temporary, target)
            continue
        placed.append((temporary, target))
    for entry in removed:
        path = folder / entry["path"]
        if _stamp(path) == entry["stamp"]:
            os.unlink(path)
    return taken


def _take_back(placed: list[tuple[Path, Path]]) -> None:
    for temporary, target in placed:
        with suppress(OSError):
            if os.path.samestat(os.lstat(temporary), os.lstat(target)):
                os.unlink(target)


# -- what others left ---------------------------------------------------------------------------------------------------

_SWEPT: dict[Path, int] = {}


def sweep(folder: Path, *, again: bool = False) -> None:
    """Finish or remove what dead processes left in `folder`: commits, temporary files and folders, locks that nobody holds.

    Never touches what a living process or a user made. A process looks once into a folder unless `again`. What cannot be
    removed stays, without an error.
    """
    if not again and _SWEPT.get(folder) == os.getpid():
        return
    _SWEPT[folder] = os.getpid()
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    marked = [(folder / name, match) for name in names if (match := _MARK.fullmatch(name))]
    dead = [(path, match) for path, match in marked if not _lives(path, match)]
    spared: set[Path] = set()
    for path, match in dead:
        if match["journal"]:
            spared |= _settle(path)
    for path, match in dead:
        if not match["journal"] and path not in spared:
            with suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    remove_tree(path)
                else:
                    os.unlink(path)
    for name in names:
        if name.startswith(".") and name.endswith(_LOCK):
            with suppress(OSError):
                lock = _try_lock(folder / name)
                if lock is not None:
                    _unlock(folder / name, lock)


def _settle(journal: Path) -> set[Path]:
    """Do what a dead process's journal says; the temporary files that must stay because it could not be done."""
    folder = journal.parent
    files: list[dict[str, Any]] = []
    try:
        told = json.loads(journal.read_bytes())
        files = told.get("files", [])
        _roll_forward(folder, files, told.get("removed", []))
        for shown in told.get("shown", []):
            if is_as_described(folder / shown["path"], shown):
                os.unlink(folder / shown["path"])
        os.unlink(journal)
        for entry in files:
            with suppress(FileNotFoundError):
                os.unlink(folder / entry["temporary"])
    except OSError:
        return {folder / entry["temporary"] for entry in files}
    except (ValueError, KeyError, TypeError, AttributeError):  # no journal of ours
        return set()
    return set()


def _lives(path: Path, match: re.Match[str]) -> bool:
    """Whether the process that made a temporary file may still be at it."""
    if match["host"] != _host():
        try:
            return time.time() - os.lstat(path).st_mtime < _FOREIGN_LEFT_S
        except OSError:
            return True
    return _started(int(match["pid"])) in (match["start"], _HIDDEN)


def _own_mark() -> str:
    pid = os.getpid()
    return f"{_host()}-{pid}-{_own_start(pid)}"


@functools.lru_cache(maxsize=1)
def _own_start(pid: int) -> str:
    return _started(pid) or _HIDDEN


@functools.lru_cache(maxsize=1)
def _host() -> str:
    """A mark of the machine and, where there are such, of the container: of whoever numbers the processes."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _started(pid: int) -> str | None:
    """A mark of when a process of this machine started, the boot included; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
        if text[0] in "ZX":
            return None
        return _mark_of(f"{_boot()} {text[19]}")
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return _HIDDEN
    with suppress(OSError, subprocess.SubprocessError):
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        answer = subprocess.run(command, capture_output=True, timeout=10, check=False).stdout.strip()
        return _mark_of(answer.decode(errors="replace")) if answer else None
    return _HIDDEN


@functools.lru_cache(maxsize=1)
def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _mark_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# -- locks --------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(target: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the place of `target` alone, against every other process that asks; the operating system frees a dead one's.

    `waiting` is called once when another holds it, before waiting; it may raise to give up. Where locks do not work
    (some network file systems), nobody waits: the names are still never taken twice. Raises DiskError.
    """
    path = target.with_name(f".{target.name.encode()[:200].decode('utf-8', 'ignore')}{_LOCK}")
    with writing(target):
        lock = _try_lock(path)
    if lock is None:
        if waiting is not None:
            waiting()
        with writing(target):
            lock = _try_lock(path, wait=True)
        sweep(target.parent, again=True)  # whoever had it may have died
    try:
        yield
    finally:
        if lock is not None:
            _unlock(path, lock)


def _try_lock(path: Path, *, wait: bool = False) -> int | None:
    """The descriptor of a lock that is now ours, -1 where locks do not work; None when another has it. Raises OSError."""
    try:
        import fcntl
    except ImportError:
        return -1
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # its last holder took the file away
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                return -1
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _unlock(path: Path, descriptor: int) -> None:
    with suppress(OSError):
        os.unlink(path)  # while it is ours: whoever waits sees that the name is gone, and asks again
    if descriptor >= 0:
        os.close(descriptor)


# -- the operating system -----------------------------------------------------------------------------------------------

_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


class _Sink(io.RawIOBase):
    """A descriptor to write to. It has no `fileno`, so that every library writes through here."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        os.ftruncate(self._descriptor, size)
        return size

    def write(self, data: Any) -> int:
        return os.write(self._descriptor, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL)
"""What a file system without hard links says."""


def _move(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished file its name in one step. Raises DiskError where that is taken and may not be, OSError."""
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike rename, fails when another process took the name meanwhile
    except FileExistsError:
        refuse_existing(target, False)
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        refuse_existing(target, False)
        os.replace(temporary, target)
    else:
        with suppress(OSError):
            os.unlink(temporary)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)


def _stamp(path: Path) -> list[int] | None:
    """What tells whether a name still stands for the same file with the same content; None when it is free."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _spelt(path: Path, folder: Path) -> str:
    """`path` from `folder` where it lies below it, so that the folder may be moved."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make names durable, as far as the file system lets: some network ones do not; the files themselves are synced."""
    with suppress(OSError):
        _sync(folder)
