"""People compare two sets of videos: pairs, votes, and the tally (Make-A-Video, section 4.1 and table 3).

A study is a pure function of the two folders, so the same command goes on where it stopped. Raters see opaque names: which
system a clip is from stands in `study.json` alone. Votes are lines of `votes.jsonl`, written and synced one by one; each
names the clip it chose, so that nothing but the study is needed to count it.

`a` and `b` are the two systems. A vote is known by (rater, item, revision): sent twice it counts once, and of several
revisions the last counts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import threading
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mavcli.errors import InputError, UsageError
from mavcli.evaluation.captions import prompts_of
from mavcli.evaluation.clips import Folder
from mavcli.evaluation.described import Described, described_videos
from mavcli.evaluation.intervals import wilson
from mavcli.evaluation.tables import TABLES
from mavcli.files import disk_error, file_sha256, reading, write_text

Question = Literal["quality", "faithfulness", "motion"]
Answer = Literal["a", "b", "tie"]

QUESTIONS: dict[Question, str] = {
    "quality": "Which video looks better?",
    "motion": "Which video moves more naturally?",
    "faithfulness": "Which video shows the text better?",
}
"""What raters are asked, one at a time and in this order: the text appears with the last, so that it colours no other."""

PAPER_RATERS = 5
"""How many people judged each pair of the paper's table 3."""

MAX_RATER = 60
"""Letters of a rater's name."""


class Pair(NamedTuple):
    """What two systems made of one prompt."""

    name: str
    prompt: str | None
    a: Path
    b: Path


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
    """Two systems, the questions, and the items in the order of their names. `id` is a hash of all of it."""

    id: str
    a: str
    b: str
    questions: tuple[Question, ...]
    items: tuple[Item, ...]

    def public(self) -> dict[str, Any]:
        """What the page may know: neither the systems' names nor those of the files."""
        return {
            "id": self.id,
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


# -- pairs and the study ------------------------------------------------------------------------------------------------


def find_pairs(a: Path, b: Path, *, prompts: Path | None = None) -> tuple[list[Pair], list[str]]:
    """The pairs of two folders, by name; and, in words, the videos that have no partner.

    Videos belong together when their paths below the folders are the same but for the suffix; where no two are, when they
    were made from the same prompt, in the order of their names. `prompts` is a text file with a line for each pair in the
    order of the names, or CSV or JSONL with a `file` (of `a`) and a `prompt` a row. Raises InputError.
    """
    sides = [described_videos(folder) for folder in (a, b)]
    keyed = [_by_name(videos, folder) for videos, folder in zip(sides, (a, b), strict=True)]
    if not keyed[0].keys() & keyed[1].keys():
        keyed = [_by_prompt(videos) for videos in sides]
    names = sorted(keyed[0].keys() & keyed[1].keys())
    if not names:
        raise InputError(
            f"no video of `{a}` belongs to one of `{b}`: neither names nor prompts agree",
            hint="give the two videos of a prompt the same file name",
        )
    loose = [
        f"`{video.path}` has no partner in `{other}`"
        for side, others, other in ((keyed[0], keyed[1], b), (keyed[1], keyed[0], a))
        for name, video in sorted(side.items())
        if name not in others
    ]
    pairs = [
        Pair(name, keyed[0][name].prompt or keyed[1][name].prompt, keyed[0][name].path, keyed[1][name].path)
        for name in names
    ]
    for pair in pairs:
        both = keyed[0][pair.name].prompt, keyed[1][pair.name].prompt
        if prompts is None and None not in both and both[0] != both[1]:
            raise InputError(
                f"`{pair.a}` was made from `{both[0]}`, `{pair.b}` from `{both[1]}`",
                hint="--prompts FILE says what both should show",
            )
    return (_with_prompts(pairs, a, prompts) if prompts else pairs), loose


def _by_name(videos: Sequence[Described], folder: Path) -> dict[str, Described]:
    twice = [name for name, count in Counter(video.name for video in videos).items() if count > 1]
    if twice:
        raise InputError(f"`{folder}` holds several videos named `{twice[0]}`", hint="keep one of them")
    return {video.name: video for video in videos}


def _by_prompt(videos: Sequence[Described]) -> dict[str, Described]:
    seen: Counter[str] = Counter()
    keyed = {}
    for video in videos:
        if video.prompt:
            seen[video.prompt] += 1
            keyed[f"{video.prompt} ({seen[video.prompt]})"] = video
    return keyed


def _with_prompts(pairs: list[Pair], a: Path, file: Path) -> list[Pair]:
    """The pairs with the prompts of a file, which names the videos of the first folder."""
    files = tuple(pair.a for pair in pairs)
    texts = prompts_of(Folder(a, files, "videos", len(files), tuple(range(len(files)))), file)
    return [pair._replace(prompt=text) for pair, text in zip(pairs, texts, strict=True)]


def make_study(
    pairs: Sequence[Pair], *, a: str, b: str, questions: Sequence[Question] = ("quality", "faithfulness")
) -> Study:
    """The study of these pairs; the same files, prompts and questions give the same study.

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
    told = [[pair.name, pair.prompt, _digest(pair.a), _digest(pair.b)] for pair in pairs]
    study = _hash("study", json.dumps([a, b, list(asked), told]))
    rng = random.Random(study)
    order = list(range(len(pairs)))
    rng.shuffle(order)
    first = rng.random() < 0.5  # which order an item has that is left without a partner
    items: list[Item | None] = [None] * len(pairs)
    for place, index in enumerate(order):
        pair = pairs[index]
        names = {system: _hash(study, system, str(index)) for system in ("a", "b")}
        systems: tuple[Literal["a", "b"], Literal["a", "b"]] = (
            ("a", "b") if (place % 2 == 0) == first else ("b", "a")
        )
        clips = (names[systems[0]], names[systems[1]])
        items[index] = Item(pair, _hash(study, "item", str(index))[:12], place // 2, clips, systems)
    return Study(study[:12], a, b, asked, tuple(item for item in items if item))


def with_files(study: Study, files: Mapping[Path, Path]) -> Study:
    """The same study, in which other files are shown for some of its videos, such as copies that browsers play."""
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


def _digest(path: Path) -> str:
    with reading(path):
        return file_sha256(path)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def open_folder(folder: Path, study: Study) -> Path:
    """Make the study's folder with its key and return the path of its votes.

    Raises UsageError where the folder belongs to another study, DiskError where it cannot be written.
    """
    key = folder / "study.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if key.exists():
            known = json.loads(key.read_text(encoding="utf-8"))
            if known.get("study") != study.id:
                raise UsageError(
                    f"`{folder}` holds the votes of another study: videos, prompts, names or questions were others",
                    hint="-o FOLDER starts a new one",
                )
        else:
            write_text(key, json.dumps(study.private(), indent=1, ensure_ascii=False) + "\n", overwrite=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    except ValueError as error:
        raise InputError(f"`{key}` is no JSON: {error}", hint="-o FOLDER starts a new study") from error
    return folder / "votes.jsonl"


# -- votes --------------------------------------------------------------------------------------------------------------


class Vote(NamedTuple):
    """One rater's answers to one item: a question's answer is a clip's opaque name or `tie`."""

    study: str
    rater: str
    item: str
    revision: int
    left: str
    right: str
    answers: Mapping[str, str]
    seconds: float
    """From the first look to the last answer."""
    at: str
    """When, as the rater's clock says, ISO 8601."""

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.rater, self.item, self.revision)

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps({"vote": 1, **self._asdict()}, ensure_ascii=False)


class BadVoteError(ValueError):
    """A vote that does not belong to the study, or that nobody can have cast."""


def rater_name(text: str) -> str:
    """The name under which a rater's votes are kept: letters' case and spaces make no other rater."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).lower()[:MAX_RATER]


def read_vote(record: Any, study: Study) -> Vote:
    """A checked vote. Raises BadVoteError with the reason."""
    if not isinstance(record, dict):
        raise BadVoteError("a vote is a JSON object")
    if record.get("study") != study.id:
        raise BadVoteError(f"a vote of study `{record.get('study')}`, wanted `{study.id}`")
    item = next((item for item in study.items if item.id == record.get("item")), None)
    if item is None:
        raise BadVoteError(f"there is no item `{record.get('item')}`")
    rater, at = record.get("rater"), record.get("at")
    if not isinstance(rater, str) or not rater_name(rater):
        raise BadVoteError("a vote needs a rater")
    left, right = str(record.get("left")), str(record.get("right"))
    if {left, right} != set(item.clips):
        raise BadVoteError(f"item `{item.id}` has other clips")
    answers = record.get("answers")
    if not isinstance(answers, dict) or set(answers) != set(study.questions):
        raise BadVoteError(f"wanted one answer each to {', '.join(study.questions)}")
    if any(answer not in (*item.clips, "tie") for answer in answers.values()):
        raise BadVoteError("an answer is one of the two clips or `tie`")
    revision, seconds = record.get("revision"), record.get("seconds")
    if not isinstance(revision, int) or isinstance(revision, bool) or not 0 <= revision < 10_000:
        raise BadVoteError("`revision` is a whole number from 0 on")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < 1e9:
        raise BadVoteError("`seconds` is a number from 0 on")
    if not isinstance(at, str) or len(at) > 40:
        raise BadVoteError("`at` is a time")
    ordered = {str(name): str(answers[name]) for name in study.questions}
    name = rater_name(rater)
    return Vote(study.id, name, item.id, revision, left, right, ordered, round(float(seconds), 1), at)


def read_votes(path: Path, study: Study) -> tuple[list[Vote], list[str]]:
    """The votes of one file, and what was wrong in words. A last line that a crash cut short is left out.

    Raises InputError for a file that cannot be read, or with a line that is no vote of this study.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {(error.strerror or str(error)).lower()}") from error
    votes, told = [], []
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            votes.append(read_vote(json.loads(raw), study))
        except BadVoteError as error:
            raise InputError(f"`{path}:{number}` is no vote of this study: {error}") from error
        except ValueError as error:
            # Only an append that a crash interrupted leaves such a line; its sender was never told `saved`.
            if raw[:8] == b'{"vote":'[: len(raw)]:
                told.append(f"`{path}:{number}` was cut short by a crash and holds no whole vote")
                continue
            raise InputError(f"`{path}:{number}` is not JSON: {error}") from error
    return votes, told


class VoteBook:
    """The votes of a study on the disk. `add` returns when the vote is safe there; any thread may call."""

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = path, study
        self._lock = threading.Lock()
        known, self.warnings = read_votes(path, study)
        self._votes = {vote.key: vote for vote in known}

    def __len__(self) -> int:
        return len(self._votes)

    def add(self, vote: Vote) -> bool:
        """Keep a vote; False when it is there already.

        Raises BadVoteError when its place is taken by other answers, DiskError when it cannot be written.
        """
        with self._lock:
            known = self._votes.get(vote.key)
            if known is not None:
                if known.answers == vote.answers:
                    return False
                raise BadVoteError(f"revision {vote.revision} of this item has other answers already")
            try:
                self._append(vote.line())
            except OSError as error:
                raise disk_error(self.path, error) from error
            self._votes[vote.key] = vote
            return True

    def of(self, rater: str) -> list[Vote]:
        """The rater's votes, of each item the last revision."""
        name = rater_name(rater)
        with self._lock:
            return [vote for vote in last_revisions(self._votes.values()) if vote.rater == name]

    def _append(self, line: str) -> None:
        fresh = not self.path.exists()
        with open(self.path, "ab+") as file:
            if file.tell() and not self._ends_a_line(file):
                file.write(b"\n")  # behind what a crash cut short
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @staticmethod
    def _ends_a_line(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) == b"\n")


def last_revisions(votes: Iterable[Vote]) -> list[Vote]:
    """Of each (rater, item) the vote that counts: the highest revision."""
    last: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        known = last.get((vote.rater, vote.item))
        if known is None or vote.revision >= known.revision:
            last[vote.rater, vote.item] = vote
    return list(last.values())


def gather_votes(folder: Path, study: Study, extra: Sequence[Path] = ()) -> tuple[list[Vote], list[str]]:
    """Every vote that counts: of `votes*.jsonl` in the study's folder, and of `extra` files that raters sent back.

    The same vote in several files counts once. Raises InputError where two files hold different answers for one revision.
    """
    kept: dict[tuple[str, str, int], Vote] = {}
    told: list[str] = []
    for path in [*sorted(folder.glob("votes*.jsonl")), *extra]:
        if path in extra and not path.is_file():
            raise InputError(f"`{path}` does not exist, wanted a file of votes")
        votes, wrong = read_votes(path, study)
        told += wrong
        for vote in votes:
            known = kept.setdefault(vote.key, vote)
            if known.answers != vote.answers:
                raise InputError(
                    f"`{path}` has other answers of rater `{vote.rater}` to item `{vote.item}` than another file",
                    hint="raters need names of their own; take one of the two files away",
                )
    return last_revisions(kept.values()), told


# -- the tally ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """One question: how many items went to `a`, to `b` and to neither, and how many single votes did.

    An item goes to the answer that most of its raters gave; where the most is shared, to neither.
    """

    question: Question
    items: Mapping[Answer, int]
    votes: Mapping[Answer, int]
    agreement: float | None
    """Share of pairs of raters of one item that gave the same answer; None with one rater an item."""

    @property
    def decided(self) -> int:
        return self.items["a"] + self.items["b"]

    def as_dict(self) -> dict[str, Any]:
        """Shares are of the decided items, as in the paper, whose raters had no tie to choose; intervals are Wilson's, 95 %."""
        told: dict[str, Any] = {
            "items": dict(self.items),
            "votes": dict(self.votes),
            "decided": self.decided,
            "agreement": self.agreement,
        }
        for system in ("a", "b"):
            share = None
            if self.decided:
                low, high = wilson(self.items[system], self.decided)
                share = {"share": self.items[system] / self.decided, "low": low, "high": high}
            told[f"prefer_{system}"] = share
        return told


def tally(study: Study, votes: Sequence[Vote]) -> dict[Question, Tally]:
    """The majority of each item and the counts, for each question; `votes` are those that count."""
    items = {item.id: item for item in study.items}
    found: dict[Question, Tally] = {}
    for question in study.questions:
        given: dict[str, list[Answer]] = defaultdict(list)
        for vote in votes:
            choice = vote.answers[question]
            given[vote.item].append("tie" if choice == "tie" else items[vote.item].system(choice))
        counts: Counter[Answer] = Counter(majority(answers) for answers in given.values())
        single: Counter[Answer] = Counter(itertools.chain.from_iterable(given.values()))
        pairs = [x == y for answers in given.values() for x, y in itertools.combinations(answers, 2)]
        order: tuple[Answer, ...] = ("a", "tie", "b")
        found[question] = Tally(
            question,
            {name: counts[name] for name in order},
            {name: single[name] for name in order},
            sum(pairs) / len(pairs) if pairs else None,
        )
    return found


def majority(answers: Sequence[Answer]) -> Answer:
    """The answer given most often; `tie` where several are."""
    (first, most), *rest = Counter(answers).most_common()
    return "tie" if rest and rest[0][1] == most else first


def sides(study: Study, votes: Iterable[Vote]) -> dict[str, int]:
    """How often each system was shown on the left: a check of the balance."""
    items = {item.id: item for item in study.items}
    counts = Counter(items[vote.item].system(vote.left) for vote in votes)
    return {"a": counts["a"], "b": counts["b"]}


def tally_report(study: Study, votes: Sequence[Vote]) -> dict[str, Any]:
    """Everything that the votes say, ready for JSON."""
    raters = sorted({vote.rater for vote in votes})
    items = {item.id: item for item in study.items}
    judged: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        judged[vote.item].append(vote)
    return {
        "study": study.id,
        "a": study.a,
        "b": study.b,
        "pairs": len(study.items),
        "judged": len(judged),
        "votes": len(votes),
        "raters": {name: sum(vote.rater == name for vote in votes) for name in raters},
        "left": sides(study, votes),
        "questions": {name: found.as_dict() for name, found in tally(study, votes).items()},
        "published": [row._asdict() for row in TABLES["human"]],
        "items": [
            {
                "name": item.pair.name,
                "prompt": item.pair.prompt,
                **{
                    question: {
                        "majority": majority(answers),
                        **{name: answers.count(name) for name in ("a", "tie", "b")},
                    }
                    for question in study.questions
                    if (answers := [_answer(item, vote, question) for vote in judged[id_]])
                },
            }
            for id_, item in items.items()
            if id_ in judged
        ],
    }


def _answer(item: Item, vote: Vote, question: Question) -> Answer:
    choice = vote.answers[question]
    return "tie" if choice == "tie" else item.system(choice)


def write_json(path: Path, value: Any) -> None:
    """A whole file or none. Raises DiskError."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, overwrite=True)
