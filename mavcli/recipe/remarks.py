"""What generation will tell the networks, beside what their training tells them: a recipe that runs may still ask for more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from mavcli.recipe.schema import Recipe

NAMES = {"decoder_t": "D^t", "interp": "↑F", "sr_lt": "SR_l^t"}
_FEW = 0.1
"""Of the clips: where a smaller share gives a rate, it is told."""


def asked_rates(recipe: Recipe) -> dict[str, float]:
    """Stage -> the frames per second that generation tells its network, for the stages whose network is told any."""
    parts, fps = recipe.cascade, recipe.output.fps
    networks = {
        "decoder_t": parts.decoder.network,
        "interp": parts.interp_network(),
        "sr_lt": parts.sr_l.network,
    }
    rates = {"decoder_t": fps / parts.interp.frame_skip, "interp": fps, "sr_lt": fps}
    return {stage: rate for stage, rate in rates.items() if networks[stage].fps}


def trained_skips(recipe: Recipe) -> tuple[int, ...]:
    """How far apart the known frames are between which ↑F learns to draw."""
    config = recipe.stage("interp")
    masks, frames = config.masks, config.frames
    met = {skip for skip in masks.skips(frames) if skip < frames} if masks.interpolate else set()
    return tuple(sorted(met | ({frames - 1} if masks.endpoints else set())))


def untrained_skip(skips: Iterable[int], trained: Collection[int]) -> str | None:
    """What to say of known frames that are `skips` apart, where ↑F was trained on those that are `trained` apart."""
    new = sorted({skip for skip in skips if skip > 1} - set(trained))
    if not new:
        return None
    met = f"; it learnt {_listed(trained)}" if trained else ""
    return f"↑F was never trained to fill in between frames that are {_listed(new)} apart{met}"


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def lacking_rate(stage: str, fps: float, frames: int, rates: Sequence[tuple[float, float]]) -> str | None:
    """What to say of clips that give `frames` frames at (lowest, highest) `rates`, where the network of `stage` will be told
    `fps`; None where enough of them give it."""
    giving = sum(low * (1 - 1e-9) <= fps <= high for low, high in rates)
    if giving and giving >= _FEW * len(rates):
        return None
    name, seconds = NAMES[stage], (frames - 1) / fps
    able = [(low, high) for low, high in rates if low <= high]
    range_ = (
        f"they give {min(r[0] for r in able):.3g} to {max(r[1] for r in able):.3g} fps"
        if able
        else "they give none"
    )
    return (
        f"generation will tell {name} {fps:.3g} fps, and {giving or 'none'} of {len(rates)} clips "
        f"give{'s' if giving < 2 else ''} {frames} frames at that rate ({range_}): how things move at {fps:.3g} fps is not learnt; "
        f"it takes clips of {seconds:.3g} s without a cut, or fewer `frames`"
    )


def remarks(recipe: Recipe) -> list[str]:
    """Each thing that generation asks of a network beyond what the recipe trains it for, in words."""
    if recipe.cascade.decoder.network.temporal == "none":
        return []
    skip = recipe.cascade.interp.frame_skip
    found = [untrained_skip([skip], trained_skips(recipe))]
    for stage, fps in asked_rates(recipe).items():
        curriculum = recipe.stage(stage).fps
        if not curriculum.low <= fps <= curriculum.high:
            found.append(
                f"generation tells {NAMES[stage]} {fps:.3g} fps, `train.stages.{stage}.fps` trains {curriculum.low:g} to {curriculum.high:g}"
            )
    return [text for text in found if text is not None]
