"""Options that several commands share, so that a flag means the same everywhere."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer


def finite(value: float | None) -> float | None:
    """The value of an option with a range; NaN is in every range, for all that a comparison says."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"`{value}` is no finite number")
    return value


RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", metavar="NAME|FILE", help="A shipped recipe (`mav recipe ls`) or a YAML file."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one entry of the recipe; repeatable."),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**63 - 1, metavar="N", help="The same seed gives the same frames."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="PATH", help="A file, or a folder for files with names of their own."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and with which weights, then stop.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but results, warnings and errors.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
FitOption = Annotated[
    Literal["crop", "pad"],
    typer.Option("--fit", help="How a picture of another shape is made square: cut it, or add bars."),
]
BackendOption = Annotated[
    Literal["auto", "cuda", "multi-gpu", "cpu"] | None,
    typer.Option("--backend", help="Where it runs, over the recipe's `hardware.backend`."),
]
RandomWeightsOption = Annotated[
    bool, typer.Option("--random-weights", help="Let untrained networks run; for tests of the machinery.")
]


@dataclass(frozen=True)
class Family:
    """The options of a command that measures what a recipe's networks make."""

    recipe: RecipeOption = "pocket"
    sets: SetOption = None
    backend: BackendOption = None
    random_weights: RandomWeightsOption = False
    force: ForceOption = False
    dry_run: DryRunOption = False
    json: JsonOption = False
    quiet: QuietOption = False


def with_options(group: type, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option that `group` has, behind its own: it gets them as one value, `chosen`.

    `group` is a frozen dataclass whose fields are annotated as options are; a field's default is the option's, or that in
    `defaults`, for a command that wants another one.
    """
    hints = get_type_hints(group, include_extras=True)
    known = {f.name: defaults.get(f.name, f.default) for f in fields(group)}
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if value is MISSING else value,
            annotation=hints[name],
        )
        for name, value in known.items()
    ]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "chosen"]

        @functools.wraps(command)
        def call(*args: Any, **given: Any) -> None:
            chosen = group(**{name: given.pop(name, value) for name, value in known.items()})
            command(*args, chosen=chosen, **given)

        # What typer reads a command line by.
        call.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
        return call

    return give
