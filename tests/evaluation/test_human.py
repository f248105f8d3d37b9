"""Human evaluation: pairs, votes that survive, the tally, and the page itself in a real browser."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser

from mavcli.cli.app import run
from mavcli.errors import DiskError, InputError, UsageError
from mavcli.evaluation import human
from mavcli.evaluation.human import Pair, Study, VoteBook, find_pairs, make_study, rater_name
from mavcli.evaluation.human_server import HumanServer, write_static
from mavcli.media.video import read_clip, write_video

PROMPTS = (
    "a dog surfing",
    "a cat flying",
    "a lion driving",
    "a frog skating",
    "a pig falling",
    "a bear spinning",
)


def make_clip(path: Path, *, hue: int, frames: int = 10, prompt: str | None = None) -> Path:
    """A square that moves over a colour of its own."""
    video = np.full((frames, 48, 48, 3), (hue % 256, 90, 255 - hue % 256), np.uint8)
    for i in range(frames):
        video[i, 8:20, 2 * i : 2 * i + 12] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, video, fps=20)
    if prompt is not None:
        path.with_suffix(".json").write_text(json.dumps({"mav_run": 1, "prompt": prompt, "seed": 4}))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six pairs; the clips of the second system are a little longer."""
    root = tmp_path_factory.mktemp("videos")
    for number, prompt in enumerate(PROMPTS):
        make_clip(root / "ours" / f"{number}.mp4", hue=20 * number, prompt=prompt)
        make_clip(root / "theirs" / f"{number}.mp4", hue=20 * number + 128, frames=13, prompt=prompt)
    return root / "ours", root / "theirs"


@pytest.fixture
def study(folders: tuple[Path, Path]) -> Study:
    return make_study(find_pairs(*folders)[0], a="ours", b="theirs")


def a_vote(study: Study, rater: str, number: int, choice: str = "a", *, revision: int = 0) -> Any:
    """What the page sends: `choice` (a, b or tie) for every question."""
    item = study.items[number]
    answer = "tie" if choice == "tie" else next(clip for clip in item.clips if item.system(clip) == choice)
    left, right = item.clips
    answers = dict.fromkeys(study.questions, answer)
    record = {"vote": 1, "study": study.id, "rater": rater, "item": item.id, "revision": revision}
    return record | {
        "left": left,
        "right": right,
        "answers": answers,
        "seconds": 3.2,
        "at": "2026-11-22T10:00:00Z",
    }


def counted(study: Study, rows: Sequence[tuple[str, int, str]]) -> human.Tally:
    votes = [human.read_vote(a_vote(study, *row), study) for row in rows]
    return human.tally(study, votes)["quality"]


# -- pairs ----------------------------------------------------------------------------------------------------------------


def test_videos_of_the_same_name_are_a_pair_and_the_others_are_named(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    make_clip(tmp_path / "c" / "0.mp4", hue=1)
    make_clip(tmp_path / "c" / "extra.mp4", hue=2)
    pairs, loose = find_pairs(folders[0], tmp_path / "c")
    assert [(pair.name, pair.prompt) for pair in pairs] == [("0", "a dog surfing")]
    assert len(loose) == 6 and any("extra.mp4` has no partner" in text for text in loose)


def test_videos_of_other_names_are_paired_by_prompt(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("x", "y"):
        make_clip(tmp_path / "c" / f"{name}.mp4", hue=1, prompt="a cat flying")
    pairs, loose = find_pairs(folders[0], tmp_path / "c")
    assert [(pair.a.name, pair.b.name) for pair in pairs] == [("1.mp4", "x.mp4")]
    assert any("y.mp4" in text for text in loose)


def test_two_prompts_of_one_pair_are_refused_unless_a_file_decides(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    make_clip(tmp_path / "c" / "0.mp4", hue=1, prompt="a whale")
    with pytest.raises(InputError, match="made from `a dog surfing`.* from `a whale`"):
        find_pairs(folders[0], tmp_path / "c")
    (tmp_path / "p.csv").write_text("file,prompt\n0.mp4,a sea dog\n")
    assert find_pairs(folders[0], tmp_path / "c", prompts=tmp_path / "p.csv")[0][0].prompt == "a sea dog"
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"holds 2 prompts, .* 1 video$"):
        find_pairs(folders[0], tmp_path / "c", prompts=tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no video"),
        (lambda p: make_clip(p / "z.mp4", hue=1), "neither names nor prompts agree"),
    ],
)
def test_folders_without_pairs_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "c")
    with pytest.raises(InputError, match=message):
        find_pairs(folders[0], tmp_path / "c")


def test_faithfulness_to_nothing_is_not_asked(tmp_path: Path) -> None:
    pair = Pair("x", None, make_clip(tmp_path / "a.mp4", hue=1), make_clip(tmp_path / "b.mp4", hue=2))
    with pytest.raises(UsageError, match="faithfulness is asked"):
        make_study([pair], a="a", b="b")
    assert make_study([pair], a="a", b="b", questions=["quality"]).questions == ("quality",)


# -- the study --------------------------------------------------------------------------------------------------------------


def test_the_same_folders_give_the_same_study_and_other_videos_another(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pairs = find_pairs(*folders)[0]
    first, again = (make_study(pairs, a="ours", b="theirs") for _ in range(2))
    assert first == again
    other = [*pairs[:-1], pairs[-1]._replace(a=make_clip(tmp_path / "5.mp4", hue=9))]
    assert make_study(other, a="ours", b="theirs").id != first.id


def test_the_page_is_not_told_which_system_a_clip_is_from(study: Study) -> None:
    told = json.dumps(study.public())
    assert "ours" not in told and "theirs" not in told
    assert not any(name in told for name in ("/0.mp4", '"a"', '"b"'))
    # Within a block the systems are told in opposite orders, so the order tells nothing.
    for block in {item.block for item in study.items}:
        orders = [item.systems for item in study.items if item.block == block]
        assert sorted(orders) == [("a", "b"), ("b", "a")]


def test_a_folder_of_votes_belongs_to_one_study(study: Study, tmp_path: Path) -> None:
    human.open_folder(tmp_path, study)
    human.open_folder(tmp_path, study)
    other = make_study([item.pair for item in study.items], a="ours", b="others")
    with pytest.raises(UsageError, match="votes of another study"):
        human.open_folder(tmp_path, other)


# -- votes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"study": "another"},
        {"item": "none"},
        {"rater": " "},
        {"rater": None},
        {"left": "x"},
        {"answers": {}},
        {"answers": {"quality": "tie", "faithfulness": "a"}},
        {"revision": -1},
        {"revision": True},
        {"seconds": "3"},
        {"seconds": float("nan")},
        {"at": 5},
    ],
    ids=str,
)
def test_what_nobody_can_have_voted_is_refused(study: Study, change: dict[str, object]) -> None:
    human.read_vote(a_vote(study, "anna", 0), study)
    with pytest.raises(human.BadVoteError):
        human.read_vote(a_vote(study, "anna", 0) | change, study)


def test_a_vote_sent_twice_counts_once_and_a_revision_replaces_it(study: Study, tmp_path: Path) -> None:
    book = VoteBook(tmp_path / "votes.jsonl", study)
    first = human.read_vote(a_vote(study, "Anna", 0, "a"), study)
    assert book.add(first) and not book.add(first)
    with pytest.raises(human.BadVoteError, match="other answers already"):
        book.add(human.read_vote(a_vote(study, "anna", 0, "b"), study))
    book.add(human.read_vote(a_vote(study, " ANNA ", 0, "b", revision=1), study))
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 2
    for found in (book, VoteBook(tmp_path / "votes.jsonl", study)):
        (last,) = found.of("anna")
        assert last.revision == 1
    votes, _ = human.gather_votes(tmp_path, study)
    assert human.tally(study, votes)["quality"].items == {"a": 0, "tie": 0, "b": 1}


def test_the_votes_before_and_after_a_crash_in_the_middle_of_a_line_are_all_there(
    study: Study, tmp_path: Path
) -> None:
    path = tmp_path / "votes.jsonl"
    book = VoteBook(path, study)
    book.add(human.read_vote(a_vote(study, "anna", 0), study))
    whole = path.read_bytes()
    for cut in (1, 9, 60, len(whole) - 2):
        path.write_bytes(whole + whole[:cut])
        again = VoteBook(path, study)
        assert len(again) == 1 and "cut short" in again.warnings[0]
        assert again.add(human.read_vote(a_vote(study, "anna", 1), study))
        votes, told = human.read_votes(path, study)
        assert [vote.item for vote in votes] == [study.items[0].id, study.items[1].id] and len(told) == 1


def test_a_line_that_is_no_vote_is_an_error_and_no_crash(study: Study, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text("hello\n")
    with pytest.raises(InputError, match="votes.jsonl:1` is not JSON"):
        VoteBook(tmp_path / "votes.jsonl", study)


def test_many_raters_at_once_lose_nothing(study: Study, tmp_path: Path) -> None:
    book = VoteBook(tmp_path / "votes.jsonl", study)

    def rate(number: int) -> None:
        for i in random.Random(number).sample(range(6), 6):
            vote = human.read_vote(a_vote(study, f"rater {number}", i), study)
            book.add(vote)
            book.add(vote)

    threads = [threading.Thread(target=rate, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes, told = human.read_votes(book.path, study)
    assert len(votes) == len({vote.key for vote in votes}) == 48 and told == []


def test_a_vote_that_the_disk_refuses_is_not_counted(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = VoteBook(tmp_path / "votes.jsonl", study)
    vote = human.read_vote(a_vote(study, "anna", 0), study)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DiskError, match="no space left"):
            book.add(vote)
    assert len(book) == 0
    book.add(vote)
    assert len(human.gather_votes(tmp_path, study)[0]) == 1


def test_a_raters_name_is_the_same_however_it_is_written() -> None:
    assert rater_name("  Anna   MARIA ") == rater_name("anna maria") == "anna maria"
    assert len(rater_name("x" * 500)) == human.MAX_RATER


def test_votes_that_raters_send_back_are_merged(study: Study, tmp_path: Path) -> None:
    lines = [json.dumps(a_vote(study, "anna", i)) for i in range(3)]
    (tmp_path / "votes-anna.jsonl").write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "sent.jsonl").write_text("\n".join(lines[1:]) + "\n")
    votes, _ = human.gather_votes(tmp_path, study, [tmp_path / "sent.jsonl"])
    assert len(votes) == 3
    (tmp_path / "votes-other.jsonl").write_text(json.dumps(a_vote(study, "anna", 0, "b")) + "\n")
    with pytest.raises(InputError, match="other answers of rater `anna`"):
        human.gather_votes(tmp_path, study)


# -- the tally --------------------------------------------------------------------------------------------------------------


def test_an_item_goes_to_the_answer_that_most_raters_gave() -> None:
    assert human.majority(["a", "a", "b"]) == "a"
    assert human.majority(["a", "b"]) == "tie"
    assert human.majority(["tie", "tie", "a"]) == "tie"
    assert human.majority(["a", "a", "b", "b", "tie"]) == "tie"
    assert human.majority(["b"]) == "b"


def test_shares_are_of_decided_items_with_wilsons_interval(study: Study) -> None:
    rows = [(f"r{r}", item, choice) for item, choice in enumerate("aaab") for r in range(3)]
    rows += [("r0", 4, "a"), ("r1", 4, "b")]
    found = counted(study, rows)
    assert found.items == {"a": 3, "tie": 1, "b": 1} and found.votes == {"a": 10, "tie": 0, "b": 4}
    told = found.as_dict()
    assert told["prefer_a"] == pytest.approx({"share": 0.75, "low": 0.3006, "high": 0.9544}, abs=1e-4)
    assert told["prefer_b"]["share"] == 0.25 and found.agreement == pytest.approx(12 / 13)


def test_nothing_decided_has_no_share(study: Study) -> None:
    assert counted(study, [("anna", 0, "tie")]).as_dict()["prefer_a"] is None


# -- the server -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(study: Study, tmp_path: Path) -> Iterator[HumanServer]:
    server = HumanServer(study, VoteBook(human.open_folder(tmp_path / "out", study), study))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(
    server: HumanServer, method: str, path: str, *, body: str | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    reply = connection.getresponse()
    found = reply.status, reply.read()
    connection.close()
    return found


def test_a_vote_is_on_the_disk_when_the_server_has_answered(served: HumanServer, study: Study) -> None:
    for _ in range(2):
        body = json.dumps(a_vote(study, "Anna", 2))
        status, reply = ask(served, "POST", "/api/votes", body=body, Content_Type="application/json")
        assert status == 200
        assert len(served.book.path.read_text().splitlines()) == 1
    assert json.loads(reply) == {"saved": True, "fresh": False}
    body = json.dumps(a_vote(study, "anna", 2, "b"))
    assert ask(served, "POST", "/api/votes", body=body, Content_Type="application/json")[0] == 409
    status, reply = ask(served, "GET", "/api/votes?rater=ANNA")
    assert [vote["item"] for vote in json.loads(reply)["votes"]] == [study.items[2].id]
    assert json.loads(ask(served, "GET", "/api/votes?rater=ben")[1]) == {"votes": []}


def test_the_server_gives_out_its_own_pages_and_clips_alone(served: HumanServer, study: Study) -> None:
    for path in ("/", "/human.css", "/human.js", "/study.js"):
        assert ask(served, "GET", path)[0] == 200
    for path in ("/study.json", "/../study.json", "/media/../study.json", "/media/x.mp4", "/votes.jsonl"):
        assert ask(served, "GET", path)[0] == 404
    clip = study.items[0].clips[0]
    path, whole = f"/{study.items[0].source(clip)}", study.items[0].path(clip).read_bytes()
    assert ask(served, "GET", path) == (200, whole)
    assert ask(served, "GET", path, Range="bytes=10-19") == (206, whole[10:20])
    assert ask(served, "GET", path, Range="bytes=10-") == (206, whole[10:])
    assert ask(served, "GET", path, Range="bytes=-7") == (206, whole[-7:])
    assert ask(served, "GET", path, Range=f"bytes={len(whole)}-")[0] == 416


def test_other_sites_cannot_vote(served: HumanServer, study: Study) -> None:
    body = json.dumps(a_vote(study, "anna", 0))
    assert ask(served, "POST", "/api/votes", body=body, Content_Type="text/plain")[0] == 400
    evil = {"Host": "evil.example:80", "Content_Type": "application/json"}
    assert ask(served, "POST", "/api/votes", body=body, **evil)[0] == 403
    assert ask(served, "GET", "/study.js", Host="evil.example")[0] == 403
    assert ask(served, "POST", "/api/votes", body="x" * 20_000, Content_Type="application/json")[0] == 413
    assert ask(served, "POST", "/api/votes", body="[]", Content_Type="application/json")[0] == 400
    assert len(served.book) == 0


def test_a_static_folder_holds_everything_but_the_key(study: Study, tmp_path: Path) -> None:
    page = write_static(tmp_path / "page", study)
    files = sorted(
        file.relative_to(page.parent).as_posix() for file in page.parent.rglob("*") if file.is_file()
    )
    assert files[:4] == [
        "human.css",
        "human.js",
        "index.html",
        "media/" + min(c for i in study.items for c in i.clips) + ".mp4",
    ]
    assert len(files) == 4 + 12
    write_static(tmp_path / "page", study)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(DiskError, match="is not empty"):
        write_static(tmp_path / "mine", study)


# -- the command ------------------------------------------------------------------------------------------------------------


def test_the_tally_is_a_table_and_json(
    folders: tuple[Path, Path],
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", "human", *map(str, folders)]
    assert run([*command, "--tally"]) == 4
    assert "holds no vote yet" in capsys.readouterr().err
    book = VoteBook(Path("outputs/human-ours-theirs/votes.jsonl"), study)
    for rater in ("anna", "ben"):
        for number, choice in enumerate(("a", "a", "a", "a", "b", "tie")):
            book.add(human.read_vote(a_vote(study, rater, number, choice), study))
    assert run([*command, "--tally"]) == 0
    shown = capsys.readouterr()
    assert "6 of 6 pairs judged, 12 votes of 2 raters" in shown.out
    assert re.search(r"quality +80\.0 % \[37\.6, 96\.4\] +20\.0 % \[3\.6, 62\.4\] +4 / 1 / 1", shown.out)
    assert "the paper's table 3 has 5 each" in shown.err
    assert run([*command, "--tally", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    written = json.loads(Path("outputs/human-ours-theirs/tally.json").read_text())
    assert {**written, "out": told["out"]} == told
    assert told["items"][0]["prompt"] == "a dog surfing" and told["items"][0]["quality"]["majority"] == "a"


def test_a_study_names_what_raters_could_not_see_before_it_begins_and_shows_copies_if_asked(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    video = np.full((5, 48, 48, 3), 90, np.uint8)
    Path("theirs").mkdir()
    write_video("theirs/0.mkv", video, fps=20, codec="ffv1")
    command = ["eval", "human", str(folders[0]), "theirs", "--question", "quality", "--static", "page"]
    assert run(command) == 4
    err = capsys.readouterr().err
    assert (
        "1 of 2 videos not every browser plays:" in err
        and "`theirs/0.mkv` holds FFmpeg video codec #1" in err
    )
    assert "--convert" in err and not Path("page").exists() and not Path("outputs").exists()
    assert run([*command, "--convert"]) == 0
    shown = [read_clip(path) for path in Path("page/media").iterdir() if path.suffix == ".mp4"]
    assert sorted(len(clip.frames) for clip in shown) == [5, 10]
    key = json.loads(Path("outputs/human-ours-theirs/study.json").read_text())
    assert key["items"][0]["b"] == "theirs/0.mkv", "the study is one of the videos as they are"
    assert run([*command[:-2], "--tally"]) == 4 and "holds no vote yet" in capsys.readouterr().err


def test_a_wrong_command_is_one_line(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", "human", *map(str, folders)]
    assert run([*command, "--question", "beauty"]) == 2
    assert "there is no question `beauty`" in capsys.readouterr().err
    assert run([*command, "--votes", "x.jsonl"]) == 2
    assert not Path("outputs").exists()


# -- the page, as a person uses it --------------------------------------------------------------------------------------------


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

    def answer(self) -> tuple[int, str]:
        """Look at the question on show and answer it; which item, which question."""
        question = self.browser.wait("document.body.dataset.question")
        item = self.browser.run("document.body.dataset.item")
        number = self.numbers[item]
        wanted = self.opinion(number, question)
        source = self.browser.run("new URL(document.getElementById('left').src).pathname")
        left = self.study.items[number].system(Path(source).stem)
        key = "ArrowDown" if wanted == "tie" else "ArrowLeft" if wanted == left else "ArrowRight"
        self.browser.press(key)
        self.browser.wait(
            f"document.body.dataset.item !== {item!r} || document.body.dataset.question !== {question!r}"
        )
        return number, question

    def judge(self, pairs: int) -> None:
        for _ in range(pairs):
            assert self.answer()[1] == "quality"
            assert self.answer()[1] == "faithfulness"


def test_two_raters_a_reload_a_crash_and_a_dead_server_lose_and_double_no_vote(
    folders: tuple[Path, Path], study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "votes"
    server = Served(folders, out)
    lines = lambda: [json.loads(line) for line in (out / "votes.jsonl").read_text().splitlines()]  # noqa: E731
    try:
        # Anna: ours looks better always; faithfulness is a tie for the last two pairs.
        with Browser(tmp_path / "anna") as browser:
            anna = Rater(browser, study, lambda n, q: "tie" if q == "faithfulness" and n >= 4 else "a")
            anna.begin(server.url, "Anna")
            anna.judge(2)
            half = anna.answer()
            browser.reload()
            # The reload comes between two answers to one pair: it goes on with the second.
            assert browser.wait("document.body.dataset.question") == "faithfulness"
            assert anna.answer() == (half[0], "faithfulness")
            assert len(lines()) == 3
            server.stop(signal.SIGKILL)
            anna.judge(1)
            browser.wait("document.getElementById('state').textContent.includes('not saved yet')")
            assert len(lines()) == 3
            browser.reload()  # fails: the page is gone with its server
            server.start()
            browser.open(server.url)
            browser.wait("document.body.dataset.question")
            assert len(lines()) == 4
            anna.judge(1)
            browser.press("Backspace")  # the pair before, again, with another opinion
            browser.wait("document.querySelector('#answers .chosen') !== null")
            anna.opinion = lambda n, q: "b"
            revised, _ = anna.answer()
            anna.answer()
            anna.opinion = lambda n, q: "tie" if q == "faithfulness" and n >= 4 else "a"
            anna.judge(1)
            browser.wait("!document.getElementById('done').hidden")
            assert browser.errors == [
                e for e in browser.errors if "Failed to load" in e or "ERR_CONNECTION" in e
            ]
        # Ben: theirs is better; his browser is killed after three pairs.
        browser = Browser(tmp_path / "ben", dark=True)
        ben = Rater(browser, study, lambda n, q: "b")
        ben.begin(server.url, "  BEN ")
        ben.judge(3)
        browser.crash()
        assert sum(line["rater"] == "ben" for line in lines()) == 3
        with Browser(tmp_path / "ben", dark=True) as browser:
            ben = Rater(browser, study, lambda n, q: "b")
            browser.open(server.url)
            # What a browser remembers of its last second may be gone with it; the votes are not.
            browser.wait("document.body.dataset.question || !document.getElementById('welcome').hidden")
            if browser.run("!document.getElementById('welcome').hidden"):
                browser.type("ben")
                browser.press("Enter")
            ben.judge(3)
            browser.wait("document.getElementById('thanks').textContent.includes('judged and saved')")
            assert browser.errors == []
        assert server.stop(signal.SIGINT) == 0
    finally:
        server.process.kill()
    votes, told = human.gather_votes(out, study)
    assert told == [] and len(lines()) == 13 and len(votes) == 12
    assert sorted((vote.rater, vote.item) for vote in votes) == sorted(
        (rater, item.id) for rater in ("anna", "ben") for item in study.items
    )
    for rater in ("anna", "ben"):
        mine = [vote for vote in votes if vote.rater == rater]
        assert human.sides(study, mine) == {"a": 3, "b": 3}
    found = human.tally(study, votes)
    assert found["quality"].votes == {"a": 5, "tie": 0, "b": 7}
    assert found["quality"].items == {"a": 0, "tie": 5, "b": 1}
    ties = 2 - (revised >= 4)
    assert found["faithfulness"].votes == {"a": 5 - ties, "tie": ties, "b": 7}


def test_without_a_server_the_votes_stay_in_the_browser_until_they_are_downloaded(
    study: Study, tmp_path: Path
) -> None:
    page = write_static(tmp_path / "page", study)
    with Browser(tmp_path / "profile") as browser:
        browser.download_to(tmp_path)
        rater = Rater(browser, study, lambda n, q: "a")
        rater.begin(page.as_uri(), "Carl")
        rater.judge(2)
        browser.reload()
        assert "2 of 6" in browser.wait("document.body.dataset.question && document.body.innerText")
        rater.judge(4)
        browser.wait("!document.getElementById('done').hidden")
        browser.click("#download2")
        sent = tmp_path / "votes-carl.jsonl"
        end = time.monotonic() + 20
        while not (sent.exists() and sent.read_text().count("\n") == 6):
            assert time.monotonic() < end, "nothing was downloaded"
            time.sleep(0.05)
        assert browser.errors == []
    votes, _ = human.gather_votes(tmp_path / "none", study, [sent])
    assert {vote.item for vote in votes} == {item.id for item in study.items}
    assert human.sides(study, votes) == {"a": 3, "b": 3}
    assert human.tally(study, votes)["faithfulness"].items == {"a": 6, "tie": 0, "b": 0}
