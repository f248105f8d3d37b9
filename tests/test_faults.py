"""A sample of the fault plan in the quick tests, all of it in the slow ones; `python tests/faults.py` prints the table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import Bench, commands

from mavcli import files

PROGRAM = Path(__file__).with_name("faults.py")


def table(*arguments: str) -> dict[str, list[int]]:
    """Command -> points tried, lost, wrong, left; the program runs by itself, with everything imported once."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| ([\w -]+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", done.stdout, re.M)
    assert all(row[1] == row[2] and row[3:] == ("0", "0", "0") for row in rows), done.stderr
    return {name: [int(number) for number in numbers] for name, *numbers in rows}


def test_a_sample_of_cuts_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    (check,) = [c for c in commands() if c.name == "data check"]
    tally = Bench(tmp_path, [check]).plan(check, every=16)
    assert [*tally.lost, *tally.wrong, *tally.left] == [] and tally.points >= 5


def test_the_plan_finds_a_writer_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan has teeth: a writer that gives a file its name before it is whole does not survive it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))

    @contextmanager
    def in_place(target, *, overwrite=False, durable=True):
        descriptor = files.os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with files.io.BufferedWriter(files._Sink(descriptor)) as file:
                yield file
        except OSError as error:
            raise files.disk_error(target, error) from error

    monkeypatch.setattr("mavcli.media.image.whole_file", in_place)
    (check,) = [c for c in commands() if c.name == "data check"]
    tally = Bench(tmp_path, [check]).plan(check, kinds={"kill": "kill"}, every=4)
    assert tally.wrong and tally.lost


@pytest.mark.slow
def test_no_cut_of_any_write_of_six_commands_loses_anything() -> None:
    found = table("--plan")
    assert len(found) == 7 and found["together"][0] > 1000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_no_cut_below_python_loses_anything() -> None:
    assert table("--below")["together"][0] > 500


@pytest.mark.slow
def test_200_kills_of_each_of_six_commands_lose_nothing() -> None:
    assert table("--kills", "200")["together"][0] == 1200
