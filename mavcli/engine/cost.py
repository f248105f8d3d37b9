"""What one call of a network costs, from its layers alone: the unit of the one honest bar.

Nothing runs: PyTorch's counters, and operations on its tensors without memory, import the compiler, which takes seconds.
"""

from __future__ import annotations

from functools import lru_cache

from torch import nn

from mavcli.engine.assemble import on_meta
from mavcli.models.pseudo3d import TemporalAttention
from mavcli.models.unet import AttentionBlock, Downsample, ResBlock, Stage, UNet, Upsample
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec


@lru_cache(maxsize=32)
def without_memory(spec: ClipSpec | PriorSpec | UNetSpec) -> nn.Module:
    """The network of a spec on `meta`, always the same one: to be looked at only."""
    return on_meta(spec)


@lru_cache(maxsize=32)
def network_cost(spec: UNetSpec, size: int, *, frames: int = 16) -> float:
    """Multiplications for one frame, of `frames`, of `size` pixels a side: convolutions and attention, as they are defined.

    What a clip needs once (the embeddings of t, text and frame rate) is left out.
    """
    network = without_memory(spec)
    assert isinstance(network, UNet)
    stages = [*network.input_blocks, network.middle_block, *network.output_blocks]
    total, side = 0.0, size // spec.patch
    for stage in stages:
        assert isinstance(stage, Stage)
        for layer in stage:
            total, side = total + _cost(layer, side, frames), _side_after(layer, side)
    gate = [] if network.mask_gate is None else [network.mask_gate]
    return total + _weights(*network.out, *gate) * side**2


@lru_cache(maxsize=32)
def parameter_count(spec: ClipSpec | PriorSpec | UNetSpec) -> int:
    """The parameters of a network; of a transformer, about the multiplications for one of its tokens."""
    return sum(p.numel() for p in without_memory(spec).parameters())


def _side_after(layer: nn.Module, side: int) -> int:
    if isinstance(layer, Downsample) or (isinstance(layer, ResBlock) and layer.resample == "down"):
        return side // 2
    if isinstance(layer, Upsample) or (isinstance(layer, ResBlock) and layer.resample == "up"):
        return side * 2
    return side


def _cost(layer: nn.Module, side: int, frames: int) -> float:
    """One layer on pictures of `side` pixels; whatever changes the side convolves on the new one."""
    pixels = _side_after(layer, side) ** 2
    if not isinstance(layer, AttentionBlock):
        return _weights(layer) * pixels
    width = layer.proj_out.in_channels
    cost = _weights(layer.qkv, layer.proj_out) * pixels + 2.0 * width * pixels**2
    if layer.temporal is not None:
        cost += _over_time(layer.temporal, width, frames) * pixels
    return cost


def _over_time(layer: TemporalAttention, width: int, frames: int) -> float:
    """A pixel's."""
    return layer.qkv.weight.numel() + layer.proj_out.weight.numel() + 2 * width * frames


def _weights(*layers: nn.Module) -> int:
    """Weights of the convolutions among the layers and in them."""
    convolutions = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
    return sum(m.weight.numel() for m in convolutions)
