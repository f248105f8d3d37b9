"""`mav extrapolate CLIP`: what came before and what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mavcli.cli.console import Console
from mavcli.cli.making import (
    Common,
    Item,
    Made,
    RandomOption,
    Session,
    check_count,
    read_source,
    shape_words,
    wanted_frames,
)
from mavcli.cli.options import (
    BackendOption,
    DryRunOption,
    FitOption,
    ForceOption,
    JsonOption,
    OutOption,
    QuietOption,
    RecipeOption,
    SeedOption,
    SetOption,
)

if TYPE_CHECKING:
    from mavcli.cli.making import Job
    from mavcli.engine.cascade import Cascade


def extrapolate(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video of any size, rate and length.")],
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="S", help="How much longer; with `both` in all.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, metavar="N", help="New frames, instead of --seconds.")
    ] = None,
    direction: Annotated[
        Literal["forward", "backward", "both"],
        typer.Option("--direction", help="After the clip, before it, or half on each side."),
    ] = "forward",
    fit: FitOption = "crop",
    seed: SeedOption = 0,
    recipe: RecipeOption = "pocket",
    sets: SetOption = None,
    out: OutOption = None,
    backend: BackendOption = None,
    random_weights: RandomOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Make a clip longer by --seconds or --frames, at its own frame rate.

    ↑F slides over it: eight frames are known in each window, the other eight are new. The clip's own frames stand in the
    result untouched, at their own resolution; the new ones come from the cascade and are enlarged or shrunk to it. The
    networks see a square: with --fit crop the result is the clip's centre square, with --fit pad the whole frame (the bars
    are cut off again).
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        session = Session(console, "extrapolate", common)
        session.need("clip", "interp", "sr_l", "sr_h")
        source = read_source(clip, console, wanted="clip")
        assert source.fps is not None
        rate = float(source.fps)
        new = wanted_frames(frames, seconds, fps=rate)
        total = len(source.frames) + new
        check_count(total)
        console.message(source.describe())

        from mavcli.engine.compose import result_size
        from mavcli.engine.output import slug

        size = result_size(*source.size, fit)
        before = {"forward": 0, "backward": new, "both": new // 2}[direction]

        def make(cascade: Cascade, job: Job) -> Made:
            import numpy as np

            from mavcli.engine.compose import Composite, kept_part, network_view
            from mavcli.engine.randomness import Draw
            from mavcli.media.frames import to_float, to_uint8

            draws = [Draw(seed)]
            seen = to_float(network_view(source.frames, cascade.size, fit))[None]
            video = cascade.extrapolate(seen, draws, frames=new, fps=rate, direction=direction)
            # Only new frames are enlarged: the others are in the source at their own resolution.
            large = [
                to_uint8(cascade.enlarge(part, draws, fps=rate)[0])
                for part in (video[:, :before], video[:, before + len(source.frames) :])
                if part.shape[1]
            ]
            own = {before + i: frame for i, frame in enumerate(kept_part(source.frames, fit))}
            side = large[0].shape[1]
            blank = np.zeros((len(own), 1, 1, 3), np.uint8)  # never shown: these frames are the source's own
            places = [np.broadcast_to(blank, (len(own), side, side, 3)), *large]
            if before:
                places[0], places[1] = places[1], places[0]
            console.message(
                f"{len(own)} frames are the clip's own, {new} come from the cascade: "
                f"{side} px, brought to {size[1]} x {size[0]} px"
            )
            assert source.fps is not None
            return Made(Composite(np.concatenate(places), own, size=size), source.fps)

        def cost(cascade: Cascade) -> float:
            from mavcli.engine.windows import sliding_windows

            slides = sum(
                len(sliding_windows(len(source.frames), count, length=cascade.window))
                for count in (before, new - before)
            )
            large = sum(cascade.cost_of_enlarge(count) for count in (before, new - before) if count)
            return cascade.cost_of_slides(slides) + large

        item = Item(
            stem=f"{slug(clip.stem)}-{direction}-{seed}",
            make=make,
            cost=cost,
            shape=shape_words(total, *size, rate),
            seed=seed,
            options={"frames": new, "direction": direction, "fit": fit},
            inputs=(source,),
        )
        session.run([item])
