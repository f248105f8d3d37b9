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
    RandomOption,
    SecondsOption,
    Session,
    natural_frames,
    out_size,
    read_picture,
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
    from mavcli.engine.uses.film import Film


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

    Frame 0 is the picture itself at that size. Its detail goes along with what moves, as far as the drawn frames still show
    the same thing; where they show something else, the picture fades into what was drawn.
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        session = Session(console, "animate", common, fps=fps)
        total = wanted_frames(frames, seconds, fps=session.fps, natural=natural_frames(session.recipe))
        session.need("clip", "interp", "sr_l", "sr_h")
        source = read_picture(image, console)
        console.message(source.describe())

        def make(cascade: Cascade, job: Job) -> Film:
            from mavcli.engine.randomness import Draw
            from mavcli.engine.uses.animate import animate as animated
            from mavcli.engine.uses.animate import first_keys

            draw, rate = Draw(seed), session.fps
            keys = first_keys(cascade, source.pixels, draw, fps=rate, fit=fit)
            show_base(session, job, keys, fps=rate / cascade.skip)
            return animated(cascade, source.pixels, keys, draw, fps=rate, frames=total, fit=fit)

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
            inputs=(image,),
        )
        session.run([item])
