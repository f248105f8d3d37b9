"""How long work tells of its progress, without knowing who listens: the command line draws a bar, a test counts."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """What the engine and the trainer say while they work."""

    def plan(self, total: float) -> None:
        """All stages to come cost `total` together; said once, at the start, so that one bar spans them."""

    def stage(self, name: str, total: float) -> None:
        """A new piece of work begins; `total` is its cost in the unit of `advance`."""

    def advance(self, amount: float = 1) -> None:
        """So much of the present stage is done."""

    def skip(self, amount: float) -> None:
        """So much of the present stage was done before: it says nothing of how long the rest takes."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def warning(self, text: str) -> None:
        """Something that the user should know, and that does not stop the work."""


class Silent:
    """A report that nobody hears."""

    def plan(self, total: float) -> None:
        return None

    def stage(self, name: str, total: float) -> None:
        return None

    def advance(self, amount: float = 1) -> None:
        return None

    def skip(self, amount: float) -> None:
        return None

    def message(self, text: str) -> None:
        return None

    def warning(self, text: str) -> None:
        return None


class WithoutMessages:
    """Another report without its messages: what is worth a line for one video is not for each of a thousand."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def plan(self, total: float) -> None:
        self._report.plan(total)

    def stage(self, name: str, total: float) -> None:
        self._report.stage(name, total)

    def advance(self, amount: float = 1) -> None:
        self._report.advance(amount)

    def skip(self, amount: float) -> None:
        self._report.skip(amount)

    def message(self, text: str) -> None:
        return None

    def warning(self, text: str) -> None:
        self._report.warning(text)
