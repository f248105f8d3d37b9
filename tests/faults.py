"""Six commands, cut at each of their writes and killed at random moments: `python tests/faults.py`.

One process imports everything once and forks for each try. A try runs a command that is cut, looks at what is there, runs
the same command again and looks once more. `lost`: a file of the user's was changed, or the second run failed or came to
another result than a run that nobody cut. `wrong`: after the cut something passes for a result that is none. `left`: a file
that a run that nobody cut does not leave.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KINDS: dict[str, int | str] = {
    "kill": "kill",
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "EROFS": errno.EROFS,
    "short": "short",
}
USERS = {"notes.txt": b"mine\n", ".hidden.123-0a1b.tmp.mp4": b"mine too\n"}
"""Files of the user's, put where results go."""


@dataclass(frozen=True)
class Command:
    """A command line with `{given}` for the folder of what it reads; where its results go, and what is compared of them."""

    name: str
    arguments: tuple[str, ...]
    results: str
    compared: Callable[[Path], Any]


@dataclass
class Tally:
    """A line of the table."""

    points: int = 0
    of: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def videos(folder: Path) -> Any:
    """`frames_sha256` of each sidecar, of which every file must be as it is listed."""
    from mavcli.files import is_as_described

    found = {}
    for path in sorted(
        (folder / "outputs").glob("[!.]*.json")
    ):  # what a kill left under a hidden name is no sidecar
        run = json.loads(path.read_text())
        assert all(is_as_described(path.parent / name, told) for name, told in run["files"].items()), path
        found[path.name] = run["frames_sha256"]
    for path in (folder / "outputs").glob("[!.]*.mp4"):
        assert path.with_suffix(".json").name in found, f"{path} without its sidecar"
    return found


def bytes_of(*patterns: str) -> Callable[[Path], Any]:
    """SHA-256 of the files of some patterns."""
    return lambda folder: {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if not path.name.startswith(".")
    }


def trained(folder: Path) -> Any:
    """What was exported, and the newest whole checkpoint; a checkpoint that is damaged fails."""
    from mavcli.training.checkpoint import newest_checkpoint

    checkpoint, skipped = newest_checkpoint(folder / "run" / "sr_h")
    assert skipped == []
    state = {}
    if checkpoint is not None:
        for name, tensor in sorted(checkpoint.tensors().items()):
            state[name] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    return {**bytes_of("run/weights/*.safetensors")(folder), "state": state}


def commands() -> list[Command]:
    making = ("--recipe", "{given}/tiny/tiny.yaml", "-q")
    train_sets = [
        "train.out=run",
        "train.stages.sr_h.crop=16",
        "train.defaults.batch_size=1",
        "train.defaults.save_every=1",
        "train.defaults.steps=2",
        "cascade.sr_h.size=32",
        "cascade.sr_h.network.image_size=32",
        "cascade.sr_h.network.model_channels=8",
        "cascade.sr_h.network.channel_mult=[1]",
        "cascade.sr_h.network.norm_groups=4",
    ]
    sets = tuple(part for one in train_sets for part in ("--set", one))
    return [
        Command("generate", ("generate", "a dog", "--frames", "6", *making), "outputs", videos),
        Command(
            "interpolate",
            ("interpolate", "{given}/clip.mkv", *making),
            "outputs",
            videos,
        ),
        Command(
            "data check",
            ("data", "check", "{given}/pictures", "--sheet", "sheet.png", "-q"),
            ".",
            bytes_of("sheet.png"),
        ),
        Command(
            "weights import",
            ("weights", "import", "{given}/karlo", "--as", "karlo", "--out", "family", "-q"),
            "family",
            bytes_of("family/*.safetensors", "family/recipe.yaml"),
        ),
        Command(
            "eval fvd",
            (
                "eval",
                "fvd",
                "{given}/real",
                "{given}/made",
                "--weights",
                "{given}/i3d.pt",
                "--frames",
                "9",
                "-o",
                "score.json",
                "-q",
            ),
            ".",
            bytes_of("score.json", "score.md"),
        ),
        Command("train-stage", ("train-stage", "sr_h", "{given}/train.yaml", *sets, "-q"), "run", trained),
    ]


def give(folder: Path, wanted: Sequence[Command]) -> None:
    """What the commands read."""
    import numpy as np
    from standin_networks import write_clips
    from tiny_family import write_family
    from tiny_karlo import write_karlo

    from mavcli.media.image import write_png
    from mavcli.media.video import write_video

    needed = " ".join(part for command in wanted for part in command.arguments)
    rng = np.random.default_rng(0)
    if "{given}/train.yaml" in needed:
        (folder / "train.yaml").write_text(training_recipe())
    if "{given}/tiny" in needed:
        write_family(folder / "tiny")
    if "{given}/karlo" in needed:
        write_karlo(folder / "karlo")
    if "{given}/pictures" in needed:
        (folder / "pictures").mkdir()
        for number in range(6):
            write_png(folder / "pictures" / f"{number}.png", rng.integers(0, 256, (24, 32, 3), np.uint8))
    if "{given}/clip.mkv" in needed:
        write_video(folder / "clip.mkv", rng.integers(0, 256, (3, 16, 16, 3), np.uint8), fps=4, codec="ffv1")
    if "{given}/i3d.pt" in needed:
        (folder / "i3d.pt").write_bytes(b"stands for I3D's weights")
        for name in ("real", "made"):
            write_clips(folder / name, 3, frames=9)


def training_recipe() -> str:
    """The tests' own, in which each stage is trained in a second."""
    spec = importlib.util.spec_from_file_location("tiny_training", HERE / "training" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.RECIPE)


def stand_in_for_i3d() -> None:
    """FVD's network is 50 MB and seconds: here its features are means of the picture. The rest is as it is."""
    import torch

    from mavcli.evaluation import networks

    def prepare(self: Any, frames: Any) -> Any:
        return torch.from_numpy(frames).float().mean((1, 2)).flatten()[None]

    networks.I3DFeatures.prepare = prepare  # type: ignore[method-assign]
    networks.I3DFeatures.features = lambda self, prepared: prepared  # type: ignore[method-assign]


def forked(work: Callable[[], int], *, kill_s: float | None = None) -> int:
    """The exit code of a child that does `work`; of one that is killed after `kill_s` processor seconds, or by itself, -9."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1):
                os.dup2(null, number)
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 2)
            code = work()
        finally:
            os._exit(code)
    if kill_s is not None:
        clock = (~pid << 3) | 2
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.clock_gettime(clock) >= kill_s:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.0005)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Bench:
    """A folder in which commands are tried, each in a folder of its own."""

    def __init__(self, root: Path, wanted: Sequence[Command], *, limit_s: float = float("inf")) -> None:
        """`limit_s` is for each command of each table."""
        self.root, self.given, self.limit_s = root, root / "given", limit_s
        self.given.mkdir()
        give(self.given, wanted)
        self.place = root / "place"

    def fresh(self, command: Command) -> Path:
        shutil.rmtree(self.place, ignore_errors=True)
        results = self.place / "here" / command.results
        results.mkdir(parents=True)
        for name, data in USERS.items():
            (results / name).write_bytes(data)
        return self.place / "here"

    def run(
        self, command: Command, around: Callable[[Callable[[], int]], int] | None = None, **how: Any
    ) -> int:
        from mavcli.cli.app import run

        arguments = [part.format(given=self.given) for part in command.arguments]
        os.chdir(self.place / "here")
        os.environ["MAV_CACHE"] = str(self.place / "cache")
        work = lambda: run(arguments)  # noqa: E731
        return forked(work if around is None else lambda: around(work), **how)

    def names(self) -> set[str]:
        """Every file that there is, digests of temporary folders and FileLock's own files left out."""
        found = {str(path.relative_to(self.place)) for path in self.place.rglob("*") if path.is_file()}
        return {name for name in found if not name.endswith((".lock", "log.txt", "last.log"))}

    def whole(self, command: Command) -> tuple[Any, set[str], float]:
        """What a run comes to that nobody cuts: the result, the files, the processor seconds."""
        here = self.fresh(command)
        before = os.times()
        code = self.run(command)
        spent = os.times()
        assert code == 0, f"{command.name}: exit code {code}: {(here / 'log.txt').read_text()[-2000:]}"
        seconds = spent.children_user + spent.children_system - before.children_user - before.children_system
        return command.compared(here), self.names(), seconds

    def judge(self, command: Command, wanted: tuple[Any, set[str], float], tally: Tally, where: str) -> None:
        """Look at what a cut left, run again, and look once more."""
        here = self.place / "here"
        tally.points += 1
        result, names, _ = wanted
        try:
            found = command.compared(here)
        except (FileNotFoundError, AssertionError):
            found = {}  # files of one commit may be on their way: the next run finishes them or says so
        if command.name not in ("train-stage",):
            for name, value in found.items():
                if result.get(name) != value:
                    tally.wrong.append(f"{where}: {name}")
        code = self.run(command)
        if code != 0:
            tail = (here / "log.txt").read_text()[-300:].strip().replace("\n", " | ")
            tally.lost.append(f"{where}: the second run ended in {code}: {tail}")
            return
        try:
            again = command.compared(here)
        except (AssertionError, FileNotFoundError) as error:
            tally.lost.append(f"{where}: {error}")
            return
        if again != result:
            tally.lost.append(f"{where}: another result")
        for name, data in USERS.items():
            if (here / command.results / name).read_bytes() != data:
                tally.lost.append(f"{where}: {name} was changed")
        # what the second run found, and a whole run has no need to look at, a cache may remember
        extra = {
            name
            for name in self.names() - names
            if not name.startswith("cache/") or Path(name).name.startswith(".")
        }
        if extra:
            tally.left.append(f"{where}: {sorted(extra)[:3]}")
        # a cache that could not be written is made another time
        missing = {name for name in names - self.names() if not name.startswith("cache/")}
        if missing:
            tally.lost.append(f"{where}: without {sorted(missing)[:3]}")

    def plan(self, command: Command, *, every: int = 1, kinds: dict[str, int | str] = KINDS) -> Tally:
        """Each call of the module that writes fails in turn, in each way."""
        from faulty_os import faults

        wanted, tally = self.whole(command), Tally()
        self.fresh(command)

        def count(work: Callable[[], int]) -> int:
            with faults() as counted:
                work()
            Path("count").write_text(json.dumps(counted.names))
            return 0

        self.run(command, count)
        calls = json.loads((self.place / "here" / "count").read_text())
        points = [
            (kind, fault, at)
            for kind, fault in kinds.items()
            for at in range(1, len(calls) + 1)
            if kind != "short" or calls[at - 1] == "write"
        ]
        tally.of = len(points)
        for kind, fault, at in self.sampled(points, every):
            self.fresh(command)

            def cut(work: Callable[[], int], at: int = at, fault: int | str = fault) -> int:
                with faults(fault, at):
                    return work()

            code = self.run(command, cut)
            where = f"{command.name}, {kind} at {at} ({calls[at - 1]})"
            if code not in ((-9,) if kind == "kill" else (0,) if kind == "short" else (0, 6)):
                tally.wrong.append(f"{where}: exit code {code}")
            self.judge(command, wanted, tally, where)
        return tally

    def sampled(self, points: list[Any], every: int) -> Iterator[Any]:
        """One of `every` points, in an order of chance, until the time is up."""
        ends = time.monotonic() + self.limit_s
        for point in random.Random(0).sample(points, -(-len(points) // every)):
            if time.monotonic() > ends:
                return
            yield point

    def below_python(self, command: Command, library: ctypes.CDLL, *, every: int = 1) -> Tally:
        """Each call of the C library that writes below the folder fails in turn; the library was preloaded."""
        wanted, tally = self.whole(command), Tally()
        self.fresh(command)
        library.mav_faults_calls.restype = ctypes.c_long
        place = str(self.place).encode()

        def count(work: Callable[[], int]) -> int:
            library.mav_faults_arm(place, 0, ctypes.c_long(0))
            work()
            calls = library.mav_faults_calls()
            Path("count").write_text(str(calls))
            return 0

        self.run(command, count)
        calls = int((self.place / "here" / "count").read_text())
        kinds = (("kill", -1), ("ENOSPC", errno.ENOSPC), ("EIO", errno.EIO), ("short", -2))
        points = [(kind, number, at) for kind, number in kinds for at in range(1, calls + 1)]
        tally.of = len(points)
        for kind, number, at in self.sampled(points, every):
            self.fresh(command)

            def cut(work: Callable[[], int], at: int = at, number: int = number) -> int:
                library.mav_faults_arm(place, number, ctypes.c_long(at))
                code = work()
                library.mav_faults_arm(b"", 0, ctypes.c_long(0))
                return code

            code = self.run(command, cut)
            where = f"{command.name}, below Python, {kind} at {at}"
            if code not in ((-9, 0) if kind == "kill" else (0, 6)):
                tally.wrong.append(f"{where}: exit code {code}")
            self.judge(command, wanted, tally, where)
        return tally

    def kills(self, command: Command, count: int, *, seed: int = 0) -> Tally:
        """SIGKILL at random moments of a run's processor time."""
        wanted, tally = self.whole(command), Tally()
        rng = random.Random(f"{command.name} {seed}")
        tally.of = count
        moments = [rng.uniform(0, 1.05 * wanted[2]) for _ in range(count)]
        for number, moment in enumerate(self.sampled(moments, 1)):
            self.fresh(command)
            self.run(command, kill_s=moment)
            self.judge(command, wanted, tally, f"{command.name}, kill {number} after {moment:.3f} s")
        return tally


def lines(title: str, tallies: Iterator[tuple[str, Tally]]) -> Iterator[str]:
    yield f"| {title} | points tried | of | lost | wrong | left |"
    yield "| --- | --- | --- | --- | --- | --- |"
    total = Tally()
    for name, tally in tallies:
        yield f"| {name} | {tally.points} | {tally.of} | {len(tally.lost)} | {len(tally.wrong)} | {len(tally.left)} |"
        for fault in [*tally.lost, *tally.wrong, *tally.left][:12]:
            sys.stderr.write(f"{fault}\n")
        total.points += tally.points
        total.of += tally.of
        for name_ in ("lost", "wrong", "left"):
            getattr(total, name_).extend(getattr(tally, name_))
    yield f"| together | {total.points} | {total.of} | {len(total.lost)} | {len(total.wrong)} | {len(total.left)} |"


def warm() -> None:
    """Import what the commands import, so that a child does not."""
    import torch

    torch.set_num_threads(1)
    import mavcli.cli.animate
    import mavcli.cli.data
    import mavcli.cli.eval
    import mavcli.cli.generate
    import mavcli.cli.train_stage
    import mavcli.cli.weights
    import mavcli.data.check
    import mavcli.engine.cascade
    import mavcli.engine.output
    import mavcli.engine.work
    import mavcli.evaluation.networks
    import mavcli.evaluation.scores
    import mavcli.training.loop
    import mavcli.weights.importing  # noqa: F401

    stand_in_for_i3d()


def preloaded(folder: Path) -> None:
    """Start this program again with the C library that fails, compiled here."""
    library = folder / "faults.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults_preload.c", "-ldl"], check=True
    )
    os.environ |= {"LD_PRELOAD": str(library), "MAV_FAULTS": str(library)}
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", action="store_true", help="cut each call of mavcli/files.py in turn")
    parser.add_argument("--below", action="store_true", help="cut each call of the C library in turn")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill each command N times")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th point")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), metavar="S", help="seconds for each command"
    )
    parser.add_argument("--only", action="append", help="a command's name; repeatable")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="mav-faults-") as name:
        if asked.below and "MAV_FAULTS" not in os.environ:
            preloaded(Path(tempfile.mkdtemp(prefix="mav-faults-")))
        warm()
        chosen = [c for c in commands() if not asked.only or c.name in asked.only]
        bench = Bench(Path(name).resolve(), chosen, limit_s=asked.limit)
        library = ctypes.CDLL(os.environ["MAV_FAULTS"]) if asked.below else None
        tables: list[tuple[str, Callable[[Command], Tally]]] = []
        if asked.plan:
            tables.append(("mavcli/files.py", lambda c: bench.plan(c, every=asked.every)))
        if library is not None:
            tables.append(("the C library", lambda c: bench.below_python(c, library, every=asked.every)))
        if asked.kills:
            tables.append(("kills", lambda c: bench.kills(c, asked.kills)))
        for title, each in tables:
            for line in lines(title, ((c.name, each(c)) for c in chosen)):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            sys.stdout.write("\n")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
