"""Votes: which count, and that the store and the files lose none and double none."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from human_study import earlier_line, enrolled, make_folders, study_of, token, vote_record, votes_on

from mavcli.errors import DiskError, InputError
from mavcli.evaluation.human import Study, open_folder
from mavcli.evaluation.tally import tally
from mavcli.evaluation.votes import (
    STORE,
    BadVoteError,
    UnknownRaterError,
    Vote,
    VoteStore,
    counting,
    gather_votes,
    rater_name,
    read_file,
    read_vote,
    served_alone,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(make_folders(tmp_path_factory.mktemp("videos"), pairs=4))


@pytest.fixture
def store(study: Study, tmp_path: Path) -> VoteStore:
    open_folder(tmp_path, study)
    return VoteStore(tmp_path / STORE, study)


@pytest.mark.parametrize(
    "change",
    [
        {"study": "another"},
        {"item": "none"},
        {"item": ["a"]},
        {"rater": " "},
        {"rater": None},
        {"rater": "short"},
        {"id": "../../etc/passwd-and-more"},
        {"left": "x"},
        {"left": {}},
        {"question": "beauty"},
        {"question": []},
        {"answer": "a"},
        {"answer": ["tie"]},
        {"revision": -1},
        {"revision": True},
        {"revision": 10**30},
        {"seconds": "3"},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"at": 5},
        {"at": "yesterday"},
        {"name": 5},
    ],
    ids=str,
)
def test_what_nobody_can_have_voted_is_refused(study: Study, change: dict[str, object]) -> None:
    read_vote(vote_record(study, "anna", 0), study)
    with pytest.raises(BadVoteError):
        read_vote(vote_record(study, "anna", 0) | change, study)


def test_a_forced_choice_is_another_study_and_takes_no_tie(study: Study) -> None:
    forced = study_of((study.items[0].pair.a.parent, study.items[0].pair.b.parent), forced=True)
    assert forced.id != study.id and forced.public()["tie"] is False and study.public()["tie"] is True
    read_vote(vote_record(study, "anna", 0, "tie"), study)
    read_vote(vote_record(forced, "anna", 0, "b"), forced)
    with pytest.raises(BadVoteError, match="one of the two clips$"):
        read_vote(vote_record(forced, "anna", 0, "tie"), forced)


def test_which_votes_count_does_not_depend_on_the_order_in_which_they_came(study: Study) -> None:
    votes = [
        vote
        for n in range(3)
        for r in range(3)
        for vote in votes_on(study, "anna", n, "ab"[r % 2], revision=r)
    ]
    votes += [votes[-1]._replace(id="another-window-0001", answer="tie", at="2026-11-22T10:00:05Z")]
    found = {frozenset(counting(random.Random(seed).sample(votes, len(votes)))) for seed in range(30)}
    (last,) = found
    assert len(last) == 6 and {vote.revision for vote in last} == {2}
    assert "another-window-0001" in {vote.id for vote in last}


def test_a_name_is_one_short_line() -> None:
    assert rater_name("  Anna \n MARIA\x1b[31m\u202e ") == "Anna MARIA[31m"
    assert len(rater_name("x" * 10**6)) == 60 and rater_name("\x00") == ""


# -- the store ------------------------------------------------------------------------------------------------------------


def test_a_vote_sent_twice_counts_once_and_a_revision_replaces_it(store: VoteStore, study: Study) -> None:
    first = enrolled(store, "anna", votes_on(study, "anna", 0)[0])
    assert store.add(first) and not store.add(first)
    with pytest.raises(BadVoteError, match="another vote has this id"):
        store.add(first._replace(answer="tie"))
    again = first._replace(id="a-second-thought-01", revision=1, answer="tie")
    assert store.add(again) and store.of(first.rater) == [again]
    assert VoteStore(store.path, study).votes() == [first, again]
    assert gather_votes(store.path.parent, study) == ([again], [])


def test_two_raters_of_one_name_are_two(store: VoteStore, study: Study) -> None:
    for choice in "ab":
        rater = store.enrol("Anna")
        for vote in votes_on(study, "anna", 0, choice):
            assert store.add(vote._replace(rater=rater, id=f"{choice}-{vote.question}-000000001"))
    votes, told = gather_votes(store.path.parent, study)
    assert told == [] and len(votes) == 4
    assert tally(study, votes)["quality"].votes == {"a": 1, "tie": 0, "b": 1}


def test_a_token_that_was_not_given_out_cannot_vote(store: VoteStore, study: Study) -> None:
    with pytest.raises(UnknownRaterError):
        store.add(votes_on(study, "anna", 0)[0])
    assert len({store.enrol("anna") for _ in range(20)}) == 20 and store.votes() == []
    with pytest.raises(BadVoteError, match="needs a name"):
        store.enrol(" \n")


def test_nothing_in_the_store_is_changed_or_deleted(store: VoteStore, study: Study) -> None:
    store.add(enrolled(store, "anna", votes_on(study, "anna", 0)[0]))
    other = sqlite3.connect(store.path)
    for statement in ("DELETE FROM votes", "UPDATE votes SET answer = 'tie'"):
        with pytest.raises(sqlite3.IntegrityError, match="only added"):
            other.execute(statement)
    other.close()


def test_many_raters_at_once_lose_nothing(store: VoteStore, study: Study) -> None:
    def rate(number: int) -> None:
        rater = store.enrol("same name")
        for i in random.Random(number).sample(range(4), 4):
            for vote in votes_on(study, f"rater-{number}", i):
                mine = vote._replace(
                    rater=rater, name="same name", id=f"{number}-{i}-{vote.question}-0123456789"
                )
                store.add(mine)
                store.add(mine)

    threads = [threading.Thread(target=rate, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.votes()) == len(store) == 6 * 4 * 2


def test_a_vote_that_the_disk_refuses_is_not_kept_and_the_next_try_is(store: VoteStore, study: Study) -> None:
    vote = enrolled(store, "anna", votes_on(study, "anna", 0)[0])
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    kept = 0
    with pytest.raises(DiskError, match="full"):
        while kept < 1000:
            store.add(vote._replace(id=f"{kept:020}"))
            kept += 1
    assert 0 < kept == len(store.votes()) == len(gather_votes_raw(store.path))
    store._db.execute("PRAGMA max_page_count = 100000")
    assert store.add(vote._replace(id=f"{kept:020}")) and len(store.votes()) == kept + 1


def gather_votes_raw(path: Path) -> list[Any]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return db.execute("SELECT id FROM votes").fetchall()
    finally:
        db.close()


def test_what_was_acknowledged_before_a_kill_is_counted_after_it(study: Study, tmp_path: Path) -> None:
    """The process ends in the middle of its writing; the tally reads what it left, and needs no hand on a file."""
    script = (
        "import json, os, sys; from pathlib import Path; from mavcli.evaluation.votes import Vote, VoteStore\n"
        "from types import SimpleNamespace as S\n"
        "vote = Vote(**json.loads(sys.argv[2])); store = VoteStore(Path(sys.argv[1]), S(id=vote.study))\n"
        "rater = store.enrol('anna')\n"
        "for n in range(10**9):\n"
        "    store.add(vote._replace(rater=rater, name='anna', id=f'{n:020}', revision=n))\n"
        "    os.write(1, b'%d\\n' % n)\n"
    )
    vote = votes_on(study, "anna", 0)[0]
    command = [sys.executable, "-c", script, str(tmp_path / STORE), json.dumps(vote._asdict())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(50)]
    counted_before, _ = gather_votes(tmp_path, study)  # while it is written to
    process.send_signal(signal.SIGKILL)
    told += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    assert counted_before[0].revision >= 49
    last = int(told[-1])
    (found,), wrong = gather_votes(tmp_path, study)
    assert wrong == [] and found.revision in (last, last + 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_no_cut_of_any_write_of_the_store_loses_doubles_or_makes_up_a_vote(tmp_path: Path) -> None:
    library, here = tmp_path / "faults.so", Path(__file__).parent
    source = here.parent / "faults_preload.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, str(here / "store_faults.py"), str(tmp_path / "place")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    (last,) = done.stdout.splitlines()
    assert int(last.removesuffix(" points")) > 100


def test_a_store_is_in_wal_mode_from_its_first_byte_on_the_disk(store: VoteStore) -> None:
    """A kill while a file changes to WAL leaves a journal, and who only reads cannot take that back."""
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store.path.read_bytes()[18:20] == b"\2\2"


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    for _ in range(2):
        refused = pytest.raises(DiskError, match="is served by another")
        with served_alone(tmp_path), refused, served_alone(tmp_path):
            pass


@pytest.mark.parametrize("what", ["text", "other", "folder", "pipe"])
def test_a_file_that_is_no_store_is_named_and_left_alone(study: Study, tmp_path: Path, what: str) -> None:
    path = tmp_path / STORE
    if what == "text":
        path.write_text("my notes\n" * 100)
    elif what == "other":
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE t (x)")
        db.commit()
        db.close()
    elif what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    before = path.read_bytes() if path.is_file() else None
    for act in (lambda: VoteStore(path, study), lambda: gather_votes(tmp_path, study)):
        with pytest.raises(InputError, match=STORE):
            act()
    assert before is None or path.read_bytes() == before


def test_the_store_has_the_mode_of_the_umask(study: Study, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        VoteStore(tmp_path / STORE, study).close()
    finally:
        os.umask(before)
    assert (tmp_path / STORE).stat().st_mode & 0o777 == 0o664


# -- files -----------------------------------------------------------------------------------------------------------------


def test_votes_of_an_earlier_mav_are_taken_over(store: VoteStore, study: Study) -> None:
    """By name, with all answers in a line; a crash cut the last one short, and two servers took contradicting ones."""
    lines = [earlier_line(study, "anna", 0), earlier_line(study, "anna", 0, "b", revision=1)]
    lines += [
        earlier_line(study, "Ben", 1),
        earlier_line(study, "ben", 1, "b"),
        earlier_line(study, "ben", 2)[:50],
    ]
    (store.path.parent / "votes.jsonl").write_text("\n".join(lines))
    store.add(enrolled(store, "anna", votes_on(study, "anna", 3)[0]))
    votes, told = gather_votes(store.path.parent, study)
    quality = {
        (vote.name, study.items.index(study.by_id[vote.item])): vote
        for vote in votes
        if vote.question == "quality"
    }
    assert {key[1] for key in quality} == {0, 1, 3} and len({vote.rater for vote in votes}) == 3
    assert study.by_id[study.items[0].id].system(quality["anna", 0].answer) == "b"
    assert any("votes.jsonl:5` is no whole line of JSON, left out" in text for text in told)
    assert any("answered in two ways" in text for text in told) and len(told) == 2


def test_lines_that_are_no_votes_are_left_out_by_number_and_the_others_count(
    study: Study, tmp_path: Path
) -> None:
    good = [json.dumps(vote_record(study, "anna", n)) for n in range(4)]
    bad: list[bytes] = [
        b"hello",
        b"[" * 5000,
        b"\xff\xfe",
        b'{"seconds": 1e400}',
        b"1" * 5000,
        b"null",
        b"x" * 200_000,
    ]
    lines = [
        b"\xef\xbb\xbf" + good[0].encode(),
        bad[0],
        bad[1],
        good[1].encode(),
        *bad[2:],
        good[2].encode(),
        b"",
        good[3].encode(),
    ]
    (tmp_path / "votes-x.jsonl").write_bytes(b"\r\n".join(lines))
    votes, told = read_file(tmp_path / "votes-x.jsonl", study)
    assert [vote.item for vote in votes] == [item.id for item in study.items]
    assert "votes-x.jsonl:2`" in told[0] and "4 more lines" in told[-1] and len(told) == 4


def test_files_that_come_back_are_merged_however_often_they_are_named(
    store: VoteStore, study: Study, tmp_path: Path
) -> None:
    lines = [json.dumps(vote_record(study, "anna", i)) for i in range(3)]
    (tmp_path / "votes-anna.jsonl").write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "sent.jsonl").write_text("\n".join(lines[1:]) + "\n")
    other = [json.dumps(vote_record(study, "anna", 0, "b") | {"rater": token("carl"), "id": "x" * 20})]
    (tmp_path / "other.jsonl").write_text("\n".join(other))
    sent = [tmp_path / "sent.jsonl", tmp_path / "other.jsonl"]
    found = gather_votes(tmp_path, study, sent)
    assert (
        found == gather_votes(tmp_path, study, [*reversed(sent), *sent])
        and len(found[0]) == 4
        and found[1] == []
    )
    with pytest.raises(InputError, match="does not exist"):
        gather_votes(tmp_path, study, [tmp_path / "none.jsonl"])


def test_a_pipe_among_the_votes_does_not_hold_up_the_tally(study: Study, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "votes-x.jsonl")
    assert gather_votes(tmp_path, study) == ([], [f"`{tmp_path}/votes-x.jsonl` is no regular file, left out"])
    with pytest.raises(InputError, match="no regular file"):
        gather_votes(tmp_path, study, [tmp_path / "votes-x.jsonl"])


def test_a_line_holds_all_of_a_vote(study: Study) -> None:
    vote: Vote = votes_on(study, "anna", 0)[0]
    assert read_vote(json.loads(vote.line()), study) == vote
