"""What can go wrong, one class per exit code. Everything a user can cause is one of these; the rest is a bug (1)."""


def counted(count: int, noun: str) -> str:
    """`1 video`, `1,234 videos`; for nouns whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(text: str, *, limit: int = 4000) -> str:
    """What somebody else wrote, as it may be shown: on one line, control characters spelt out, cut at `limit` characters."""
    text = " ".join(text[: 2 * limit].split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class MavError(Exception):
    """An error to show as one line: what was found and where it was wanted, then the command that helps.

    `message` and `hint` are lower case, without a full stop, with back-ticks round literals.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MavError):
    """The command line cannot be carried out as given."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe does not hold together; the message lists every fault as `file:line: key: what`."""


class WeightsError(MavError):
    """Weights are missing, damaged, or belong to another network."""

    exit_code = 3


class InputError(MavError):
    """An image, a video or a data folder cannot be used."""

    exit_code = 4


class NotReadError(InputError):
    """A file could not be read this time: no permission, no free file handle, a disk or a decoder that failed. Nothing is
    known of what is in it, so nothing may be kept of it.
    """


class OutOfMemoryError(MavError):
    """The device or the machine ran out of memory after every fallback."""

    exit_code = 5


class DiskError(MavError):
    """A file cannot be written: no space, no permission, or it exists and `--force` was not given."""

    exit_code = 6


class DivergedError(MavError):
    """Training produced a loss or gradient that is not finite."""

    exit_code = 7


class BatchError(MavError):
    """Some items of a batch failed; the others are done."""

    exit_code = 8


class Interrupted(BaseException):
    """SIGINT (130) or SIGTERM (143) arrived. No `Exception`: whoever catches what a file or a library does wrong must not take
    the wish to stop for it. `message` and `hint` are MavError's.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 130) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
