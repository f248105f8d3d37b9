"""`mav vary`: another video that means the same."""

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
    check_prompt,
    is_picture,
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
    finite,
)
from mavcli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from mavcli.cli.making import Job
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.uses.film import Film


def vary(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A video or a picture.")],
    blend: Annotated[
        str | None,
        typer.Option(
            "--blend", metavar="OTHER:SHARE", help="Go this share of the way to another one: `b.png:0.4`."
        ),
    ] = None,
    text_diff: Annotated[
        tuple[str, str] | None,
        typer.Option("--text-diff", metavar="FROM TO", help='Change what it shows: "a dog" "a cat".'),
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            "--strength",
            callback=finite,
            min=0.0,
            max=1.0,
            help="How far --text-diff goes; unCLIP: 0.25 to 0.5.",
        ),
    ] = 0.4,
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
    """Make a new video with the meaning of another one, or of a picture.

    The mean CLIP image embedding of its frames takes the place of the text. --blend goes along the sphere towards another
    file's; --text-diff goes in the direction from one text to another (unCLIP, sections 3.2 and 3.3). CLIP sees a square:
    --fit crop takes the centre, --fit pad all of it with bars. A video may be of any length; its sound is not kept.
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        session = Session(console, "vary", common, fps=fps)
        total = wanted_frames(frames, seconds, fps=session.fps, natural=natural_frames(session.recipe))
        other, share = _blend(blend)
        for text in text_diff or ():
            check_prompt(session.recipe, text, console)
        session.need("clip", "decoder_t", "interp", "sr_l", "sr_h")
        paths = [path for path in (file, other) if path is not None]
        pictures = {path: read_picture(path, console) for path in paths if is_picture(path)}
        for path in paths:
            console.message(pictures[path].describe() if path in pictures else _describe_clip(path, console))

        def meaning(cascade: Cascade, path: Path) -> Tensor:
            from mavcli.engine.uses.vary import meaning as mean_embedding

            still = pictures.get(path)
            return mean_embedding(cascade, path if still is None else still.pixels[None], fit=fit)

        def make(cascade: Cascade, job: Job) -> Film:
            from torch.nn import functional as F

            from mavcli.engine.cascade import slerp
            from mavcli.engine.randomness import Draw
            from mavcli.engine.uses.film import whole
            from mavcli.media.frames import to_uint8

            embedding = meaning(cascade, file)
            # All that follows turns directions; the length is CLIP's own where its networks read that.
            length = (
                1.0 if session.recipe.cascade.clip.network.unit_norm else embedding.norm(dim=-1, keepdim=True)
            )
            embedding = F.normalize(embedding, dim=-1)
            if other is not None:
                embedding = slerp(embedding, meaning(cascade, other), share)
            if text_diff is not None:
                before, after = cascade.embed_texts(list(text_diff))
                embedding = slerp(embedding, F.normalize(after - before, dim=-1)[None], strength)
            draws, rate = [Draw(seed)], session.fps
            base = cascade.decode(length * embedding, draws, fps=rate)
            show_base(session, job, base, fps=rate / cascade.skip)
            return whole(to_uint8(cascade.finish(base, draws, fps=rate, frames=total)[0]), rate)

        def cost(cascade: Cascade) -> float:
            keys = cascade.parts.decoder.frames
            rest = cascade.cost_of_fill_up(keys, total) + cascade.cost_of_enlarge(total)
            return cascade.cost_of_decoder(1) + rest

        from mavcli.engine.output import slug

        size = out_size(session.recipe)
        item = Item(
            shows_base=True,
            stem=f"{slug(file.stem)}-vary-{seed}",
            make=make,
            cost=cost,
            shape=shape_words(total, size, size, session.fps),
            seed=seed,
            options={
                "fps": session.fps,
                "frames": total,
                "fit": fit,
                "blend": share if other is not None else None,
                "text_diff": list(text_diff) if text_diff else None,
                "strength": strength if text_diff else None,
            },
            inputs=tuple(paths),
        )
        session.run([item])


def _describe_clip(path: Path, console: Console) -> str:
    """A video by its header; it is said that its sound stays behind."""
    from mavcli.media.video import find_sound, probe

    found = probe(path)
    for text in found.warnings:
        console.warning(f"{path.name}: {text}")
    silent = "; its sound is not kept" if find_sound(path, origin=found.start) is not None else ""
    size = f"{found.width} x {found.height} px"
    return f"{path.name}: {size}, {found.frames} frames at {found.fps:.6g} fps{silent}"


def _blend(text: str | None) -> tuple[Path | None, float]:
    """`OTHER:0.4` -> the file and the share of the way to it."""
    if text is None:
        return None, 0.0
    path, _, number = text.rpartition(":")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not path or not 0 <= share <= 1:
        raise UsageError(f"--blend {text}, wanted OTHER:SHARE with a share from 0 to 1, such as `b.png:0.4`")
    return Path(path), share
