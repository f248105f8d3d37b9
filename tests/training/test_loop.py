"""The loop: what a kill, a full disk, a changed recipe or a diverging loss does to a training."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from faulty_os import faults
from forked import fork, kill_after

from mavcli.errors import DiskError, DivergedError, Interrupted, RecipeError, UsageError, WeightsError
from mavcli.files import temporary_path
from mavcli.training import checkpoint as checkpoint_module
from mavcli.training import stages
from mavcli.training.checkpoint import newest_checkpoint, read_manifest, remove_stale, save_checkpoint
from mavcli.training.loop import train_stage
from mavcli.training.trainer import Trainer
from mavcli.weights.provenance import read_header

STEPS = "train.defaults.steps=6"


def state(out: Path, stage: str) -> tuple[int, dict[str, torch.Tensor]]:
    checkpoint, _ = newest_checkpoint(out / stage)
    assert checkpoint is not None
    return checkpoint.step, checkpoint.tensors()


def assert_same_training(one: Path, other: Path, stage: str) -> None:
    """Network, moving average and optimiser, bit for bit."""
    (step, a), (again, b) = state(one, stage), state(other, stage)
    assert step == again and a.keys() == b.keys()
    assert {key.split("/")[0] for key in a} == {"network", "average", "optimizer"}
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def parents(family: Path) -> list[str]:
    return [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder", "decoder_t", "sr_l")]


def stop_at(heard, step: int, number: signal.Signals = signal.SIGTERM):
    return heard({step: lambda: os.kill(os.getpid(), number)})


@pytest.mark.parametrize("stage", ["decoder", "interp", "prior"])
def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(stage, family, train, heard, tmp_path):
    """Muon and AdamW, dropout, video and pictures; stopped at a step at which nothing else would be saved."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    sets = [*parents(family), STEPS]
    reference = train(stage, whole, *sets)
    with pytest.raises(Interrupted) as stopped:
        train(stage, parts, *sets, report=stop_at(heard, 3))
    assert stopped.value.exit_code == 143 and "step 3 of 6" in stopped.value.message
    assert "run the same command again" in stopped.value.hint
    report = heard()
    result = train(stage, parts, *sets, report=report)
    assert any("at step 3 of 6" in message for message in report.messages)
    assert_same_training(whole, parts, stage)
    assert (result.loss, result.held_out) == (reference.loss, reference.held_out)
    headers = [read_header(out / "weights" / f"{stage}.safetensors") for out in (whole, parts)]
    assert headers[0].content_sha256 == headers[1].content_sha256
    losses = [[line["loss"] for line in metrics(out, stage) if "loss" in line] for out in (whole, parts)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def metrics(out: Path, stage: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]


def test_a_kill_between_checkpoints_repeats_the_lost_steps(family, train, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train("sr_h", whole, STEPS)
    train("sr_h", killed, STEPS)
    shutil.rmtree(killed / "sr_h" / "step-0000006")  # as if it had died after step 5, its log written
    with open(killed / "sr_h" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    train("sr_h", killed, STEPS)
    assert_same_training(whole, killed, "sr_h")
    assert [line["step"] for line in metrics(killed, "sr_h") if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_an_interrupt_from_the_keyboard_is_130_and_handlers_are_given_back(train, heard, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        train("sr_h", tmp_path, STEPS, report=stop_at(heard, 1, signal.SIGINT))
    assert stopped.value.exit_code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert state(tmp_path, "sr_h")[0] == 1


def test_a_signal_to_the_whole_group_sent_twice_saves_once(tiny, tmp_path):
    """What GNU `timeout` does, and a terminal: processes that prepare batches are in the group of those who hear it."""
    loaded = tiny(tmp_path / "out", "train.defaults.steps=100000", "train.defaults.save_every=100000")
    recipe = tmp_path / "whole.yaml"
    recipe.write_text(loaded.path.read_text())
    sets = [f"train.out={tmp_path}/out", f"weights.dir={tmp_path}/none", "train.defaults.steps=100000"]
    command = [sys.executable, "-c", "from mavcli.cli.app import main; main()", "train-stage", "sr_h", recipe]
    command += ["--workers", "2", "--backend", "cpu", *(word for each in sets for word in ("--set", each))]
    command += ["--set", "train.defaults.save_every=100000"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        metrics_file = tmp_path / "out" / "sr_h" / "metrics.jsonl"
        while process.poll() is None and not (metrics_file.exists() and metrics_file.stat().st_size):
            time.sleep(0.05)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.02)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "the state is saved" in told and "bug" not in told
    assert state(tmp_path / "out", "sr_h")[0] >= 1


def test_a_finished_training_does_nothing_more_and_a_longer_one_goes_on(train, heard, tmp_path):
    first = train("sr_h", tmp_path)
    before = (tmp_path / "weights" / "sr_h.safetensors").read_bytes()
    again = train("sr_h", tmp_path)
    assert again.held_out == first.held_out and again.step == 3
    assert (tmp_path / "weights" / "sr_h.safetensors").read_bytes() == before
    assert train("sr_h", tmp_path, "train.defaults.steps=4", allow=["steps"]).step == 4
    with pytest.raises(UsageError, match="holds a run already"):
        train("sr_h", tmp_path, fresh=True)


@pytest.mark.parametrize("harm", ["bit", "cut", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_skipped_and_said(harm, train, heard, tmp_path):
    train("sr_h", tmp_path, STEPS)
    newest = tmp_path / "sr_h" / "step-0000006"
    data = bytearray((newest / "state.safetensors").read_bytes())
    if harm == "bit":
        data[len(data) // 2] ^= 1
        (newest / "state.safetensors").write_bytes(data)
    elif harm == "cut":
        (newest / "state.safetensors").write_bytes(data[: len(data) // 2])
    elif harm == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("")
    report = heard()
    train("sr_h", tmp_path, STEPS, report=report)
    assert report.warnings == [f"{newest} is damaged and was skipped"]
    assert any("step-0000004 at step 4 of 6" in message for message in report.messages)
    assert read_manifest(newest) is not None, "written again"


def test_a_run_of_which_no_checkpoint_is_whole_does_not_start_over(train, tmp_path):
    train("sr_h", tmp_path, STEPS)
    weights = tmp_path / "weights" / "sr_h.safetensors"
    exported = weights.read_bytes()
    for path in (tmp_path / "sr_h").glob("step-*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        WeightsError, match=r"no checkpoint in .* is whole: .*0000006 is damaged.*0000004"
    ) as told:
        train("sr_h", tmp_path, STEPS)
    assert str(weights) in (told.value.hint or "") and weights.read_bytes() == exported
    for folder in (tmp_path / "sr_h").glob("step-*"):
        shutil.rmtree(folder)
    assert train("sr_h", tmp_path, STEPS).step == 6, "as the hint says"


def test_a_missing_parent_is_told_before_any_file_is_read(train, tmp_path):
    with pytest.raises(WeightsError, match="`decoder_t` starts from `decoder`, which is not trained yet"):
        train("decoder_t", tmp_path, "train.data.world=false", f"train.data.video={tmp_path / 'absent'}")


def test_the_command_to_say_again_is_the_whole_one(tiny, backend, heard, tmp_path):
    command = "mav train-stage sr_h tiny -o 'my run' --set train.seed=3"
    with pytest.raises(Interrupted) as stopped:
        train_stage(tiny(tmp_path), "sr_h", backend=backend, report=stop_at(heard, 1), command=command)
    assert stopped.value.hint == f"run the same command again to go on: {command}"


def test_only_the_newest_two_checkpoints_are_kept_and_a_damaged_later_one_counts_for_nothing(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000003", "step-0000004"]
    (tmp_path / "step-0000009").mkdir()
    save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": 5})
    whole = [p.name for p in sorted(tmp_path.iterdir()) if read_manifest(p)]
    assert whole == ["step-0000004", "step-0000005"]


@contextmanager
def small_files(limit: int):
    """No file of this process may grow beyond `limit` bytes: what a full disk does in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_half_way_is_a_disk_error_and_the_older_checkpoint_survives(tmp_path):
    tensors = {"x": torch.arange(10_000.0)}
    save_checkpoint(tmp_path, tensors, {"step": 1})
    with small_files(8_000), pytest.raises(DiskError, match="cannot write a checkpoint"):
        save_checkpoint(tmp_path, tensors, {"step": 2})
    checkpoint, skipped = newest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 1 and skipped == []
    assert torch.equal(checkpoint.tensors()["x"], tensors["x"])
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"], "nothing half-written is left"


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, {"x": torch.zeros(9)}, {"step": 1})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(DiskError, match="0 MB free, a checkpoint needs"):
        save_checkpoint(tmp_path, {"x": torch.zeros(9)}, {"step": 2})
    assert newest_checkpoint(tmp_path)[0].step == 1


def test_a_folder_that_cannot_be_made_is_a_disk_error(train, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "run", {"x": torch.zeros(2)}, {"step": 1})
    with pytest.raises(DiskError, match="cannot write"):
        train("sr_h", tmp_path / "file")


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    run, weights = tmp_path / "run", tmp_path / "weights"
    for folder in (run / "samples", weights):
        folder.mkdir(parents=True)
    places = [
        run / "metrics.jsonl",
        run / "samples" / "0000001.png",
        weights / "sr_h.safetensors",
    ]

    def write_half() -> None:
        temporary_path(run / "step-0000001", suffix="").mkdir()
        for place in places:
            temporary_path(place).touch()

    kill_after(fork(write_half), 10, 0)
    assert len(list(tmp_path.rglob(".*"))) == 4
    write_half()
    remove_stale(run, exports=weights / "sr_h.safetensors")
    left = list(tmp_path.rglob(".*"))
    assert len(left) == 4 and all(f"-{os.getpid()}-" in path.name for path in left)


def test_a_changed_recipe_is_refused_with_what_changed(family, train, tmp_path):
    sets = parents(family)
    train("decoder", tmp_path, *sets)
    for change, said in {
        "train.defaults.lr=0.002": r"training\.lr: 0\.001 -> 0\.002",
        "train.defaults.fps.low=2": r"training\.fps\.low: 1\.0 -> 2\.0",
        "train.seed=4": r"seed: 3 -> 4",
        "cascade.decoder.network.num_res_blocks=2": r"network\.num_res_blocks: 1 -> 2",
        "cascade.decoder.schedule.prediction=v": r"schedule\.prediction: x0 -> v",
    }.items():
        with pytest.raises(RecipeError, match=f"trained with another recipe: {said}$") as error:
            train("decoder", tmp_path, *sets, change)
        assert ("--allow" in error.value.hint) == ("network" not in said), "another network cannot go on"
    for free in ("train.defaults.save_every=3", "train.defaults.log_every=2", "train.defaults.retries=4"):
        train("decoder", tmp_path, *sets, free)


def test_other_clip_towers_under_a_training_are_refused(family, train, tmp_path):
    train("decoder", tmp_path, *parents(family))
    train("clip", tmp_path, "train.stages.clip.steps=1", "train.seed=9")
    with pytest.raises(RecipeError, match="clip: "):
        train("decoder", tmp_path, *parents(family))


def test_a_change_is_allowed_by_its_name_and_no_other_is(train, heard, tmp_path):
    train("sr_h", tmp_path, "train.defaults.decay=0")
    sets = ["train.defaults.decay=0", "train.defaults.steps=4", "train.defaults.lr=0.002"]
    sets += ["train.defaults.ema=0.8"]
    with pytest.raises(RecipeError, match=r"training\.ema: 0\.9 -> 0\.8$") as error:
        train("sr_h", tmp_path, *sets, allow=["lr"])
    assert error.value.hint.endswith("--allow training.ema")
    with pytest.raises(UsageError, match="`--allow rl` names nothing of a recipe") as error:
        train("sr_h", tmp_path, *sets, allow=["lr", "training.ema", "rl"])
    assert error.value.hint == "the changes are training.lr, training.ema"
    report = heard()
    assert train("sr_h", tmp_path, *sets, allow=["lr", "training.ema"], report=report).step == 4
    assert (
        len([w for w in report.warnings if "goes on with a changed recipe: training.lr: 0.001 -> 0.002" in w])
        == 1
    )
    assert train("sr_h", tmp_path, *sets, "train.defaults.steps=5").step == 5, "it is the recipe now"
    again = train("sr_h", tmp_path, *sets, "train.defaults.steps=6", allow=["lr", "training.ema", "seed"])
    assert again.step == 6, "the command that allowed it goes on as it stands"


def spoil(monkeypatch, bad: str, steps: set[int]) -> None:
    """At these steps the loss of the second sample, or the gradient, is no number."""
    original = stages.STAGES["sr_h"]

    def spoiled(task, batch, draws):
        loss = original.loss(task, batch, draws)
        if torch.is_grad_enabled() and spoiled.step in steps:
            if bad == "loss":
                loss = loss * torch.tensor([1.0, float("nan")])
            else:
                loss = loss + (next(task.network.parameters()).sum() * 0).sqrt()
        return loss

    def counted(self, step, batch):
        spoiled.step = step
        return step_of(self, step, batch)

    step_of = Trainer.step
    monkeypatch.setattr(Trainer, "step", counted)
    monkeypatch.setitem(stages.STAGES, "sr_h", dataclasses.replace(original, loss=spoiled))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_the_optimiser(bad, train, tmp_path, monkeypatch):
    spoil(monkeypatch, bad, {3, 4, 5})
    sets = [STEPS, "train.defaults.save_every=1", "train.defaults.retries=0"]
    with pytest.raises(DivergedError, match="stage `sr_h`, step 3") as error:
        train("sr_h", tmp_path, *sets)
    assert error.value.exit_code == 7 and "the checkpoint is from before" in error.value.hint
    assert "the state of step 3 is saved in" in error.value.message
    assert ("samples 1 of the step" if bad == "loss" else "samples 0, 1 of the step") in error.value.message
    pictures = sorted(p.name for p in (tmp_path / "sr_h" / "not-finite" / "0000003").iterdir())
    assert pictures == (["00001.png"] if bad == "loss" else ["00000.png", "00001.png"])
    step, tensors = state(tmp_path, "sr_h")
    assert step == 3 and all(bool(torch.isfinite(v).all()) for v in tensors.values())


def test_bad_steps_are_skipped_as_often_as_the_recipe_says_and_counted_over_a_resume(
    train, heard, tmp_path, monkeypatch
):
    spoil(monkeypatch, "loss", {2, 3, 4})
    sets = [STEPS, "train.defaults.save_every=1"]
    report = heard()
    assert train("sr_h", tmp_path / "three", *sets, "train.defaults.retries=3", report=report).step == 6
    assert len(report.warnings) == 3 and "skipped (3 of 3 in a row)" in report.warnings[-1]
    logged = [line for line in metrics(tmp_path / "three", "sr_h") if "not_finite" in line]
    assert [line["step"] for line in logged] == [3, 4, 5]
    before, after = (
        newest_checkpoint(tmp_path / "three" / "sr_h")[0],
        train("sr_h", tmp_path / "three", *sets, "train.defaults.retries=3"),
    )
    assert before.step == after.step == 6
    with pytest.raises(
        Interrupted, match="the last 2 steps were not finite, .* the state of step 2 is saved"
    ):
        train("sr_h", tmp_path / "two", *sets, "train.defaults.retries=2", report=stop_at(heard, 4))
    assert state(tmp_path / "two", "sr_h")[0] == 2
    with pytest.raises(DivergedError, match="step 4: .* 3 steps in a row"):
        train("sr_h", tmp_path / "two", *sets, "train.defaults.retries=2")


def test_nothing_is_saved_or_exported_in_a_streak_and_nothing_good_is_pushed_out(
    train, tmp_path, monkeypatch
):
    """Two checkpoints were made in the streak before it was given up: they were all that was left."""
    spoil(monkeypatch, "loss", {3, 4, 5})
    sets = [STEPS, "train.defaults.save_every=1", "train.defaults.retries=2"]
    with pytest.raises(DivergedError, match="step 5: .* 3 steps in a row; the state of step 3 is saved"):
        train("sr_h", tmp_path, *sets)
    names = sorted(p.name for p in (tmp_path / "sr_h").glob("step-*"))
    assert names == ["step-0000002", "step-0000003"]
    assert read_header(tmp_path / "weights" / "sr_h.safetensors").step == 3


def test_a_checkpoint_that_was_due_in_a_streak_is_made_when_it_ends(train, tmp_path, monkeypatch):
    spoil(monkeypatch, "loss", {1, 2})
    train("sr_h", tmp_path, STEPS, "train.defaults.save_every=3")
    saved = [line["step"] for line in metrics(tmp_path, "sr_h") if "held_out" in line]
    assert saved == [4, 6]


def test_a_training_that_ends_in_a_streak_says_so_and_keeps_what_was_before(train, tmp_path, monkeypatch):
    spoil(monkeypatch, "loss", {5})
    with pytest.raises(
        DivergedError, match="the last step was not finite, so the end is not saved; the state"
    ):
        train("sr_h", tmp_path, STEPS, "train.defaults.save_every=2")
    assert state(tmp_path, "sr_h")[0] == 4


def test_a_message_never_speaks_of_a_checkpoint_that_is_not_there(train, heard, tmp_path, monkeypatch):
    spoil(monkeypatch, "loss", {0, 1})
    with pytest.raises(DivergedError, match="nothing is saved yet") as error:
        train("sr_h", tmp_path, "train.defaults.retries=0")
    assert error.value.hint.startswith("start again with a lower rate") and "--allow" not in error.value.hint
    with pytest.raises(Interrupted, match="the last step was not finite.*nothing is saved yet") as stopped:
        train("sr_h", tmp_path, report=stop_at(heard, 1))
    assert "to start anew" in stopped.value.hint


def test_the_log_is_json_when_the_loss_is_no_number(train, tmp_path, monkeypatch):
    spoil(monkeypatch, "loss", {1})
    original = Trainer.held_out_loss
    monkeypatch.setattr(Trainer, "held_out_loss", lambda self, held: original(self, held) * float("nan"))
    train("sr_h", tmp_path, STEPS)

    def refuse(word: str) -> None:
        raise AssertionError(f"`{word}` is no JSON")

    files = [tmp_path / "sr_h" / "metrics.jsonl", *(tmp_path / "sr_h").glob("step-*/manifest.json")]
    lines = [line for file in files for line in file.read_text().splitlines() if file.suffix == ".jsonl"]
    told = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [line["held_out"] for line in told if "held_out" in line] == [None] * 3
    assert [json.loads(file.read_text(), parse_constant=refuse) for file in files[1:]]
    assert train("sr_h", tmp_path, STEPS).step == 6, "and it is read again"


def test_weights_of_a_later_step_are_not_overwritten_by_an_older_checkpoints(train, tmp_path):
    train("sr_h", tmp_path, STEPS)
    weights = tmp_path / "weights" / "sr_h.safetensors"
    before = weights.read_bytes()
    (tmp_path / "sr_h" / "step-0000006" / "manifest.json").write_text("{}")
    with pytest.raises(DiskError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", full_disk)
        train("sr_h", tmp_path, STEPS)
    assert weights.read_bytes() == before


def full_disk(*_: object) -> None:
    raise DiskError("stopped here")


def test_tensors_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(DivergedError, match=r"1 tensors are not finite, the first is `network/x`"):
        save_checkpoint(tmp_path, {"network/x": torch.tensor([1.0, float("nan")])}, {"step": 1})
    assert not list(tmp_path.iterdir())


def test_no_global_random_state_is_left_behind(train, tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    train("sr_h", tmp_path)
    assert torch.equal(torch.rand(1), wanted)


# how a step is computed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        "micro_batch=1",
        "recompute=true",
        pytest.param("micro_batch=3", marks=pytest.mark.slow),
    ],
)
def test_memory_and_speed_are_bought_without_changing_what_is_learnt(how, family, train, tmp_path):
    sets = [*parents(family), "train.defaults.batch_size=4", "train.defaults.optimizer=adamw"]
    sets += ["train.defaults.steps=2", "train.defaults.save_every=9"]
    train("interp", tmp_path / "plain", *sets)
    train("interp", tmp_path / "other", *sets, f"train.stages.interp.{how}")
    curves = [
        [m["step_loss"] for m in metrics(tmp_path / n, "interp") if "loss" in m] for n in ("plain", "other")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert (curves[0] == curves[1]) or how != "recompute=true", "dropout is drawn again as it was"


def test_every_block_is_compiled_and_previews_are_not(train, tmp_path, monkeypatch):
    """Torch gives up a function's ninth form without an error, and all blocks of a kind share one function."""
    compiled, with_gradients, compile_ = [], [], torch.compile

    def eager(function, **settings):
        def backend(graph, inputs):
            def run(*arguments):
                with_gradients.append(torch.is_grad_enabled())
                return graph.forward(*arguments)

            compiled.append(graph)
            return run

        return compile_(function, backend=backend, **settings)

    sets = ["train.defaults.steps=2", "train.defaults.save_every=9", "cascade.sr_h.network.num_res_blocks=2"]
    train("sr_h", tmp_path / "plain", *sets)
    monkeypatch.setattr(torch, "compile", eager)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    train("sr_h", tmp_path / "other", *sets, "train.defaults.compile=true")
    assert len(compiled) > 8 and all(with_gradients)
    assert len(with_gradients) == 2 * len(compiled), "each once in each of two steps"
    one, other = ([m for m in metrics(tmp_path / n, "sr_h") if "loss" in m] for n in ("plain", "other"))
    assert [m["step_loss"] for m in one] == pytest.approx([m["step_loss"] for m in other], rel=1e-6)


def test_a_machine_that_cannot_compile_is_told_so(train, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise OSError("No working C++ compiler found")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **settings: compile_(f, backend=broken, **settings))
    torch._dynamo.reset()
    with pytest.raises(RecipeError, match="cannot be had on this machine.*No working C\\+\\+") as error:
        train("sr_h", tmp_path, "train.defaults.compile=true")
    assert "compile: false" in error.value.hint


@pytest.mark.slow
def test_compiled_blocks_learn_what_plain_ones_do(train, tmp_path):
    sets = ["train.stages.sr_h.crop=16", "cascade.sr_h.size=32", "cascade.sr_h.network.image_size=32"]
    sets += ["cascade.sr_h.network.channel_mult=[1]", "train.defaults.steps=2", "train.defaults.save_every=9"]
    train("sr_h", tmp_path / "plain", *sets)
    train("sr_h", tmp_path / "other", *sets, "train.defaults.compile=true")
    curves = [
        [m["step_loss"] for m in metrics(tmp_path / n, "sr_h") if "loss" in m] for n in ("plain", "other")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_two_trainings_of_one_folder_are_refused(train, heard, tmp_path):
    refused = []

    def another() -> None:
        with pytest.raises(UsageError, match="another process is training in"):
            train("sr_h", tmp_path)
        refused.append(True)

    assert train("sr_h", tmp_path, report=heard({2: another})).step == 3 and refused


def test_weights_that_a_kill_kept_from_being_exported_are_exported_at_the_next_start(train, tmp_path):
    train("sr_h", tmp_path)
    weights = tmp_path / "weights" / "sr_h.safetensors"
    wanted = weights.read_bytes()
    weights.unlink()
    kill_after(fork(lambda: temporary_path(weights).touch()), 10)
    assert len(list(weights.parent.iterdir())) == 1
    train("sr_h", tmp_path)
    assert weights.read_bytes() == wanted and [p.name for p in weights.parent.iterdir()] == [weights.name]


def test_each_call_of_the_writer_may_fail_and_the_older_checkpoint_stays(tmp_path):
    """Every call that touches the disk, one after the other, with a full disk, a broken one and one that forbids it."""
    tensors = {"x": torch.arange(50.0)}
    with faults() as counted:
        save_checkpoint(tmp_path / "count", tensors, {"step": 1})
    assert counted.calls >= 15
    for kind in (errno.ENOSPC, errno.EIO, errno.EACCES):
        for number in range(1, counted.calls + 1):
            folder = tmp_path / f"{kind}-{number}"
            save_checkpoint(folder, tensors, {"step": 1})
            with faults(kind, number), suppress(DiskError):
                save_checkpoint(folder, tensors, {"step": 2})
            found, skipped = newest_checkpoint(folder)
            assert found is not None and found.step in (1, 2) and skipped == []
            assert torch.equal(found.tensors()["x"], tensors["x"])
            assert not list(folder.rglob(".*")) and (folder / "step-0000001").is_dir()


@pytest.mark.parametrize("part", ["manifest.json", "state.safetensors"])
def test_a_flipped_bit_or_a_lost_tail_is_always_found(part, tmp_path):
    save_checkpoint(tmp_path, {"x": torch.arange(40.0)}, {"step": 7, "loss": 0.25})
    file = tmp_path / "step-0000007" / part
    data = file.read_bytes()
    rng = random.Random(0)
    for _ in range(64):
        place = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        for harm in (bytes(flipped), data[:place]):
            file.write_bytes(harm)
            assert read_manifest(tmp_path / "step-0000007") is None, (place, harm[place : place + 1])
    file.write_bytes(data)
    assert read_manifest(tmp_path / "step-0000007") is not None


def test_more_or_other_files_than_the_manifest_names_are_damage(tmp_path):
    save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": 1})
    path = tmp_path / "step-0000001"
    (path / "more").write_text("")
    assert read_manifest(path) is None
    (path / "more").unlink()
    state_file = path / "state.safetensors"
    state_file.rename(tmp_path / "elsewhere")
    state_file.symlink_to(tmp_path / "elsewhere")
    assert read_manifest(path) is None
    state_file.unlink()
    (tmp_path / "elsewhere").rename(state_file)
    assert read_manifest(path) is not None
    path.rename(tmp_path / "step-0000002")
    assert read_manifest(tmp_path / "step-0000002") is None, "another step's"


def test_a_checkpoint_of_another_version_is_refused_and_not_called_damaged(train, tmp_path):
    train("sr_h", tmp_path)
    manifest = tmp_path / "sr_h" / "step-0000003" / "manifest.json"
    told = {**json.loads(manifest.read_text()), "schema": 99}
    del told["manifest_sha256"]
    manifest.write_text(json.dumps({**told, "manifest_sha256": checkpoint_module._digest(told)}))
    with pytest.raises(WeightsError, match="another version of mav: its schema is 99"):
        train("sr_h", tmp_path)


def test_tensorboard_is_an_extra(train, tmp_path):
    sets = ["train.tensorboard=true"]
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(RecipeError, match="TensorBoard is not installed") as error:
            train("sr_h", tmp_path, *sets)
        assert "mavcli[tensorboard]" in error.value.hint
    else:
        train("sr_h", tmp_path, *sets)
        assert list((tmp_path / "sr_h" / "tensorboard").iterdir())


def test_the_frame_rates_of_clips_are_counted_in_the_log(family, train, tmp_path):
    train("interp", tmp_path, *parents(family))
    counted = [line["fps"] for line in metrics(tmp_path, "interp") if "fps" in line]
    assert sum(sum(bins.values()) for bins in counted) == 3 * 2, "three steps of two clips"
