"""SIGINT and SIGTERM: while `mav` starts they end it, while a command runs they raise `Interrupted` where that is safe.

- Before a command runs nothing has begun: the process ends at once, with exit code 128 + number.
- While it runs the signal raises `Interrupted` in the main thread, so that every `finally` is run: no half files. In the
  middle of an import or of a `__del__` it waits for the end of that, because there an exception is swallowed, becomes another
  one or leaves half a module behind. The wish is also left in `mavcli.stopping`.
- A second signal ends the process by default. Who stops a whole group of processes may send the first one twice (GNU
  `timeout` does), so what comes within a second is the same wish.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mavcli import stopping
from mavcli.errors import Interrupted

SAME_WISH_S = 1.0
"""Seconds after a signal in which another one is the same wish."""
_LATER_S = 0.02
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_running = False
_since: float | None = None


def listen() -> None:
    """Hear the signals from now on; one that the parent has ignored (`nohup`, `&` of a script) stays ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _try_again)


def end_by_default() -> None:
    """The command is done: what comes now ends the process as if nobody listened."""
    for number in _SIGNALS:
        if signal.getsignal(number) == _handle:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def raising() -> Iterator[None]:
    """While this is open a signal raises `Interrupted`; outside of it the process ends at once."""
    global _running
    _running = True
    try:
        yield
    finally:
        _running = False
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _handle(number: int, frame: FrameType | None) -> None:
    global _since
    now = time.monotonic()
    if _since is not None:
        if now - _since > SAME_WISH_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        return
    _since = now
    wish = Interrupted("interrupted" if number == signal.SIGINT else "terminated", exit_code=128 + number)
    if not _running:
        os.write(2, f"error: {wish.message}\n".encode())
        os._exit(wish.exit_code)
    stopping.ask(wish)
    _raise_or_wait(frame)


def _try_again(number: int, frame: FrameType | None) -> None:
    if _running:
        _raise_or_wait(frame)


def _raise_or_wait(frame: FrameType | None) -> None:
    if _must_not_raise(frame) and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, _LATER_S)
        return
    stopping.check()


def _must_not_raise(frame: FrameType | None) -> bool:
    """Whether an exception in `frame` would not come out of it as it is: in an import, in an object's end."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" or code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
