"""People compare two sets of videos: what they are asked, and what the page may know (Make-A-Video, section 4.1).

A study is a pure function of the two folders and the questions, so the same command goes on where it stopped. Raters see
opaque names: which system a clip is from stands in `study.json` alone. Votes (`mavcli.evaluation.votes`) name the clip that
they chose, so that nothing but the study is needed to count them.

`a` and `b` are the two systems.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mavcli.errors import InputError, UsageError
from mavcli.evaluation.frame_folders import frames_digest
from mavcli.evaluation.pairs import Pair
from mavcli.files import file_sha256, make_folder, reading, write_text

Question = Literal["quality", "faithfulness", "motion"]

QUESTIONS: dict[Question, str] = {
    "quality": "Which video looks better?",
    "motion": "Which video moves more naturally?",
    "faithfulness": "Which video shows the text better?",
}
"""What raters are asked, one at a time and in this order: the text appears with the last, so that it colours no other."""

KEY = "study.json"
"""Name of the file in a study's folder that says which clip is whose."""


@dataclass(frozen=True)
class Item:
    """One pair as raters meet it. `clips` are the opaque names in the order that the page is told, `systems` whose they are.

    Two items of one `block` have opposite orders, and the page gives both the same side: so each rater sees either system
    on the left exactly as often, without the page knowing which is which.
    """

    pair: Pair
    id: str
    block: int
    clips: tuple[str, str]
    systems: tuple[Literal["a", "b"], Literal["a", "b"]]

    def path(self, clip: str) -> Path:
        return self.pair.a if self.system(clip) == "a" else self.pair.b

    def source(self, clip: str) -> str:
        """Where the page finds the clip."""
        return f"media/{clip}{self.path(clip).suffix.lower()}"

    def system(self, clip: str) -> Literal["a", "b"]:
        """Whose clip it is."""
        return self.systems[self.clips.index(clip)]


@dataclass(frozen=True)
class Study:
    """Two systems, the questions, and the items in the order of their names. `id` is a hash of all of it.

    `forced` is the paper's way of asking: one of the two has to be chosen.
    """

    id: str
    a: str
    b: str
    questions: tuple[Question, ...]
    items: tuple[Item, ...]
    forced: bool = False

    @functools.cached_property
    def by_id(self) -> Mapping[str, Item]:
        return {item.id: item for item in self.items}

    def public(self) -> dict[str, Any]:
        """What the page may know: neither the systems' names nor those of the files."""
        return {
            "id": self.id,
            "tie": not self.forced,
            "questions": [
                {"id": name, "text": QUESTIONS[name], "prompt": name == "faithfulness"}
                for name in self.questions
            ],
            "items": [
                {
                    "id": item.id,
                    "block": item.block,
                    "clips": [{"id": clip, "src": item.source(clip)} for clip in item.clips],
                    "prompt": item.pair.prompt if "faithfulness" in self.questions else None,
                }
                for item in self.items
            ],
        }

    def private(self) -> dict[str, Any]:
        """The key: which clip is whose."""
        return {
            "study": self.id,
            "a": self.a,
            "b": self.b,
            "questions": list(self.questions),
            "forced_choice": self.forced,
            "items": [
                {
                    "id": item.id,
                    "name": item.pair.name,
                    "prompt": item.pair.prompt,
                    "a": str(item.pair.a),
                    "b": str(item.pair.b),
                    "clips": dict(zip(item.systems, item.clips, strict=True)),
                }
                for item in self.items
            ],
        }


def make_study(
    pairs: Sequence[Pair],
    *,
    a: str,
    b: str,
    questions: Sequence[Question] = ("quality", "faithfulness"),
    forced: bool = False,
) -> Study:
    """The study of these pairs; the same files, prompts and ways of asking give the same study.

    Raises UsageError for no question or no pair, and where faithfulness is asked of a pair without a prompt.
    """
    asked: tuple[Question, ...] = tuple(name for name in QUESTIONS if name in questions)
    if not asked:
        raise UsageError("no question is asked", hint=f"--question {' or '.join(QUESTIONS)}")
    if not pairs:
        raise UsageError("no pair to compare")
    bare = [pair for pair in pairs if not pair.prompt]
    if "faithfulness" in asked and bare:
        raise UsageError(
            f"nothing tells what `{bare[0].a}` should show ({len(bare)} of {len(pairs)} pairs have no prompt), and "
            "faithfulness is asked",
            hint="--prompts FILE, or --question quality",
        )
    told = [[pair.name, pair.prompt, *(_digest(path, pair) for path in (pair.a, pair.b))] for pair in pairs]
    rule = ["forced choice"] if forced else []
    study = short_hash("study", json.dumps([a, b, list(asked), told]), *rule)
    rng = random.Random(study)
    order = list(range(len(pairs)))
    rng.shuffle(order)
    first = rng.random() < 0.5  # which order an item has that is left without a partner
    items: list[Item | None] = [None] * len(pairs)
    for place, index in enumerate(order):
        pair = pairs[index]
        names = {system: short_hash(study, system, str(index)) for system in ("a", "b")}
        systems: tuple[Literal["a", "b"], Literal["a", "b"]] = (
            ("a", "b") if (place % 2 == 0) == first else ("b", "a")
        )
        clips = (names[systems[0]], names[systems[1]])
        items[index] = Item(pair, short_hash(study, "item", str(index))[:12], place // 2, clips, systems)
    return Study(study[:12], a, b, asked, tuple(item for item in items if item), forced)


def with_files(study: Study, files: Mapping[Path, Path]) -> Study:
    """The same study, in which other files are shown for some of it, such as copies that browsers play."""
    items = [
        replace(
            item,
            pair=item.pair._replace(
                a=files.get(item.pair.a, item.pair.a), b=files.get(item.pair.b, item.pair.b)
            ),
        )
        for item in study.items
    ]
    return replace(study, items=tuple(items))


def _digest(path: Path, pair: Pair) -> str:
    if path.is_dir():
        return frames_digest(path, pair.rate)
    with reading(path):
        return file_sha256(path)


def short_hash(*parts: str) -> str:
    """80 bits of SHA-256, as hex."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:20]


def open_folder(folder: Path, study: Study) -> None:
    """Make the study's folder with its key.

    Raises UsageError where the folder belongs to another study, DiskError where it cannot be written.
    """
    check_folder(folder, study)
    key = folder / KEY
    if not key.exists():
        make_folder(folder)
        write_text(key, json.dumps(study.private(), indent=1, ensure_ascii=False) + "\n", overwrite=True)


def check_folder(folder: Path, study: Study) -> None:
    """Raises UsageError where a folder is there and belongs to another study, InputError where its key cannot be read."""
    key = folder / KEY
    if not key.exists():
        return
    if not key.is_file():
        raise InputError(f"`{key}` is no regular file", hint="-o FOLDER starts a new study")
    try:
        with reading(key):
            known = json.loads(key.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"`{key}` is no JSON", hint="-o FOLDER starts a new study") from error
    if not isinstance(known, dict) or known.get("study") != study.id:
        raise UsageError(
            f"`{folder}` holds the votes of another study: videos, prompts, names or questions were others",
            hint="-o FOLDER starts a new one",
        )
