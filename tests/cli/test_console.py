"""Results on stdout, everything else on stderr, and progress that tells the truth."""

from __future__ import annotations

import json

import pytest

from mavcli.cli import console as module
from mavcli.cli.console import Console, clean, duration, size, table
from mavcli.report import Report


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(module.time, "monotonic", fake.monotonic)
    return fake


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.message("note")
        console.warning("careful")
        console.warning("careful")
        console.result("clip.mp4")
        console.result_object({"path": "clip.mp4"})
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("clip.mp4\n", "note\nwarning: careful\n")


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.result("clip.mp4")
    console.result_object({"path": "größe.mp4"})
    assert json.loads(capsys.readouterr().out) == {"path": "größe.mp4"}


def test_quiet_leaves_results_and_warnings(capsys: pytest.CaptureFixture[str], clock: Time) -> None:
    console = Console(quiet=True)
    console.message("note")
    console.warning("careful")
    console.result("clip.mp4")
    console.stage("decoder", 10)
    clock.now += 60
    console.advance(5)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("clip.mp4\n", "warning: careful\n")


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], clock: Time
) -> None:
    report: Report = Console()
    report.plan(100)
    report.stage("decoder", 40)
    for _ in range(30):
        clock.now += 1
        report.advance(1)
    report.stage("interpolation", 60)
    clock.now += 10
    report.advance(20)
    assert capsys.readouterr().err.splitlines() == [
        "decoder: 10 %, 1 min 30 s left",
        "decoder: 20 %, 1 min 20 s left",
        "decoder: 30 %, 1 min 10 s left",
        "interpolation: 60 %, 27 s left",
    ]


def test_nobody_foretells_from_less_than_a_hundredth_of_a_plan(
    capsys: pytest.CaptureFixture[str], clock: Time
) -> None:
    report: Report = Console()
    report.plan(1000)
    report.stage("P", 1000)
    for amount in (9, 1):
        clock.now += 10
        report.advance(amount)
    assert capsys.readouterr().err.splitlines() == ["P: 1 %", "P: 1 %, 33 min 0 s left"]


def test_what_was_done_before_says_nothing_of_the_time_left(
    capsys: pytest.CaptureFixture[str], clock: Time
) -> None:
    report: Report = Console()
    report.plan(100)
    report.stage("decoder", 100)
    clock.now += 10
    report.skip(60)
    clock.now += 10
    report.advance(10)
    clock.now += 10
    report.skip(30)
    assert capsys.readouterr().err.splitlines() == [
        "decoder: 60 %",
        "decoder: 70 %, 1 min 0 s left",
        "decoder: 100 %, 0 s left",
    ]


def test_progress_never_passes_its_end(capsys: pytest.CaptureFixture[str], clock: Time) -> None:
    console = Console()
    console.stage("writing", 10)
    clock.now += 20
    console.advance(500)
    assert capsys.readouterr().err == "writing: 100 %, 0 s left\n"


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07c\rd\x9be\u202ef\n\tg") == "a[2Jbcdef\n\tg"
    assert clean("größe 🐶") == "größe 🐶"


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_only_where_it_is_wanted(
    environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "is_terminal", lambda stream: True)
    assert (module.paint("error:", "31") != "error:") == coloured


def test_numbers_are_for_people() -> None:
    assert [size(n) for n in (12, 12_345, 16e6, 2.5e9, 3e12)] == [
        "12 B",
        "12.3 kB",
        "16.0 MB",
        "2.5 GB",
        "3.0 TB",
    ]
    assert [duration(n) for n in (8.4, 125, 11400)] == ["8 s", "2 min 5 s", "3 h 10 min"]
    assert table([("a", "bb", "c"), ("aaa", "b", "")]) == ["a    bb  c", "aaa  b"]


def test_on_a_terminal_there_is_one_bar_and_lines_stand_above_it(
    capsys: pytest.CaptureFixture[str], clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(module, "is_terminal", lambda stream: True)
    with Console() as console:
        console.plan(10)
        console.stage("decoder", 4)
        clock.now += 5
        console.advance(2)
        console.message("the base frames are in x/")
        console.stage("super-resolution", 6)
        console.advance(3)
        assert console._bar is not None and len(console._bar.tasks) == 1
        task = console._bar.tasks[0]
        assert (task.description, task.completed, task.total) == ("super-resolution", 7, 10)
    assert console._bar is None
    shown = capsys.readouterr()
    assert shown.out == "" and "the base frames are in x/\n" in shown.err
