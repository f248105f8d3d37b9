"""CUDA graphs: the forward and the backward pass of a U-Net, recorded once for each form of its input and then replayed.

A small network is done with a layer before Python has launched the next: pocket's `interp` makes thousands of launches a step,
and the GPU waits for half of its time (`benchmarks/README.md`). A replay launches all of a pass at once.

A graph reads and writes the memory that it was recorded with. So inputs are copied in, parameters may change in their places
only, as optimisers do it, and a step's gradients lie where the next step's will: no pass may add to another's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from mavcli.models.embeddings import Condition
from mavcli.models.unet import UNet


class Recorded:
    """In place of a U-Net's `forward`: replays where gradients are wanted, and runs it as it is where they are not.

    Every form of the input (which parts of the condition are there, shapes, types) has a graph of its own, recorded when it
    first comes. Previews and held-out losses want no gradients.
    """

    def __init__(self, network: UNet) -> None:
        self.network, self.forward = network, network.forward
        self._graphs: dict[tuple[object, ...], Callable[..., Tensor]] = {}
        # Gradients are summed up on another stream than the one that recorded; with one pass a step they are only taken.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(x, t, condition)
        parts = {f.name: getattr(condition or Condition(), f.name) for f in fields(Condition)}
        told = {name: value for name, value in parts.items() if value is not None}
        inputs = (x, t, *told.values())
        form = (tuple(told), *((value.shape, value.dtype) for value in inputs))
        if form not in self._graphs:
            self._graphs[form] = self._record(tuple(told), inputs)
        return self._graphs[form](*inputs)

    def _record(self, told: tuple[str, ...], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        flat = _Flat(self.network, self.forward, told).train(self.network.training)
        # A cast weight that autocast kept would be the one of the recording for ever.
        kind = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", kind, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
            return torch.cuda.make_graphed_callables(  # type: ignore[return-value]
                flat, tuple(value.clone() for value in inputs), allow_unused_input=True
            )


class _Flat(nn.Module):
    """A U-Net as a function of tensors alone, with the parameters that a graph must know of."""

    def __init__(self, network: UNet, forward: Callable[..., Tensor], told: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.told = network, told
        self.run = forward

    def forward(self, x: Tensor, t: Tensor, *told: Tensor) -> Tensor:
        return self.run(x, t, Condition(**dict(zip(self.told, told, strict=True))))
