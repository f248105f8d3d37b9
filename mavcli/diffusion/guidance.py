"""Classifier-free guidance (arXiv 2207.12598): a network and a condition become a denoiser for the samplers.

`emphatic` is what guidance does at no network call: what a network is told, told louder.

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
from mavcli.specs import SamplerSpec


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


class Scalable(Protocol):
    """What `emphatic` needs of a network's condition."""

    def scaled(self, factor: Tensor) -> Self:
        """The same with what is guided on times factor (b,)."""
        ...


S = TypeVar("S", bound=Scalable)


def emphatic(
    network: Callable[[Tensor, Tensor, S], Tensor], spec: SamplerSpec, *, timesteps: int
) -> Callable[[Tensor, Tensor, S], Tensor]:
    """`network`, with its condition times `spec.embedding_scale` in the rows whose step lies in `spec.embedding_interval`.

    Beyond the lengths that it was trained on, a network goes on where the condition turned it: above 1 it draws more surely
    what it is told, as under guidance, but in one row instead of two. Steps of T = `timesteps`, see `guides`.
    """
    if spec.embedding_scale == 1.0:
        return network

    def call(x_t: Tensor, t: Tensor, condition: S) -> Tensor:
        inside = guides(timesteps, spec.embedding_interval, t)
        return network(x_t, t, condition.scaled(torch.where(inside, spec.embedding_scale, 1.0)))

    return call


def guided(
    network: Callable[[Tensor, Tensor, C], Tensor],
    condition: C,
    spec: SamplerSpec,
    *,
    schedule: Schedule,
    channel_dim: int = 2,
) -> Denoise:
    """A denoiser that calls `network(x, t, condition)`, guides the prediction and clamps x0 to +- `spec.clip_x0`.

    `spec.guidance_scale` 1 is the conditional network and 0 the unconditional one, each alone; any other scale runs both
    in one batch of twice the rows, the conditional half first. What is guided is the predicted value (epsilon, x0 or v);
    a learned variance is the conditional half's, as in Karlo. Steps outside of `spec.guidance_interval`, see `guides`, are
    the conditional network's alone (arXiv 2404.07724). The network gets t on x's device; `channel_dim` as in `read_output`.
    ValueError where the rows of one call are not all in the interval or all outside of it.
    """
    scale, interval = spec.guidance_scale, spec.guidance_interval
    nothing = condition.without_conditioning() if scale != 1.0 else condition
    doubled = type(condition).cat([condition, nothing]) if scale not in (0.0, 1.0) else None

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        on_device = t.to(x_t.device)
        guiding = guides(schedule.spec.timesteps, interval, t)
        if bool(guiding.any()) != bool(guiding.all()):
            raise ValueError(f"steps {t.tolist()} lie on both sides of the guidance interval {interval}")
        if not guiding.all() or scale == 1.0:
            output = network(x_t, on_device, condition)
        elif doubled is None:
            output = network(x_t, on_device, nothing)
        else:
            both = network(torch.cat([x_t, x_t]), torch.cat([on_device, on_device]), doubled)
            # a reduced-precision output: the scale would amplify the rounding of the difference
            both = both.to(x_t.dtype)
            output = _combine(both, scale=scale, channels=x_t.shape[channel_dim], channel_dim=channel_dim)
        return read_output(schedule, output, x_t=x_t, t=t, clip_x0=spec.clip_x0, channel_dim=channel_dim)

    return denoise


def guides(timesteps: int, interval: tuple[float, float], t: Tensor) -> Tensor:
    """Which of the steps t, of a process of T = `timesteps`, lie in `interval`: low <= t / T <= high, a bool for each."""
    low, high = interval
    return (t >= low * timesteps) & (t <= high * timesteps)


def rows_per_sample(spec: SamplerSpec, schedule: Schedule) -> int:
    """How many rows the network sees for one sample: one a step, and a second one where it is guided."""
    steps = schedule.visited(spec)
    if spec.guidance_scale in (0.0, 1.0):
        return len(steps)
    guided_steps = guides(schedule.spec.timesteps, spec.guidance_interval, torch.tensor(steps))
    return len(steps) + int(guided_steps.sum())


def _combine(doubled: Tensor, *, scale: float, channels: int, channel_dim: int) -> Tensor:
    """The conditional half, its first `channels` (the value) pushed away from the unconditional half's."""
    conditional, unconditional = doubled.chunk(2)
    value = conditional.narrow(channel_dim, 0, channels)
    base = unconditional.narrow(channel_dim, 0, channels)
    variance = conditional.narrow(channel_dim, channels, conditional.shape[channel_dim] - channels)
    return torch.cat([base + scale * (value - base), variance], dim=channel_dim)
