"""What must stay as it was for a training to go on, and how a change of it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mavcli.errors import RecipeError, UsageError
from mavcli.recipe.schema import Recipe, StageTraining
from mavcli.training.checkpoint import Checkpoint
from mavcli.training.optim import learning_rate
from mavcli.training.stage import Stage
from mavcli.training.stages import get_stage
from mavcli.weights.provenance import Parent

# What may change between two runs of one training: how often and on what, not what is learnt.
FREE_KEYS = frozenset(
    {
        "save_every",
        "sample_every",
        "log_every",
        "micro_batch",
        "sharding",
        "recompute",
        "compile",
        "cuda_graphs",
        "retries",
    }
)


_LENGTH = ("training.steps", "training.decay")
"""They may change as long as all was so far as if it had begun so: until the rate begins to fall, before the change or after it."""


def identity(stage: Stage, recipe: Recipe, parents: Sequence[Parent]) -> dict[str, Any]:
    """It, as JSON has it. Not the data's paths: folders are moved."""
    sha256 = {parent.role: parent.content_sha256 for parent in parents}
    free = set(FREE_KEYS) if stage.masks else {*FREE_KEYS, "masks"}
    return {
        "training": recipe.stage(stage.name).model_dump(mode="json", exclude=free),
        "seed": recipe.train.seed,
        "network": stage.network(recipe).model_dump(mode="json"),
        "schedule": stage.schedule(recipe).spec.model_dump(mode="json") if stage.schedule else None,
        "clip": sha256.get("clip"),
        "prior": sha256.get("prior") if "prior" in stage.frozen(recipe) else None,
        "sr_l": sha256.get("sr_lt", sha256.get("sr_l")) if "sr_l" in stage.frozen(recipe) else None,
    }


def refuse_changes(
    checkpoint: Checkpoint, now: dict[str, Any], folder: Path, *, allow: Sequence[str] = ()
) -> list[str]:
    """Raises RecipeError with a diff when a key changed that `allow` does not name; returns the allowed changes.

    `allow` names keys as the diff does (`training.lr`), by their end (`lr`) or by a part (`training.fps`).
    """
    changed = dict(changes(checkpoint.manifest, now))
    length = [key for key in _LENGTH if key in changed]
    if length:
        told = _other_course(checkpoint, now)
        for key in length:
            if told is None:
                del changed[key]
            else:
                changed[key] += f" ({told})"
    named = {key: [name for name in allow if _names(name, key)] for key in changed}
    refused = {key: change for key, change in changed.items() if not named[key]}
    if refused:
        hint = "set the old values again, or choose another folder with `--set train.out=...`"
        # another network has no use for the old tensors
        if not any(key.startswith("network.") for key in refused):
            hint += ", or go on with the change: " + " ".join(f"--allow {key}" for key in refused)
        raise RecipeError(
            f"{folder} was trained with another recipe: "
            + "; ".join(f"{key}: {change}" for key, change in refused.items()),
            hint=hint,
        )
    # A key that no longer differs is no fault: the command that allowed it once is the one that goes on.
    unknown = [name for name in allow if not any(_names(name, key) for key in _keys(now))]
    if unknown:
        raise UsageError(
            f"`--allow {unknown[0]}` names nothing of a recipe that could have changed",
            hint=f"the changes are {', '.join(changed)}" if changed else "leave it out",
        )
    return [f"{key}: {change}" for key, change in changed.items()]


def _other_course(checkpoint: Checkpoint, now: dict[str, Any]) -> str | None:
    """What jumps at this step, where a training that had begun with the recipe of `now` would have come here another way.

    A rate that had run down to nothing and jumps up again undoes what running down brought; the curriculum of frame rates
    moves with the share of the steps that is done.
    """
    new = StageTraining.model_validate_json(json.dumps(now["training"]))
    old = new.model_copy(update={k: checkpoint.manifest["training"][k] for k in ("steps", "decay")})
    step, told = checkpoint.step, []
    if any(learning_rate(s, old) != learning_rate(s, new) for s in (step // 2, max(0, step - 1))):
        was, will = learning_rate(step, old), learning_rate(step, new)
        told.append(
            f"at step {step} the rate had come to {was:.3g} of the full one, it would go on at {will:.3g}"
        )
    video = get_stage(str(checkpoint.manifest["stage"])).data == "video"
    if video and step and new.fps.start != new.fps.end and old.steps != new.steps:
        was, will = (min(1.0, step / config.steps) for config in (old, new))
        if was != will:
            told.append(
                f"the curriculum of frame rates was {was:.0%} through, it would go on from {will:.0%}"
            )
    return ", ".join(told) or None


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, `old -> new`) of every value in both that differs; what an older version did not know is no change."""
    for key in (k for k in new if k in old):
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from changes(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key}", f"{old[key]} -> {new[key]}"


def _keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The key of every value, as `changes` says it."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _names(name: str, key: str) -> bool:
    return f".{key}.".endswith(f".{name}.") or f"{key}.".startswith(f"{name}.")
