"""Pictures of what a network in training can do, drawn from held-out samples: one row a sample, the truth first."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from mavcli.data.degrade import downsample, upsample
from mavcli.diffusion.guidance import guided
from mavcli.diffusion.samplers import Project, sample
from mavcli.models.embeddings import Condition
from mavcli.models.unet import UNet
from mavcli.specs import SamplerSpec
from mavcli.training import losses
from mavcli.training.conditioning import masked_video
from mavcli.training.stage import Batch, Task


def decoded(task: Task, batch: Batch, generator: torch.Generator) -> Tensor:
    """(b, 2 f, 3, h, w): the true frames, then D's or D^t's from the CLIP embedding of the first."""
    truth = losses.pictures(task, batch)
    return torch.cat([truth, _decode(task, truth, batch, generator, known=None)], dim=1)


def interpolated(task: Task, batch: Batch, generator: torch.Generator) -> Tensor:
    """(b, 3 f, 3, h, w): the true frames, the ones that were known, then ↑F's."""
    truth = losses.pictures(task, batch)
    assert batch.known is not None
    known = batch.known.to(task.device)
    given = truth * known[:, :, None, None, None]
    return torch.cat([truth, given, _decode(task, truth, batch, generator, known=known)], dim=1)


def enlarged(task: Task, batch: Batch, generator: torch.Generator) -> Tensor:
    """(b, 3 f, 3, h, w): the true frames, the bicubic enlargement, then the network's."""
    truth = losses.pictures(task, batch)
    low_res = upsample(downsample(truth, truth.shape[-1] // losses.sr_factor(task)), truth.shape[-1])
    level = torch.zeros(len(truth), device=task.device)
    assert isinstance(task.network, UNet)
    spec = task.network.spec
    condition = Condition(
        low_res=low_res,
        noise_level=level if spec.noise_level else None,
        fps=None if batch.fps is None or not spec.fps or truth.shape[1] == 1 else batch.fps.to(task.device),
    )
    cascade = task.recipe.cascade
    part = cascade.sr_h if task.stage == "sr_h" else cascade.sr_l
    return torch.cat([truth, low_res, _sample(task, part.sampler, truth, condition, generator)], dim=1)


def _decode(
    task: Task, truth: Tensor, batch: Batch, generator: torch.Generator, *, known: Tensor | None
) -> Tensor:
    assert task.clip is not None
    condition = Condition(
        image_embedding=task.clip.encode_image(truth[:, 0]),
        fps=None if batch.fps is None or truth.shape[1] == 1 else batch.fps.to(task.device),
        masked_video=None if known is None else masked_video(truth, known),
    )
    cascade = task.recipe.cascade
    sampler = cascade.decoder.sampler if known is None else cascade.interp.sampler
    if known is None:
        return _sample(task, sampler, truth, condition, generator)
    given = known[:, :, None, None, None]
    return _sample(
        task, sampler, truth, condition, generator, project=lambda x0, step: torch.where(given, truth, x0)
    )


def _sample(
    task: Task,
    spec: SamplerSpec,
    like: Tensor,
    condition: Condition,
    generator: torch.Generator,
    *,
    project: Project | None = None,
) -> Tensor:
    assert task.schedule is not None
    denoise = guided(
        task.network, condition, schedule=task.schedule, scale=spec.guidance_scale, clip_x0=spec.clip_x0
    )

    def noise(step: int) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)

    return sample(spec, denoise, x_T=noise(-1), schedule=task.schedule, noise=noise, project=project)


def grid(rows: Tensor) -> Tensor:
    """(b, f, 3, h, w) in [-1, 1] -> one picture (1, 3, b h, f w)."""
    return rearrange(rows, "b f c h w -> 1 c (b h) (f w)")
