"""Options that several commands share, so that a flag means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
    int, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same frames.")
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
