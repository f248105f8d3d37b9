"""The forward process: how much noise each diffusion step holds, and which steps a sampler keeps.

Source: Ho et al. (arXiv 2006.11239) for the linear process, Nichol & Dhariwal (arXiv 2102.09672) for the
cosine one and for respacing; the tables are those of guided-diffusion. `t` is always a step of the TRAINED
process, 0 <= t < T, also on a respaced schedule: a network and a schedule never disagree about what `t`
means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from mavcli.errors import UsageError
from mavcli.specs import SamplerSpec, ScheduleSpec

MAX_BETA = 0.999  # the cosine process would end with beta = 1


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of one forward process, or of a subset of its steps.

    Every table has shape (n,) with n = `len(schedule)`, float64 on the CPU, in increasing order of
    `timesteps`. Build it with `Schedule.from_spec`; restrict it with `keep`.
    """

    spec: ScheduleSpec
    timesteps: Tensor  # (n,) int64: the trained steps that this schedule holds
    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor  # 1 before the first step
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor  # its first entry is the second one: the variance there is 0
    posterior_mean_coef1: Tensor  # of x0
    posterior_mean_coef2: Tensor  # of x_t
    _positions: Tensor  # (T,) int64: trained step -> row of the tables, -1 where it was not kept

    @classmethod
    def from_spec(cls, spec: ScheduleSpec) -> Schedule:
        """The whole trained process of `spec`; raises UsageError where a linear one is too short to exist."""
        betas = torch.tensor(_betas(spec), dtype=torch.float64)
        return cls._from_tables(spec, torch.arange(spec.timesteps), betas, torch.cumprod(1 - betas, dim=0))

    @classmethod
    def _from_tables(
        cls, spec: ScheduleSpec, timesteps: Tensor, betas: Tensor, alphas_cumprod: Tensor
    ) -> Schedule:
        previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        variance = betas * (1 - previous) / (1 - alphas_cumprod)
        first = variance[1:2] if len(betas) > 1 else betas
        positions = torch.full((spec.timesteps,), -1)
        positions[timesteps] = torch.arange(len(timesteps))
        return cls(
            spec=spec,
            timesteps=timesteps,
            betas=betas,
            alphas_cumprod=alphas_cumprod,
            alphas_cumprod_prev=previous,
            posterior_variance=variance,
            posterior_log_variance_clipped=torch.cat([first, variance[1:]]).log(),
            posterior_mean_coef1=betas * previous.sqrt() / (1 - alphas_cumprod),
            posterior_mean_coef2=(1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod),
            _positions=positions,
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    def keep(self, timesteps: Sequence[int]) -> Schedule:
        """The process that visits only `timesteps` (strictly increasing, all held here): SpacedDiffusion's
        new betas.

        Raises ValueError for an empty, unordered or unknown list.
        """
        if not timesteps or any(a >= b for a, b in pairwise(timesteps)):
            raise ValueError(
                f"kept timesteps must be strictly increasing and not empty, not {list(timesteps)}"
            )
        kept = torch.tensor(list(timesteps))
        alphas_cumprod = self.alphas_cumprod[self.position(kept)]
        previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        return self._from_tables(self.spec, kept, 1 - alphas_cumprod / previous, alphas_cumprod)

    def position(self, t: Tensor) -> Tensor:
        """Rows of the tables, on the CPU, for integer trained steps; ValueError for a step not held."""
        steps = t.cpu()
        if bool((steps < 0).any()) or bool((steps >= len(self._positions)).any()):
            raise ValueError(f"diffusion step out of [0, {len(self._positions)}): {steps.tolist()}")
        positions = self._positions[steps]
        if bool((positions < 0).any()):
            raise ValueError(f"diffusion step was not kept by this schedule: {steps.tolist()}")
        return positions

    def gather(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """`table` at the trained steps t (b,): (b, 1, ...) in the dtype, device and rank of `like`."""
        # the look-up stays on the CPU: not every device has float64
        values = table[self.position(t)].to(device=like.device, dtype=like.dtype)
        return values.reshape(-1, *([1] * (like.ndim - 1)))

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) as `gather` gives them: x_t = alpha x0 + sigma noise."""
        alpha = self.gather(self.alphas_cumprod.sqrt(), t, like)
        return alpha, self.gather((1 - self.alphas_cumprod).sqrt(), t, like)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar / (1 - abar) at the trained steps t (b,): (b,) float64 on the CPU."""
        alphas_cumprod = self.alphas_cumprod[self.position(t)]
        return alphas_cumprod / (1 - alphas_cumprod)

    def shifted(self, t: Tensor, shift: float) -> Tensor:
        """The trained steps (b,) whose signal-to-noise ratio is nearest to that of t (b,) divided by shift^2.

        The frames of a clip repeat each other, so noise that hides a picture leaves a video to be seen: where what moves
        and how is decided, steps are noisier than a uniform choice has them (simple diffusion, arXiv 2301.11093, section 2.1).
        """
        if shift == 1:
            return t
        noisiness = ((1 - self.alphas_cumprod) / self.alphas_cumprod).log()  # increases with t
        wanted = noisiness[self.position(t)] + 2 * math.log(shift)
        above = torch.searchsorted(noisiness, wanted).clamp(1, len(noisiness) - 1)
        below_is_nearer = wanted - noisiness[above - 1] < noisiness[above] - wanted
        return self.timesteps[above - below_is_nearer.long()]

    def visited(self, sampler: SamplerSpec) -> list[int]:
        """The increasing list of trained timesteps that `sampler` visits: those that it names, or as many as it says.

        Raises UsageError for steps that were not trained.
        """
        if isinstance(sampler.steps, int):
            return self.respace(sampler.steps, sampler.spacing, shift=sampler.shift)
        trained = self.spec.timesteps
        if sampler.steps[0] >= trained:
            raise UsageError(
                f"a sampler was told to visit step {sampler.steps[0]} of a process of {trained}",
                hint=f"the noisiest step is {trained - 1}",
            )
        return list(reversed(sampler.steps))

    def respace(
        self,
        steps: int,
        spacing: Literal["linspace", "trailing", "leading"] = "linspace",
        *,
        shift: float = 1.0,
    ) -> list[int]:
        """The increasing list of `steps` trained timesteps that a sampler visits; one step is always the
        noisiest. With `shift` above 1 they lie nearer to the noisiest, below 1 to the cleanest, see `shifted`.

        `linspace` holds both ends (guided-diffusion's "N", Karlo). `trailing` and `leading` are diffusers' names and
        diffusers' steps (with `steps_offset` 0): the first ends at T - 1, the second starts at 0 with a stride of
        T // steps. guided-diffusion's "ddimN" is `leading` where N divides T; elsewhere it takes the smallest
        stride that gives exactly N steps, which is another list. Raises UsageError for more steps than were trained.
        """
        picked = self._evenly(steps, spacing)
        if shift == 1:
            return picked
        moved = self.shifted(torch.tensor(picked), shift).tolist()
        for i in reversed(range(len(moved) - 1)):  # near an end, several may fall on one
            moved[i] = min(moved[i], moved[i + 1] - 1)
        return [max(step, i) for i, step in enumerate(moved)]

    def _evenly(self, steps: int, spacing: Literal["linspace", "trailing", "leading"]) -> list[int]:
        trained = self.spec.timesteps
        if not 1 <= steps <= trained:
            raise UsageError(
                f"a sampler of {steps} steps was asked of a process of {trained}",
                hint=f"choose between 1 and {trained} steps",
            )
        if steps == 1:
            return [trained - 1]
        if spacing == "linspace":
            return [round(i * (trained - 1) / (steps - 1)) for i in range(steps)]
        if spacing == "trailing":
            return [round(trained - i * (trained / steps)) - 1 for i in reversed(range(steps))]
        return [i * (trained // steps) for i in range(steps)]


def _betas(spec: ScheduleSpec) -> list[float]:
    count = spec.timesteps
    if spec.name == "cosine":
        return [min(1 - _cosine((i + 1) / count) / _cosine(i / count), MAX_BETA) for i in range(count)]
    scale = 1000 / count  # the total noise does not depend on T
    first, last = scale * 1e-4, scale * 0.02
    if last >= 1:
        raise UsageError(
            f"a linear schedule of {count} timesteps has beta = {last:g}, which must be below 1",
            hint="use at least 21 timesteps, or `cosine`",
        )
    return [first + i * (last - first) / (count - 1) for i in range(count)]


def _cosine(time: float) -> float:
    """abar of the cosine process at time in [0, 1], up to a factor (Improved DDPM, eq. 17)."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
