"""The eight stages, in the order in which a family is trained (design, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mavcli.diffusion.schedule import Schedule
from mavcli.errors import UsageError
from mavcli.recipe.schema import Recipe
from mavcli.specs import UNetSpec
from mavcli.training import losses, previews
from mavcli.training.stage import Batch, Stage, Task


def image_network(spec: UNetSpec) -> UNetSpec:
    """The image network that `spec` is the inflation of."""
    return spec.model_copy(update={"temporal": "none", "fps": False})


_SAMPLED_EMBEDDINGS = 512


def _normalise_embeddings(task: Task, batch_of: Callable[[int], Batch]) -> None:
    """Set the prior's mean and deviation per dimension from the image embeddings of some hundred samples, as Karlo saves them;
    with `clip_scale`, zero and its inverse (unCLIP, appendix C).

    A dimension in which a small folder's pictures hardly differ gets a tenth of the usual deviation, not its own.
    """
    scale = task.network.spec.clip_scale  # type: ignore[union-attr]
    if scale is not None:
        task.network.clip_mean.zero_()  # type: ignore[operator]
        task.network.clip_std.fill_(1 / scale)  # type: ignore[operator]
        return
    batches = -(-_SAMPLED_EMBEDDINGS // task.config.batch_size)
    embeddings = torch.cat([losses.first_frames(task, batch_of(i)) for i in range(batches)])
    deviation = embeddings.std(0)
    task.network.clip_mean.copy_(embeddings.mean(0))  # type: ignore[operator]
    task.network.clip_std.copy_(deviation.clamp(min=0.1 * float(deviation.mean()) + 1e-6))  # type: ignore[operator]


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="clip",
            title="CLIP's text and image towers",
            source="arXiv 2103.00020",
            data="pairs",
            network=lambda r: r.cascade.clip.network,
            size=lambda r: r.cascade.clip.network.image_size,
            loss=losses.clip_loss,
            comparable=losses.has_negatives,
            fewest=2,
        ),
        Stage(
            name="prior",
            title="P, from text to a CLIP image embedding",
            source="unCLIP 2.2",
            data="pairs",
            network=lambda r: r.cascade.prior.network,
            size=lambda r: r.cascade.clip.network.image_size,
            loss=losses.prior_loss,
            needs_clip=True,
            schedule=lambda r: Schedule.from_spec(r.cascade.prior.schedule),
            prepare=_normalise_embeddings,
        ),
        Stage(
            name="decoder",
            title="D, a picture from a CLIP image embedding",
            source="unCLIP 2.1",
            data="image",
            network=lambda r: image_network(r.cascade.decoder.network),
            size=lambda r: r.cascade.decoder.network.image_size,
            loss=losses.decoder_loss,
            preview=previews.decoded,
            needs_clip=True,
            schedule=lambda r: Schedule.from_spec(r.cascade.decoder.schedule),
        ),
        Stage(
            name="sr_l",
            title="SR_l on pictures",
            source="unCLIP 2.1",
            data="image",
            network=lambda r: image_network(r.cascade.sr_l.network),
            size=lambda r: r.cascade.sr_l.size,
            loss=losses.super_resolution_loss,
            preview=previews.enlarged,
            schedule=lambda r: Schedule.from_spec(r.cascade.sr_l.schedule),
        ),
        Stage(
            name="sr_h",
            title="SR_h on pictures",
            source="Make-A-Video 3.2",
            data="image",
            network=lambda r: image_network(r.cascade.sr_h.network),
            size=lambda r: r.cascade.sr_h.size,
            loss=losses.super_resolution_loss,
            preview=previews.enlarged,
            schedule=lambda r: Schedule.from_spec(r.cascade.sr_h.schedule),
        ),
        Stage(
            name="decoder_t",
            title="D^t on unlabelled video",
            source="Make-A-Video 3.2",
            data="video",
            network=lambda r: r.cascade.decoder.network,
            size=lambda r: r.cascade.decoder.network.image_size,
            loss=losses.decoder_loss,
            preview=previews.decoded,
            parents=("decoder",),
            parent_needed=True,
            needs_clip=True,
            schedule=lambda r: Schedule.from_spec(r.cascade.decoder.schedule),
        ),
        Stage(
            name="interp",
            title="↑F on unlabelled video",
            source="Make-A-Video 3.3",
            data="video",
            network=lambda r: r.cascade.interp_network(),
            size=lambda r: r.cascade.decoder.network.image_size,
            loss=losses.interp_loss,
            preview=previews.interpolated,
            parents=("decoder_t",),
            parent_needed=True,
            needs_clip=True,
            masks=True,
            schedule=lambda r: Schedule.from_spec(r.interp_schedule()),
        ),
        Stage(
            name="sr_lt",
            title="SR_l^t on unlabelled video",
            source="Make-A-Video 3.2",
            data="video",
            network=lambda r: r.cascade.sr_l.network,
            size=lambda r: r.cascade.sr_l.size,
            loss=losses.super_resolution_loss,
            preview=previews.enlarged,
            parents=("sr_l",),
            parent_needed=True,
            schedule=lambda r: Schedule.from_spec(r.cascade.sr_l.schedule),
        ),
    )
}


def get_stage(name: str) -> Stage:
    """The stage called `name`; UsageError with the names there are."""
    if name not in STAGES:
        import difflib

        near = difflib.get_close_matches(name, STAGES, n=1)
        suggestion = f", did you mean `{near[0]}`" if near else ""
        raise UsageError(f"no stage `{name}`{suggestion}", hint=f"the stages are {', '.join(STAGES)}")
    return STAGES[name]


def has_stage(recipe: Recipe, name: str) -> bool:
    """Whether the family has this stage."""
    return missing_stage(recipe, name) is None


def missing_stage(recipe: Recipe, name: str) -> tuple[str, str, str] | None:
    """Why the family has no such stage: a setting, its value, the value that it would need. None where it has.

    A super-resolution that is no network is not trained, nor are temporal layers that are not there.
    """
    cascade = recipe.cascade
    enlarging = {"sr_l": "sr_l", "sr_lt": "sr_l", "sr_h": "sr_h"}.get(name)
    if enlarging is not None:
        kind = cascade.sr_h.kind if enlarging == "sr_h" else cascade.sr_l.kind
        if kind != "network":
            return f"cascade.{enlarging}.kind", kind, "network"
    inflated = {"decoder_t": "decoder", "interp": "decoder", "sr_lt": "sr_l"}.get(name)
    if inflated is not None:
        network = cascade.decoder.network if inflated == "decoder" else cascade.sr_l.network
        if network.temporal == "none":
            return f"cascade.{inflated}.network.temporal", "none", "p3d"
    return None
