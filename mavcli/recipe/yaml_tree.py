"""A strict YAML reader: plain maps, lists and scalars, each with the line it stands on.

Stricter than YAML: aliases, tags and duplicate keys are faults, and so is a key that is no text. More exact than
PyYAML: `1e-4` is a number; `yes`, `no`, `on`, `12:30`, `017` and dates stay the text that they look like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

Key = tuple[str | int, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,300})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file and a line, or (line 0) a flag; `text` is the scalar as written."""

    source: str
    line: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe."""

    origin: Origin
    key: Key
    what: str

    def __str__(self) -> str:
        # A flag says its key itself.
        shown = self.key if self.origin.line else ()
        return f"{self.origin}: {dotted(shown)}: {self.what}" if shown else f"{self.origin}: {self.what}"


@dataclass
class Tree:
    """A plain value, and for each key path in it where it was written."""

    value: Any
    origins: dict[Key, Origin]
    faults: list[Fault] = field(default_factory=list)

    def origin(self, key: Key) -> Origin:
        """Of `key`, or of the nearest map or list that holds it."""
        while key and key not in self.origins:
            key = key[:-1]
        return self.origins.get(key, Origin("the defaults"))

    def put(self, key: Key, other: Tree) -> None:
        """Lay `other` over the value at `key`: maps are merged deeply, everything else is replaced."""
        self.faults += other.faults
        self.value = self._merged(self.value, other, key, key)

    def _merged(self, old: Any, other: Tree, at: Key, rest: Key, inner: Key = ()) -> Any:
        if rest:
            here = at[: len(at) - len(rest)]
            if not isinstance(old, dict):
                old = {}
                self.origins[here] = other.origin(())
            old = dict(old)
            old[rest[0]] = self._merged(old.get(rest[0]), other, at, rest[1:])
            return old
        new = _at(other.value, inner)
        if isinstance(old, dict) and isinstance(new, dict):
            old = dict(old)
            self.origins[at] = other.origin(inner)
            for name in new:
                old[name] = self._merged(old.get(name), other, (*at, name), (), (*inner, name))
            return old
        for path in _paths(old, ()):
            self.origins.pop(at + path, None)
        for path in _paths(new, ()):
            if (origin := other.origins.get(inner + path)) is not None:
                self.origins[at + path] = origin
        return new


def dotted(key: Key) -> str:
    """`a.b.0` for a key path."""
    return ".".join(str(part) for part in key)


def parse(text: str, source: str, *, flag: bool = False) -> Tree:
    """Read one document. Everything that is wrong becomes a fault of the tree; nothing is raised.

    `source` is how the text is called in messages; with `flag` it is a command-line value and has no lines.
    """
    return _Parser(text, source, flag).run()


def scalar(text: str) -> Any:
    """The value of an unquoted word: null, a boolean, a number, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Parser:
    def __init__(self, text: str, source: str, flag: bool) -> None:
        self.text, self.source, self.flag = text, source, flag
        self.tree = Tree(None, {})

    def run(self) -> Tree:
        if len(self.text.encode(errors="replace")) > MAX_BYTES:
            self._fault((), 1, f"larger than {MAX_BYTES // 1024} KiB, a recipe is not")
            return self.tree
        try:
            self.events = yaml.parse(self.text, Loader=_LOADER)
            documents = 0
            for event in self.events:
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._fault((), self._line(event), "a second document, a recipe is one")
                        break
                elif not isinstance(
                    event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent
                ):
                    self.tree.value = self._node(event, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = error.problem or error.context or "is not YAML"
            self._fault((), mark.line + 1 if mark else 1, f"no valid YAML: {what}")
        except yaml.YAMLError as error:
            self._fault((), 1, f"no valid YAML: {' '.join(str(error).split())}")
        except _TooDeepError:
            pass
        return self.tree

    def _node(self, event: Any, key: Key) -> Any:
        line = self._line(event)
        self.tree.origins[key] = self._origin(line, getattr(event, "value", ""))
        if isinstance(event, yaml.AliasEvent):
            self._fault(key, line, f"the alias `*{event.anchor}` is not allowed, write the value again")
            return None
        if event.anchor:
            self._fault(key, line, f"the anchor `&{event.anchor}` is not allowed")
        if event.tag and event.tag != "!":
            self._fault(key, line, f"the tag `{event.tag}` is not allowed")
        if isinstance(event, yaml.ScalarEvent):
            return scalar(event.value) if event.implicit[0] else event.value
        if len(key) >= MAX_DEPTH:
            self._fault(key, line, f"nested deeper than {MAX_DEPTH} levels")
            raise _TooDeepError
        return self._list(key) if isinstance(event, yaml.SequenceStartEvent) else self._map(key)

    def _list(self, key: Key) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*key, len(items))))
        return items

    def _map(self, key: Key) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = self._line(event)
            if not isinstance(event, yaml.ScalarEvent):
                self._fault(key, line, "a key must be a word")
                self._node(event, (*key, "?"))
                self._node(next(self.events), (*key, "?"))
                continue
            name = event.value
            here = (*key, name)
            if name == "<<" and event.implicit[0]:
                self._fault(key, line, "merge keys (`<<`) are not allowed, use `extends`")
                self._node(next(self.events), here)
            elif name in items:
                self._fault(here, line, f"written twice, first on line {self.tree.origins[here].line}")
                kept, self.tree.origins = self.tree.origins, {}
                self._node(next(self.events), here)
                self.tree.origins = kept
            else:
                items[name] = self._node(next(self.events), here)
                # The key's own line, which is where one looks for it.
                self.tree.origins[here] = self._origin(line, self.tree.origins[here].text)
        return items

    def _line(self, event: Any) -> int:
        return int(event.start_mark.line) + 1

    def _origin(self, line: int, text: str = "") -> Origin:
        return Origin(self.source, 0 if self.flag else line, text)

    def _fault(self, key: Key, line: int, what: str) -> None:
        self.tree.faults.append(Fault(self._origin(line), key, what))


class _TooDeepError(Exception):
    """Stops the reading; the fault is already noted."""


def _paths(value: Any, key: Key) -> Iterator[Key]:
    """The key paths of a value and of everything in it."""
    yield key
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*key, index))


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value
