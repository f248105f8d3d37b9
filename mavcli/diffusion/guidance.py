"""Classifier-free guidance (arXiv 2207.12598): a network and a condition become a denoiser for the samplers.

The network and the condition are taken as they behave, so that this floor knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from mavcli.diffusion.process import Prediction, read_output
from mavcli.diffusion.samplers import Denoise
from mavcli.diffusion.schedule import Schedule


class Guidable(Protocol):
    """What guidance needs of a network's condition."""

    def without_conditioning(self) -> Self:
        """The same rows with what is guided on (text, image embedding) replaced by nothing."""
        ...

    @classmethod
    def cat(cls, conditions: Sequence[Self], /) -> Self:
        """The rows of all `conditions` in one, on the batch axis."""
        ...


C = TypeVar("C", bound=Guidable)


def guided(
    network: Callable[[Tensor, Tensor, C], Tensor],
    condition: C,
    *,
    schedule: Schedule,
    scale: float = 1.0,
    clip_x0: float | None = None,
    channel_dim: int = 2,
) -> Denoise:
    """A denoiser that calls `network(x, t, condition)`, guides the prediction and clamps x0 to +- `clip_x0`.

    Scale 1 is the conditional network and 0 the unconditional one, each alone; any other scale runs both in
    one batch of twice the rows, the conditional half first. What is guided is the predicted value (epsilon,
    x0 or v); a learned variance is the conditional half's, as in Karlo. The network gets t on x's device;
    `channel_dim` as in `read_output`.
    """
    both = scale not in (0.0, 1.0)
    if both:
        condition = type(condition).cat([condition, condition.without_conditioning()])
    elif scale == 0.0:
        condition = condition.without_conditioning()

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        on_device = t.to(x_t.device)
        if not both:
            output = network(x_t, on_device, condition)
        else:
            doubled = network(torch.cat([x_t, x_t]), torch.cat([on_device, on_device]), condition)
            # a reduced-precision output: the scale would amplify the rounding of the difference
            doubled = doubled.to(x_t.dtype)
            output = _combine(doubled, scale=scale, channels=x_t.shape[channel_dim], channel_dim=channel_dim)
        return read_output(schedule, output, x_t=x_t, t=t, clip_x0=clip_x0, channel_dim=channel_dim)

    return denoise


def _combine(doubled: Tensor, *, scale: float, channels: int, channel_dim: int) -> Tensor:
    """The conditional half, its first `channels` (the value) pushed away from the unconditional half's."""
    conditional, unconditional = doubled.chunk(2)
    value = conditional.narrow(channel_dim, 0, channels)
    base = unconditional.narrow(channel_dim, 0, channels)
    variance = conditional.narrow(channel_dim, channels, conditional.shape[channel_dim] - channels)
    return torch.cat([base + scale * (value - base), variance], dim=channel_dim)
