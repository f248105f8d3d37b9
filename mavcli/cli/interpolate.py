"""`mav interpolate`: pictures joined by motion, or a clip at a higher frame rate."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mavcli.cli.console import Console
from mavcli.cli.making import (
    Common,
    FpsOption,
    Item,
    Made,
    RandomOption,
    Session,
    Source,
    check_count,
    read_source,
    shape_words,
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
from mavcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from mavcli.cli.making import Job
    from mavcli.engine.cascade import Cascade
    from mavcli.media.frames import Fit, Frames


def interpolate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Two or more pictures, or one video.")
    ],
    factor: Annotated[
        int | None, typer.Option("--factor", min=2, metavar="K", help="Of a video: K times its frame rate.")
    ] = None,
    fps: FpsOption = None,
    between: Annotated[
        int | None,
        typer.Option(
            "--frames", min=3, metavar="N", help="Of pictures: frames from each to the next, both counted."
        ),
    ] = None,
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
    """Join pictures by motion, or raise the frame rate of a clip.

    Two pictures are the first and the last of 16 frames; then ↑F draws four more between each two of them: 76 frames
    from each picture to the next. A clip's frames become K apart, with K - 1 new ones in between.

    The source's own frames stand in the result untouched, at their own resolution; those in between come from the cascade
    and are enlarged or shrunk to it. The networks see a square: with --fit crop the result is the source's centre square,
    with --fit pad the whole frame (the bars are cut off again). Pictures of other sizes are fitted to the first one's.
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        if len(files) == 1 and fps is not None:
            raise UsageError("--fps is for pictures; a video's new rate is --factor times its own")
        session = Session(console, "interpolate", common, fps=fps)
        session.need("clip", "interp", "sr_l", "sr_h")
        if len(files) == 1:
            item = _clip_item(session, files[0], factor, between, fit)
        else:
            if factor is not None:
                raise UsageError("--factor is for one video, pictures take --frames")
            item = _pictures_item(session, files, between, fit)
        session.run([item])


def _clip_item(session: Session, file: Path, factor: int | None, between: int | None, fit: Fit) -> Item:
    from mavcli.engine.output import slug
    from mavcli.media.video import exact_rate

    source = read_source(file, session.console, wanted="either")
    if source.fps is None:
        raise InputError(
            f"`{file}` is one picture, wanted two or more, or a video", hint=f"mav animate {file}"
        )
    if between is not None:
        raise UsageError("--frames is for pictures, a video takes --factor")
    window = session.recipe.cascade.interp.window
    factor = factor or 2
    if factor >= window:
        raise UsageError(f"--factor {factor}, ↑F sees {window} frames at once: at most {window - 1}")
    if len(source.frames) < 2:
        raise InputError(f"`{file}` has one frame, wanted at least two", hint=f"mav animate {file}")
    session.console.message(source.describe())
    return _item(
        session,
        [source],
        source.frames,
        [factor],
        exact_rate(source.fps * factor),
        fit,
        f"{slug(file.stem)}-x{factor}",
        {"factor": factor},
    )


def _pictures_item(session: Session, files: list[Path], between: int | None, fit: Fit) -> Item:
    import numpy as np

    from mavcli.engine.output import slug
    from mavcli.media.frames import fit as fitted
    from mavcli.media.video import exact_rate

    sources = [read_source(file, session.console, wanted="image") for file in files]
    height, width = sources[0].size
    pictures = []
    for source in sources:
        session.console.message(source.describe())
        if source.size != (height, width):
            session.console.message(
                f"{source.path.name} is fitted to the first picture's {width} x {height} px ({fit})"
            )
        pictures.append(fitted(source.frames[0], (height, width), rule=fit))
    part = session.recipe.cascade.interp
    steps = (part.window - 1) * part.frame_skip if between is None else between - 1
    if steps < part.window:
        skips = [steps]
    elif steps % (part.window - 1) == 0 and steps // (part.window - 1) < part.window:
        skips = [part.window - 1, steps // (part.window - 1)]
    else:
        choices = ", ".join(str((part.window - 1) * n + 1) for n in range(1, part.window))
        raise UsageError(f"--frames {between}, possible are 3 to {part.window}, or one of {choices}")
    stem = "-".join(slug(file.stem)[:20] for file in files[:3]) + ("-etc" if len(files) > 3 else "")
    fps = exact_rate(session.fps)
    return _item(
        session, sources, np.stack(pictures), skips, fps, fit, f"{stem}-interpolate", {"frames": between}
    )


def _item(
    session: Session,
    sources: list[Source],
    known: Frames,
    skips: list[int],
    fps: Fraction,
    fit: Fit,
    stem: str,
    options: dict[str, Any],
) -> Item:
    """`known` frames (k, h, w, 3), the gaps between them filled by one pass of ↑F for each of `skips`."""
    from math import prod

    from mavcli.engine.compose import result_size

    apart = prod(skips)
    total = (len(known) - 1) * apart + 1
    check_count(total)
    height, width = known.shape[1:3]
    size = result_size(height, width, fit)

    def make(cascade: Cascade, job: Job) -> Made:
        from mavcli.engine.compose import Composite, kept_part, network_view
        from mavcli.engine.randomness import Draw
        from mavcli.media.frames import to_float, to_uint8

        draws = [Draw(session.common.seed)]
        video = to_float(network_view(known, cascade.size, fit))[None]
        done = 1
        for skip in skips:
            done *= skip
            video = cascade.interpolate(video, draws, skip=skip, fps=float(fps) * done / apart)
        large = to_uint8(cascade.enlarge(video, draws, fps=float(fps))[0])
        own = {i * apart: frame for i, frame in enumerate(kept_part(known, fit))}
        session.console.message(
            f"{len(own)} frames are the source's own, {total - len(own)} come from the cascade: "
            f"{large.shape[2]} px, brought to {size[1]} x {size[0]} px"
        )
        return Made(Composite(large, own, size=size), fps)

    def cost(cascade: Cascade) -> float:
        from mavcli.engine.windows import key_windows

        keys, windows = len(known), 0
        for skip in skips:
            windows += len(key_windows(keys, skip=skip, length=cascade.window)) if skip > 1 else 0
            keys = (keys - 1) * skip + 1
        return cascade.cost_of_windows(windows) + cascade.cost_of_enlarge(total)

    return Item(
        stem=f"{stem}-{session.common.seed}",
        make=make,
        cost=cost,
        shape=shape_words(total, *size, float(fps)),
        seed=session.common.seed,
        options={**options, "fps": str(fps), "fit": fit},
        inputs=tuple(sources),
    )
