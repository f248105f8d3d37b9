"""Ways back from noise: DDPM, DDIM and DPM-Solver++(2M), as plain functions over a denoiser.

Sources: DDPM (arXiv 2006.11239) on respaced steps (arXiv 2102.09672, section 4), DDIM (arXiv 2010.02502, eq.
12), DPM-Solver++ (arXiv 2211.01095, algorithm 2). A sampler visits `timesteps`, increasing trained steps,
from the last to the first, and returns the x0 predicted at the first, to the bit. Its own steps are counted
from 0, the noisiest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mavcli.diffusion.process import Prediction, log_variance, posterior_mean_variance, to_epsilon
from mavcli.diffusion.schedule import Schedule
from mavcli.specs import SamplerSpec

# (x_t (b, ...), t (b,) int64 trained steps on the CPU, where the tables are) -> what x_t holds
Denoise = Callable[[Tensor, Tensor], Prediction]
# step -> fresh standard normal noise of x's shape, dtype and device
Noise = Callable[[int], Tensor]
# (predicted x0, step) -> x0 that holds what is known, for example the key frames of an interpolation
Project = Callable[[Tensor, int], Tensor]
# (steps done, steps in all), after every step
Progress = Callable[[int, int], None]


def sample(
    spec: SamplerSpec,
    denoise: Denoise,
    *,
    x_T: Tensor,
    schedule: Schedule,
    noise: Noise,
    progress: Progress | None = None,
    project: Project | None = None,
) -> Tensor:
    """x0 (b, ...) from pure noise x_T (b, ...) by the sampler, the steps and the spacing of `spec`.

    The other fields of `spec` belong to the denoiser (`guidance.guided`). Raises UsageError as
    `Schedule.visited` does.
    """
    samplers: dict[str, Callable[..., Tensor]] = {
        "ddpm": ddpm,
        "ddim": partial(ddim, eta=spec.eta),
        "dpm++2m": dpm_solver_pp_2m,
    }
    return samplers[spec.name](
        denoise,
        x_T,
        schedule=schedule,
        timesteps=schedule.visited(spec),
        noise=noise,
        progress=progress,
        project=project,
    )


def ddpm(
    denoise: Denoise,
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Sequence[int],
    noise: Noise,
    progress: Progress | None = None,
    project: Project | None = None,
) -> Tensor:
    """Ancestral sampling of the process that visits only `timesteps`, with the variance of its spec."""
    kept = schedule.keep(timesteps)

    def update(x_t: Tensor, prediction: Prediction, t: Tensor, step: int) -> Tensor:
        mean, _, _ = posterior_mean_variance(kept, prediction.x0, x_t=x_t, t=t)
        log_var = log_variance(kept, prediction.variance_fraction, t=t, like=x_t)
        return mean + (0.5 * log_var).exp() * noise(step)

    return _walk(denoise, x_T, update, kept=kept, progress=progress, project=project)


def ddim(
    denoise: Denoise,
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Sequence[int],
    noise: Noise,
    eta: float = 0.0,
    progress: Progress | None = None,
    project: Project | None = None,
) -> Tensor:
    """DDIM; `eta` 0 is deterministic and never calls `noise`, 1 has the posterior's variance (eq. 12, 16)."""
    kept = schedule.keep(timesteps)
    abar_next = _descending(kept.alphas_cumprod_prev)
    deviation = _descending(eta * kept.posterior_variance.sqrt())

    def update(x_t: Tensor, prediction: Prediction, t: Tensor, step: int) -> Tensor:
        towards_x_t = math.sqrt(1 - abar_next[step] - deviation[step] ** 2)
        x = math.sqrt(abar_next[step]) * prediction.x0 + towards_x_t * prediction.epsilon
        return x + deviation[step] * noise(step) if eta else x

    return _walk(denoise, x_T, update, kept=kept, progress=progress, project=project)


def dpm_solver_pp_2m(
    denoise: Denoise,
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Sequence[int],
    noise: Noise,
    progress: Progress | None = None,
    project: Project | None = None,
) -> Tensor:
    """DPM-Solver++(2M): second order from two predictions of x0; deterministic, `noise` is never called.

    The first step has no earlier prediction and is of first order, which is DDIM's; so is the last, which
    ends at x0.
    """
    kept = schedule.keep(timesteps)
    alpha, sigma = _descending(kept.alphas_cumprod.sqrt()), _descending((1 - kept.alphas_cumprod).sqrt())
    log_snr = [
        math.log(a / s) for a, s in zip(alpha, sigma, strict=True)
    ]  # lambda of the paper: half the log SNR
    earlier: list[Tensor] = []

    def update(x_t: Tensor, prediction: Prediction, t: Tensor, step: int) -> Tensor:
        h = log_snr[step + 1] - log_snr[step]
        x0 = prediction.x0
        if earlier:
            r = (log_snr[step] - log_snr[step - 1]) / h
            x0 = x0 + (x0 - earlier.pop()) / (2 * r)
        earlier.append(prediction.x0)
        return (sigma[step + 1] / sigma[step]) * x_t - alpha[step + 1] * math.expm1(-h) * x0

    return _walk(denoise, x_T, update, kept=kept, progress=progress, project=project)


def _descending(table: Tensor) -> list[float]:
    """A table of a schedule in the order in which a sampler visits its steps."""
    values: list[float] = table.flip(0).tolist()
    return values


def _walk(
    denoise: Denoise,
    x: Tensor,
    update: Callable[[Tensor, Prediction, Tensor, int], Tensor],
    *,
    kept: Schedule,
    progress: Progress | None,
    project: Project | None,
) -> Tensor:
    """Every step of `kept`, noisiest first: predict, project, then `update(x_t, prediction, t, step)`."""
    steps = len(kept)
    for step, timestep in enumerate(reversed(kept.timesteps.tolist())):
        t = torch.full((x.shape[0],), timestep)
        prediction = denoise(x, t)
        if project is not None:
            x0 = project(prediction.x0, step)
            epsilon = to_epsilon(kept, x0, x_t=x, t=t, prediction="x0")
            prediction = Prediction(x0, epsilon, prediction.variance_fraction)
        x = prediction.x0 if step == steps - 1 else update(x, prediction, t, step)
        if progress is not None:
            progress(step + 1, steps)
    return x
