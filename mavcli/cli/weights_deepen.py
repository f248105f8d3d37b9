"""`mav weights deepen`: more residual blocks for a network, which says at first what it said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.options import ForceOption, JsonOption, QuietOption


def deepen_weights(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A U-Net: a file, or FAMILY/STAGE.")],
    blocks: Annotated[
        str,
        typer.Option(
            "--blocks", metavar="N,N,...", help="Residual blocks of each level, the largest pixels' first."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the deeper network.")],
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, max=2**63 - 1, metavar="N", help="Draws the first layers of new blocks."
        ),
    ] = 0,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give a network more residual blocks, which change nothing until they are trained.

    The new network says to the bit what the old one said. Train it on with a recipe that describes it: `mav train-stage STAGE
    RECIPE --start FILE`, with `num_res_blocks` of its network as in `--blocks`.
    """
    from mavcli.cli.weights import named_network
    from mavcli.errors import UsageError
    from mavcli.weights.deepen import deepen_file

    with Console(quiet=quiet, json=json) as console:
        try:
            wanted = tuple(int(part) for part in blocks.split(","))
        except ValueError:
            raise UsageError(
                f"`--blocks {blocks}` is no list of whole numbers", hint="--blocks 2,2,1"
            ) from None
        source = named_network(weights)
        command = f"mav weights deepen {source.name} --blocks {blocks}" + (f" --seed {seed}" if seed else "")
        done = deepen_file(source, wanted, out, seed=seed, force=force, command=command)
        console.message(
            f"{done.before / 1e6:.2f} M parameters before, {done.after / 1e6:.2f} M now; a recipe says it with "
            f"num_res_blocks: [{', '.join(map(str, wanted))}]"
        )
        console.written(done.files, done.header, parameters=done.after, parameters_before=done.before)
