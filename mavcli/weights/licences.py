"""The licence of what is imported: what its publisher states, in the publisher's words, or that nobody states one.

The hub's identifiers (`apache-2.0`) stand in the front matter of a model card, `README.md`; a pipeline's `model_index.json` may
have a `license` too. Nothing is concluded from what a network looks like: two publishers may train the same one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mavcli.errors import one_line

UNKNOWN = "unknown"
"""The licence of weights whose publisher states none here."""
HUB = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
}
"""A licence as this package writes it -> the hub's identifier."""
_LARGEST = 1 << 20  # bytes of a card that are looked at
_LONGEST = 200


def stated_licence(folder: Path) -> str | None:
    """What the model card of `folder`, or else its model_index.json, states; None where neither does or can be read."""
    for found in (_front_matter(folder / "README.md"), _object(folder / "model_index.json")):
        licence = _named(found)
        if licence is not None:
            return licence
    return None


def _front_matter(card: Path) -> Any:
    """The YAML between the first two lines `---` of a model card."""
    lines = _text(card).splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    end = next((i for i, line in enumerate(lines[1:], start=1) if line.strip() == "---"), None)
    if end is None:
        return None
    try:
        return yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _object(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError):
        return None


def _text(path: Path) -> str:
    """The beginning of a file of somebody else's; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _named(stated: Any) -> str | None:
    """The licence in a mapping with `license`, one or several; of the hub's `other`, its `license_name`."""
    if not isinstance(stated, dict):
        return None
    value = stated.get("license")
    if value == "other":
        value = stated.get("license_name") or value
    names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
    ours = {hub: name for name, hub in HUB.items()}
    told = [
        ours.get(name.strip().lower(), one_line(" ".join(name.split()), limit=_LONGEST)) for name in names
    ]
    return " and ".join(filter(None, dict.fromkeys(told))) or None
