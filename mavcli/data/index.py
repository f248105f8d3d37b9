"""What is in a data folder, known without reading it again: a cache of facts, keyed by name, size and time of change.

Each file is decoded once, in processes that may crash or hang (`mavcli.data.scan`); the facts go to
`MAV_CACHE/index/`, never beside the data. A cache that does not match its own checksum is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal

import av
import PIL

from mavcli import stopping
from mavcli.data.places import Place
from mavcli.data.scan import MEMORY, PATIENCE, Facts, passing, scan
from mavcli.errors import DiskError, counted
from mavcli.files import is_settled, make_folder, write_bytes
from mavcli.recipe.share import cache_dir

FORMAT = 4
"""Of the cache file and of the facts in it; another number, PyAV or Pillow, and everything is read again. What formats 1 and
2 kept of files that could not be read for a while is not believed; 3 saw no cut between scenes of one brightness."""
STALL = 300.0
"""Seconds without a sign of life after which a decoder is given up: it waits for a disk that does not answer."""
_SAVE_EVERY = 60.0
_CRASHES = frozenset(
    -getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
    if hasattr(signal, name)
)
"""Ends of a decoder that a file can cause; by any other it was killed from outside."""
_FEW = 64
"""Pictures that are decoded here: it takes less time than a process, and Pillow is not known to crash."""

Kind = Literal["video", "image"]
Progress = Callable[[int, int], None]


class Index:
    """The facts of one folder or archive, as far as they are known; `key` names it, such as its absolute path."""

    def __init__(self, key: str) -> None:
        self.key = key
        readable = re.sub(r"[^A-Za-z0-9]+", "-", key)[-40:].strip("-")
        name = f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
        self.path = cache_dir() / "index" / name
        self.note: str | None = None
        """Why the facts could not be kept, in words; None when they were."""
        self._entries: dict[str, tuple[list[int], Facts]] = {}

    def load(self) -> None:
        """Take over what is on disk, if it is whole and of this version."""
        self._entries = {}
        try:
            with open(self.path, "rb") as file:
                head = json.loads(file.readline())
                body = file.read()
            if head != self._head(body):
                return
            self._entries = {
                name: (stamp, facts) for name, stamp, facts in map(json.loads, body.splitlines())
            }
        except (OSError, ValueError, TypeError):
            self._entries = {}

    def get(self, name: str, stamp: list[int]) -> Facts | None:
        """The facts of a file whose size and time of change are still `stamp`."""
        kept, facts = self._entries.get(name, (None, None))
        return facts if kept == stamp else None

    def put(self, name: str, stamp: list[int], facts: Facts) -> None:
        self._entries[name] = (stamp, facts)

    def keep_only(self, names: set[str]) -> bool:
        """Forget files that are gone; whether there were any."""
        gone = self._entries.keys() - names
        for name in gone:
            del self._entries[name]
        return bool(gone)

    def save(self) -> None:
        """Write everything, whole or not at all; where that is impossible `note` says why."""
        body = b"".join(
            json.dumps([name, stamp, facts], separators=(",", ":")).encode() + b"\n"
            for name, (stamp, facts) in sorted(self._entries.items())
        )
        try:
            make_folder(self.path.parent)
            write_bytes(self.path, json.dumps(self._head(body)).encode() + b"\n" + body, overwrite=True)
        except DiskError as error:
            self.note = f"what was found cannot be kept: {error.message}"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process of this machine at a time: of eight ranks one decodes, and the others read what it found.

        Where locks do not work, all decode; the result is the same.
        """
        handle: IO[bytes] | None = None
        with suppress(ImportError, OSError):
            import fcntl

            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = open(self.path.with_suffix(".lock"), "wb")  # noqa: SIM115
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if handle is not None:
                handle.close()

    def _head(self, body: bytes) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "av": av.__version__,
            "pillow": PIL.__version__,
            "key": self.key,
            "sha256": hashlib.sha256(body).hexdigest(),
        }


def indexed(key: str, places: Sequence[Place], *, kind: Kind, progress: Progress | None = None,
            keep_bytes: int = 20 << 30, workers: int | None = None, stall: float = STALL,
            again: bool = False) -> tuple[list[Facts], str | None]:  # fmt: skip
    """The facts of every place, in order, from the cache or by decoding; and what the user should know of it, or None.

    Only facts of the bytes are kept: what could not be read this time, or not because the process was being stopped, is
    read again the next time; so is a file that was written just now, whose next change could have the same time.

    `progress(done, of)` counts all places. `workers` is the number of processes, by default one for each free core;
    `again` believes nothing that was kept; `keep_bytes` bounds the copies of shards behind URLs.
    """
    index = Index(f"{kind} {key}")
    tell = progress or (lambda done, of: None)
    with index.alone():
        if not again:
            index.load()
        stamps = [_stamp(place) for place in places]
        found = [
            {"reason": "is gone", "passing": True} if stamp is None else index.get(place.name, stamp)
            for place, stamp in zip(places, stamps, strict=True)
        ]
        todo = [i for i, facts in enumerate(found) if facts is None]
        done, saved = len(places) - len(todo), time.monotonic()
        tell(done, len(places))
        changed = index.keep_only({place.name for place in places}) or bool(todo)
        try:
            for i, facts in _decode_here(places, todo, kind, workers, stall, keep_bytes):
                stopping.check()
                stamp = _stamp(places[i])
                if stamp is None or stamp != stamps[i]:
                    facts = {"reason": "changed while it was read", "passing": True}
                elif "passing" not in facts and (places[i].remote or is_settled(*stamp[1:3])):
                    index.put(places[i].name, stamp, facts)
                found[i] = facts
                done += 1
                tell(done, len(places))
                if time.monotonic() - saved > _SAVE_EVERY:
                    index.save()
                    saved = time.monotonic()
        finally:  # what an interrupted reading found is not lost
            if changed:
                index.save()
    known = [facts for facts in found if facts is not None]
    return known, "; ".join(filter(None, [index.note, _unread(known)])) or None


def _unread(found: Sequence[Facts]) -> str | None:
    """`2 of 60 files could not be read this time and are left out: 2 x permission denied`, or None."""
    why = [str(facts["reason"]).removeprefix(passing("")["reason"]) for facts in found if "passing" in facts]
    if not why:
        return None
    causes = ", ".join(f"{count} x {cause}" for cause, count in Counter(why).most_common(5))
    return (
        f"{len(why)} of {counted(len(found), 'file')} could not be read this time and "
        f"{'is' if len(why) == 1 else 'are'} left out until the next: {causes}"
    )


def _decode_here(places: Sequence[Place], todo: list[int], kind: Kind, workers: int | None, stall: float,
                 keep_bytes: int) -> Iterator[tuple[int, Facts]]:  # fmt: skip
    """`decode_all` of the places numbered `todo`; shards behind URLs are fetched one after the other."""
    from mavcli.data.shards import local_copy

    groups: dict[tuple[str, str], list[int]] = {}
    for i in todo:
        groups.setdefault((places[i].path, places[i].version) if places[i].remote else ("", ""), []).append(i)
    for (url, version), numbers in groups.items():
        if not url:
            for n, facts in decode_all([places[i] for i in numbers], kind=kind, workers=workers, stall=stall):
                yield numbers[n], facts
            continue
        with local_copy(url, version, keep_bytes=keep_bytes) as path:
            here = [replace(places[i], path=path) for i in numbers]
            for n, facts in decode_all(here, kind=kind, workers=workers, stall=stall):
                yield numbers[n], facts


def decode_all(places: Sequence[Place], *, kind: Kind, workers: int | None = None,
               stall: float = STALL) -> Iterator[tuple[int, Facts]]:  # fmt: skip
    """(number of the place, its facts) as they come. A decoder that stalls, or ends twice over a file, gives a `reason`."""
    if kind == "image" and len(places) <= _FEW:
        yield from ((number, scan(place, kind)) for number, place in enumerate(places))
        return
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(places)):
        jobs.put(number)
    answers: queue.SimpleQueue[tuple[int, Facts] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def serve() -> None:
        decoder: _Decoder | None = None

        def ask(number: int) -> Facts:
            """Twice where the decoder ends over it: what ended it may have come from outside."""
            nonlocal decoder
            before: Facts | None = None
            while True:
                decoder = decoder or _Decoder()
                facts = decoder.facts(number, places[number], kind, stall, stop)
                if decoder.living:
                    return facts
                ended = decoder.ended
                decoder.close()
                decoder = None
                if ended is None or stop.is_set():
                    return facts
                if before is not None:
                    return facts if facts == before else passing("its decoder ended in two ways")
                before = facts

        try:
            while not stop.is_set():
                try:
                    number = jobs.get_nowait()
                except queue.Empty:
                    return
                answers.put((number, ask(number)))
        except BaseException as error:  # raised again where the answers are read
            answers.put(error)
        finally:
            if decoder is not None:
                decoder.close()

    threads = [
        threading.Thread(target=serve, daemon=True) for _ in range(min(workers or _cores(), len(places)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in places:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class _Decoder:
    """One process of `mavcli.data.scan`."""

    def __init__(self) -> None:
        package = Path(__file__).resolve().parents[2]
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.living = True
        self.ended: int | None = None
        """The exit code of a process that ended over a file."""
        self._rest = b""
        self._process = subprocess.Popen(
            # -P: the working folder may hold a numpy.py
            [sys.executable, "-P", "-m", "mavcli.data.scan"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children
        )

    def facts(self, number: int, place: Place, kind: Kind, stall: float, stop: threading.Event) -> Facts:
        """What the process says of a place, or what became of the process."""
        job = {
            "id": number,
            "path": place.path,
            "offset": place.offset,
            "size": place.size,
            "cell": place.cell,
            "kind": kind,
        }
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        heard = time.monotonic()
        while not stop.is_set():
            line = self._line(min(0.5, stall))
            if line is None:
                if time.monotonic() - heard > stall:
                    self.living = False
                    return passing(f"nothing came for {stall:g} s")
                continue
            if line == b"":
                self.living = False
                self.ended = self._process.wait()
                return _end_in_words(self.ended)
            heard = time.monotonic()
            answer = json.loads(line)
            if "facts" in answer:
                found: Facts = answer["facts"]
                return found
        self.living = False
        return passing("interrupted")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self, timeout: float) -> bytes | None:
        """The next line; empty at the end; None when there is none yet."""
        assert self._process.stdout is not None
        if b"\n" not in self._rest:
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            piece = os.read(self._process.stdout.fileno(), 1 << 20)
            if not piece:
                return b""
            self._rest += piece
            if b"\n" not in self._rest:
                return None
        line, self._rest = self._rest.split(b"\n", 1)
        return line


def _end_in_words(code: int) -> Facts:
    """What the end of a decoder says of the file that it was reading: a crash is the file's, where memory was not limited."""
    if code in _CRASHES and not _limited():
        return {"reason": "makes the decoder crash"}
    if code == -getattr(signal, "SIGPROF", 0):
        return {"reason": f"makes the decoder compute for {PATIENCE:g} s without a frame"}
    if code >= 0:
        return passing(f"its decoder ended with exit code {code}")
    memory = "; a machine that runs out of memory does that" if code == -getattr(signal, "SIGKILL", 0) else ""
    return passing(f"its decoder was ended by {signal.Signals(-code).name}{memory}")


def _limited() -> bool:
    """Whether this process may take less memory than a decoder wants, as under `ulimit -v`."""
    with suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        return limit != resource.RLIM_INFINITY and limit < MEMORY
    return False


def _stamp(place: Place) -> list[int] | None:
    """Size, time of writing and of change, and position of a place's file; None when it is gone.

    The time of change cannot be set: a file that was exchanged for another of its size and date has its own.
    """
    piece = [place.offset, -1 if place.size is None else place.size, place.cell[2] if place.cell else -1]
    if place.remote:
        return [int(place.version, 16), *piece]
    try:
        status = os.stat(place.path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, *piece]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
