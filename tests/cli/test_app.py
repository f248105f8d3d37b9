"""What every command has in common: help without weight, exit codes, and how a failure looks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mavcli import errors
from mavcli.cli import app as cli
from mavcli.cli.app import VERBS, Verb, run
from mavcli.cli.console import failure_of

HEAVY = ("torch", "numpy", "av", "PIL", "open_clip", "torchvision", "safetensors")


def modules_after(*arguments: str) -> set[str]:
    """What `mav ARGUMENTS` imported, of the heavy ones."""
    code = (
        "import sys, io; from mavcli.cli.app import run\n"
        f"rc = run({list(arguments)!r})\n"
        f"print(rc, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    words = shown.stderr.splitlines()[-1].split()
    assert words[0] == "0", shown.stderr
    assert "Usage: mav" in shown.stdout
    return set(words[1:])


def test_help_imports_nothing_heavy() -> None:
    assert modules_after("--help") == set()


@pytest.mark.parametrize("verb", VERBS, ids=[verb.name for verb in VERBS])
def test_the_help_of_every_command_imports_nothing_heavy(verb: Verb) -> None:
    assert modules_after(verb.name, "--help") == set()


def test_help_names_every_command_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb.name} " in shown for verb in VERBS)
    assert max(map(len, shown.splitlines())) <= 80 and "..." not in shown.split("Options:")[1]
    assert "\x1b" not in shown


def test_a_mistyped_command_comes_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recip"]) == 2
    assert (
        capsys.readouterr().err
        == "error: there is no command `recip`, did you mean `mav recipe`\nhint: mav --help\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recipe", "shwo"], "error: no such command `shwo`, did you mean `show`\nhint: mav recipe --help\n"),
        (["recipe", "show"], "error: missing argument `NAME|FILE`\nhint: mav recipe show --help\n"),
        (
            ["recipe", "ls", "--jsn"],
            "error: no such option `--jsn`, did you mean `--json`\nhint: mav recipe ls --help\n",
        ),
    ],
)
def test_a_usage_error_is_two_lines(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", told)


def test_mav_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Usage: mav" in capsys.readouterr().out


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.MavError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.RecipeError("x"), 2),
        (errors.WeightsError("x"), 3),
        (errors.InputError("x"), 4),
        (errors.OutOfMemoryError("x"), 5),
        (errors.DiskError("x"), 6),
        (errors.DivergedError("x"), 7),
        (errors.BatchError("x"), 8),
        (errors.Interrupted("x"), 130),
        (errors.Interrupted("x", exit_code=143), 143),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 5),
        (OutOfMemoryError("CUDA out of memory"), 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), 5),
        (OSError(errno.ENOSPC, "No space left on device", "x.mp4"), 6),
        (PermissionError(errno.EACCES, "Permission denied", "x.mp4"), 6),
        (ValueError("x"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1),
    ],
    ids=repr,
)
def test_every_failure_has_its_exit_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(verb: Verb) -> object:
        raise error

    monkeypatch.setenv("MAV_CACHE", str(tmp_path))
    monkeypatch.setattr(cli, "_command", failing)
    assert failure_of(error).exit_code == code
    assert run(["doctor"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown
    unforeseen = not isinstance(error, errors.MavError) and code == 1
    assert (tmp_path / "logs" / "last.log").exists() == unforeseen == ("a bug in mav" in shown)


def test_a_bug_shows_its_traceback_on_demand_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(verb: Verb) -> object:
        raise ZeroDivisionError("a \x1b[31mred\x1b[0m herring")

    monkeypatch.setattr(cli, "_command", failing)
    monkeypatch.setenv("MAV_CACHE", str(tmp_path))
    assert run(["doctor"]) == 1
    log = tmp_path / "logs" / "last.log"
    assert capsys.readouterr().err == (
        f"error: a bug in mav: ZeroDivisionError: a [31mred[0m herring\nhint: the traceback is in {log}\n"
    )
    assert "Traceback" in log.read_text()
    monkeypatch.setenv("MAV_DEBUG", "1")
    assert run(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_with_json_a_failure_is_one_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "show", "pockett", "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["error"]["exit_code"] == 2 and "did you mean `pocket`" in shown["error"]["message"]


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")
def test_a_reader_that_goes_away_is_no_error() -> None:
    shown = subprocess.run(
        f"{sys.executable} -m mavcli recipe show pocket | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith("name: pocket") and shown.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")
def test_sigterm_lets_what_is_open_be_tidied(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "from mavcli.cli import app\n"
        "def work(verb):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)\n"
        "    finally:\n"
        f"        open({str(tmp_path / 'tidy')!r}, 'w').close()\n"
        "app._command = work\n"
        "import sys; sys.argv = ['mav', 'doctor']; app.main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stderr) == (143, "error: terminated\n")
    assert (tmp_path / "tidy").exists()


def test_text_that_the_terminal_cannot_show_is_no_crash() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = subprocess.run(
        [sys.executable, "-m", "mavcli", "recipe", "show", "größe"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert shown.returncode == 2 and "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("theirs", "wanted"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_spin_little_unless_the_user_says_how(
    theirs: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(theirs))
    cli._spin_less()
    assert os.environ.get("GOMP_SPINCOUNT") == wanted


def test_a_command_that_used_torch_ends_with_all_said_and_its_code() -> None:
    code = (
        "import atexit, sys\n"
        "from mavcli.cli import app\n"
        "def run(arguments):\n"
        "    import torch\n"
        "    atexit.register(print, 'registered')\n"
        "    print('said')\n"
        "    sys.stderr.write('told')\n"
        "    return 7\n"
        "app.run = run\n"
        "app.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "said\nregistered\n", "told")
