"""What `mav estimate` says can be relied on: counts are exact, parts add up, and what it advises does fit."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mavcli.cli.app import run as mav
from mavcli.engine.assemble import on_meta
from mavcli.engine.backend import Backend
from mavcli.errors import UsageError
from mavcli.recipe.load import LoadedRecipe, list_recipes, load_recipe
from mavcli.recipe.resolve import Machine
from mavcli.training.checkpoint import save_checkpoint
from mavcli.training.estimate import (
    GIB,
    USABLE,
    Devices,
    estimate_generation,
    estimate_stage,
    find_devices,
)
from mavcli.training.stages import STAGES, get_stage
from mavcli.training.start import build_task
from mavcli.training.trainer import Trainer

Tiny = Callable[..., LoadedRecipe]
ELSEWHERE = Devices("cuda", 1, 80 * GIB, "bfloat16", False, "a GPU", 300e12)
# unCLIP's text encoder of 24 layers and width 2048, which Make-A-Video's decoder does without
TEXT_ENCODER = 24 * 12 * 2048**2


@pytest.mark.parametrize("name", list_recipes())
def test_every_network_of_every_shipped_recipe_can_be_built(name: str) -> None:
    recipe = load_recipe(name).recipe
    for stage in STAGES.values():
        assert sum(p.numel() for p in on_meta(stage.network(recipe)).parameters()) > 0


@pytest.mark.parametrize(
    ("stage", "beside", "published", "within"),
    [
        ("decoder", TEXT_ENCODER, 3.5e9, 0.02),
        ("sr_l", 0, 700e6, 0.02),
        ("sr_h", 0, 300e6, 0.12),  # printed with one digit: 250 to 350 million
        ("prior", 0, 1e9, 0.3),  # likewise, and ours reads the states of CLIP's text tower
    ],
)
def test_the_paper_recipe_has_the_published_sizes(
    stage: str, beside: int, published: float, within: float
) -> None:
    network = on_meta(get_stage(stage).network(load_recipe("paper").recipe))
    count = sum(p.numel() for p in network.parameters()) + beside
    assert count == pytest.approx(published, rel=within)


def test_parameters_and_checkpoints_are_those_of_the_real_thing(
    tiny: Tiny, backend: Backend, tmp_path: Path
) -> None:
    recipe = tiny(tmp_path).recipe
    estimate = estimate_stage(recipe, "sr_l", devices=ELSEWHERE)
    stage = get_stage("sr_l")
    task, _ = build_task(stage, recipe, backend=backend)
    trainer = Trainer(task, stage, backend)
    assert (estimate.parameters, estimate.trained) == (
        sum(p.numel() for p in task.network.parameters()),
        trainer.count,
    )
    batch = _batch(recipe)
    trainer.step(0, batch)
    folder = save_checkpoint(tmp_path / "run", trainer.tensors(), {"step": 1})
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert written == pytest.approx(estimate.checkpoint_bytes, rel=0.1)


def _batch(recipe: object) -> object:
    from mavcli.training.step_cost import blank_batch

    config = recipe.stage("sr_l")  # type: ignore[attr-defined]
    return blank_batch(get_stage("sr_l"), recipe, config, samples=2, device=torch.device("cpu"))  # type: ignore[arg-type]


def test_the_parts_of_the_memory_add_up_and_fsdp_divides_them(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "train.stages.decoder_t.batch_size=8").recipe
    eight = dataclasses.replace(ELSEWHERE, processes=8)
    one = estimate_stage(recipe, "decoder_t", devices=ELSEWHERE)
    assert one.memory.total == sum(dataclasses.astuple(one.memory))
    assert one.memory.weights == one.memory.average == 4 * one.parameters
    assert (one.at_once, one.processes, one.memory.exchange) == (8, 1, 0)
    shared = estimate_stage(
        tiny(tmp_path, "train.stages.decoder_t.batch_size=8", "train.stages.decoder_t.sharding=fsdp").recipe,
        "decoder_t",
        devices=eight,
    )
    assert shared.memory.weights == one.memory.weights // 8 and shared.memory.exchange > 0
    assert (shared.at_once, shared.memory.frozen) == (1, one.memory.frozen)
    assert shared.flops_per_step == one.flops_per_step
    assert shared.seconds_per_step == pytest.approx(one.seconds_per_step / 8)


@pytest.mark.parametrize("stage", ["decoder_t", "clip", "prior"])
def test_what_is_advised_does_fit(stage: str, tiny: Tiny, tmp_path: Path) -> None:
    sets = [f"train.stages.{stage}.batch_size=64"]
    recipe = tiny(tmp_path, *sets).recipe
    roomy = estimate_stage(recipe, stage, devices=ELSEWHERE)
    assert roomy.fits and not roomy.advice
    state = roomy.memory.total - roomy.memory.activations
    tight = dataclasses.replace(ELSEWHERE, memory=round((state + 0.3 * roomy.memory.activations) / USABLE))
    refused = estimate_stage(recipe, stage, devices=tight)
    assert refused.fits is False and refused.advice
    helped = estimate_stage(tiny(tmp_path, *sets, *refused.advice).recipe, stage, devices=tight)
    assert helped.fits
    hopeless = estimate_stage(recipe, stage, devices=dataclasses.replace(ELSEWHERE, memory=1000))
    assert hopeless.fits is False and hopeless.advice == ()


def test_two_steps_are_timed_where_the_stage_fits(tiny: Tiny, backend: Backend, tmp_path: Path) -> None:
    recipe = tiny(tmp_path).recipe
    here = Devices("cpu", 1, 8 * GIB, "float32", True, "this CPU", 1e9, backend)
    probed = estimate_stage(recipe, "sr_l", devices=here)
    assert (
        probed.how.startswith("two steps here")
        and probed.memory_from == f"seen in a step of {probed.probed} here"
    )
    assert 0 < probed.seconds_per_step < 60
    assert probed.seconds == probed.seconds_per_step * probed.steps
    reckoned = estimate_stage(recipe, "sr_l", devices=here, probe=False)
    assert reckoned.how.startswith("from its FLOPs") and reckoned.flops_per_step == probed.flops_per_step
    assert reckoned.seconds_per_step == pytest.approx(reckoned.flops_per_step / 1e9)


def test_gpus_that_are_not_here_are_assumed_and_said_to_be(tiny: Tiny, tmp_path: Path) -> None:
    machine = Machine(cores=2, memory=16 * GIB)
    wanted = load_recipe("pocket", overrides={"hardware.backend": "multi-gpu"}).recipe
    found = find_devices(wanted, machine=machine)
    assert (found.kind, found.here, found.memory) == (
        "cuda",
        False,
        80 * GIB,
    ) and "not of this machine" in found.why
    asked = find_devices(tiny(tmp_path).recipe, machine=machine, gpus=2, memory=24 * GIB, rate=5e13)
    assert (asked.processes, asked.memory, asked.rate, asked.backend) == (2, 24 * GIB, 5e13, None)
    with torch.random.fork_rng():
        local = find_devices(tiny(tmp_path).recipe, machine=machine)
    assert (local.kind, local.here, local.memory) == ("cpu", True, 16 * GIB) and local.rate > 1e8


def test_a_clip_costs_its_networks_calls(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(tmp_path).recipe
    once = estimate_generation(recipe, devices=ELSEWHERE)
    assert [piece.piece for piece in once.pieces] == ["clip", "prior", "decoder_t", "interp", "sr_l", "sr_h"]
    assert once.flops == sum(piece.flops for piece in once.pieces) > 0
    twice = estimate_generation(tiny(tmp_path, "cascade.decoder.sampler.steps=4").recipe, devices=ELSEWHERE)
    named = estimate_generation(
        tiny(tmp_path, "cascade.decoder.sampler.steps=[40, 30, 20, 0]").recipe, devices=ELSEWHERE
    )
    costs = [{p.piece: p.flops for p in g.pieces} for g in (once, twice, named)]
    assert costs[1]["decoder_t"] == 2 * costs[0]["decoder_t"] and costs[1]["sr_h"] == costs[0]["sr_h"]
    assert costs[2] == costs[1]
    assert [{p.piece: p.calls for p in g.pieces}["decoder_t"] for g in (once, twice, named)] == [2, 4, 4]
    with pytest.raises(UsageError, match="no video"):
        estimate_generation(
            tiny(
                tmp_path, "cascade.decoder.network.temporal=none", "cascade.decoder.network.fps=false"
            ).recipe,
            devices=ELSEWHERE,
        )


def test_mav_estimate_tells_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert mav(["estimate", "tiny", "sr_l", "--gpus", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 GPUs of 80 GiB, not of this machine" in out and "moving average" in out
    assert "with `recompute: true`" in out


def test_mav_estimate_needs_no_gpu_for_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert mav(["estimate", "paper", "prior", "--json", "--memory", "12"]) == 0
    told = json.loads(capsys.readouterr().out)
    (stage,) = told["stages"]
    assert stage["parameters"] == told["parameters"] > 1e9 and stage["fits"] is False
    assert told["generation"] is None and told["devices"]["here"] is False


def test_mav_estimate_tells_every_stage_of_a_rehearsal(capsys: pytest.CaptureFixture[str]) -> None:
    """CLIP's tower of residual blocks ends in one pixel here: a batch norm needs two pictures."""
    assert mav(["estimate", "tiny", "--json", "--no-probe"]) == 0
    assert [stage["stage"] for stage in json.loads(capsys.readouterr().out)["stages"]] == list(STAGES)


def test_a_stage_that_the_family_lacks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert mav(["estimate", "my-data", "sr_h"]) == 2
    assert (
        "the family `my-data` has no stage `sr_h`: `cascade.sr_h.kind` is `none`" in capsys.readouterr().err
    )


def test_a_stage_that_is_not_there_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert mav(["estimate", "pocket", "decodr"]) == 2
    assert "did you mean `decoder`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_paper_is_estimated_within_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    assert mav(["estimate", "paper", "--json"]) == 0
    assert time.process_time() - started < 60
    told = json.loads(capsys.readouterr().out)
    recipe = load_recipe("paper").recipe
    networks = {
        name: sum(p.numel() for p in on_meta(stage.network(recipe)).parameters())
        for name, stage in STAGES.items()
    }
    assert {stage["stage"]: stage["parameters"] for stage in told["stages"]} == networks
    assert all(stage["memory_total"] > 0 and stage["flops_per_step"] > 0 for stage in told["stages"])


def test_mav_estimate_counts_what_a_recipe_trains_and_not_what_it_imports(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = ["--set", "train.data.pairs=null"]
    assert mav(["estimate", "tiny", "--json", "--no-probe", "--gpus", "1", *sets]) == 0
    trained = [stage["stage"] for stage in json.loads(capsys.readouterr().out)["stages"]]
    assert trained == [stage for stage in STAGES if stage not in ("clip", "prior")]


def test_mav_estimate_counts_the_towers_for_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert mav(["estimate", "tiny", "clip", "--json", "--gpus", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["stage"] == "clip"
