"""Several processes over gloo train as one does; the number of processes may change; a dead one is told of."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_together
from torch import nn

from mavcli.data.loader import WorldSource
from mavcli.errors import DiskError, MavError, RecipeError, UsageError
from mavcli.training import checkpoint as checkpoints
from mavcli.training.batches import Batches
from mavcli.training.checkpoint import newest_checkpoint, save_checkpoint
from mavcli.training.distributed import Group, PeerLost, Place, find_place, first_host
from mavcli.training.loop import train_stage
from mavcli.training.parallel import SyncedBatchNorm
from mavcli.training.stages import STAGES
from mavcli.weights.provenance import load_weights

SMALL = [
    "train.defaults.optimizer=adamw",
    "train.defaults.batch_size=4",
    "train.defaults.save_every=1000",
    "train.stages.sr_h.crop=16",
    "cascade.sr_h.size=32",
    "cascade.sr_h.network.image_size=32",
    "cascade.sr_h.network.model_channels=8",
    "cascade.sr_h.network.channel_mult=[1]",
    "cascade.sr_h.network.dropout=0.1",
]


@pytest.fixture(scope="session")
def together(tiny, backend, heard):
    """`together("sr_h", out, 2, "a.b=c")`: a stage on so many processes; raises what the first one raised."""

    def run(stage: str, out: Path, world: int, *sets: str) -> None:
        def work(group: Group) -> None:
            train_stage(tiny(out, *SMALL, *sets), stage, backend=backend, report=heard(), group=group)

        results = run_together(world, work)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    return run


def curve(out: Path, stage: str) -> np.ndarray:
    lines = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "step_loss" in line]
    assert steps == list(range(1, len(steps) + 1)), "each step once"
    return np.array([line["step_loss"] for line in lines if "step_loss" in line])


def test_two_processes_and_sharded_ones_have_the_loss_curve_of_one(together, train, tmp_path):
    steps = "train.defaults.steps=50"
    train("sr_h", tmp_path / "one", *SMALL, steps)
    together("sr_h", tmp_path / "ddp", 2, steps)
    together("sr_h", tmp_path / "fsdp", 2, steps, "train.defaults.sharding=fsdp")
    one, ddp, fsdp = (curve(tmp_path / name, "sr_h") for name in ("one", "ddp", "fsdp"))
    assert len(one) == 50 and one[-1] < one[0]
    np.testing.assert_allclose(ddp, one, rtol=1e-5)
    np.testing.assert_allclose(fsdp, ddp, rtol=1e-5)
    weights = [load_weights(tmp_path / n / "weights" / "sr_h.safetensors") for n in ("one", "ddp", "fsdp")]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        # Not each: a bias before a norm has no gradient but rounding, of which Adam makes full steps.
        apart = sum((other[k].float() - v.float()).square().sum() for k, v in weights[0].items())
        assert apart < 1e-4 * sum(v.float().square().sum() for v in weights[0].values())


@pytest.mark.parametrize(
    ("stage", "sharding"),
    [
        ("interp", "fsdp"),
        pytest.param("interp", "ddp", marks=pytest.mark.slow),
        ("prior", "ddp"),
        pytest.param("prior", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_stages_with_masks_stills_dropout_and_muon_train_alike_on_two_processes(
    stage, sharding, family, together, train, tmp_path
):
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder_t")]
    sets += ["train.defaults.steps=4", f"train.defaults.sharding={sharding}"]
    sets += ["train.stages.interp.image_batch=0.5", "train.stages.interp.optimizer=muon"]
    train(stage, tmp_path / "one", *SMALL, *sets)
    together(stage, tmp_path / "two", 2, *sets, "train.stages.interp.micro_batch=1")
    # Muon rounds to bfloat16, so a last bit more or less becomes a few in a thousand of an update.
    np.testing.assert_allclose(curve(tmp_path / "two", stage), curve(tmp_path / "one", stage), rtol=1e-3)


def test_contrast_is_over_the_pairs_of_all_processes(together, train, tmp_path):
    resnet = "cascade.clip.network.vision_layers=[1,1,1,1]"
    sets = [resnet, "cascade.clip.network.vision_patch_size=null", "cascade.clip.network.vision_width=8"]
    sets += ["cascade.clip.network.image_size=32", "train.stages.clip.steps=4"]
    train("clip", tmp_path / "one", *SMALL, *sets)
    together("clip", tmp_path / "two", 2, *sets)
    np.testing.assert_allclose(curve(tmp_path / "two", "clip"), curve(tmp_path / "one", "clip"), rtol=1e-4)


def test_a_run_may_change_its_processes_and_their_sharding_at_every_resume(together, train, tmp_path):
    """Worlds 1-2-4-2-1-2, sharded and whole checkpoints read by each other."""
    constant = "train.defaults.decay=0"  # the schedule of the rate would know the last step
    train("sr_h", tmp_path / "one", *SMALL, constant, "train.defaults.steps=12")
    parts = [(1, "ddp"), (2, "fsdp"), (4, "ddp"), (2, "fsdp"), (1, "ddp"), (2, "ddp")]
    for number, (world, sharding) in enumerate(parts, 1):
        sets = [constant, f"train.defaults.steps={2 * number}", f"train.defaults.sharding={sharding}"]
        if world == 1:
            train("sr_h", tmp_path / "parts", *SMALL, *sets)
        else:
            together("sr_h", tmp_path / "parts", world, *sets)
        checkpoint, skipped = newest_checkpoint(tmp_path / "parts" / "sr_h")
        assert checkpoint.step == 2 * number and skipped == [] and checkpoint.manifest["world_size"] == world
        files = {name.split("/")[0] for name in checkpoint.manifest["files"]}
        assert files == ({"shards"} if sharding == "fsdp" else {"state.safetensors"})
    np.testing.assert_allclose(curve(tmp_path / "parts", "sr_h"), curve(tmp_path / "one", "sr_h"), rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "sr_h", "decoder_t", "interp"])
@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_all_processes_are_the_batch_of_one(name, world, tiny, tmp_path):
    recipe = tiny(tmp_path, *SMALL, "train.stages.clip.batch_size=8").recipe
    whole = Batches(WorldSource(), STAGES[name], recipe)
    for step in range(3):
        parts = [
            Batches(WorldSource(), STAGES[name], recipe, rank=r, processes=world)[step] for r in range(world)
        ]
        batch = whole[step]
        assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
        assert sum((part.captions for part in parts), ()) == batch.captions
        assert [part.first for part in parts] == [len(batch.pixels) // world * r for r in range(world)]
        for key in ("fps", "known"):
            value = getattr(batch, key)
            assert value is None or torch.equal(torch.cat([getattr(part, key) for part in parts]), value)


def test_a_process_that_dies_is_told_of_and_the_last_checkpoint_is_whole(tiny, backend, heard, tmp_path):
    def work(group: Group) -> None:
        report = heard({3: lambda: os.kill(os.getpid(), signal.SIGKILL)} if group.rank else {})
        sets = [*SMALL, "train.defaults.steps=6", "train.defaults.save_every=2"]
        train_stage(tiny(tmp_path, *sets), "sr_h", backend=backend, report=report, group=group)

    survivor, dead = run_together(2, work, limit_s=60)
    assert isinstance(survivor, PeerLost), survivor
    assert (
        "another process of this training is gone" in survivor.message
        and "run the same command" in survivor.hint
    )
    assert isinstance(dead, RuntimeError)
    checkpoint, skipped = newest_checkpoint(tmp_path / "sr_h")
    assert checkpoint.step == 2 and skipped == [] and checkpoint.tensors()


@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_is_stopped_is_told_of_by_its_rank_and_so_is_its_waking(
    stopped, tiny, backend, heard, tmp_path
):
    def stop() -> None:
        waker = os.fork()
        if waker == 0:
            time.sleep(2.5)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(waker, 0)

    def work(group: Group) -> tuple[list[str], list[str]]:
        # the last step is so late that a sign can come before it
        at_step = {2: stop} if group.rank == stopped else {}
        report = heard({**at_step, 3: lambda: time.sleep(1.0)})
        recipe = tiny(tmp_path, *SMALL, "train.defaults.steps=4")
        train_stage(recipe, "sr_h", backend=backend, report=report, group=group, silence_s=0.9)
        return report.warnings, report.messages

    results = run_together(2, work, limit_s=60)
    warnings, messages = results[1 - stopped]
    assert [w for w in warnings if w.startswith(f"rank {stopped} of 2 (process ")], results
    assert f"rank {stopped} of 2 answers again" in messages
    assert not [w for w in results[stopped][0] if w.startswith("rank")], "the one that slept blames nobody"


def test_an_error_of_one_process_while_saving_reaches_all(tmp_path, monkeypatch):
    """A disk that is full for the process that writes must not leave the others waiting for it."""

    def work(group: Group) -> str:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints, "save_file", full)
        with pytest.raises(DiskError) as error:
            save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": 1}, group=group)
        return error.value.message

    messages = run_together(2, work, limit_s=60)
    assert len(set(map(str, messages))) == 1 and "no space left on device" in str(messages[0])
    assert not list(tmp_path.iterdir())


def test_a_signal_to_one_process_stops_all_and_saves(tiny, backend, heard, tmp_path):
    def work(group: Group) -> None:
        report = heard({3: lambda: os.kill(os.getpid(), signal.SIGINT)} if group.rank else {})
        sets = [*SMALL, "train.defaults.steps=6"]
        train_stage(tiny(tmp_path, *sets), "sr_h", backend=backend, report=report, group=group)

    errors = run_together(2, work, limit_s=60)
    assert [error.exit_code for error in errors] == [130, 130]
    assert all("at step 3 of 6" in error.message for error in errors)
    assert newest_checkpoint(tmp_path / "sr_h")[0].step == 3


def test_batch_norms_of_several_processes_see_all_their_samples():
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    own = nn.BatchNorm2d(3)
    own(x).square().mean().backward()

    def work(group: Group) -> tuple[torch.Tensor, ...]:
        norm = SyncedBatchNorm(3)
        y = norm(x[4 * group.rank : 4 * group.rank + 4])
        y.square().mean().backward()
        return y.detach(), norm.running_mean, norm.running_var, norm.bias.grad

    results = run_together(2, work, limit_s=60)
    y = torch.cat([result[0] for result in results])
    torch.testing.assert_close(y, own(x).detach(), rtol=1e-4, atol=1e-5)
    own = nn.BatchNorm2d(3)
    own(x)
    torch.testing.assert_close(results[0][1], own.running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[1][2], own.running_var, rtol=1e-4, atol=1e-5)


def test_what_processes_cannot_share_is_refused_before_anything_is_built(tiny, backend, heard, tmp_path):
    group = Group(0, 3)
    with pytest.raises(RecipeError, match="which 3 processes cannot share equally") as error:
        train_stage(tiny(tmp_path, *SMALL), "sr_h", backend=backend, report=heard(), group=group)
    assert error.value.hint == "--set train.stages.sr_h.batch_size=3"
    for field, said in (("sharding=fsdp", "whole towers"), ("micro_batch=1", "all pairs of a step")):
        recipe = tiny(tmp_path, f"train.stages.clip.{field}")
        with pytest.raises(RecipeError, match=said):
            train_stage(recipe, "clip", backend=backend, report=heard(), group=Group(0, 2))


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("sr_h", "cascade.sr_h.kind=lanczos", r"`cascade.sr_h.kind` is `lanczos`"),
        ("sr_lt", "cascade.sr_l.kind=none", r"`cascade.sr_l.kind` is `none`"),
        (
            "interp",
            "cascade.decoder.network.temporal=none cascade.decoder.network.fps=false",
            r"`cascade.decoder.network.temporal` is `none`",
        ),
        ("clip", "train.stages.clip.batch_size=1", r"the loss of `clip` compares samples, it needs 2"),
    ],
)
def test_what_the_family_cannot_train_is_refused_before_anything_is_built(
    stage, changes, said, tiny, backend, heard, tmp_path
):
    with pytest.raises(RecipeError, match=said):
        train_stage(tiny(tmp_path, *changes.split()), stage, backend=backend, report=heard())
    assert list(tmp_path.iterdir()) == []


def test_launchers_say_who_is_who():
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}
    assert find_place(torchrun) == Place(3, 8, 1, "a", 1234)
    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[03-07,9],login",
    }
    assert find_place(slurm) == Place(9, 16, 1, "gpu03", 20079)
    batch_script = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}
    assert find_place(batch_script) is None and find_place({}) is None
    with pytest.raises(UsageError, match="environment cannot be read"):
        find_place({"RANK": "x", "WORLD_SIZE": "2"})
    assert [first_host(text) for text in ("n1", "n1,n2", "a-b[7,9]", "x[001-3]")] == [
        "n1",
        "n1",
        "a-b7",
        "x001",
    ]


def test_an_error_is_the_same_in_every_process(tmp_path):
    def work(group: Group) -> None:
        group.agree(MavError("only here", hint="do this") if group.rank == 1 else None)

    errors = run_together(2, work, limit_s=60)
    assert [(e.message, e.hint) for e in errors] == [("only here", "do this")] * 2
