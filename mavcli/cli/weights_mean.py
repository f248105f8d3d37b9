"""`mav weights mean`: the mean of weights of one network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.options import ForceOption, JsonOption, QuietOption


def mean_weights(
    weights: Annotated[
        list[str],
        typer.Argument(metavar="WEIGHTS", help="Two or more: files, or FAMILY/STAGE."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the mean.")],
    share: Annotated[
        list[float] | None,
        typer.Option(
            "--share",
            metavar="S",
            help="How much each counts, once for each, in their order; alike otherwise.",
        ),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the mean of weights of one network: of trainings that began at the same weights, or of one's moments.

    Such a mean often keeps what each has learnt (model soups, arXiv 2203.05482). How far apart they are is printed; whether
    the mean is any good, only measuring tells: `mav eval pocket --set weights.interp=FILE`.
    """
    from mavcli.cli.weights import named_network
    from mavcli.weights.mean import mean_file

    with Console(quiet=quiet, json=json) as console:
        sources = [named_network(what) for what in weights]
        shares = "".join(f" --share {s:g}" for s in share or ())
        command = f"mav weights mean {' '.join(path.name for path in sources)}{shares}"
        done = mean_file(sources, out, shares=share, force=force, command=command)
        for source, apart in zip(sources[1:], done.apart, strict=True):
            console.message(f"{source} is {apart:.1%} of its norm away from {sources[0]}")
        console.written(done.files, done.header, shares=list(done.shares), apart=list(done.apart))
