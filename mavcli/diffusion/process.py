"""What a noisy sample, a network output and a training loss mean under a schedule; no networks.

x_t = alpha x0 + sigma noise with alpha = sqrt(abar), sigma = sqrt(1 - abar). Sources: DDPM (arXiv
2006.11239), Improved DDPM (arXiv 2102.09672), v of progressive distillation (arXiv 2202.00512), min-SNR
weights (arXiv 2303.09556). Every x is (b, ...), batch first and any shape after it (b f c h w for video, b d
for embeddings); every t is (b,) integer steps of the trained process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mavcli.diffusion.schedule import Schedule

Parameterization = Literal["epsilon", "x0", "v"]


@dataclass(frozen=True)
class Prediction:
    """What a network says about x_t; all of x_t's shape, and x_t = alpha x0 + sigma epsilon holds.

    `variance_fraction` is a learned log variance of the reverse step on the scale of Improved DDPM's eq. 15:
    0 is the posterior's, 1 is log beta. Which those are depends on the steps a sampler keeps, hence not a log
    variance here. None where the variance is not learned.
    """

    x0: Tensor
    epsilon: Tensor
    variance_fraction: Tensor | None = None


def add_noise(schedule: Schedule, x0: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
    """q_sample: x_t (b, ...) for x0 and standard normal noise of one shape."""
    alpha, sigma = schedule.alpha_sigma(t, x0)
    return alpha * x0 + sigma * noise


def to_x0(
    schedule: Schedule, value: Tensor, *, x_t: Tensor, t: Tensor, prediction: Parameterization
) -> Tensor:
    """x0 (b, ...) from a network's `value` for x_t, where `prediction` names what the value is."""
    if prediction == "x0":
        return value
    alpha, sigma = schedule.alpha_sigma(t, x_t)
    return (x_t - sigma * value) / alpha if prediction == "epsilon" else alpha * x_t - sigma * value


def to_epsilon(
    schedule: Schedule, value: Tensor, *, x_t: Tensor, t: Tensor, prediction: Parameterization
) -> Tensor:
    """The noise (b, ...) that a network's `value` for x_t amounts to."""
    if prediction == "epsilon":
        return value
    alpha, sigma = schedule.alpha_sigma(t, x_t)
    return (x_t - alpha * value) / sigma if prediction == "x0" else alpha * value + sigma * x_t


def to_v(schedule: Schedule, x0: Tensor, *, epsilon: Tensor, t: Tensor) -> Tensor:
    """v = alpha epsilon - sigma x0 (b, ...)."""
    alpha, sigma = schedule.alpha_sigma(t, x0)
    return alpha * epsilon - sigma * x0


def split_output(
    schedule: Schedule, output: Tensor, *, like: Tensor, channel_dim: int = 2
) -> tuple[Tensor, Tensor | None]:
    """A network's output as (predicted value, variance fraction or None), of the shape and dtype of `like`.

    With `learned_range` the output has twice the channels, values first. `channel_dim` is 2 for b f c h w.
    Raises ValueError where the output has another shape than the schedule's variance asks for.
    """
    learned = schedule.spec.variance == "learned_range"
    wanted = list(like.shape)
    if learned:
        wanted[channel_dim] *= 2
    if list(output.shape) != wanted:
        raise ValueError(
            f"network output is {list(output.shape)}, variance `{schedule.spec.variance}` needs {wanted}"
        )
    output = output.to(like.dtype)
    if not learned:
        return output, None
    value, variance = output.chunk(2, dim=channel_dim)
    return value, (variance + 1) / 2


def read_output(
    schedule: Schedule,
    output: Tensor,
    *,
    x_t: Tensor,
    t: Tensor,
    clip_x0: float | None = None,
    channel_dim: int = 2,
) -> Prediction:
    """A network's raw output for x_t (b, ...) as a Prediction.

    x0 is clamped to +- `clip_x0` (None for never) and epsilon is then the one that leads from the clamped x0
    to x_t, as in guided-diffusion. Shapes, `channel_dim` and errors as in `split_output`.
    """
    value, fraction = split_output(schedule, output, like=x_t, channel_dim=channel_dim)
    kind = schedule.spec.prediction
    x0 = to_x0(schedule, value, x_t=x_t, t=t, prediction=kind)
    if clip_x0 is None:
        epsilon = to_epsilon(schedule, value, x_t=x_t, t=t, prediction=kind)
    else:
        x0 = x0.clamp(-clip_x0, clip_x0)
        epsilon = to_epsilon(schedule, x0, x_t=x_t, t=t, prediction="x0")
    return Prediction(x0, epsilon, fraction)


def posterior_mean_variance(
    schedule: Schedule, x0: Tensor, *, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (b, ...), variance and clipped log variance (b, 1, ...) of q(x_prev | x_t, x0); DDPM, eq. 6 and 7.

    x_prev is at the step that `schedule` holds before t.
    """
    mean = schedule.gather(schedule.posterior_mean_coef1, t, x_t) * x0
    mean = mean + schedule.gather(schedule.posterior_mean_coef2, t, x_t) * x_t
    variance = schedule.gather(schedule.posterior_variance, t, x_t)
    return mean, variance, schedule.gather(schedule.posterior_log_variance_clipped, t, x_t)


def log_variance(schedule: Schedule, fraction: Tensor | None, *, t: Tensor, like: Tensor) -> Tensor:
    """log variance of the reverse step from t by the schedule's `variance`; broadcasts to `like` (b, ...).

    `fraction` is a Prediction's; it is needed by `learned_range` (Improved DDPM, eq. 15) alone, and a
    ValueError says so.
    """
    small = schedule.gather(schedule.posterior_log_variance_clipped, t, like)
    if schedule.spec.variance == "fixed_small":
        return small
    if schedule.spec.variance == "fixed_large":
        # the first entry is guided-diffusion's: beta there makes a poor decoder likelihood
        large = torch.cat([schedule.posterior_log_variance_clipped[:1], schedule.betas[1:].log()])
        return schedule.gather(large, t, like)
    if fraction is None:
        raise ValueError("variance `learned_range` needs a network that predicts a variance fraction")
    large = schedule.gather(schedule.betas.log(), t, like)
    return fraction * large + (1 - fraction) * small


def training_loss(
    schedule: Schedule,
    output: Tensor,
    *,
    x0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    t: Tensor,
    weighting: Literal["uniform", "min_snr"] = "uniform",
    snr_min: float = 0.0,
    snr_max: float = 5.0,
    vlb_weight: float = 0.001,
    motion_weight: float = 0.0,
    channel_dim: int = 2,
) -> Tensor:
    """The loss of each sample, (b,): mean squared error in the network's own prediction space.

    `uniform` weighs that error by 1. `min_snr` weighs the error of x0 by clamp(SNR, snr_min, snr_max),
    converted exactly: the error of epsilon is SNR times that of x0, the error of v is SNR + 1 times. Where
    the variance is learned, vlb_weight * T * `variational_bound` is added with the mean frozen: L_hybrid =
    L_simple + 0.001 L_vlb (Improved DDPM, eq. 16), which is guided-diffusion's RESCALED_MSE. `vlb_weight` 0
    leaves it out. `motion_weight` as in `squared_error`. All is computed in the dtype of x_t. `output` as in
    `split_output`.
    """
    value, fraction = split_output(schedule, output, like=x_t, channel_dim=channel_dim)
    targets = {"epsilon": noise, "x0": x0, "v": to_v(schedule, x0, epsilon=noise, t=t)}
    loss = squared_error(value - targets[schedule.spec.prediction], motion_weight=motion_weight)
    if weighting == "min_snr":
        loss = loss * min_snr_weight(schedule, t, snr_min=snr_min, snr_max=snr_max).to(loss)
    if fraction is not None and vlb_weight:
        frozen = to_x0(schedule, value.detach(), x_t=x_t, t=t, prediction=schedule.spec.prediction)
        bound = variational_bound(schedule, frozen, x0=x0, x_t=x_t, t=t, fraction=fraction)
        loss = loss + vlb_weight * schedule.spec.timesteps * bound
    return loss


def squared_error(error: Tensor, *, motion_weight: float = 0.0) -> Tensor:
    """Mean square of each sample's error, (b, ...) -> (b,); of clips (b, f, c, h, w) also of how it changes between frames.

    `motion_weight` is that of half the mean square of the difference of neighbouring frames' errors, which is 1 x the error's
    own mean square where frames err independently, 2 x where they err to opposite sides, and nothing where all err alike. So
    what moves counts for more than what stands. The square stays one of the error, positive definite, so the best
    prediction stays the conditional mean: only the way there changes. (The appearance-debiased loss of MotionDirector, arXiv
    2310.08465, has the same purpose.) A picture (one frame) and an embedding (b, d) have no such term.
    """
    loss = _mean(error.square())
    if motion_weight and error.ndim == 5 and error.shape[1] > 1:
        loss = loss + motion_weight * _mean(error.diff(dim=1).square()) / 2
    return loss


def min_snr_weight(schedule: Schedule, t: Tensor, *, snr_min: float = 0.0, snr_max: float = 5.0) -> Tensor:
    """Weight of an error in the schedule's prediction space, (b,) float64 on the CPU; see `training_loss`.

    A `snr_min` above 0 makes the weight of epsilon grow without bound towards pure noise.
    """
    snr = schedule.snr(t)
    error_per_x0_error = {"x0": torch.ones_like(snr), "epsilon": snr, "v": snr + 1}[schedule.spec.prediction]
    return snr.clamp(snr_min, snr_max) / error_per_x0_error


def variational_bound(
    schedule: Schedule,
    predicted_x0: Tensor,
    *,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    fraction: Tensor | None,
) -> Tensor:
    """One term of the variational bound in bits per dimension, (b,), >= 0 (Improved DDPM, eq. 4 to 6).

    KL of the true posterior from the network's reverse step; at the first step, the negative log likelihood
    of x0 as 8-bit values in [-1, 1]. `fraction` as in `log_variance`.
    """
    true_mean, _, true_log_variance = posterior_mean_variance(schedule, x0, x_t=x_t, t=t)
    mean, _, _ = posterior_mean_variance(schedule, predicted_x0, x_t=x_t, t=t)
    log_var = log_variance(schedule, fraction, t=t, like=x_t)
    difference = true_log_variance - log_var
    kl = 0.5 * (difference.exp() - 1 - difference + (true_mean - mean).square() * (-log_var).exp())
    nll = -_discretized_log_likelihood(x0, mean=mean, log_scale=0.5 * log_var)
    first = (schedule.position(t) == 0).to(x_t.device).reshape(-1, *([1] * (x_t.ndim - 1)))
    return _mean(torch.where(first, nll, kl)) / math.log(2)


def _mean(values: Tensor) -> Tensor:
    """The mean of each sample: (b, ...) -> (b,)."""
    return values.flatten(1).mean(1)


def _discretized_log_likelihood(x: Tensor, *, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log probability of x, 8-bit values in [-1, 1], of a Gaussian whose tails go to the outermost ones."""
    inverse = (-log_scale).exp()
    above = torch.special.ndtr((x - mean + 1 / 255) * inverse)
    below = torch.special.ndtr((x - mean - 1 / 255) * inverse)
    above = torch.where(x > 0.999, torch.ones_like(above), above)
    below = torch.where(x < -0.999, torch.zeros_like(below), below)
    return (above - below).clamp(min=1e-12).log()
