"""Dropout whose mask belongs to the sample, so that neither its neighbours in a batch nor its process change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SampleDropout(nn.Module):
    """In place of `nn.Dropout`: each sample's mask is drawn on x's device from `seeds` and the layer's `number`.

    x is (n, ...) with n a multiple of the samples (frames are folded into the batch). Without seeds nothing is dropped.
    """

    def __init__(self, p: float, number: int) -> None:
        super().__init__()
        self.p, self.number = p, number
        self.seeds: Sequence[int] = ()

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.seeds):
            return x
        keep = torch.empty((len(self.seeds), x.numel() // len(self.seeds)), device=x.device)
        generator = torch.Generator(x.device)
        for row, seed in zip(keep, self.seeds, strict=True):
            row.bernoulli_(1 - self.p, generator=generator.manual_seed(seed + self.number))
        return x * (keep.view(x.shape) / (1 - self.p)).to(x.dtype)


def own_dropout(network: nn.Module) -> list[SampleDropout]:
    """Replace every `nn.Dropout` that drops anything, and return what stands there now."""
    layers: list[SampleDropout] = []
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0:
                layers.append(SampleDropout(child.p, 7919 * len(layers)))
                setattr(module, name, layers[-1])
    return layers


@contextmanager
def dropping(layers: Sequence[SampleDropout], seeds: Sequence[int]) -> Iterator[None]:
    """Run with the masks of these samples; the backward pass belongs inside, it may run layers again."""
    for layer in layers:
        layer.seeds = seeds
    try:
        yield
    finally:
        for layer in layers:
            layer.seeds = ()
