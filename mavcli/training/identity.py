"""What must stay as it was for a training to go on, and how a change of it is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mavcli.errors import RecipeError, UsageError
from mavcli.recipe.schema import Recipe
from mavcli.training.checkpoint import Checkpoint
from mavcli.training.stage import Stage
from mavcli.weights.provenance import Parent

# What may change between two runs of one training: how long, how often and on what, not what is learnt.
FREE_KEYS = frozenset(
    {
        "steps",
        "decay",
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


def identity(stage: Stage, recipe: Recipe, parents: Sequence[Parent]) -> dict[str, Any]:
    """It, as JSON has it. Not the data's paths: folders are moved."""
    sha256 = {parent.role: parent.content_sha256 for parent in parents}
    return {
        "training": recipe.stage(stage.name).model_dump(mode="json", exclude=set(FREE_KEYS)),
        "seed": recipe.train.seed,
        "network": stage.network(recipe).model_dump(mode="json"),
        "schedule": stage.schedule(recipe).spec.model_dump(mode="json") if stage.schedule else None,
        "clip": sha256.get("clip"),
        "prior": sha256.get("prior") if "prior" in stage.frozen(recipe) else None,
    }


def refuse_changes(
    checkpoint: Checkpoint, now: dict[str, Any], folder: Path, *, allow: Sequence[str] = ()
) -> list[str]:
    """Raises RecipeError with a diff when a key changed that `allow` does not name; returns the allowed changes.

    `allow` names keys as the diff does (`training.lr`), by their end (`lr`) or by a part (`training.fps`).
    """
    changed = dict(changes(checkpoint.manifest, now))
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
