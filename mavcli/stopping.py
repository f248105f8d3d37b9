"""The wish to stop: a signal leaves it here, and whoever forms a judgement or begins a piece of work asks for it.

A signal also raises `Interrupted` (`mavcli.cli.signals`), which ends almost everything at once. But an exception that
comes out of nowhere can be swallowed by foreign code: a C callback, a `__del__`, a library's bare `except`. What such code
then says of a file is not true, so the wish stays here until the process ends.
"""

from __future__ import annotations

from mavcli.errors import Interrupted

_wish: Interrupted | None = None


def ask(wish: Interrupted) -> None:
    """Leave the wish to stop; the first one counts."""
    global _wish
    _wish = _wish or wish


def asked() -> Interrupted | None:
    """The wish to stop, or None."""
    return _wish


def check() -> None:
    """Raise Interrupted where the wish to stop was left; called before a judgement is kept and between pieces of work."""
    if _wish is not None:
        raise _wish


def forget() -> None:
    """Take the wish back; for tests that stop and go on in one process."""
    global _wish
    _wish = None
