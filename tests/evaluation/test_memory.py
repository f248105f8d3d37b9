"""The memory of `mav eval fvd` does not grow with the number of videos, and a kill loses one batch at most.

`pytest -m slow -s tests/evaluation/test_memory.py` prints the figures: minutes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin_networks import write_clips

SCRIPT = """
import json, os, resource, sys
from pathlib import Path
import torch
from mavcli.evaluation.clips import FrameChoice, open_folder
from mavcli.evaluation.scores import Measurement, fvd
from mavcli.report import Silent

calls = os.open(sys.argv[4], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

class Tiny:
    facts = {"name": "tiny"}
    def __init__(self):
        self.mix = torch.randn(3 * 16 * 16, 400, generator=torch.Generator().manual_seed(0))
    def prepare(self, frames):
        return torch.from_numpy(frames[:, :16, :16].copy()).float().mean(0).reshape(1, -1)
    def features(self, x):
        os.write(calls, b".")  # one byte a clip, which outlives a kill
        return x @ self.mix

real, made, cache = map(Path, sys.argv[1:4])
score = fvd(open_folder(real), open_folder(made), Tiny(), Measurement(FrameChoice(9), cache, Silent()))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"value": score.value, "peak_kb": peak, "measured": score.fingerprint.fields["real"]["measured"]}))
"""


def folders(tmp_path: Path, count: int) -> tuple[Path, Path]:
    """Two folders of `count` videos each; few pictures, but every file has a content of its own."""
    made = []
    for name in ("real", "made"):
        folder = tmp_path / f"{name}{count}"
        first = [path.read_bytes() for path in write_clips(tmp_path / f"{name}{count}-seeds", 16, frames=9)]
        folder.mkdir()
        for i in range(count):
            # What follows the last element of a Matroska file is not read.
            void = b"\xec\x88" + i.to_bytes(8, "big")
            (folder / f"{i:05d}.mkv").write_bytes(first[i % 16] + void)
        made.append(folder)
    return made[0], made[1]


def start(real: Path, made: Path, cache: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", SCRIPT, str(real), str(made), str(cache), f"{cache}.calls"]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == 0
    return json.loads(out)


def calls(cache: Path) -> int:
    """How often the network was run with this cache, by all processes together."""
    path = Path(f"{cache}.calls")
    return path.stat().st_size if path.exists() else 0


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_videos(tmp_path: Path) -> None:
    counts = (128, 1024, 2048)
    found = [finish(start(*folders(tmp_path, count), tmp_path / str(count))) for count in counts]
    told = ", ".join(f"{f['peak_kb'] / 1024:.1f} MiB at {n}" for f, n in zip(found, counts, strict=True))
    print(f"\npeak memory of fvd, videos a side: {told}")  # noqa: T201
    assert [run["measured"] for run in found] == list(counts)
    assert found[-1]["peak_kb"] - found[0]["peak_kb"] < 16_000, told


@pytest.mark.slow
def test_a_killed_run_loses_at_most_one_batch(tmp_path: Path) -> None:
    real, made = folders(tmp_path, 256)
    whole = finish(start(real, made, tmp_path / "whole"))
    assert calls(tmp_path / "whole") == 512
    cut, kills, rng = tmp_path / "cut", 0, random.Random(0)
    while True:
        process, before = start(real, made, cut), calls(cut)
        wanted = before + rng.randint(40, 110)  # in the middle of a batch, most times
        while process.poll() is None and calls(cut) < wanted:
            time.sleep(0.0005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    last = finish(process)
    lost = calls(cut) - 512
    print(f"\n{kills} kills, {lost} of 512 clips were measured twice")  # noqa: T201
    assert last["value"] == whole["value"]
    assert kills >= 4 and 0 <= lost <= 8 * kills
