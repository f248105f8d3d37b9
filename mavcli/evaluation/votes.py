"""Votes: what one is, the store that keeps them on the disk, and those of the store and of files together.

A vote is one rater's answer to one question about one pair. Votes are only ever added: who thinks again casts another one
with a higher `revision`. Which votes count depends on the set of them alone, in whatever order and however often they came:
of a rater's votes on one question about one pair it is the one with the highest revision, then the latest by the rater's own
clock, then the greatest id. A rater is a token that nobody guesses; the name is a label, and several may have the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sqlite3
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from mavcli.errors import DiskError, InputError, counted, one_line
from mavcli.evaluation.human import Study, short_hash
from mavcli.files import locked, reading, write_bytes

STORE = "votes.sqlite"
"""Name of the store in a study's folder."""

MAX_NAME = 60
"""Letters of a rater's name."""
_MAX_REVISION = 9999
_LONGEST_LINE = 1 << 16
_SHOWN = 3
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
_TIME = re.compile(r"[0-9T:.Z+-]{1,40}")


class Vote(NamedTuple):
    """One rater's answer to one question about one pair."""

    study: str
    rater: str
    """The rater's token."""
    name: str
    """What the rater is called."""
    id: str
    """Made by whoever casts it: a vote that is sent again has the same one."""
    item: str
    question: str
    revision: int
    answer: str
    """A clip's opaque name, or `tie`."""
    left: str
    right: str
    seconds: float
    """From the first look at the pair to this answer."""
    at: str
    """When, as the rater's clock says, ISO 8601."""

    @property
    def place(self) -> tuple[str, str, str]:
        """What it answers: of the votes of one place one counts."""
        return (self.rater, self.item, self.question)

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps({"vote": 2, **self._asdict()}, ensure_ascii=False)


class BadVoteError(ValueError):
    """A vote that does not belong to the study, or that nobody can have cast."""


class UnknownRaterError(Exception):
    """A vote of a token that the store has not given out."""


def rater_name(text: str) -> str:
    """A name as it is shown: on one line, without what cannot be printed, at most `MAX_NAME` letters."""
    tidy = " ".join(unicodedata.normalize("NFKC", text[: 10 * MAX_NAME]).split())
    return "".join(c for c in tidy if c.isprintable())[:MAX_NAME].strip()


def counting(votes: Iterable[Vote]) -> list[Vote]:
    """Of each place the vote that counts."""
    last: dict[tuple[str, str, str], Vote] = {}
    for vote in votes:
        known = last.get(vote.place)
        if known is None or _rank(vote) > _rank(known):
            last[vote.place] = vote
    return list(last.values())


def _rank(vote: Vote) -> tuple[int, str, str, str]:
    return (vote.revision, vote.at, vote.id, vote.answer)


# -- records ------------------------------------------------------------------------------------------------------------


def read_vote(record: Any, study: Study) -> Vote:
    """A checked vote. Raises BadVoteError with the reason."""
    record = _of_study(record, study)
    question = record.get("question")
    if question not in study.questions:
        raise BadVoteError(f"`question` is none of {', '.join(study.questions)}")
    for key in ("rater", "id"):
        if not isinstance(record.get(key), str) or not _TOKEN.fullmatch(record[key]):
            raise BadVoteError(f"`{key}` is no token of 16 to 64 letters, digits, - and _")
    told = _told(record, study)
    answer = _answer(record.get("answer"), str(told["item"]), study)
    return Vote(rater=record["rater"], id=record["id"], question=question, answer=answer, **told)


def read_line(record: Any, study: Study) -> list[Vote]:
    """The votes of one line of a file: one, or a line of an earlier mav with an answer to each question.

    Such a line knows its rater by name alone. Raises BadVoteError with the reason.
    """
    if not isinstance(record, dict) or "answers" not in record:
        return [read_vote(record, study)]
    record = _of_study(record, study)
    answers = record["answers"]
    if not isinstance(answers, dict) or set(answers) != set(study.questions):
        raise BadVoteError(f"wanted one answer each to {', '.join(study.questions)}")
    name = record.get("rater")
    told = _told({**record, "name": name}, study)
    if not told["name"]:
        raise BadVoteError("a vote needs a rater")
    rater = short_hash("rater by name", study.id, str(told["name"]).lower())
    votes = []
    for question in study.questions:
        answer = _answer(answers[question], str(told["item"]), study)
        unique = short_hash(
            rater, str(told["item"]), question, str(told["revision"]), answer, str(told["at"])
        )
        votes.append(Vote(rater=rater, id=unique, question=question, answer=answer, **told))
    return votes


def _of_study(record: Any, study: Study) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise BadVoteError("a vote is a JSON object")
    if record.get("study") != study.id:
        raise BadVoteError(f"it is of study {_shown(record.get('study'))}, this one is `{study.id}`")
    return record


def _told(record: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """The fields that old and new votes share, checked."""
    item = record.get("item")
    if not isinstance(item, str) or item not in study.by_id:
        raise BadVoteError(f"there is no item {_shown(item)}")
    left, right = record.get("left"), record.get("right")
    if [left, right] not in (list(study.by_id[item].clips), list(reversed(study.by_id[item].clips))):
        raise BadVoteError(f"item `{item}` has other clips")
    revision, seconds = record.get("revision"), record.get("seconds")
    if not isinstance(revision, int) or isinstance(revision, bool) or not 0 <= revision <= _MAX_REVISION:
        raise BadVoteError(f"`revision` is a whole number from 0 to {_MAX_REVISION}")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < 1e9:
        raise BadVoteError("`seconds` is a number from 0 on")
    at, name = record.get("at"), record.get("name", "")
    if not isinstance(at, str) or not _TIME.fullmatch(at):
        raise BadVoteError("`at` is a time, ISO 8601")
    if not isinstance(name, str):
        raise BadVoteError("`name` is text")
    return {
        "study": study.id,
        "name": rater_name(name),
        "item": item,
        "revision": revision,
        "left": left,
        "right": right,
        "seconds": round(float(seconds), 1),
        "at": at,
    }


def _answer(answer: Any, item: str, study: Study) -> str:
    allowed = (*study.by_id[item].clips, *(() if study.forced else ("tie",)))
    if not isinstance(answer, str) or answer not in allowed:
        raise BadVoteError("an answer is one of the two clips" + ("" if study.forced else " or `tie`"))
    return answer


def _shown(value: Any) -> str:
    return f"`{one_line(str(value), limit=40)}`"


# -- the store ----------------------------------------------------------------------------------------------------------

_APPLICATION, _VERSION = 0x6D617676, 1
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
CREATE TABLE raters (token TEXT PRIMARY KEY, name TEXT NOT NULL, at TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE votes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    study TEXT NOT NULL, rater TEXT NOT NULL REFERENCES raters, id TEXT NOT NULL UNIQUE,
    item TEXT NOT NULL, question TEXT NOT NULL, revision INTEGER NOT NULL, answer TEXT NOT NULL,
    left TEXT NOT NULL, right TEXT NOT NULL, seconds REAL NOT NULL, at TEXT NOT NULL
);
CREATE INDEX votes_of_rater ON votes (rater);
CREATE TRIGGER votes_stay_as_they_are BEFORE UPDATE ON votes BEGIN SELECT RAISE(ABORT, 'votes are only added'); END;
CREATE TRIGGER votes_stay BEFORE DELETE ON votes BEGIN SELECT RAISE(ABORT, 'votes are only added'); END;
"""
_COLUMNS = ", ".join(name if name == "name" else f"votes.{name}" for name in Vote._fields)
_SELECT = f"SELECT {_COLUMNS} FROM votes JOIN raters ON raters.token = votes.rater"
_INSERTED = tuple(name for name in Vote._fields if name != "name")


class VoteStore:
    """The votes of a study on the disk: SQLite, of which every commit is synced. `add` returns when the vote is safe.

    Any thread may call. Raises InputError for a file that is no such store, DiskError where it cannot be written.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = path, study
        self._lock = threading.Lock()
        if not os.path.lexists(path):
            _create(path)
        _check_regular(path)
        with _writing(path):
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            _check_store(self._db, path)
            with _writing(path):
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            self._db.close()
            raise

    def __len__(self) -> int:
        """How many answers count."""
        return len(counting(self.votes()))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def enrol(self, name: str) -> str:
        """A new rater's token, which is on the disk. Raises BadVoteError for no name, DiskError."""
        tidy = rater_name(name)
        if not tidy:
            raise BadVoteError("a rater needs a name")
        token = secrets.token_urlsafe(24)
        with self._lock, _writing(self.path):
            self._db.execute("INSERT INTO raters VALUES (?, ?, ?)", (token, tidy, _now()))
        return token

    def name_of(self, token: str) -> str:
        """The name of a rater. Raises UnknownRaterError."""
        with self._lock, _writing(self.path):
            found = self._db.execute("SELECT name FROM raters WHERE token = ?", (token,)).fetchone()
        if found is None:
            raise UnknownRaterError(token)
        return str(found[0])

    def add(self, vote: Vote) -> bool:
        """Keep a vote; False when it is there already.

        Raises UnknownRaterError, BadVoteError when its id is that of another vote, DiskError when it cannot be written.
        """
        vote = vote._replace(name=self.name_of(vote.rater))
        with self._lock, _writing(self.path):
            known = self._db.execute(f"{_SELECT} WHERE votes.id = ?", (vote.id,)).fetchone()
            if known is None:
                places = ", ".join("?" * len(_INSERTED))
                values = [getattr(vote, name) for name in _INSERTED]
                self._db.execute(f"INSERT INTO votes ({', '.join(_INSERTED)}) VALUES ({places})", values)
                return True
        if Vote(*known) != vote:
            raise BadVoteError("another vote has this id")
        return False

    def of(self, token: str) -> list[Vote]:
        """The rater's votes that count."""
        return counting(self.votes("WHERE votes.rater = ?", token))

    def votes(self, where: str = "", *values: str) -> list[Vote]:
        """Every vote, as it came."""
        with self._lock, _writing(self.path):
            rows = self._db.execute(f"{_SELECT} {where} ORDER BY number", values).fetchall()
        return [vote for row in rows if (vote := Vote(*row)).study == self.study.id]


@contextlib.contextmanager
def served_alone(folder: Path) -> Iterator[None]:
    """Hold a study's folder for one server. Raises DiskError at once where another has it."""

    def refuse() -> None:
        raise DiskError(
            f"`{folder}` is served by another `mav eval human` already",
            hint="open the page of that one, or stop it; `--tally` counts meanwhile",
        )

    with locked(folder / STORE, waiting=refuse):
        yield


def _create(path: Path) -> None:
    """An empty store appears whole, and in WAL mode: to a file that changes to it a kill may leave a journal behind, which
    whoever only reads cannot take back.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(_SCHEMA)
        image = bytearray(empty.serialize())
    image[18:20] = b"\2\2"  # write and read version of the file format: 1 is the rollback journal, 2 WAL
    write_bytes(path, image)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what SQLite says into a DiskError."""
    try:
        yield
    except sqlite3.Error as error:
        raise DiskError(
            f"cannot write `{path}`: {one_line(str(error)).lower()}",
            hint="free some space, or begin in another folder with `-o`",
        ) from error


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise InputError(f"`{path}` is no regular file, wanted votes")


def _check_store(db: sqlite3.Connection, path: Path) -> None:
    """Raises InputError where the database is none of ours."""
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise InputError(f"`{path}` is no store of votes: {one_line(str(error)).lower()}") from error
    if application != _APPLICATION:
        raise InputError(f"`{path}` is no store of votes", hint="-o FOLDER starts a new study")
    if version != _VERSION:
        raise InputError(f"`{path}` is of a newer mav (version {version}, this one reads {_VERSION})")


def _stored(path: Path) -> list[dict[str, Any]]:
    """The rows of a store, which is only read: a server may be adding to it."""
    _check_regular(path)
    place = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(place, uri=True, isolation_level=None)) as db:
            _check_store(db, path)
            rows = db.execute(f"{_SELECT} ORDER BY number").fetchall()
    except sqlite3.Error as error:
        raise InputError(f"cannot read `{path}`: {one_line(str(error)).lower()}") from error
    return [dict(zip(Vote._fields, row, strict=True)) for row in rows]


# -- all of them --------------------------------------------------------------------------------------------------------


def read_file(path: Path, study: Study) -> tuple[list[Vote], list[str]]:
    """The votes of a file of lines; and, in words, the lines that are left out, such as one that a crash cut short.

    Raises InputError for a file that cannot be read.
    """
    _check_regular(path)
    votes: list[Vote] = []
    bad: list[str] = []
    with reading(path), open(path, "rb") as file:
        for number, raw in enumerate(_lines(file), 1):
            try:
                if raw is None:
                    raise BadVoteError(f"it is longer than {_LONGEST_LINE:,} bytes")
                if raw.strip():
                    votes += read_line(json.loads(raw.removeprefix(b"\xef\xbb\xbf")), study)
            except BadVoteError as error:
                bad.append(f"`{path}:{number}` is no vote of this study, left out: {error}")
            except (ValueError, RecursionError):
                bad.append(f"`{path}:{number}` is no whole line of JSON, left out")
    return votes, _few(bad, path)


def _lines(file: Any) -> Iterator[bytes | None]:
    """The lines of a binary file; None for one that is too long to be a vote."""
    while raw := file.readline(_LONGEST_LINE):
        if raw.endswith(b"\n") or len(raw) < _LONGEST_LINE:
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(_LONGEST_LINE)
        yield None


def _few(bad: list[str], path: Path) -> list[str]:
    if len(bad) > _SHOWN:
        return [*bad[:_SHOWN], f"{counted(len(bad) - _SHOWN, 'more line')} of `{path}` left out"]
    return bad


def gather_votes(folder: Path, study: Study, extra: Sequence[Path] = ()) -> tuple[list[Vote], list[str]]:
    """Every vote that counts: of the store and of `votes*.jsonl` in a study's folder, and of `extra` files that came back.

    The same vote in several places counts once. What is left out or contradicts itself is told in words. Nothing is written,
    and a server may be running. Raises InputError where a file cannot be read.
    """
    votes: set[Vote] = set()
    told: list[str] = []
    if os.path.lexists(folder / STORE):
        bad = []
        for record in _stored(folder / STORE):
            try:
                votes.add(read_vote(record, study))
            except BadVoteError as error:
                bad.append(f"a vote in `{folder / STORE}` is left out: {error}")
        told += _few(bad, folder / STORE)
    for path in sorted(folder.glob("votes*.jsonl")):
        if not path.is_file():
            told.append(f"`{path}` is no regular file, left out")
            continue
        found, wrong = read_file(path, study)
        votes.update(found)
        told += wrong
    for path in extra:
        if not path.exists():
            raise InputError(f"`{path}` does not exist, wanted a file of votes")
        found, wrong = read_file(path, study)
        votes.update(found)
        told += wrong
    answers: defaultdict[tuple[str, str, str, int], set[str]] = defaultdict(set)
    for vote in votes:
        answers[*vote.place, vote.revision].add(vote.answer)
    twice = sum(len(given) > 1 for given in answers.values())
    if twice:
        told.append(
            f"{counted(twice, 'question')} about a pair a rater answered in two ways: the later counts"
        )
    return sorted(counting(votes), key=lambda vote: (vote.at, vote.id)), told
