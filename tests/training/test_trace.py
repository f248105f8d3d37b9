"""What is counted is what torch counts, and what lives is what was made and not yet freed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mavcli.engine.backend import Backend
from mavcli.engine.cost import parameter_count
from mavcli.models.convolution import direct
from mavcli.recipe.load import LoadedRecipe
from mavcli.training.stages import STAGES, get_stage
from mavcli.training.step_cost import count_step, probe_step
from mavcli.training.trace import MetaAutocast, Trace

Tiny = Callable[..., LoadedRecipe]
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_the_peak_is_the_most_that_lived_at_once(device: torch.device) -> None:
    x = torch.zeros(1000, device=device)
    with Trace(device=device, known=[x]) as trace:
        a = x + 1  # 4,000 bytes
        b = a * 2  # 8,000
        a.add_(1)  # in place: nothing new
        c = b.view(10, 100).T  # a view: nothing new
        del a, b  # 4,000: the view holds b
        d = c.sum() + c.double()[:5]  # 4, 8,000 and 400 bytes more
    assert trace.peak() == 4_000 + 4 + 8_000 + 400
    assert trace.curve([c]) == ((8_404, 4_000),)
    assert d.shape == (5, 10)


def test_tensors_that_were_there_before_do_not_count() -> None:
    layer = nn.Linear(8, 8)
    x = torch.zeros(4, 8)
    with Trace(device=CPU, known=[*layer.parameters(), x]) as trace:
        y = layer(x)
        assert layer.weight.view(-1).shape == (64,)
    assert trace.peak() == y.numel() * 4


@pytest.mark.parametrize("name", STAGES)
def test_flops_are_those_of_torchs_counter(name: str, tiny: Tiny, backend: Backend, tmp_path: Path) -> None:
    recipe = tiny(tmp_path, f"train.stages.{name}.optimizer=adamw").recipe  # Muon multiplies matrices too
    stage, config = get_stage(name), recipe.stage(name)
    with direct(), FlopCounterMode(display=False) as counter:
        probe = probe_step(stage, recipe, config, backend=backend, samples=2)
    watched = probe.cost.forward + probe.cost.backward
    assert 2 * watched == counter.get_total_flops() > 0  # the second pass is timed, not watched


@pytest.mark.parametrize("name", ["sr_l", "sr_lt", "decoder_t", "prior"])
def test_meta_tensors_tell_the_flops_of_real_ones(
    name: str, tiny: Tiny, backend: Backend, tmp_path: Path
) -> None:
    recipe = tiny(tmp_path).recipe
    stage, config = get_stage(name), recipe.stage(name)
    counted = count_step(stage, recipe, config, dtype=torch.float32, samples=2)
    real = probe_step(stage, recipe, config, backend=backend, samples=2).cost
    assert (counted.parameters, counted.trained, counted.frozen) == (
        real.parameters,
        real.trained,
        real.frozen,
    )
    # CUDA's fused attention computes its scores again in the backward pass; convolutions are the same
    assert counted.forward == real.forward
    assert real.backward <= counted.backward <= (real.backward if "sr" in name else 1.1 * real.backward)


def test_what_captions_tell_of_clips_costs_the_calls_of_the_prior(
    tiny: Tiny, backend: Backend, tmp_path: Path
) -> None:
    plain, told = tiny(tmp_path).recipe, tiny(tmp_path, "train.stages.decoder_t.told_by=caption").recipe
    stage = get_stage("decoder_t")
    without, counted = (
        count_step(stage, recipe, recipe.stage(stage.name), dtype=torch.float32, samples=2)
        for recipe in (plain, told)
    )
    real = probe_step(stage, told, told.stage(stage.name), backend=backend, samples=2).cost
    assert counted.frozen == real.frozen == without.frozen + parameter_count(told.cascade.prior.network)
    assert counted.forward == real.forward > without.forward
    assert counted.backward - without.backward == 0  # P does not train


def test_recomputing_costs_a_forward_pass_and_saves_memory(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(tmp_path).recipe
    stage, config = get_stage("decoder_t"), recipe.stage("decoder_t")
    kept = count_step(stage, recipe, config, dtype=torch.bfloat16)
    again = count_step(stage, recipe, config.model_copy(update={"recompute": True}), dtype=torch.bfloat16)
    assert again.forward == kept.forward
    assert 0.7 * kept.forward < again.backward - kept.backward <= kept.forward
    assert again.activations(4, gradients_before=True) < 0.6 * kept.activations(4, gradients_before=True)


def test_activations_grow_with_the_samples_as_counted(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(tmp_path).recipe
    stage, config = get_stage("decoder_t"), recipe.stage("decoder_t")
    one = count_step(stage, recipe, config, dtype=torch.bfloat16, samples=1)
    four = count_step(stage, recipe, config, dtype=torch.bfloat16, samples=4)
    assert four.flops_per_sample == pytest.approx(one.flops_per_sample, rel=0.01)
    for before in (False, True):
        predicted = one.activations(4, gradients_before=before)
        seen = four.activations(4, gradients_before=before)
        assert 0.98 * seen <= predicted <= 1.12 * seen  # rather too much than too little


def test_meta_tensors_are_cast_as_autocast_casts_on_cuda() -> None:
    conv, norm = nn.Conv2d(4, 8, 3, device=META), nn.GroupNorm(2, 8, device=META)
    with MetaAutocast(torch.bfloat16) as autocast:
        y = conv(torch.empty(2, 4, 8, 8, device=META))
        z = norm(y)
        conv(torch.empty(2, 4, 8, 8, device=META))
        q = torch.empty(2, 2, 16, 8, device=META)
        attended = F.scaled_dot_product_attention(q, q, q)
    assert (y.dtype, z.dtype, attended.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert autocast.weight_bytes == 2 * sum(p.numel() for p in conv.parameters())  # once, and not the norm's
    with MetaAutocast(torch.float32):
        assert conv(torch.empty(2, 4, 8, 8, device=META)).dtype == torch.float32
