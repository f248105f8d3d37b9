"""The same code on a GPU: the numbers are the CPU's but for rounding. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_family import tiny_recipe

from mavcli.engine.backend import Backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.models.normalisation import GroupNorm
from mavcli.recipe.load import load_recipe
from mavcli.report import Silent
from mavcli.training.draws import Draws
from mavcli.training.loop import train_stage
from mavcli.weights.provenance import load_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CPU, CUDA = (Backend(torch.device(name), torch.float32, 1) for name in ("cpu", "cuda"))


@pytest.fixture(autouse=True)
def _exact_products():
    """Without TF32, which keeps ten bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_a_text_becomes_the_same_video(tiny: Path):
    def make(backend: Backend) -> torch.Tensor:
        recipe = tiny_recipe(tiny)
        cascade = Cascade(
            recipe, find_family(recipe, ("clip", "prior", "decoder_t", "interp", "sr_l", "sr_h")), backend
        )
        return cascade.text_to_video(["a dog surfing"], [Draw(0)], fps=24, frames=11).cpu()

    here, there = make(CPU), make(CUDA)
    assert float((here - there).abs().mean()) < 1e-3 and float(here.std()) > 0.01


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "sr_l", "interp"])
def test_a_stage_learns_the_same(stage: str, tmp_path: Path):
    """The average of three steps on each device, against what three steps change."""
    from training.conftest import RECIPE

    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    found = {}
    for name, backend in (("cpu", CPU), ("cuda", CUDA)):
        out = tmp_path / name
        sets = [
            f"train.out={out}",
            f"weights.dir={out}/none",
            "train.defaults.optimizer=adamw",
            "train.defaults.lr=1e-4",
        ]
        before = {"prior": ["clip"], "decoder": ["clip"], "interp": ["clip", "decoder", "decoder_t"]}.get(
            stage, []
        )
        for each in before:
            train_stage(load_recipe(path, sets=sets), each, backend=CPU, report=Silent())
        result = train_stage(load_recipe(path, sets=sets), stage, backend=backend, report=Silent())
        found[name] = result, load_weights(result.weights)
    assert found["cuda"][0].loss == pytest.approx(found["cpu"][0].loss, rel=1e-3)
    assert found["cuda"][0].held_out == pytest.approx(found["cpu"][0].held_out, rel=1e-3)


def test_a_recorded_step_is_the_step(tmp_path: Path):
    """Six steps of clips and of stills in turn, with CUDA graphs and without: the same losses and weights."""
    from training.conftest import RECIPE

    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    found = []
    for graphs in ("false", "true"):
        sets = [
            f"train.out={tmp_path / graphs}",
            f"weights.dir={tmp_path}/none",
            "train.defaults.optimizer=adamw",
            "train.defaults.lr=1e-3",
            "train.defaults.steps=6",
            "train.defaults.image_batch=0.5",
            "cascade.decoder.network.dropout=0",
            "train.defaults.log_every=1",
        ]
        for each in ("clip", "decoder", "decoder_t"):
            train_stage(
                load_recipe(path, sets=[*sets, "train.defaults.image_batch=0"]),
                each,
                backend=CPU,
                report=Silent(),
            )
        loaded = load_recipe(path, sets=[*sets, f"train.defaults.cuda_graphs={graphs}"])
        result = train_stage(loaded, "interp", backend=CUDA, report=Silent())
        found.append((result, load_weights(result.weights)))
    (plain, weights), (recorded, same) = found
    assert recorded.loss == pytest.approx(plain.loss, rel=1e-4)
    assert recorded.held_out == pytest.approx(plain.held_out, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(same[name].float(), value.float(), rtol=1e-2, atol=2e-3, msg=name)


def test_noise_is_the_cpus():
    here, there = (
        Draws(1, stage="s", step=2, count=3).normal((3, 4, 5), device=torch.device(name)).cpu()
        for name in ("cpu", "cuda")
    )
    assert torch.equal(here, there)


def test_the_norm_keeps_its_type_and_layout_under_autocast():
    x = torch.randn(4, 64, 8, 8, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        y = GroupNorm(32, 64).cuda()(x, activation="silu")
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
