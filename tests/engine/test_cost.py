"""The cost of a network is what PyTorch's own counter finds, and finding it imports no compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mavcli.engine.assemble import on_meta
from mavcli.engine.cost import network_cost
from mavcli.models.embeddings import Condition
from mavcli.recipe.load import load_recipe
from mavcli.specs import UNetSpec

FRAMES = 4


def counted(spec: UNetSpec, size: int, frames: int) -> float:
    """Multiplications of one frame, watched while the network runs on tensors without memory."""

    def blank(channels: int) -> torch.Tensor:
        return torch.empty(1, frames, channels, size, size, device="meta")

    network = on_meta(spec)
    condition = Condition(
        image_embedding=None if spec.clip_dim is None else torch.empty(1, spec.clip_dim, device="meta"),
        low_res=blank(spec.low_res_channels) if spec.low_res_channels else None,
        masked_video=blank(spec.mask_channels) if spec.mask_channels else None,
        fps=torch.empty(1, device="meta") if spec.fps else None,
        noise_level=torch.empty(1, device="meta") if spec.noise_level else None,
    )
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(blank(spec.in_channels), torch.empty(1, device="meta"), condition)
    return counter.get_total_flops() / 2 / frames


@pytest.mark.parametrize("recipe", ["pocket", "paper", "karlo"])
@pytest.mark.parametrize("piece", ["decoder", "sr_l", "sr_h"])
def test_the_cost_is_what_a_run_would_multiply(recipe, piece):
    spec = getattr(load_recipe(recipe).recipe.cascade, piece).network
    if spec.text != "none":
        spec = spec.model_copy(update={"text": "none"})
    frames = FRAMES if spec.temporal != "none" else 1
    size = 64
    assert network_cost(spec, size, frames=frames) == pytest.approx(counted(spec, size, frames), rel=0.02)


def test_a_picture_of_twice_the_side_costs_four_times_as_much():
    spec = load_recipe("pocket").recipe.cascade.sr_h.network
    assert network_cost(spec, 128) == pytest.approx(4 * network_cost(spec, 64), rel=1e-6)


def test_the_bar_imports_no_compiler():
    code = """if True:
        import sys
        from mavcli.engine.cost import network_cost, parameter_count
        from mavcli.recipe.load import load_recipe
        parts = load_recipe("pocket").recipe.cascade
        assert network_cost(parts.decoder.network, 64) > 1e8 and parameter_count(parts.prior.network) > 1e6
        print(*(m for m in ("torch._dynamo", "sympy", "triton", "open_clip") if m in sys.modules))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
