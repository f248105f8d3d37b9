"""`mav animate IMAGE`: a still image begins to move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.making import (
    Common,
    FpsOption,
    FramesOption,
    Item,
    Made,
    RandomOption,
    SecondsOption,
    Session,
    natural_frames,
    out_size,
    read_source,
    shape_words,
    show_base,
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


def animate(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any size.")],
    fps: FpsOption = None,
    frames: FramesOption = None,
    seconds: SecondsOption = None,
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
    """Make a picture move: it is the first frame, the network draws the rest.

    The networks see a square. --fit crop takes the centre of the picture; --fit pad shows all of it, with bars that are
    cut off the result. Nothing is distorted. Transparent parts become white. The result has the cascade's resolution.
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        session = Session(console, "animate", common, fps=fps)
        total = wanted_frames(frames, seconds, fps=session.fps, natural=natural_frames(session.recipe))
        session.need("clip", "interp", "sr_l", "sr_h")
        source = read_source(image, console, wanted="image")
        console.message(source.describe())

        def make(cascade: Cascade, job: Job) -> Made:
            from mavcli.engine.compose import network_view, without_bars
            from mavcli.engine.randomness import Draw
            from mavcli.media.frames import to_float, to_uint8

            draws, rate = [Draw(seed)], session.fps
            seen = to_float(network_view(source.frames, cascade.size, fit))
            base = cascade.animate(seen, draws, fps=rate)
            show_base(session, job, base, fps=rate / cascade.skip)
            video = to_uint8(cascade.finish(base, draws, fps=rate, frames=total)[0])
            return Made(without_bars(video, *source.size) if fit == "pad" else video, rate)

        def cost(cascade: Cascade) -> float:
            rest = cascade.cost_of_fill_up(cascade.window, total) + cascade.cost_of_enlarge(total)
            return cascade.cost_of_slides(1) + rest

        from mavcli.engine.output import slug

        size = out_size(session.recipe)
        item = Item(
            shows_base=True,
            stem=f"{slug(image.stem)}-animate-{seed}",
            make=make,
            cost=cost,
            shape=shape_words(total, size, size, session.fps),
            seed=seed,
            options={"fps": session.fps, "frames": total, "fit": fit},
            inputs=(source,),
        )
        session.run([item])
