"""Pictures of a training: what a network can do on held-out samples, one row a sample, and what it is shown (`seen`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from mavcli.data.degrade import downsample, upsample
from mavcli.diffusion.guidance import emphatic, guided
from mavcli.diffusion.samplers import Project, sample
from mavcli.media.frames import Frames, contact_sheet, to_uint8
from mavcli.models.embeddings import Condition
from mavcli.models.unet import UNet
from mavcli.recipe.load import LoadedRecipe
from mavcli.report import Report
from mavcli.specs import SamplerSpec
from mavcli.training import losses
from mavcli.training.batches import Batches, stage_source
from mavcli.training.conditioning import masked_video
from mavcli.training.draws import Draws
from mavcli.training.stage import Batch, Stage, Task


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
    part = losses.sr_part(task)
    small = downsample(truth, truth.shape[-1] // losses.sr_factor(task))
    low_res = upsample(small, truth.shape[-1], how=part.enlarge)
    level = torch.zeros(len(truth), device=task.device)
    assert isinstance(task.network, UNet)
    spec = task.network.spec
    condition = Condition(
        low_res=low_res,
        noise_level=level if spec.noise_level else None,
        fps=None if batch.fps is None or not spec.fps or truth.shape[1] == 1 else batch.fps.to(task.device),
    )
    return torch.cat([truth, low_res, _sample(task, part.sampler, truth, condition, generator)], dim=1)


def _decode(
    task: Task, truth: Tensor, batch: Batch, generator: torch.Generator, *, known: Tensor | None
) -> Tensor:
    assert task.clip is not None and isinstance(task.network, UNet)
    spec = task.network.spec
    condition = Condition(
        image_embedding=losses.first_frames(task, batch),
        fps=None if batch.fps is None or truth.shape[1] == 1 else batch.fps.to(task.device),
        masked_video=None if known is None else masked_video(truth, known),
        **task.clip.no_text(spec, len(truth)),
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
        emphatic(task.network, spec, timesteps=task.schedule.spec.timesteps),
        condition,
        spec,
        schedule=task.schedule,
    )

    def noise(step: int) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)

    return sample(spec, denoise, x_T=noise(-1), schedule=task.schedule, noise=noise, project=project)


def grid(rows: Tensor) -> Tensor:
    """(b, f, 3, h, w) in [-1, 1] -> one picture (1, 3, b h, f w)."""
    return rearrange(rows, "b f c h w -> 1 c (b h) (f w)")


@dataclass(frozen=True)
class Seen:
    """What a network is shown at one step: a contact sheet uint8 (h, w, 3), and a line of words for each sample."""

    sheet: Frames
    lines: list[str]


def seen(
    loaded: LoadedRecipe, stage: Stage, *, step: int = 0, samples: int = 4, report: Report | None = None
) -> Seen:
    """The first `samples` rows of the batch that training draws at `step`; no network is built.

    A row of frames for each, as large as they are trained; below it what else goes into the network: the known frames of
    a masked clip (unknown ones are grey, as zeros are), the enlarged low-res picture with its blur and noise; at the end what
    CLIP is shown of each sample, where that is not the network's own size.
    Raises RecipeError and InputError as training does.
    """
    recipe = loaded.recipe
    source = stage_source(stage, loaded, report=report)
    batch = Batches(source, stage, recipe)[step]
    count = min(samples, len(batch.pixels))
    batch = batch.rows(0, count)
    task = Task(
        stage.name,
        recipe,
        recipe.stage(stage.name),
        nn.Identity(),
        torch.device("cpu"),
        stage.schedule(recipe) if stage.schedule else None,
    )
    x0 = losses.pictures(task, batch)
    draws = Draws(recipe.train.seed, stage=stage.name, step=step, first=batch.first, count=count)
    level: Tensor | None = None
    inputs: Tensor | None = None
    if batch.known is not None:
        inputs = masked_video(x0, batch.known)[:, :, :3]
    elif stage.loss is losses.super_resolution_loss:
        inputs, level = losses.degraded(task, x0, draws)
    rows, labels, lines = [], [], []
    for i in range(count):
        fps = None if batch.fps is None else float(batch.fps[i])
        known = None if batch.known is None else batch.known[i].tolist()
        rows.append(x0[i])
        labels += [f"{f / fps:.2f} s" if fps else f"picture {i}" for f in range(x0.shape[1])]
        words = [f"sample {i}: {x0.shape[1]} x {x0.shape[-1]} px"]
        if len(source.names) > 1:
            words.append(f"from {batch.sources[i]}")
        if fps:
            words.append(f"{fps:.2f} fps")
        if batch.captions:
            words.append(f'"{batch.captions[i]}"')
        if inputs is not None:
            rows.append(inputs[i])
            if known is not None:
                labels += ["known" if k else "masked" for k in known]
                words.append("known " + (", ".join(str(f) for f, k in enumerate(known) if k) or "nothing"))
            else:
                labels += ["low-res"] * x0.shape[1]
        if level is not None and task.schedule is not None:
            words.append(f"low-res noised at {int(level[i])} of {task.schedule.spec.timesteps}")
        if batch.seen is not None:
            first = 0 if batch.known is None else int(batch.known[i].to(torch.uint8).argmax())
            which = f"frame {first + 1}, the first that is known" if first else "its first frame"
            words.append(f"CLIP is shown {batch.seen.shape[1]} x {batch.seen.shape[2]} px of {which}")
        lines.append(", ".join(words))
    sheet = contact_sheet(
        to_uint8(torch.cat(rows)), columns=x0.shape[1] if x0.shape[1] > 1 else None, labels=labels
    )
    if batch.seen is not None:
        shown = contact_sheet(batch.seen.numpy(), labels=[f"CLIP: sample {i}" for i in range(count)])
        sheet = _below(sheet, shown)
    return Seen(sheet, lines)


def _below(top: Frames, bottom: Frames) -> Frames:
    """Two sheets (h, w, 3), one below the other; the narrower is widened by the colour of its corner."""
    width = max(top.shape[1], bottom.shape[1])
    wide = [np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), mode="edge") for x in (top, bottom)]
    return np.concatenate(wide)
