"""`mav inflate`: an image network becomes a video network, with proof that it says the same of every frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mavcli.cli.console import Console, size, table
from mavcli.cli.options import ForceOption, JsonOption, QuietOption


def inflate(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS", help="Image weights: a file, or FAMILY/STAGE such as `karlo/decoder`."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder of the video weights; without it, that of WEIGHTS."
        ),
    ] = None,
    widen: Annotated[
        Literal["none", "mask"],
        typer.Option("--widen", help="`mask` adds the four input channels of ↑F, starting at zero."),
    ] = "none",
    position: Annotated[
        Literal["none", "rope", "relbias"] | None,
        typer.Option("--position", help="How temporal attention tells frames apart; rope without it."),
    ] = None,
    fps: Annotated[
        bool | None,
        typer.Option(
            "--fps/--no-fps", help="Tell the network the frame rate; a decoder, unless told otherwise."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, max=2**63 - 1, metavar="N", help="Of the values that hide behind zeros."
        ),
    ] = 0,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add temporal layers to image weights (Make-A-Video, section 3.2): decoder -> decoder_t or interp, sr_l -> sr_lt.

    They start as the identity. Before anything is written, a random clip goes through both networks in float32, and the
    largest difference of each frame is printed and kept in the header; it is 0. Tensors are handled one at a time: the
    command needs far less memory than the network.
    """
    from mavcli.cli.weights import named_network
    from mavcli.engine.room import check_inflation
    from mavcli.recipe.resolve import free_memory
    from mavcli.specs import UNetSpec
    from mavcli.weights.inflation import inflate_file
    from mavcli.weights.provenance import as_described, read_header

    source = named_network(weights)
    spec = read_header(source).spec
    if isinstance(spec, UNetSpec):
        with as_described(source):
            check_inflation(spec, free=free_memory())
    command = f"mav inflate {source.name}" + ("" if widen == "none" else f" --widen {widen}")
    with Console(quiet=quiet, json=json) as console:
        done = inflate_file(
            source,
            out or source.parent,
            widen=widen,
            position=position,
            fps=fps,
            seed=seed,
            force=force,
            report=console,
            command=command,
        )
        console.close()
        told, peak = done.inflation, _peak_memory()
        share = told.added / told.parameters
        rows = [
            ("proof", f"max |difference| per frame {', '.join(f'{d:g}' for d in told.difference)}"),
            ("added", f"{told.added / 1e6:.2f} M of {told.parameters / 1e6:.2f} M parameters, {share:.1%}"),
            ("weights", f"{size(done.bytes_before)} -> {size(done.bytes_after)}, as they lie in memory"),
        ]
        rows += [("peak", f"{size(peak)} of memory for this command, torch included")] if peak else []
        for line in table(rows):
            console.message(line)
        console.written(
            done.files,
            done.header,
            difference=list(told.difference),
            parameters=told.parameters,
            added=told.added,
            share=share,
            bytes_before=done.bytes_before,
            bytes_after=done.bytes_after,
            peak_memory=peak,
        )


def _peak_memory() -> int | None:
    """Bytes that this process held at most; None where the system does not tell."""
    import sys

    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
