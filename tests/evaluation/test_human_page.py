"""The voting page in a real browser: no vote is lost, none doubled, and none shown as saved that is not."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from human_study import make_folders, study_of

from mavcli.evaluation.human import Study, make_study, open_folder
from mavcli.evaluation.human_server import HumanServer, write_static
from mavcli.evaluation.tally import sides, tally
from mavcli.evaluation.votes import STORE, VoteStore, gather_votes

STATE = "document.getElementById('state').textContent"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_folders(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two pairs, two questions: four answers."""
    return study_of(make_folders(tmp_path_factory.mktemp("short"), pairs=2))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(make_folders(tmp_path_factory.mktemp("other"), pairs=2, hue=77))


class _Server(HumanServer):
    """A server whose end is that of its process: the connections that browsers keep end as well."""

    def process_request(self, request: Any, client_address: Any) -> None:
        self.__dict__.setdefault("kept", []).append(request)
        super().process_request(request, client_address)


@contextmanager
def serving(study: Study, folder: Path, *, port: int = 0) -> Iterator[_Server]:
    open_folder(folder, study)
    store = VoteStore(folder / STORE, study)
    server = _Server(study, store, port=port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        for connection in server.__dict__.get("kept", []):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """(rater, item, question) of every vote on the disk."""
    db = sqlite3.connect(f"file:{folder / STORE}?mode=ro", uri=True)
    try:
        return db.execute(
            "SELECT rater, item, question FROM votes WHERE study != '' ORDER BY number"
        ).fetchall()
    finally:
        db.close()


class Served:
    """The command as a process of its own, so that it can be killed and started again on the same port."""

    def __init__(self, folders: tuple[Path, Path], out: Path) -> None:
        self.arguments = [*map(str, folders), "-o", str(out), "--json"]
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mavcli", "eval", "human", *self.arguments, "--port", str(self.port)]
        # A test run in the background inherits that Ctrl-C is ignored.
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())["url"]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(20)


class Rater:
    """A person before the page, who knows which system is which and answers by a plan."""

    def __init__(self, browser: Browser, study: Study, opinion: Callable[[int, str], str]) -> None:
        self.browser, self.study, self.opinion = browser, study, opinion
        self.numbers = {item.id: number for number, item in enumerate(study.items)}

    def begin(self, url: str, name: str) -> None:
        self.browser.open(url)
        self.browser.wait("!document.getElementById('welcome').hidden")
        self.browser.type(name)
        self.browser.press("Enter")

    def look(self) -> tuple[int, str]:
        """Which pair is on show, and which question is asked."""
        question = self.browser.wait("document.body.dataset.question")
        return self.numbers[self.browser.run("document.body.dataset.item")], question

    def answer(self) -> tuple[int, str]:
        """Answer the question on show; which pair, which question."""
        number, question = self.look()
        item = self.study.items[number]
        wanted = self.opinion(number, question)
        source = self.browser.run("new URL(document.getElementById('left').src).pathname")
        left = item.system(Path(source).stem)
        key = "ArrowDown" if wanted == "tie" else "ArrowLeft" if wanted == left else "ArrowRight"
        self.browser.press(key)
        self.browser.wait(
            f"document.body.dataset.item !== {item.id!r} || document.body.dataset.question !== {question!r}"
        )
        return number, question

    def judge(self, pairs: int) -> None:
        for _ in range(pairs):
            assert self.answer()[1] == "quality"
            assert self.answer()[1] == "faithfulness"

    def thanks(self) -> str:
        self.browser.wait("!document.getElementById('done').hidden")
        return str(self.browser.run("document.getElementById('thanks').textContent"))


def test_a_reload_a_dead_server_and_a_killed_browser_lose_and_double_no_vote(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out, study = tmp_path / "votes", study_of(folders)
    server = Served(folders, out)
    try:
        # Anna: ours looks better always; faithfulness is a tie for the last two pairs.
        with Browser(tmp_path / "anna") as browser:
            anna = Rater(browser, study, lambda n, q: "tie" if q == "faithfulness" and n >= 4 else "a")
            anna.begin(server.url, "Anna")
            anna.judge(2)
            half = anna.answer()
            browser.wait(f"{STATE} === 'saved'")
            browser.reload()
            # The reload comes between two answers to one pair: it goes on with the second.
            assert anna.look() == (half[0], "faithfulness") and len(rows(out)) == 5
            server.stop(signal.SIGKILL)
            anna.answer()
            anna.judge(1)
            browser.wait(f"{STATE}.startsWith('3 answers not saved yet')")
            assert len(rows(out)) == 5
            browser.reload()  # fails: the page is gone with its server
            server.start()
            browser.open(server.url)
            anna.look()
            browser.wait(f"{STATE} === 'saved'")
            assert len(rows(out)) == len(set(rows(out))) == 8
            anna.judge(1)
            browser.press("Backspace")  # the pair before, again, with another opinion
            browser.wait("document.querySelector('#answers .chosen') !== null")
            anna.opinion = lambda n, q: "b"
            revised, _ = anna.answer()
            anna.answer()
            anna.opinion = lambda n, q: "tie" if q == "faithfulness" and n >= 4 else "a"
            anna.judge(1)
            assert anna.thanks().startswith("All 6 pairs are judged and saved")
            assert all("Failed to load" in e or "ERR_CONNECTION" in e for e in browser.errors)
        assert len(rows(out)) == 14
        # Ben's browser is killed: what it said is saved is on the disk.
        browser = Browser(tmp_path / "ben", dark=True)
        ben = Rater(browser, study, lambda n, q: "b")
        ben.begin(server.url, "  BEN ")
        ben.judge(2)
        browser.wait(f"{STATE} === 'saved'")
        browser.crash()
        assert len(rows(out)) == 18
        assert server.stop(signal.SIGINT) == 0
    finally:
        server.process.kill()
    votes, told = gather_votes(out, study)
    assert told == [] and {vote.name for vote in votes} == {"Anna", "BEN"}
    anna_votes = [vote for vote in votes if vote.name == "Anna"]
    assert len(anna_votes) == 12 and sides(study, anna_votes) == {"a": 3, "b": 3}
    found = tally(study, anna_votes)
    assert found["quality"].votes == {"a": 5, "tie": 0, "b": 1}
    ties = 2 - (revised >= 4)
    assert found["faithfulness"].votes == {"a": 5 - ties, "tie": ties, "b": 1}


def test_two_browsers_under_one_name_are_two_raters_and_what_they_say_is_saved_is(
    short: Study, tmp_path: Path
) -> None:
    with (
        serving(short, tmp_path / "out") as server,
        Browser(tmp_path / "1") as one,
        Browser(tmp_path / "2") as two,
    ):
        raters = [
            Rater(browser, short, lambda n, q, wanted=wanted: wanted)
            for browser, wanted in ((one, "a"), (two, "b"))
        ]
        for rater in raters:
            rater.begin(server.url, "Anna")
        for _ in range(4):
            for rater in raters:
                rater.answer()
        for rater in raters:
            assert rater.thanks().startswith("All 2 pairs are judged and saved")
        # Another person at the same browser; then the first again, who goes on where she stopped.
        one.click("#other")
        one.wait("!document.getElementById('welcome').hidden")
        one.type("Anna")
        one.press("Enter")
        raters[0].answer()
        one.wait(f"{STATE} === 'saved'")
        one.reload()
        assert raters[0].look()[1] == "faithfulness"
        assert one.errors == two.errors == []
    kept = rows(tmp_path / "out")
    assert len(kept) == len(set(kept)) == 9 and len({rater for rater, _, _ in kept}) == 3
    votes, told = gather_votes(tmp_path / "out", short)
    assert told == [] and tally(short, votes)["quality"].votes == {"a": 3, "tie": 0, "b": 2}


def test_a_study_that_is_changed_on_the_same_port_is_said_and_nothing_is_called_saved(
    short: Study, other: Study, tmp_path: Path
) -> None:
    with Browser(tmp_path / "profile") as browser:
        rater = Rater(browser, short, lambda n, q: "a")
        with serving(short, tmp_path / "out") as server:
            rater.begin(server.url, "Anna")
            rater.answer()
            browser.wait(f"{STATE} === 'saved'")
            port = server.server_address[1]
        with serving(other, tmp_path / "elsewhere", port=port):
            rater.look()
            browser.run("window.before = true")
            browser.press("ArrowLeft")
            browser.wait("!window.before && document.readyState === 'complete'")
            told = browser.wait(
                "!document.getElementById('notice').hidden && document.getElementById('notice').innerText"
            )
            assert "is another one now. 1 answer to the one before is not saved" in told
            assert browser.run(STATE) == "" and not browser.run("document.getElementById('welcome').hidden")
            assert rows(tmp_path / "elsewhere") == [] and len(rows(tmp_path / "out")) == 1
            browser.picture(tmp_path / "changed.png")
        with serving(short, tmp_path / "out", port=port) as server:
            browser.open(server.url)
            rater.look()
            browser.wait(f"{STATE} === 'saved'")
            assert len(rows(tmp_path / "out")) == 2
            rater.judge(1)
            assert rater.thanks().startswith("All 2 pairs are judged and saved")
    kept = rows(tmp_path / "out")
    assert len(kept) == len(set(kept)) == 4 and len({rater for rater, _, _ in kept}) == 1


def test_a_full_disk_is_shown_and_the_votes_are_saved_when_there_is_room(
    short: Study, tmp_path: Path
) -> None:
    with serving(short, tmp_path / "out") as server, Browser(tmp_path / "profile") as browser:
        rater = Rater(browser, short, lambda n, q: "b")
        rater.begin(server.url, "Anna")
        rater.look()
        db = server.store._db
        (room,) = db.execute("PRAGMA max_page_count").fetchone()
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        (token,) = db.execute("SELECT token FROM raters").fetchone()
        fill = (
            f"INSERT INTO votes SELECT NULL, '', '{token}', hex(randomblob(4)), '', '', 0, '', '', '', 0, ''"
        )
        with pytest.raises(sqlite3.OperationalError, match="full"):
            while True:
                db.execute(fill)
        rater.judge(2)
        told = rater.thanks()
        assert "judged, but 4 answers not saved yet" in told and rows(tmp_path / "out") == []
        state = browser.wait(f"{STATE}.includes('not saved yet') && {STATE}")
        assert "disk is full" in state and state.startswith("4 answers")
        browser.reload()
        browser.wait(f"{STATE}.includes('not saved yet')")
        db.execute(f"PRAGMA max_page_count = {room}")
        browser.wait("document.getElementById('thanks').textContent.includes('judged and saved')")
    kept = rows(tmp_path / "out")
    assert len(kept) == len(set(kept)) == 4


def test_a_new_folder_of_votes_knows_no_rater_and_the_page_begins_anew(short: Study, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        rater = Rater(browser, short, lambda n, q: "a")
        with serving(short, tmp_path / "out") as server:
            rater.begin(server.url, "Anna")
            rater.judge(1)
            rater.look()
            port = server.server_address[1]
        shutil.rmtree(tmp_path / "out")
        with serving(short, tmp_path / "out", port=port):
            rater.judge(1)
            rater.judge(1)
            assert rater.thanks().startswith("All 2 pairs are judged and saved")
            assert "is a new one" in browser.run("document.getElementById('notice').innerText")
    kept = rows(tmp_path / "out")
    assert len(kept) == len(set(kept)) == 4 and len({rater for rater, _, _ in kept}) == 1


def test_no_markup_gets_in_by_a_prompt_or_a_name(short: Study, tmp_path: Path) -> None:
    hostile = ("</script><img src=x onerror=hacked=1>", "<svg onload=hacked=1> ${hacked=1} \u2028&lt;b&gt;")
    pairs = [item.pair._replace(prompt=text) for item, text in zip(short.items, hostile, strict=True)]
    study = make_study(pairs, a="<b>a", b="</script>")
    with serving(study, tmp_path / "out") as server, Browser(tmp_path / "profile") as browser:
        rater = Rater(browser, study, lambda n, q: "a")
        rater.begin(server.url, hostile[0])
        seen = set()
        for _ in range(2):
            rater.answer()
            rater.look()
            seen.add(browser.run("document.getElementById('prompt').textContent"))
            rater.answer()
        assert seen == {f"“{text}”" for text in hostile}
        assert rater.thanks().startswith("All 2 pairs")
        browser.click("#other")
        browser.wait("!document.getElementById('known').hidden")
        assert (
            browser.run(
                "document.getElementById('rater').textContent + document.querySelector('#known button').textContent"
            )
            == hostile[0]
        )
        assert browser.run("typeof hacked + document.querySelectorAll('img, svg').length") == "undefined0"
        assert browser.errors == []


def test_without_a_server_the_votes_stay_in_the_browser_until_they_are_downloaded(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    study = study_of((folders[0], folders[1]), forced=True)
    page = write_static(tmp_path / "page", study)
    with Browser(tmp_path / "profile") as browser:
        browser.download_to(tmp_path)
        rater = Rater(browser, study, lambda n, q: "a")
        rater.begin(page.as_uri(), "Carl")
        assert rater.look()[1] == "quality"
        browser.press("ArrowDown")  # no tie where one has to be chosen
        assert browser.run("document.querySelectorAll('#answers button').length") == 2
        rater.judge(2)
        browser.reload()
        assert "2 of 6" in browser.wait("document.body.dataset.question && document.body.innerText")
        rater.judge(4)
        assert "in this browser alone" in rater.thanks()
        browser.click("#download2")
        end = time.monotonic() + 20
        while not any(file.read_text().count("\n") == 12 for file in tmp_path.glob("votes-Carl-*.jsonl")):
            assert time.monotonic() < end, "nothing was downloaded"
            time.sleep(0.05)
        assert browser.errors == []
    (sent,) = tmp_path.glob("votes-Carl-*.jsonl")
    votes, told = gather_votes(tmp_path / "none", study, [sent, sent])
    assert told == [] and {vote.item for vote in votes} == {item.id for item in study.items}
    assert {vote.name for vote in votes} == {"Carl"} and sides(study, votes) == {"a": 3, "b": 3}
    assert tally(study, votes)["faithfulness"].items == {"a": 6, "tie": 0, "b": 0}
