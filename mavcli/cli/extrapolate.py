"""`mav extrapolate CLIP`: what came before and what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mavcli.cli.console import Console
from mavcli.cli.making import (
    MAX_STREAMED,
    Common,
    Item,
    RandomOption,
    Session,
    check_count,
    refuse_long,
    shape_words,
    tell_footage,
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
    finite,
)

if TYPE_CHECKING:
    from mavcli.cli.making import Job
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.uses.film import Film


def extrapolate(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video of any size, rate and length.")],
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            callback=finite,
            min=0.001,
            max=30_000,
            metavar="S",
            help="How much longer; with `both` in all.",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames", min=1, max=MAX_STREAMED, metavar="N", help="New frames, instead of --seconds."
        ),
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
    result untouched, at their own resolution, with their sound. The new ones come from the cascade and are enlarged or shrunk
    to it; the detail of the frame at the join goes along with what moves, as far as the drawn frames still show the same thing,
    and fades where they show something else. Only the scene at the join is continued. The networks see a square: with --fit crop
    the result is the clip's centre square, with --fit pad the whole frame (the bars are cut off again).
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        session = Session(console, "extrapolate", common)
        session.need("clip", "interp", "sr_l", "sr_h")
        from mavcli.engine.compose import result_size
        from mavcli.engine.output import slug
        from mavcli.engine.uses.extrapolate import cost_of_extrapolation, read_ends
        from mavcli.media.video import probe
        from mavcli.models.clip import pixels_read

        refuse_long(clip)
        new = wanted_frames(frames, seconds, fps=probe(clip).fps, most=MAX_STREAMED)
        refuse_long(clip, more=new)
        parts = session.recipe.cascade
        ends = read_ends(
            clip,
            size=parts.decoder.network.image_size,
            look=pixels_read(parts.clip.network),
            context=max(parts.interp.window // 2, 1),
            fit=fit,
        )
        footage = ends.footage
        rate = float(footage.rate)
        new = wanted_frames(frames, seconds, fps=rate, most=MAX_STREAMED)
        known = footage.places()[1]
        total = known + new
        check_count(total, most=MAX_STREAMED)
        tell_footage(footage, console)
        size = result_size(*footage.size, fit)

        def make(cascade: Cascade, job: Job) -> Film:
            from mavcli.engine.randomness import Draw
            from mavcli.engine.uses.extrapolate import extrapolate as extended

            held = known - int((footage.places()[0] >= 0).sum())
            standing = f", {held} more stand in gaps of it" if held else ""
            console.message(
                f"{known - held} frames are the clip's own{standing}, {new} come from the cascade: "
                f"{cascade.out_size} px, brought to {size[1]} x {size[0]} px"
            )
            return extended(cascade, ends, Draw(seed), new=new, direction=direction, fit=fit)

        def cost(cascade: Cascade) -> float:
            return cost_of_extrapolation(cascade, ends, new=new, direction=direction)

        item = Item(
            stem=f"{slug(clip.stem)}-{direction}-{seed}",
            make=make,
            cost=cost,
            shape=shape_words(total, *size, rate),
            seed=seed,
            options={"frames": new, "direction": direction, "fit": fit},
            inputs=(clip,),
            sound=footage.sound,
        )
        session.run([item])
