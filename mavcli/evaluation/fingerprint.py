"""What exactly was measured: every choice behind a score, so that two scores can be told comparable or not.

Numbers of this field differ by resize, layer, covariance and sample count more than by model; a score without these says
nothing. Two scores are of one protocol when their fingerprints have the same `sha256`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mavcli.engine.versions import versions

_MEASURING = ("open_clip_torch", "scipy", "torch-fidelity", "torchvision")
"""Packages beside those of every run that can change a score, where they are installed."""


@dataclass(frozen=True)
class Fingerprint:
    """Free-form choices by name, JSON values only, in the order in which they are shown; mappings may nest."""

    fields: Mapping[str, Any]

    def as_json(self) -> str:
        """One JSON object as text, keys in their order."""
        return json.dumps(dict(self.fields), ensure_ascii=False, allow_nan=False)

    def as_markdown(self) -> str:
        """A two-column table; nested choices have dotted names."""
        rows = [f"| {name} | {_cell(value)} |" for name, value in _flat(self.fields)]
        return "\n".join(["| choice | value |", "| --- | --- |", *rows])

    @property
    def sha256(self) -> str:
        """Of all choices, whatever their order."""
        text = json.dumps(dict(self.fields), sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_fields(self, **more: Any) -> Fingerprint:
        """The same with further choices, or others in the place of its own."""
        return Fingerprint({**self.fields, **more})

    def differences(self, other: Fingerprint) -> list[str]:
        """The choices in which two fingerprints differ, in words."""
        mine, theirs = dict(_flat(self.fields)), dict(_flat(other.fields))
        return [
            f"`{name}` is {_cell(mine.get(name))} here, {_cell(theirs.get(name))} there"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name)
        ]


def package_versions() -> dict[str, str]:
    """Versions of everything that can change a score."""
    found = versions()
    for name in _MEASURING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
