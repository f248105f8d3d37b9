"""`kill -9` at random moments of a training: every checkpoint loads, and the end is that of the run never killed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import cpu_s, fork, kill_after

from mavcli.training import loop, trainer
from mavcli.training.checkpoint import newest_checkpoint
from mavcli.weights.provenance import load_weights, read_header

# As little network as a U-Net can be, saved after every step.
SETS = [
    "train.stages.sr_h.crop=16",
    "train.defaults.batch_size=1",
    "train.defaults.save_every=1",
    "train.defaults.decay=0",  # or the rate would depend on the last step, which the kills decide
    "cascade.sr_h.size=32",
    "cascade.sr_h.network.image_size=32",
    "cascade.sr_h.network.model_channels=8",
    "cascade.sr_h.network.channel_mult=[1]",
    "cascade.sr_h.network.norm_groups=4",
    "cascade.sr_h.network.dropout=0.1",
]
# A child that does these has started, trained, saved, and exported. Kills fall before, in the middle of and behind that: how much
# processor time it takes depends on what else the machine does.
FIRST_STEPS = "train.defaults.steps=2"


@pytest.fixture(autouse=True)
def _one_held_out_batch(monkeypatch):
    monkeypatch.setattr(trainer, "_HELD_OUT_STEPS", 1)


def killed(
    work: Callable[[], None],
    *,
    kills: int,
    seed: int,
    cpu_s: tuple[float, float],
    after: Callable[[], bool],
) -> int:
    """Run `work` again and again, killed each time; how often `after` said no. `work` may come to its end."""
    rng, bad = random.Random(seed), 0
    for _ in range(kills):
        # some of the moments fall into waiting for the disk, which uses no processor time
        if not kill_after(fork(work), rng.uniform(*cpu_s), rng.choice((0.0, rng.uniform(0, 0.004)))):
            return bad
        bad += not after()
    return bad


def survive(kills: int, *, seeds: int, train, root: Path) -> tuple[int, int]:
    """Kills survived and checkpoints lost, after which every run was as if nothing had happened."""
    done = lost = 0
    for seed in range(seeds):
        each = kills // seeds
        # more steps than the kills let it reach, on a fast machine too
        sets = [*SETS, f"train.seed={seed}", f"train.defaults.steps={100 * each}"]
        whole, parts = root / f"whole-{seed}", root / f"parts-{seed}"
        start = cpu_s(lambda sets=sets, at=root / f"start-{seed}": train("sr_h", at, *sets, FIRST_STEPS))
        reached = 0

        def every_checkpoint_loads(parts: Path = parts) -> bool:
            nonlocal done, reached
            done += 1
            checkpoint, skipped = newest_checkpoint(parts / "sr_h")
            weights = parts / "weights" / "sr_h.safetensors"
            if weights.exists():
                assert read_header(weights).step >= reached - 1
            if checkpoint is not None and checkpoint.step != reached:
                assert checkpoint.step > reached, "a kill cost more than the steps since the last checkpoint"
                reached = checkpoint.step
                checkpoint.tensors()
                load_weights(weights) if weights.exists() else None
            return not skipped

        lost += killed(
            lambda parts=parts, sets=sets: train("sr_h", parts, *sets),
            kills=each,
            seed=seed,
            cpu_s=(0.05 * start, 1.5 * start),
            after=every_checkpoint_loads,
        )
        assert reached > 1, "the kills came too early to test anything"
        # both to the step after the one that the killed run had reached
        last = f"train.defaults.steps={reached + 2}"
        train("sr_h", parts, *sets, last)
        train("sr_h", whole, *sets, last, "train.defaults.save_every=1000")
        assert_same_end(whole, parts)
    return done, lost


def assert_same_end(whole: Path, parts: Path) -> None:
    """Network, moving average and optimiser bit for bit; each step once in the log, with the same loss; no litter."""
    (a, _), (b, skipped) = newest_checkpoint(whole / "sr_h"), newest_checkpoint(parts / "sr_h")
    one, other = a.tensors(), b.tensors()
    assert a.step == b.step and skipped == [] and one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert losses(whole) == losses(parts)
    headers = [load_weights(out / "weights" / "sr_h.safetensors") for out in (whole, parts)]
    assert all(torch.equal(headers[0][name], headers[1][name]) for name in headers[0])
    names = [p.name for folder in ("sr_h", "sr_h/samples", "weights") for p in (parts / folder).iterdir()]
    assert [n for n in names if n.startswith(".") and n not in (".lock", ".sr_h.lock")] == []


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "sr_h" / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["step_loss"]) for line in lines if "step_loss" in line]
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return found


def test_200_kills_cost_no_checkpoint_and_change_nothing(train, tmp_path):
    done, lost = survive(200, seeds=2, train=train, root=tmp_path)
    assert lost == 0 and done > 190


@pytest.mark.slow
def test_2000_kills_cost_no_checkpoint_and_change_nothing(train, tmp_path):
    done, lost = survive(2000, seeds=20, train=train, root=tmp_path)
    assert lost == 0 and done > 1900


def test_the_same_kills_find_a_writer_in_place(train, tmp_path, monkeypatch):
    """The harness has teeth: a checkpoint that is overwritten where it lies does not survive."""
    path = tmp_path / "last.pt"

    def in_place(folder, tensors, manifest, *, group, files):
        torch.save({name: tensor.clone() for name, tensor in tensors.items()}, path)

    monkeypatch.setattr(loop, "save_checkpoint", in_place)
    lost = 0

    def it_loads() -> bool:
        nonlocal lost
        try:
            torch.load(path)
        except FileNotFoundError:
            return True
        except Exception:  # torch has a word of its own for every way in which a file is no checkpoint
            lost += 1
            return False
        return True

    for seed in range(12):
        work = lambda: train("sr_h", tmp_path / "run", *SETS, "train.defaults.steps=1000")  # noqa: E731
        killed(work, kills=5, seed=seed, cpu_s=(0.05, 0.3), after=it_loads)
        if lost >= 3:
            return
    pytest.fail(f"60 kills found {lost} unloadable checkpoints of a writer that cannot be safe")
