"""The loss of each stage. Text enters `clip_loss` and `prior_loss` only: no other loss looks at captions, unless a recipe
says `told_by: caption` to compare with training on video that has text.

b batch, f frames, c channels, h w pixels; t is always the diffusion step, never time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mavcli.data.degrade import downsample, gaussian_blur, upsample
from mavcli.diffusion.guidance import guided
from mavcli.diffusion.process import add_noise, training_loss
from mavcli.diffusion.samplers import sample
from mavcli.diffusion.schedule import Schedule
from mavcli.engine.randomness import START
from mavcli.engine.words import embed_words
from mavcli.media.frames import to_float
from mavcli.models.clip import ClipReader
from mavcli.models.embeddings import Condition
from mavcli.models.prior import Prior, PriorCondition, text_condition
from mavcli.models.unet import UNet
from mavcli.recipe.schema import SuperResPart
from mavcli.training.conditioning import masked_video
from mavcli.training.draws import Draws
from mavcli.training.stage import Batch, Task, pair_keys


def clip_loss(task: Task, batch: Batch, draws: Draws) -> Tensor:
    """InfoNCE over the pictures and captions of all processes (CLIP, arXiv 2103.00020, figure 3), copies left out.

    With s_ij = scale * cos(picture i, caption j), and N(i) the rows whose picture and caption both differ from those of i,

        loss_i = ( log sum_j exp s_ij + log sum_j exp s_ji ) / 2 - s_ii,   j in {i} and N(i)

    A copy of i is another right answer, so it is no negative; where nothing is a copy this is CLIP's own loss. A row that has
    none but copies beside it says nothing: its loss is 0.
    """
    network = task.network
    image = network.encode_image(_first_pictures(task, batch))  # type: ignore[operator]
    text = network.encode_text(list(batch.captions)).embedding  # type: ignore[operator]
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)  # the loss is one of angles
    scale = network.logit_scale.clamp(max=100.0)  # type: ignore[operator]
    target = torch.arange(batch.first, batch.first + len(image), device=image.device)
    copies = _copies(task, batch)
    by_image = (scale * image @ task.group.rows(text).T).masked_fill(copies, -torch.inf)
    by_text = (scale * text @ task.group.rows(image).T).masked_fill(copies, -torch.inf)
    losses = F.cross_entropy(by_image, target, reduction="none")
    return (losses + F.cross_entropy(by_text, target, reduction="none")) / 2


def has_negatives(task: Task, batch: Batch) -> Tensor:
    """(b,) bool: the rows of which `clip_loss` says something, because another row of the step is no copy."""
    copies = _copies(task, batch)
    return copies.sum(1) + 1 < copies.shape[1]


def _copies(task: Task, batch: Batch) -> Tensor:
    """(b, rows of all processes) bool: the other rows that have a row's picture or its caption."""
    keys = batch.keys if batch.keys is not None else pair_keys(batch.pixels, batch.captions)
    keys = keys.to(task.device)
    copies = (keys[:, None] == task.group.rows(keys)[None]).any(-1)
    own = torch.arange(len(keys), device=task.device)
    copies[own, own + batch.first] = False
    return copies


def prior_loss(task: Task, batch: Batch, draws: Draws) -> Tensor:
    """Mean squared error of the un-noised image embedding (unCLIP, section 2.2)."""
    network, schedule = _prior(task), _schedule(task)
    with torch.no_grad():
        x0 = network.scale(first_frames(task, batch))
        condition = text_condition(network.spec, task.kept or _clip(task), list(batch.captions))
    t, noise = _draw(task, x0, draws)
    condition = condition.only(_keep(task.config.drop_condition, draws).to(task.device))
    x_t = add_noise(schedule, x0, t=t, noise=noise)
    output = network(x_t, t.to(task.device), condition)
    return _loss(task, output, x0=x0, x_t=x_t, noise=noise, t=t)


def decoder_loss(task: Task, batch: Batch, draws: Draws) -> Tensor:
    """D and D^t: the clip given the CLIP embedding of its FIRST frame, and its frame rate (section 3.2).

    With `told_by: caption`, given what P makes of the clip's caption.
    """
    x0 = pictures(task, batch)
    return _decode(task, x0, batch, draws, known=None)


def interp_loss(task: Task, batch: Batch, draws: Draws) -> Tensor:
    """↑F: all frames given the known ones (section 3.3).

    Known frames count too, though sampling puts the source's own in their place: they are what teaches the network first to
    pass detail on from what it is given.
    """
    assert batch.known is not None
    x0 = pictures(task, batch)
    return _decode(task, x0, batch, draws, known=batch.known.to(task.device))


def _decode(task: Task, x0: Tensor, batch: Batch, draws: Draws, *, known: Tensor | None) -> Tensor:
    schedule = _schedule(task)
    with torch.no_grad():
        embedding = first_frames(task, batch)
        text = _clip(task).no_text(_unet(task).spec, len(x0))
    t, noise = _draw(task, x0, draws)
    keep = _keep(task.config.drop_condition, draws).to(task.device)
    if any(batch.captions):
        embedding = _told_by_captions(task, embedding, batch.captions, draws)
    condition = Condition(
        image_embedding=embedding,
        keep_embedding=keep,
        fps=None if batch.fps is None or x0.shape[1] == 1 else batch.fps.to(task.device),
        masked_video=None if known is None else masked_video(x0, known),
        **text,
    )
    x_t = add_noise(schedule, x0, t=t, noise=noise)
    output = task.network(x_t, t.to(task.device), condition)
    return _loss(task, output, x0=x0, x_t=x_t, noise=noise, t=t)


def _told_by_captions(task: Task, embedding: Tensor, captions: Sequence[str], draws: Draws) -> Tensor:
    """`embedding` (b, d) with P's draw from the caption in every row that has one."""
    assert task.prior is not None
    part = task.recipe.cascade.prior
    schedule = Schedule.from_spec(part.schedule)
    rows = [i for i, caption in enumerate(captions) if caption]

    def noise(step: int) -> Tensor:
        shape = (len(captions), part.samples, part.network.clip_dim)
        return rearrange(draws.normal(shape, device=task.device)[rows], "b s d -> (b s) d")

    def sampled(condition: PriorCondition) -> Tensor:
        denoise = guided(
            lambda x, t, told: task.prior(x, t, told).float(),  # type: ignore[misc]
            condition,
            part.sampler,
            schedule=schedule,
            channel_dim=1,
        )
        return sample(part.sampler, denoise, x_T=noise(START), schedule=schedule, noise=noise)

    with torch.no_grad():
        told = embed_words(
            task.prior, _clip(task), [captions[i] for i in rows], samples=part.samples, sampled=sampled
        )
    embedding = embedding.clone()
    embedding[rows] = told.to(embedding.dtype)
    return embedding


def super_resolution_loss(task: Task, batch: Batch, draws: Draws) -> Tensor:
    """SR_l, SR_l^t and SR_h: the picture given its blurred, noised, enlarged small version (section 3.2; unCLIP, 2.1)."""
    schedule = _schedule(task)
    x0 = pictures(task, batch)
    low_res, level = degraded(task, x0, draws)
    t, noise = _draw(task, x0, draws, shift_pictures=True)
    condition = Condition(
        low_res=low_res,
        noise_level=level.to(task.device) if _unet(task).spec.noise_level else None,
        fps=None
        if batch.fps is None or not _unet(task).spec.fps or x0.shape[1] == 1
        else batch.fps.to(task.device),
    )
    x_t = add_noise(schedule, x0, t=t, noise=noise)
    output = task.network(x_t, t.to(task.device), condition)
    return _loss(task, output, x0=x0, x_t=x_t, noise=noise, t=t)


def degraded(task: Task, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """The low-res condition (b, f, 3, h, w) for the clean x0 of that shape, and its noise level (b,)."""
    schedule, how = _schedule(task), task.config.degradation
    factor = sr_factor(task)
    small = downsample(x0, x0.shape[-1] // factor)
    blurred = gaussian_blur(small, kernel=how.blur_kernel, sigma=how.blur_sigma)
    blur = draws.uniform() < how.blur_probability
    small = torch.where(blur.to(x0.device)[:, None, None, None, None], blurred, small)
    if how.half_probability > 0:
        halved = upsample(downsample(small, small.shape[-1] // 2), small.shape[-1], how=sr_part(task).enlarge)
        half = draws.uniform() < how.half_probability
        small = torch.where(half.to(x0.device)[:, None, None, None, None], halved, small)
    if how.made_probability > 0:
        made = draws.uniform() < how.made_probability
        start = draws.normal(small.shape, device=x0.device)
        if task.sr_l is not None:  # a preview has no networks
            drawn = _made_by_sr_l(task, x0, start, draws)
            small = torch.where(made.to(x0.device)[:, None, None, None, None], drawn, small)
    top = max(1, int(how.noise_max * schedule.spec.timesteps))
    level = draws.integers(top)
    noise = draws.normal(small.shape, device=x0.device)
    if how.noise_max > 0:
        small = add_noise(schedule, small, t=level, noise=noise)
    return upsample(small, x0.shape[-1], how=sr_part(task).enlarge), level


def _made_by_sr_l(task: Task, x0: Tensor, start: Tensor, draws: Draws) -> Tensor:
    """What SR_l makes at sampling of x0 (b, f, 3, h, w) shrunk to the decoder's scale, in the shape of its noise `start`."""
    part, network = task.recipe.cascade.sr_l, task.sr_l
    assert network is not None
    schedule = Schedule.from_spec(part.schedule)
    factor = part.size // task.recipe.cascade.decoder.network.image_size
    low = downsample(x0, start.shape[-1] // factor)
    level = torch.full((len(x0),), int(part.noise_level * part.schedule.timesteps), device=x0.device)
    condition = Condition(
        low_res=upsample(low, start.shape[-1], how=part.enlarge),
        noise_level=level if network.spec.noise_level else None,
    )
    with torch.no_grad():
        denoise = guided(
            lambda x, t, told: network(x, t, told).float(), condition, part.sampler, schedule=schedule
        )
        return sample(
            part.sampler,
            denoise,
            x_T=start,
            schedule=schedule,
            noise=lambda step: draws.normal(start.shape, device=start.device),
        ).clamp(-1, 1)


def sr_part(task: Task) -> SuperResPart:
    """What the recipe says of this task's super-resolution."""
    cascade = task.recipe.cascade
    return cascade.sr_h if task.stage == "sr_h" else cascade.sr_l


def sr_factor(task: Task) -> int:
    """How many times the network of this task enlarges a side."""
    cascade = task.recipe.cascade
    lower = cascade.decoder.network.image_size
    if task.stage == "sr_h":
        return cascade.sr_h.size // (cascade.sr_l.size if cascade.sr_l.kind != "none" else lower)
    return cascade.sr_l.size // lower


def pictures(task: Task, batch: Batch) -> Tensor:
    """The batch's pixels as (b, f, 3, h, w) in [-1, 1] on the task's device."""
    pixels = batch.pixels.to(task.device)  # as bytes, a quarter of what floats would be
    x = to_float(rearrange(pixels, "b f h w c -> (b f) h w c"))
    return rearrange(x, "(b f) c h w -> b f c h w", b=len(pixels))


def first_frames(task: Task, batch: Batch) -> Tensor:
    """CLIP's embedding (b, d) of each sample's first frame, which of a picture is all; where ↑F is not given that, of the first
    frame that it is."""
    if task.kept is not None:
        return task.kept.of_pictures(batch.pictures)
    return _clip(task).encode_image(_first_pictures(task, batch))


def _first_pictures(task: Task, batch: Batch) -> Tensor:
    """(b, 3, h, w) in [-1, 1] on the task's device."""
    return to_float(batch.pictures.to(task.device))


def _draw(task: Task, x0: Tensor, draws: Draws, *, shift_pictures: bool = False) -> tuple[Tensor, Tensor]:
    """Diffusion steps (b,), those of clips shifted (and of pictures, where that is said), and noise of x0's shape."""
    schedule, config = _schedule(task), task.config
    strata = config.batch_size if config.timesteps == "stratified" else 1
    t = draws.integers(schedule.spec.timesteps, strata=strata)
    if x0.ndim == 5 and (shift_pictures or x0.shape[1] > 1):
        t = schedule.shifted(t, config.shift)
    return t, draws.normal(x0.shape, device=x0.device)


def _keep(drop: float, draws: Draws) -> Tensor:
    return draws.uniform() >= drop


def _loss(
    task: Task,
    output: Tensor,
    *,
    x0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    t: Tensor,
) -> Tensor:
    """The diffusion loss of each sample (b,), weighted as the stage's recipe says."""
    config = task.config
    return training_loss(
        _schedule(task),
        output,
        x0=x0,
        x_t=x_t,
        noise=noise,
        t=t,
        weighting=config.weighting,
        snr_min=config.snr_min,
        snr_max=config.snr_max,
        vlb_weight=config.vlb_weight,
        motion_weight=config.motion_weight,
        channel_dim=1 if isinstance(task.network, Prior) else 2,
    )


def _schedule(task: Task) -> Schedule:
    assert task.schedule is not None
    return task.schedule


def _clip(task: Task) -> ClipReader:
    assert task.clip is not None
    return task.clip


def _prior(task: Task) -> Prior:
    assert isinstance(task.network, Prior)
    return task.network


def _unet(task: Task) -> UNet:
    assert isinstance(task.network, UNet)
    return task.network
