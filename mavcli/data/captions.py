"""Text that belongs to pictures and videos, read in one way: UTF-8, white space folded, lines that end at LF or CR LF alone.

Which text belongs to a picture, beside a file as in a tar: the one whose name is the picture's up to its last dot
(`0.5 mm.jpg`, `0.5 mm.txt`), else the one that shares the key, the name up to its first dot, as webdataset has it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mavcli.errors import InputError
from mavcli.media.passing import not_read

TEXT_FILES = (".txt", ".caption", ".json")
"""Endings of files that hold the text of one picture."""

CAPTION_COLUMNS = ("caption", "text", "prompt")
"""Keys of a `.json` and columns of a table that hold it; the first that is there counts."""

MAX_TEXT = 1 << 20
"""Bytes of one such file: a caption has a few hundred."""

_KINDS = {list: "a list", dict: "an object", bool: "true or false", bytes: "bytes"}


class BadTextError(ValueError):
    """A caption that is no text, in words that go on after its name."""


def words(value: Any) -> str:
    """A caption as one line, empty for None. Raises BadTextError for a list, an object, and what is not UTF-8."""
    if value is None or value != value:  # pandas has nan for an empty cell
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadTextError(f"has {_KINDS.get(type(value), f'a {type(value).__name__}')}, wanted one text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a byte of another encoding, or half a surrogate pair in JSON
        raise BadTextError("is not UTF-8 text") from error
    return " ".join(value.split())


def caption_in(name: str, data: bytes) -> str | None:
    """The caption that a text file holds: all of a `.txt` or `.caption`, one key of a `.json`; None for JSON without it.

    Raises BadTextError.
    """
    if len(data) > MAX_TEXT:
        raise BadTextError(f"has more than {MAX_TEXT >> 20} MiB, wanted a caption")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadTextError("is not UTF-8 text") from error
    if not name.lower().endswith(".json"):
        return words(text)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadTextError("is not JSON") from error
    key = next((key for key in CAPTION_COLUMNS if key in record), None) if isinstance(record, dict) else None
    return None if key is None else words(record[key])


def text_lines(data: bytes, name: str) -> list[tuple[int, str]]:
    """(number from 1, words) of every line that says something. Raises InputError with the line that is not UTF-8."""
    found = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = " ".join(raw.decode().split())
        except UnicodeDecodeError as error:
            raise not_utf8(name, number, data) from error
        if line:
            found.append((number, line))
    return found


def read_lines(path: Any) -> list[tuple[int, str]]:
    """`text_lines` of a file. Raises InputError."""
    try:
        with open(path, "rb") as file:
            return text_lines(file.read(), str(path))
    except OSError as error:
        not_read(str(path), error)


def not_utf8(name: str, line: int, head: bytes) -> InputError:
    """The error for a line of another encoding; UTF-16, which Excel calls Unicode text, is named."""
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    return InputError(
        f"`{name}` is UTF-16 text, wanted UTF-8" if wide else f"`{name}:{line}` is not UTF-8 text",
        hint="save it again as UTF-8",
    )


def captioned(
    pictures: Iterable[str], texts: Sequence[str], caption: Callable[[str], str | None]
) -> Iterator[tuple[str, str | None, str]]:
    """(picture, its caption or None, why it has none) of each picture; names as in a tar or below a folder.

    `caption` gives the words in a text, None for one without, or raises BadTextError. Texts of one picture that say
    different things are refused, with their names.
    """
    pictures = list(pictures)
    by_stem: dict[str, list[str]] = defaultdict(list)
    by_key: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        by_stem[_stem(text)].append(text)
        by_key[_key(text)].append(text)
    # `img.1.txt` is that of `img.1.png` and of no other picture whose name begins with `img`
    taken = {stem for picture in pictures for stem in (_stem(picture), picture) if stem in by_stem}
    for picture in pictures:
        stem, key = _stem(picture), _key(picture)
        own = [*by_stem.get(stem, ()), *(by_stem.get(picture, ()) if picture != stem else ())]
        shared = [text for text in by_key.get(key, ()) if _stem(text) == key or _stem(text) not in taken]
        for found in (own, shared):
            said, why = _said(found, caption)
            if said is not None or why:
                break
        yield picture, said, why


def _said(texts: Sequence[str], caption: Callable[[str], str | None]) -> tuple[str | None, str]:
    """The one thing that some texts say, or None and what is wrong with them (nothing where none is a caption)."""
    said: dict[str, str] = {}
    faults = []
    for text in texts:
        try:
            found = caption(text)
        except BadTextError as error:
            faults.append(f"has a caption in `{_base(text)}` that {error}")
            continue
        if found:
            said.setdefault(found, text)
        elif found is not None:
            faults.append("has an empty caption")
    if len(said) > 1:
        names = ", ".join(f"`{_base(text)}`" for text in said.values())
        return None, f"has {len(said)} different captions: {names}"
    return next(iter(said), None), "" if said or not faults else faults[0]


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    """A name up to its last dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def _key(name: str) -> str:
    """A name up to the first dot behind its last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]
