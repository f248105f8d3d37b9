"""`mav weights export`: weights for other codes or for publication, with a model card beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mavcli.cli.console import Console, size
from mavcli.cli.options import ForceOption, JsonOption, QuietOption, SetOption


def export_weights(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY|FAMILY/STAGE|FILE|DIR", help="`karlo`, `karlo/prior`, a file, a folder."
        ),
    ],
    to: Annotated[
        Literal["diffusers", "single-file"],
        typer.Option(
            "--to",
            help="The folders of a diffusers pipeline (image networks of unCLIP's kind), or each network as one file of "
            "ours without shards.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where it goes.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", metavar="NAME|FILE", help="The recipe that they belong to, for the card."
        ),
    ] = None,
    sets: SetOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="TEXT", help="What they were trained on and by what right, for the card."
        ),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            "--metrics", metavar="FILE", help="Measurements for the card: what `mav eval ... --json` printed."
        ),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write weights for other codes, and a model card: networks, recipe, data, licence, metrics, ready to publish.

    Tensors are converted one at a time. A network that the other code has no form for is refused by name; the card says
    what nobody has told it (`--data`, `--metrics`) instead of making it up.
    """
    from mavcli.cli.weights import named_weights
    from mavcli.recipe.load import load_recipe
    from mavcli.weights.export import export_diffusers, export_single_files
    from mavcli.weights.model_card import read_metrics, refuse_card, write_card

    with Console(quiet=quiet, json=json) as console:
        loaded = None if recipe is None else load_recipe(recipe, sets=sets or ())
        measured = None if metrics is None else read_metrics(metrics)
        sources = named_weights(what)
        refuse_card(out, force=force)
        exporting = export_diffusers if to == "diffusers" else export_single_files
        done = exporting(sources, out, force=force, report=console)
        card = write_card(
            out,
            done,
            layout=to,
            recipe=None if loaded is None else loaded.recipe,
            data=data,
            metrics=measured,
        )
        console.close()
        for missing in card.missing:
            console.warning(f"the card says nothing of {missing}")
        for file in done.files:
            console.result(file)
            console.message(f"{file.name}: {size(file.stat().st_size)}")
        console.result(card.path)
        console.result_object(
            {
                "to": to,
                "out": str(out),
                "files": [str(file) for file in done.files],
                "card": str(card.path),
                "left_out": list(done.left_out),
                "missing": list(card.missing),
            }
        )
