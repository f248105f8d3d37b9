"""`mav interpolate`: pictures joined by motion, or a clip at a higher frame rate."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.making import (
    MAX_STREAMED,
    Common,
    FpsOption,
    Item,
    RandomOption,
    Session,
    check_count,
    is_picture,
    read_picture,
    refuse_long,
    shape_words,
    tell_footage,
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
    from mavcli.engine.uses.film import Film
    from mavcli.media.frames import Fit, Frames


def interpolate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Two or more pictures, or one video.")
    ],
    factor: Annotated[
        int | None,
        typer.Option("--factor", min=2, max=64, metavar="K", help="Of a video: K times its frame rate."),
    ] = None,
    fps: FpsOption = None,
    between: Annotated[
        int | None,
        typer.Option(
            "--frames",
            min=3,
            max=MAX_STREAMED,
            metavar="N",
            help="Of pictures: frames from each to the next, both counted.",
        ),
    ] = None,
    keep_source: Annotated[
        bool,
        typer.Option(
            "--keep-source",
            help="Show the source's own frames untouched: sharper than those between them, so the result may flicker.",
        ),
    ] = False,
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
    from each picture to the next. A clip's frames become K apart, with K - 1 new ones in between; it lasts as long as before, and
    its sound is kept. Nothing is drawn from one scene to another: the frame before a cut stands until the cut.

    All frames have one sharpness: where those between show what the source shows, they and the source's own have its pixels;
    elsewhere both are the cascade's, which sees them small and enlarges them. With --keep-source the source's own stand untouched
    among frames of the cascade. The networks see a square: with --fit crop the result is the source's centre square, with
    --fit pad the whole frame (the bars are cut off again). Pictures of other sizes are fitted to the first one's.
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        if len(files) == 1 and fps is not None:
            raise UsageError("--fps is for pictures; a video's new rate is --factor times its own")
        session = Session(console, "interpolate", common, fps=fps)
        session.need("clip", "interp", "sr_l", "sr_h")
        if len(files) == 1:
            item = _clip_item(session, files[0], factor, between, fit, keep_source)
        else:
            if factor is not None:
                raise UsageError("--factor is for one video, pictures take --frames")
            item = _pictures_item(session, files, between, fit, keep_source)
        session.run([item])


def _clip_item(
    session: Session, file: Path, factor: int | None, between: int | None, fit: Fit, keep: bool
) -> Item:
    import numpy as np

    from mavcli.engine.compose import network_view, result_size
    from mavcli.engine.output import slug
    from mavcli.engine.uses.film import read_through
    from mavcli.engine.uses.interpolate import cost_of_clip, timeline
    from mavcli.media.video import exact_rate

    if is_picture(file):
        raise InputError(
            f"`{file}` is one picture, wanted two or more, or a video", hint=f"mav animate {file}"
        )
    if between is not None:
        raise UsageError("--frames is for pictures, a video takes --factor")
    window = session.recipe.cascade.interp.window
    factor = factor or 2
    if factor >= window:
        raise UsageError(f"--factor {factor}, ↑F sees {window} frames at once: at most {window - 1}")
    refuse_long(file, factor=factor)
    small = session.recipe.cascade.decoder.network.image_size
    views: list[Frames] = []
    footage = read_through(file, lambda frame: views.append(network_view(frame[None], small, fit)[0]))
    if len(footage) < 2:
        raise InputError(f"`{file}` has one frame, wanted at least two", hint=f"mav animate {file}")
    tell_footage(footage, session.console)
    _tell_untrained(session, [factor])
    line = timeline(footage, factor=factor, window=window)
    check_count(line.count, most=MAX_STREAMED)
    size = result_size(*footage.size, fit)
    fps = exact_rate(footage.rate * factor)

    def make(cascade: Cascade, job: Job) -> Film:
        from mavcli.engine.randomness import Draw
        from mavcli.engine.uses.interpolate import between_frames

        known = len(line.known)
        held = line.count - known - line.drawn
        standing = f", {held} stand still before a cut, a long gap or the end" if held else ""
        session.console.message(
            f"{known} frames are the clip's own, {line.drawn} come from the cascade{standing}: "
            f"{cascade.out_size} px, brought to {size[1]} x {size[0]} px; {_shown(keep)}"
        )
        draw = Draw(session.common.seed)
        stack = np.stack(views)
        return between_frames(cascade, footage, stack, line, draw, rate=fps, fit=fit, keep_source=keep)

    return Item(
        stem=f"{slug(file.stem)}-x{factor}-{session.common.seed}",
        make=make,
        cost=lambda cascade: cost_of_clip(cascade, line),
        shape=shape_words(line.count, *size, float(fps)),
        seed=session.common.seed,
        options={"factor": factor, "fps": str(fps), "fit": fit, "keep_source": keep},
        inputs=(file,),
        sound=footage.sound,
    )


def _pictures_item(session: Session, files: list[Path], between: int | None, fit: Fit, keep: bool) -> Item:
    import numpy as np

    from mavcli.engine.compose import result_size
    from mavcli.engine.output import slug
    from mavcli.engine.uses.interpolate import cost_of_pictures, pictures_line
    from mavcli.media.frames import fit as fitted
    from mavcli.media.video import exact_rate

    sources = [read_picture(file, session.console) for file in files]
    height, width = sources[0].size
    pictures = []
    for source in sources:
        session.console.message(source.describe())
        if source.size != (height, width):
            session.console.message(
                f"{source.path.name} is fitted to the first picture's {width} x {height} px ({fit})"
            )
        pictures.append(fitted(source.pixels, (height, width), rule=fit))
    skips = _skips(session, between)
    _tell_untrained(session, skips)
    apart = prod(skips)
    line = pictures_line(len(pictures), apart)
    check_count(line.count)
    size = result_size(height, width, fit)
    fps = exact_rate(session.fps)

    def make(cascade: Cascade, job: Job) -> Film:
        from mavcli.engine.randomness import Draw
        from mavcli.engine.uses.interpolate import between_pictures

        session.console.message(
            f"{len(pictures)} frames are the source's own, {line.drawn} come from the cascade: "
            f"{cascade.out_size} px, brought to {size[1]} x {size[0]} px; {_shown(keep)}"
        )
        draw = Draw(session.common.seed)
        return between_pictures(
            cascade, np.stack(pictures), draw, skips=skips, rate=fps, fit=fit, keep_source=keep
        )

    stem = "-".join(slug(file.stem)[:20] for file in files[:3]) + ("-etc" if len(files) > 3 else "")
    return Item(
        stem=f"{stem}-interpolate-{session.common.seed}",
        make=make,
        cost=lambda cascade: cost_of_pictures(cascade, len(pictures), skips),
        shape=shape_words(line.count, *size, float(fps)),
        seed=session.common.seed,
        options={"frames": between, "fps": str(fps), "fit": fit, "keep_source": keep},
        inputs=tuple(files),
    )


def _tell_untrained(session: Session, skips: Sequence[int]) -> None:
    """Say, before any work, where ↑F will fill in between frames that are further apart than it learnt to, or less far."""
    if (text := session.family.untrained_skip(session.recipe, *skips)) is not None:
        session.console.warning(text)


def _skips(session: Session, between: int | None) -> list[int]:
    """How far apart known frames are in each pass of ↑F, so that there are `between` from picture to picture."""
    part = session.recipe.cascade.interp
    steps = (part.window - 1) * part.frame_skip if between is None else between - 1
    if steps < part.window:
        return [steps]
    if steps % (part.window - 1) == 0 and steps // (part.window - 1) < part.window:
        return [part.window - 1, steps // (part.window - 1)]
    choices = ", ".join(str((part.window - 1) * n + 1) for n in range(1, part.window))
    raise UsageError(f"--frames {between}, possible are 3 to {part.window}, or one of {choices}")


def _shown(keep: bool) -> str:
    return (
        "the source's own stand untouched, and sharper than the others"
        if keep
        else "all have one sharpness (--keep-source leaves the source's own untouched)"
    )
