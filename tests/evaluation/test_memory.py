"""The memory of `mav eval fvd` does not grow with the number of videos, and a kill loses one batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin_networks import write_clips

SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
from mavcli.evaluation.clips import FrameChoice, open_folder
from mavcli.evaluation.scores import Measurement, fvd
from mavcli.report import Silent

class Tiny:
    facts = {"name": "tiny"}
    calls = 0
    def __init__(self):
        self.mix = torch.randn(3 * 16 * 16, 400, generator=torch.Generator().manual_seed(0))
    def prepare(self, frames):
        return torch.from_numpy(frames[:, :16, :16].copy()).float().mean(0).reshape(1, -1)
    def features(self, x):
        Tiny.calls += 1
        return x @ self.mix

real, made, cache = map(Path, sys.argv[1:4])
score = fvd(open_folder(real), open_folder(made), Tiny(), Measurement(FrameChoice(9), cache, Silent()))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"value": score.value, "calls": Tiny.calls, "peak_kb": peak,
                  "measured": score.fingerprint.fields["real"]["measured"]}))
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
    arguments = [sys.executable, "-c", SCRIPT, str(real), str(made), str(cache)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == 0
    return json.loads(out)


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_videos(tmp_path: Path) -> None:
    few = finish(start(*folders(tmp_path, 128), tmp_path / "a"))
    many = finish(start(*folders(tmp_path, 2048), tmp_path / "b"))
    assert (few["measured"], many["measured"]) == (128, 2048)
    assert many["peak_kb"] - few["peak_kb"] < 16_000, (few, many)


@pytest.mark.slow
def test_a_killed_run_loses_at_most_one_batch(tmp_path: Path) -> None:
    real, made = folders(tmp_path, 256)
    whole = finish(start(real, made, tmp_path / "whole"))
    kills = 0
    while True:
        process = start(real, made, tmp_path / "cut")
        before = len(list((tmp_path / "cut").rglob("*.safetensors")))
        while process.poll() is None and len(list((tmp_path / "cut").rglob("*.safetensors"))) < before + 12:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        # Whole batches of 8 are what is there.
        assert len(list((tmp_path / "cut").rglob("*.safetensors"))) >= before + 12
    last = finish(process)
    assert kills >= 3 and last["value"] == whole["value"]
    assert last["calls"] < whole["calls"]
