"""SIGINT and SIGTERM: what they end, what they leave alone, and that nobody takes them for something else."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mavcli import stopping
from mavcli.cli.console import Console
from mavcli.cli.making import Common, Session
from mavcli.data.index import FORMAT
from mavcli.engine.work import Work
from mavcli.errors import InputError, Interrupted
from mavcli.evaluation.features import Entry, FeatureStore
from mavcli.media.video import write_video
from mavcli.training.kept import KeptRows

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
ENDS = [(signal.SIGTERM, 143, "error: terminated\n"), (signal.SIGINT, 130, "error: interrupted\n")]


LISTENING = "signal.getsignal(signal.SIGINT) == signal.SIG_IGN and signal.signal(signal.SIGINT, signal.default_int_handler)"
"""A test run that a shell put into the background ignores Ctrl-C, and hands that on to what it starts."""


@pytest.fixture
def mav(tmp_path):
    """`mav ARGUMENTS` in a process of its own that runs `before` first; signals are sent by what `before` patches."""

    def run(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
        code = f"import os, signal, sys, time\n{LISTENING}\nsys.argv = ['mav', *sys.argv[1:]]\n{before}\nfrom mavcli.__main__ import main\nmain()\n"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = {**os.environ, "MAV_CACHE": str(tmp_path / "cache"), "NO_COLOR": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)

    return run


def hit(number: int, where: str) -> str:
    """Code that sends a signal to its own process inside of the function `where`, which then goes on or fails."""
    module, name = where.rsplit(".", 1)
    owner = module.rsplit(".", 1)[-1]
    return (
        f"import {module.removesuffix('.ImageFile') if owner == 'ImageFile' else module} as owner\n"
        f"owner = getattr(owner, 'ImageFile', owner)\n"
        f"real = owner.{name}\n"
        f"def hit(*a, **k):\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(0.01)\n    return real(*a, **k)\n"
        f"owner.{name} = hit"
    )


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_signal_while_a_picture_is_read_ends_the_check_and_leaves_no_judgement(mav, tmp_path):
    folder = pictures(tmp_path / "folder", 3)
    for number, code, told in ENDS:
        stopped = mav("data", "check", folder, "-q", before=hit(number, "PIL.ImageFile.ImageFile.load"))
        assert (stopped.returncode, stopped.stdout, stopped.stderr) == (code, "", told)
    again = mav("data", "check", folder, "-q")
    assert again.returncode == 0 and "image: used 3 of 3, 0 rejected" in again.stdout


def test_what_the_build_before_kept_of_a_file_is_not_believed():
    assert FORMAT > 2, "formats 1 and 2 held `is a damaged image: terminated`"


SWALLOWED = """
from PIL import ImageFile
class Careless:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)
real = ImageFile.ImageFile.load
def load(*a, **k):
    Careless()
    return real(*a, **k)
ImageFile.ImageFile.load = load
"""


def test_a_signal_in_the_end_of_an_object_is_not_lost(mav, tmp_path):
    stopped = mav("data", "check", pictures(tmp_path / "folder", 3), "-q", before=SWALLOWED)
    assert (stopped.returncode, stopped.stderr) == (143, "error: terminated\n")


IMPORTING = """
import pathlib, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "slow_part.py").write_text(
    "import os, signal, time, sys\\n"
    "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)\\n"
    "sys.stderr.write('imported whole\\\\n')\\n")
(folder / "careful.py").write_text("try:\\n    import slow_part\\nexcept BaseException:\\n    pass\\n")
sys.path.insert(0, str(folder))
from mavcli.cli import app
def command(verb):
    import careful
    time.sleep(10)
app._command = command
"""


def test_a_signal_waits_for_the_end_of_an_import_and_comes_then(mav):
    begun = time.monotonic()
    stopped = mav("doctor", before=IMPORTING)
    assert (stopped.returncode, stopped.stderr) == (143, "imported whole\nerror: terminated\n")
    assert time.monotonic() - begun < 9


def test_a_signal_before_anything_has_begun_ends_the_process_at_once(mav):
    before = (
        "from mavcli.cli import signals\n"
        "real = signals.listen\n"
        "def listen():\n    real(); os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
        "signals.listen = listen"
    )
    stopped = mav("--help", before=before)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "error: interrupted\n")


def test_a_second_signal_ends_what_does_not_stop(mav):
    before = (
        "from mavcli.cli import app, signals\n"
        "signals.SAME_WISH_S = 0.05\n"
        "def stubborn(verb):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)\n"
        "    except BaseException:\n        time.sleep(0.1); os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)\n"
        "app._command = stubborn"
    )
    begun = time.monotonic()
    assert mav("doctor", before=before).returncode == -signal.SIGTERM
    assert time.monotonic() - begun < 20


def test_a_signal_that_its_parent_ignored_stays_ignored(mav):
    before = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from mavcli.cli import app\n"
        "def work(verb):\n    os.kill(os.getpid(), signal.SIGINT); raise SystemExit(0)\n"
        "app._command = work"
    )
    assert mav("doctor", before=before).returncode == 0, "as under `nohup`"


def test_an_item_of_a_batch_is_not_failed_by_a_signal(monkeypatch, tmp_path):
    session = object.__new__(Session)
    session.console, session.kind = Console(quiet=True), "generate"
    session.common = Common("pocket", (), None, None, 0, False, False, False)
    items = [
        SimpleNamespace(fault=None, cost=lambda cascade: 1.0, prompt="a dog", stem="a-dog", sound=None)
    ] * 2
    target = SimpleNamespace(video=tmp_path / "a-dog.mp4")
    jobs = [SimpleNamespace(item=item, fault=None, finished=None, target=target) for item in items]
    made = []

    def swallowed(job, cascade):  # as foreign code does with what a signal raises
        made.append(job)
        stopping.ask(Interrupted("terminated", exit_code=143))
        raise InputError("is damaged")

    monkeypatch.setattr(session, "_targets", lambda *_: jobs, raising=False)
    monkeypatch.setattr(session, "_cascade", object, raising=False)
    monkeypatch.setattr(session, "_make_alone", swallowed, raising=False)
    try:
        with pytest.raises(Interrupted):
            session.run(items, batch=True)
    finally:
        stopping.forget()
    assert len(made) == 1


def keep_work(folder: Path) -> None:
    Work(folder).put("a", torch.zeros(3))


def keep_rows(folder: Path) -> None:
    rows = KeptRows(folder, {}, 3, limit=1000)
    try:
        rows.put(b"k" * 16, np.zeros(3, np.float32))
    finally:
        rows.flush()  # as a training does at its end, however it ends


def keep_features(folder: Path) -> None:
    FeatureStore(folder, {}).put([Entry("a", torch.zeros(1, 3), "8 x 8")])


@pytest.mark.parametrize("keep", [keep_work, keep_rows, keep_features])
def test_what_stopped_code_made_is_not_kept(keep, tmp_path):
    stopping.ask(Interrupted("terminated", exit_code=143))
    try:
        with pytest.raises(Interrupted):
            keep(tmp_path / "cache")
    finally:
        stopping.forget()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    keep(tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] != [], "without a wish it is"


COMMANDS = {
    "generate": ["generate", "a dog running", "--still", "--force", "-o", "{out}/still.png"],
    "animate": ["animate", "{in}/picture.png", "--force", "-o", "{out}/moving.mp4"],
    "interpolate": ["interpolate", "{in}/clip.mp4", "--force", "-o", "{out}/joined.mp4"],
    "data check": ["data", "check", "{in}/pictures", "--again"],
    "data check of videos": ["data", "check", "{in}", "--kind", "video", "--again"],
    "recipe check": ["recipe", "check", "paper"],
    "weights ls": ["weights", "ls"],
    "doctor": ["doctor"],
    "estimate": ["estimate", "pocket"],
    "gallery": ["gallery", "{in}"],
}


def living(pid: int) -> tuple[str, float]:
    """The state of a process (`R`: it runs or wants to) and its seconds of processor time, its ended children's among them."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return words[0], sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def ended(process: subprocess.Popen[str], *, at_s: float = float("inf"), idle_s: float = 180) -> bool:
    """Wait until a process has ended, or has used `at_s` seconds of processor time: then False. A busy machine is only slow.

    Fails for one that has neither run nor wanted to for `idle_s` seconds of the clock.
    """
    last, since = -1.0, time.monotonic()
    while process.poll() is None:
        try:
            state, spent = living(process.pid)
        except OSError:
            continue
        if spent >= at_s:
            return False
        if spent != last or state == "R":
            last, since = spent, time.monotonic()
        if time.monotonic() - since > idle_s:
            process.kill()
            pytest.fail(f"it hangs in state {state} after {spent:.1f} s of processor time")
        time.sleep(0.01)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time as Linux tells it")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_by_a_signal_at_a_random_moment(name, tmp_path):
    """Twenty each: 130 or 143 within 15 CPU seconds, or as if nobody had sent one; never a bug, never a judgement."""
    given, out = tmp_path / "in", tmp_path / "out"
    given.mkdir()
    out.mkdir()
    pictures(given / "pictures", 200)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(given / "picture.png")
    write_video(given / "clip.mp4", np.full((3, 64, 64, 3), 90, np.uint8), fps=8)
    words = [word.replace("{in}", str(given)).replace("{out}", str(out)) for word in COMMANDS[name]]
    environment = {
        **os.environ,
        "MAV_CACHE": str(tmp_path / "cache"),
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mavcli", *words]
    with (tmp_path / "shown").open("w+") as shown, (tmp_path / "said").open("w+") as said:

        def begin() -> subprocess.Popen[str]:
            for file in (shown, said):
                file.seek(0)
                file.truncate()
            return subprocess.Popen(command, stdout=shown, stderr=said, text=True, env=environment)

        def told() -> str:
            return (tmp_path / "shown").read_text() + (tmp_path / "said").read_text()

        def spent() -> float:
            ended_children = resource.getrusage(resource.RUSAGE_CHILDREN)
            return ended_children.ru_utime + ended_children.ru_stime

        at_first = spent()
        with begin() as process:
            ended(process)
        whole, done = spent() - at_first, process.returncode
        assert done in (0, 2), told()
        rng = random.Random(name)
        for _ in range(20):
            number, code, _ = rng.choice(ENDS)
            before = spent()
            with begin() as process:
                if not ended(process, at_s=rng.uniform(0.1, whole)):
                    process.send_signal(number)
                    before += living_s(process.pid)
                    ended(process)
            assert process.returncode in (done, code, -number), (name, process.returncode, told())
            assert spent() - before < 15, told()
            assert "bug" not in told() and "Traceback" not in told() and "damaged" not in told(), told()
    for kept in (tmp_path / "cache").rglob("*.jsonl"):
        entries = [json.loads(line) for line in kept.read_text().splitlines()[1:]]
        assert [entry for entry in entries if isinstance(entry, list) and "image " in kept.name and "reason" in entry[2]] == []  # fmt: skip


def living_s(pid: int) -> float:
    """Seconds of processor time up to now; 0 of a process that has gone."""
    try:
        return living(pid)[1]
    except OSError:
        return 0.0
