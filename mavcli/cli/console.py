"""The only printer: results to stdout, everything else to stderr, and what an exception looks like to a user."""

from __future__ import annotations

import contextlib
import errno
import json as json_module
import os
import shutil
import sys
import textwrap
import time
import traceback
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from mavcli import stopping
from mavcli.errors import DiskError, Interrupted, MavError
from mavcli.files import make_folder, write_text
from mavcli.recipe.share import cache_dir

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mavcli.weights.provenance import WeightsHeader

_PLAIN_EVERY = 10.0  # seconds between progress lines when nobody watches a terminal
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Console:
    """Prints for one command, and is the `Report` of the work below it.

    `quiet` leaves results, warnings and errors. With `json` the result is one object on stdout instead of lines.
    Used as a context manager it takes the progress bar away at the end.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.quiet, self.json = quiet, json
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._clock = _Clock()
        self._warned: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the progress bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def result(self, line: str | Path) -> None:
        """One line of the result, usually a path; nothing with `json`."""
        if not self.json:
            self._pause_for(sys.stdout, f"{clean(str(line))}\n")

    def result_object(self, value: Mapping[str, Any]) -> None:
        """The result as one JSON object; nothing without `json`."""
        if self.json:
            print(json_module.dumps(value, ensure_ascii=False, allow_nan=False, default=str), flush=True)

    def written(self, files: Sequence[Path], header: WeightsHeader, **facts: Any) -> None:
        """Weights that a command wrote: the files as lines, or as one object with what they are and `facts`."""
        for file in files:
            self.result(file)
        own = {
            "files": [str(file) for file in files],
            "role": header.role,
            "sha256": header.content_sha256,
        }
        self.result_object(own | facts)

    def plan(self, total: float) -> None:
        self._clock.plan(total)
        self._draw()

    def stage(self, name: str, total: float) -> None:
        stopping.check()
        self._clock.stage(clean(name), total)
        self._draw()

    def advance(self, amount: float = 1) -> None:
        stopping.check()
        self._clock.advance(amount)
        self._draw()

    def skip(self, amount: float) -> None:
        self._clock.skip(amount)
        self._draw()

    def message(self, text: str) -> None:
        if not self.quiet:
            self._pause_for(sys.stderr, f"{clean(text)}\n")

    def warning(self, text: str) -> None:
        """Said once, however often it happens."""
        if text not in self._warned:
            self._warned.add(text)
            self._pause_for(sys.stderr, f"{paint('warning:', '33')} {_indented(text)}\n")

    def _pause_for(self, stream: TextIO, text: str) -> None:
        if self._bar is not None:
            self._bar.stop()
        stream.write(text)
        stream.flush()
        if self._bar is not None:
            self._bar.start()

    def _draw(self) -> None:
        if self.quiet:
            return
        if not is_terminal(sys.stderr):
            if (line := self._clock.line()) is not None:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            return
        if self._bar is None:
            self._bar = _new_bar()
            self._task = self._bar.add_task("", total=None, left="")
            self._bar.start()
        assert self._task is not None
        clock = self._clock
        self._bar.update(
            self._task,
            description=clock.name,
            completed=clock.done,
            total=clock.total or None,
            left=clock.left_words(),
        )


class _Clock:
    """How far the work is, and how long the rest will take."""

    def __init__(self) -> None:
        self.name = ""
        self._planned = False
        self._begin(0.0)
        self._spoke = self._started

    def _begin(self, total: float) -> None:
        self.total, self.done, self._skipped, self._stage_end = total, 0.0, 0.0, 0.0
        self._started = time.monotonic()

    def plan(self, total: float) -> None:
        self._planned = True
        self._begin(total)

    def stage(self, name: str, total: float) -> None:
        self.name = name
        if not self._planned:
            self._begin(total)
        # What the last stage did not use counts as done, so that the bar never runs behind.
        self.done = self._stage_end
        self._stage_end += total

    def advance(self, amount: float) -> None:
        self.done = min(self.done + amount, max(self._stage_end, self.done))

    def skip(self, amount: float) -> None:
        before = self.done
        self.advance(amount)
        self._skipped += self.done - before

    def left(self) -> float | None:
        """Seconds to go, or None while nobody can know."""
        passed = time.monotonic() - self._started
        done, total = self.done - self._skipped, self.total - self._skipped
        if total <= 0:
            return 0.0 if self.total > 0 else None
        if done <= 0 or passed < 1:
            return None
        if self._planned and done < 0.01 * total:
            return None  # small first stages take longer to load than to run
        return passed * max(0.0, total - done) / done

    def left_words(self) -> str:
        left = self.left()
        return f"{duration(left)} left" if left is not None else ""

    def line(self) -> str | None:
        """A line for a log, at most every ten seconds."""
        now = time.monotonic()
        if now - self._spoke < _PLAIN_EVERY:
            return None
        self._spoke = now
        share = f"{100 * self.done / self.total:.0f} %" if self.total else f"{self.done:g}"
        return ", ".join(part for part in (f"{self.name or 'working'}: {share}", self.left_words()) if part)


def _new_bar() -> Progress:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=RichConsole(file=sys.stderr, highlight=False),
        transient=True,
    )


@dataclass(frozen=True)
class Failure:
    """What a user is told of an exception."""

    exit_code: int
    message: str
    hint: str | None = None
    bug: bool = False


def failure_of(error: BaseException) -> Failure:
    """Exception -> exit code, message and hint; whatever is not foreseen is a bug."""
    if isinstance(error, MavError | Interrupted):
        return Failure(error.exit_code, error.message, error.hint)
    if isinstance(error, KeyboardInterrupt):
        return Failure(130, "interrupted")
    if _is_out_of_memory(error):
        return Failure(5, "out of memory", "take fewer frames at once, or a smaller recipe: `mav recipe ls`")
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f" {error.filename}" if error.filename else ""
        return Failure(
            6,
            f"cannot use{where or ' the disk'}: {(error.strerror or str(error)).lower()}",
            _DISK[error.errno],
        )
    if hasattr(error, "format_message"):  # typer's own usage errors, whose classes it keeps private
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", "mav")
        if type(error).__name__ == "NoSuchOption":  # of which each typer makes another sentence
            near = " or ".join(f"`{option}`" for option in getattr(error, "possibilities", None) or ())
            said = f"no such option `{getattr(error, 'option_name', '')}`"
            return Failure(2, f"{said}, did you mean {near}" if near else said, f"{command} --help")
        return Failure(2, _plain_usage(str(error.format_message())), f"{command} --help")
    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Failure(1, f"a bug in mav: {what[:300]}", bug=True)


_DISK = {
    errno.ENOSPC: "free some space, or write elsewhere with -o",
    errno.EDQUOT: "free some space, or write elsewhere with -o",
    errno.EACCES: "write elsewhere with -o, or change the permissions",
    errno.EPERM: "write elsewhere with -o, or change the permissions",
    errno.EROFS: "write elsewhere with -o",
    errno.EIO: "the disk or the network fails: look at the system's log",
    errno.ESTALE: "the disk or the network fails: look at the system's log",
    errno.EMFILE: "`ulimit -n 4096` lets a process open more files",
    errno.ENFILE: "end programs that hold many files open",
}


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("can't allocate memory", "can't start new thread")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _plain_usage(text: str) -> str:
    """Typer's sentence in our style: lower case, back-ticks, no full stop."""
    text = (
        text.strip()
        .rstrip(".?")
        .replace("'", "`")
        .replace(". Did you", ", did you")
        .replace(": Input", ": input")
        .replace(": Value error, ", ": ")
    )
    return text[:1].lower() + text[1:]


def show_failure(failure: Failure, *, json: bool = False) -> None:
    """`error: ...` and `hint: ...` on stderr; with `json` also one object on stdout."""
    sys.stderr.write(f"{paint('error:', '1;31')} {_indented(failure.message)}\n")
    if failure.hint:
        sys.stderr.write(f"{paint('hint:', '1;36')} {_indented(failure.hint)}\n")
    sys.stderr.flush()
    if json:
        told = {"exit_code": failure.exit_code, "message": clean(failure.message), "hint": failure.hint}
        print(json_module.dumps({"error": told}, ensure_ascii=False), flush=True)


def save_traceback(error: BaseException) -> Path | None:
    """Write the traceback to a log file and return it, or None where there is no place for it."""
    with contextlib.suppress(DiskError, OSError):
        path = cache_dir() / "logs" / "last.log"
        make_folder(path.parent)
        lines = ["mav " + " ".join(sys.argv[1:]), "", *traceback.format_exception(error)]
        write_text(path, "\n".join(line.rstrip("\n") for line in lines) + "\n", overwrite=True)
        return path
    return None


def clean(text: str) -> str:
    """`text` without what would steer a terminal: control characters and direction overrides; new lines and tabs stay."""
    kept = (
        c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI)
    )
    return "".join(kept)


def paint(text: str, code: str) -> str:
    """`text` in an ANSI colour where stderr is a terminal that wants colour."""
    wanted = is_terminal(sys.stderr) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{code}m{text}\x1b[0m" if wanted else text


def is_terminal(stream: TextIO) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def table(rows: Sequence[tuple[str, ...]], *, heads: tuple[str, ...] | None = None) -> list[str]:
    """Rows as aligned lines; the last column is not padded."""
    everything = [heads, *rows] if heads else rows
    if not everything:
        return []
    widths = [max(len(row[i]) for row in everything) for i in range(len(everything[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in everything
    ]


def wrapped(lines: Sequence[str], *, indent: int) -> list[str]:
    """Lines cut to the terminal's width, their rest `indent` columns in; as they are where stdout is a pipe."""
    if not is_terminal(sys.stdout):
        return list(lines)
    width = max(40, shutil.get_terminal_size().columns)
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent=" " * indent)]


def size(count: float) -> str:
    """Bytes for people: `512 B`, `3.1 MB`; powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: `8 s`, `2 min 5 s`, `3 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _indented(text: str) -> str:
    """Further lines stand below the first, so that several faults read as one list."""
    first, *rest = clean(text).split("\n")
    if not rest:
        return first
    # A first line with a colon is the list's own heading.
    head, lines = (first, rest) if first.endswith(":") else (f"{1 + len(rest)} faults", [first, *rest])
    return "\n  ".join([head, *lines])
