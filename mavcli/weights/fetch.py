"""Published weights onto this disk: from the Hugging Face hub, from an address, or from files that are here already.

Everything travels through huggingface_hub, plain addresses too (`http_get`: retries, resumes). A file gets its name when
it is whole and its SHA-256 agrees; what is half there waits beside it and is continued. `pulled.json` in the folder says
what arrived, so that files whose publisher states no SHA-256 can be checked later as well.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from mavcli.errors import DiskError, MavError, UsageError, WeightsError
from mavcli.files import file_sha256, link_or_copy, write_text
from mavcli.recipe.share import cache_dir
from mavcli.report import Report
from mavcli.weights.manifest import Published, RemoteFile, published

RECORD = "pulled.json"
_BLOCK = 1 << 24
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Piece:
    """One file of a pull. `here` is where its bytes lie on this disk already: in place, in the hub's cache, or given."""

    file: RemoteFile
    target: Path
    here: Path | None
    size: int | None
    sha256: str | None

    @property
    def done(self) -> bool:
        return self.here == self.target


@dataclass(frozen=True)
class Pull:
    """What getting some published weights comes to; made by `plan_pull`, carried out by `pull`."""

    name: str
    entry: Published
    folder: Path
    pieces: tuple[Piece, ...]

    @property
    def missing(self) -> tuple[Piece, ...]:
        return tuple(piece for piece in self.pieces if not piece.done)

    @property
    def to_fetch(self) -> int:
        """Bytes that must come over the network; what nobody states counts as nothing."""
        return sum(piece.size or 0 for piece in self.missing if piece.here is None)

    @property
    def unknown(self) -> int:
        """How many files state no size."""
        return sum(piece.size is None for piece in self.missing if piece.here is None)

    @property
    def free(self) -> int:
        return shutil.disk_usage(_existing(self.folder)).free


def published_dir(name: str) -> Path:
    """Where the files of some published weights are put."""
    return cache_dir() / "published" / name


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Path -> `sha256`, `bytes` and `source` of what was pulled into a folder; empty where nothing was."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("files"), dict):
            files: dict[str, dict[str, Any]] = found["files"]
            return {name: entry for name, entry in files.items() if isinstance(entry, dict)}
    return {}


def plan_pull(
    name: str,
    *,
    folder: Path | None = None,
    stages: Sequence[str] = (),
    local: Path | None = None,
    offline: bool = False,
) -> Pull:
    """What is there, what is to be fetched and how large it is; nothing is written.

    `stages` leaves out the files of other stages, `local` is a file or a folder with the files. Raises WeightsError where
    the source cannot be asked or lacks a file, or where `offline` something is missing; UsageError for a stage that these
    weights have not.
    """
    entry = published(name)
    folder = folder or published_dir(name)
    known = {file.stage for file in entry.files}
    if odd := [stage for stage in stages if stage not in known]:
        raise UsageError(f"`{name}` has no weights for `{odd[0]}`, it has {', '.join(sorted(known))}")
    files = [file for file in entry.files if not stages or file.stage in stages]
    record = recorded(folder)
    stated: dict[str, tuple[int | None, str | None]] = {}
    found: dict[str, Path | None] = {}
    for file in files:
        found[file.path] = _found(name, entry, file, folder, record, local)
    wanting = [file for file in files if found[file.path] is None]
    if wanting and offline:
        raise WeightsError(
            f"{len(wanting)} files of `{name}` are not on this disk, the first is {wanting[0].path}",
            hint=f"mav weights pull {name}, or mav weights pull {name} --from FOLDER",
        )
    if wanting:
        with _told(f"the source of `{name}`", name):
            stated = _hub_files(entry, wanting) if entry.hub else _addresses(wanting)
    pieces = []
    for file in files:
        size, sha256 = stated.get(file.path, (None, None))
        here = found[file.path]
        if here is not None:
            size = here.stat().st_size
        pieces.append(Piece(file, folder / file.path, here, size or file.size, file.sha256 or sha256))
    return Pull(name, entry, folder, tuple(pieces))


def pull(plan: Pull, report: Report) -> list[Path]:
    """Get what is missing, check all that is new, and return every file. A second pull at the same time waits for the first.

    Raises WeightsError where a source fails or sends something else than was published, DiskError where there is no room.
    """
    need = plan.to_fetch + sum(p.size or 0 for p in plan.missing if p.here is not None and not _linkable(p))
    if need > plan.free:
        raise DiskError(
            f"`{plan.name}` needs {need / 1e9:.2f} GB in {plan.folder}, {plan.free / 1e9:.2f} GB are free",
            hint=f"mav weights pull {plan.name} --out /a/larger/disk",
        )
    with _disk(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    with _only_one(plan.folder, report):
        record = recorded(plan.folder)
        # Reading what arrived once more, for its SHA-256, is work too.
        report.plan(sum(2 * (piece.size or 0) for piece in plan.missing))
        for piece in plan.missing:
            entry = record.get(piece.file.path)
            if entry is not None and _is_recorded(piece.target, entry):
                continue  # another process got it while this one waited
            with _disk(plan.folder):
                piece.target.parent.mkdir(parents=True, exist_ok=True)
                source = _get(plan, piece, report)
                sha256 = _verify(plan, piece, report)
                record[piece.file.path] = {
                    "sha256": sha256,
                    "bytes": piece.target.stat().st_size,
                    "source": source,
                }
                _write_record(plan.folder, plan.name, record)
    return [piece.target for piece in plan.pieces]


def check_pulled(name: str, entry: Published) -> list[tuple[str, WeightsError | None]]:
    """Every file that was pulled, with its fault: gone, or other bytes than were published (or than arrived)."""
    folder = published_dir(name)
    stated = {file.path: file.sha256 for file in entry.files}
    told: list[tuple[str, WeightsError | None]] = []
    for path, record in recorded(folder).items():
        file = folder / path
        fault = None
        if path not in stated:
            fault = WeightsError(f"{file} is no file of `{name}`")
        elif not file.is_file():
            fault = WeightsError(f"{file} is gone", hint=f"mav weights pull {name}")
        elif (found := file_sha256(file)) != (stated[path] or record.get("sha256")):
            fault = WeightsError(
                f"{file} is damaged: its SHA-256 is {found}", hint=f"mav weights pull {name}"
            )
        told.append((str(file), fault))
    if not told:
        raise WeightsError(f"nothing of `{name}` is here", hint=f"mav weights pull {name}")
    return told


def forget(folder: Path) -> None:
    """Delete all that `pull` put into a folder of mav's cache. Raises DiskError where that is not allowed."""
    with _disk(folder):
        shutil.rmtree(folder)


def download(url: str, target: Path, *, report: Report, hint: str | None = None) -> None:
    """Fetch `url` as `target`, which appears when it is whole. What an earlier try left is continued.

    A source that has changed in between is fetched anew. Raises WeightsError where the server does not answer well.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get

    with _told(url, hint=hint):
        told = get_hf_file_metadata(url, token=False)
        version = hashlib.sha256(f"{url} {told.etag} {told.size}".encode()).hexdigest()[:12]
        part = target.with_name(f".{target.name}.{version}.part")
        for stale in target.parent.glob(f".{target.name}.*.part"):
            if stale != part:
                stale.unlink()
        with open(part, "ab"):
            pass
        with open(part, "r+b") as file:
            start = file.seek(0, os.SEEK_END)
            if told.size is not None and start > told.size:
                start = file.seek(0)
                file.truncate()
            report.skip(start)
            http_get(
                url,
                _Counted(file, report),  # type: ignore[arg-type]
                resume_size=start,
                headers={"Accept-Encoding": "identity"},
                expected_size=told.size,
                tqdm_class=_silent_bar(),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)


class _Counted:
    """A file that tells a report how much is written to it."""

    def __init__(self, file: BinaryIO, report: Report) -> None:
        self._file, self._report = file, report

    def write(self, data: bytes) -> int:
        self._report.advance(len(data))
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _found(
    name: str,
    entry: Published,
    file: RemoteFile,
    folder: Path,
    record: dict[str, dict[str, Any]],
    local: Path | None,
) -> Path | None:
    """Where the bytes of a file are on this disk; None when they must be fetched."""
    target = folder / file.path
    if file.path in record and _is_recorded(target, record[file.path]):
        return target
    if local is not None:
        return _given(name, file, local, only=len(entry.files) == 1)
    if entry.hub is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(entry.hub, file.path, revision=entry.revision)
    return Path(cached) if isinstance(cached, str) else None


def _given(name: str, file: RemoteFile, local: Path, *, only: bool) -> Path:
    """The file that the user has: the file itself, or by its path or its name in a folder."""
    if local.is_file() and (only or local.name == Path(file.path).name):
        return local
    for candidate in (local / file.path, local / Path(file.path).name):
        if local.is_dir() and candidate.is_file():
            return candidate
    what = "does not exist" if not local.exists() else f"lacks {file.path} of `{name}`"
    raise WeightsError(f"{local} {what}", hint=f"mav weights show {name} lists the files")


def _hub_files(entry: Published, files: Sequence[RemoteFile]) -> dict[str, tuple[int | None, str | None]]:
    """Size and SHA-256 as the hub states them; it states no SHA-256 of small files."""
    from huggingface_hub import HfApi

    assert entry.hub is not None
    info = HfApi().model_info(entry.hub, revision=entry.revision, files_metadata=True)
    there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    lacking = [file.path for file in files if file.path not in there]
    if lacking:
        raise WeightsError(f"{entry.hub} on the hub lacks {lacking[0]}")
    stated = {}
    for file in files:
        lfs = there[file.path].lfs
        stated[file.path] = (there[file.path].size, None if lfs is None else str(lfs.sha256))
    return stated


def _addresses(files: Sequence[RemoteFile]) -> dict[str, tuple[int | None, str | None]]:
    from huggingface_hub import get_hf_file_metadata

    return {file.path: (get_hf_file_metadata(file.url, token=False).size, None) for file in files}


def _get(plan: Pull, piece: Piece, report: Report) -> str:
    """Bring one file to its place; returns where it came from."""
    report.stage(piece.file.path, 2 * (piece.size or 0))
    if piece.here is not None:
        link_or_copy(piece.here, piece.target)
        report.advance(piece.size or 0)
        return str(piece.here)
    help_ = (
        f"fetch {piece.file.url or piece.file.path} yourself, then mav weights pull {plan.name} --from FOLDER"
    )
    if plan.entry.hub is None:
        download(piece.file.url, piece.target, report=report, hint=help_)
        return piece.file.url
    from huggingface_hub import hf_hub_download

    with _told(f"{piece.file.path} of {plan.entry.hub}", plan.name):
        hf_hub_download(
            plan.entry.hub,
            piece.file.path,
            revision=plan.entry.revision,
            local_dir=plan.folder,
            tqdm_class=_bar(report),
        )
    return f"{plan.entry.hub}@{plan.entry.revision}"


def _verify(plan: Pull, piece: Piece, report: Report) -> str:
    """The file's SHA-256, which must be the published one; a file with another is taken away again."""
    found = file_sha256(piece.target, advance=report.advance)
    if piece.sha256 is not None and found != piece.sha256:
        piece.target.unlink()
        where = piece.here or piece.file.url or plan.entry.hub
        raise WeightsError(
            f"{piece.file.path} from {where} is not what was published: SHA-256 {found}, {piece.sha256} is wanted",
            hint=f"mav weights pull {plan.name} fetches it again",
        )
    return found


def _linkable(piece: Piece) -> bool:
    assert piece.here is not None
    return piece.here.stat().st_dev == _existing(piece.target.parent).stat().st_dev


def _is_recorded(target: Path, entry: dict[str, Any]) -> bool:
    return target.is_file() and target.stat().st_size == entry.get("bytes")


def _write_record(folder: Path, name: str, files: dict[str, dict[str, Any]]) -> None:
    text = json.dumps({"published": name, "files": files}, indent=1, sort_keys=True)
    write_text(folder / RECORD, text + "\n", overwrite=True)


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


@contextlib.contextmanager
def _only_one(folder: Path, report: Report) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report.message(f"waiting for another process that fetches into {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise DiskError(
            f"cannot write into {folder}: {(error.strerror or str(error)).lower()}",
            hint="--out /another/folder, what has arrived is continued",
        ) from error


@contextlib.contextmanager
def _told(what: str, name: str = "", *, hint: str | None = None) -> Iterator[None]:
    """Whatever the network and its libraries raise, as one line."""
    from huggingface_hub import errors

    hint = hint or f"mav weights pull {name} --from FOLDER takes files that you fetched yourself"
    try:
        yield
    except MavError:
        raise
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"cannot get {what}: its publisher wants you to accept the licence on the hub first",
            hint="hf auth login, after accepting it in a browser",
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise WeightsError(f"cannot get {what}: {_line(error)}", hint=hint) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__


def _bar(report: Report) -> Any:
    """huggingface_hub shows progress only through a tqdm class: this one tells the report."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            report.skip(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            report.advance(n or 0)
            return None

    return Bar


def _silent_bar() -> Any:
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

    return Bar
