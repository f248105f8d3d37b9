"""`mav data make-pocket`: the rendered world as ordinary files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mavcli.cli.console import Console, size
from mavcli.cli.options import JsonOption, QuietOption, SeedOption

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Prepare training data.")


@app.callback()
def _data() -> None:
    """Prepare training data."""


@app.command("make-pocket", short_help="Write the pocket family's training data as files.")
def make_pocket(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")
    ],
    images: Annotated[
        int, typer.Option("--images", min=0, metavar="N", help="Pictures with captions.")
    ] = 2000,
    clips: Annotated[
        int, typer.Option("--clips", min=0, metavar="N", help="Video clips without captions.")
    ] = 200,
    pixels: Annotated[
        int, typer.Option("--size", min=16, metavar="PX", help="Pixels a side, an even number.")
    ] = 256,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the pocket family's training data as ordinary files: captioned pictures, and video without captions.

    To train from them, set `train.data` in a recipe: `world: false`, `pairs: DIR`, `video: DIR/video`.
    """
    from mavcli.data.world import write_folder

    with Console(quiet=quiet, json=json) as console:
        seen = 0

        def progress(done: int, total: int) -> None:
            nonlocal seen
            if not seen:
                console.stage("writing", total)
            console.advance(done - seen)
            seen = done

        counts = write_folder(
            directory, images=images, clips=clips, size=pixels, seed=seed, progress=progress
        )
        console.message(
            f"{counts['images']} pictures, {counts['frames']} frames in {counts['clips']} clips, {size(counts['bytes'])}"
        )
        console.result(directory)
        console.result_object({"path": str(directory), **counts})
