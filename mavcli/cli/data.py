"""`mav data`: look at training data as a training would see it, and write the rendered world as ordinary files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mavcli.cli.console import Console, cache_dir, duration, size, table
from mavcli.cli.options import ForceOption, JsonOption, QuietOption, SeedOption, SetOption
from mavcli.errors import InputError
from mavcli.files import make_folder, refuse_existing

if TYPE_CHECKING:
    from mavcli.data.check import Checked

_SHEET_OF = "mav_data_check"
"""The PNG's text that says whose contact sheet it is."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Check and prepare training data.")


@app.callback()
def _data() -> None:
    """Check and prepare training data."""


@app.command("check", short_help="Say what a folder can give a training, and why files are left out.")
def check(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder, tar shards (`{000..099}.tar`), or a URL of them.")
    ],
    kind: Annotated[
        Literal["video", "pairs", "image"] | None,
        typer.Option("--kind", help="Read it as this; found out by itself otherwise."),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            min=2,
            max=4096,
            metavar="N",
            help="Length of the clips that are counted [the recipe's, or 16].",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="Whose fps curriculum is counted, and whose frame rates the clips must give.",
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE", help="Where the contact sheet goes.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Decode every file anew.")] = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Decode a data folder once and say what a training can draw from it.

    For each file the exact number of frames, the true rate, cuts, and whether it is static or a copy; then every file
    that is left out, with the reason. What was found is kept, so that training starts at once.
    """
    from mavcli.data.check import check_data
    from mavcli.data.places import is_url
    from mavcli.media.image import write_png
    from mavcli.recipe.load import load_recipe
    from mavcli.recipe.remarks import asked_rates, lacking_rate

    with Console(quiet=quiet, json=json) as console:
        if sheet is not None and sheet.exists() and not _is_sheet_of(sheet, directory):
            refuse_existing(sheet, force, hint="--force overwrites it, --sheet chooses another name")
        family = None if recipe is None else load_recipe(recipe).recipe
        config = None if family is None else family.stage("decoder_t")
        asked = {} if family is None else asked_rates(family)
        frames = frames or (16 if config is None else config.frames)
        done = 0

        def progress(now: int, of: int) -> None:
            nonlocal done
            if not done:
                console.stage(f"reading {directory}", of)
            console.advance(now - done)
            done = now

        found = check_data(
            directory,
            kind=kind,
            frames=frames,
            curriculum=None if config is None else config.fps,
            asked=[fps for stage, fps in asked.items() if stage == "decoder_t"],
            progress=progress,
            again=again,
        )
        console.close()
        if found.note is not None:
            console.warning(found.note)
        path: Path | None = None
        if found.sheet is not None:
            name = (
                directory.rstrip("/").rsplit("/", 1)[-1]
                if is_url(directory)
                else Path(directory).resolve().name
            )
            path = sheet or cache_dir() / "sheets" / f"{name or 'data'}.png"
            make_folder(path.parent)
            own = force or sheet is None or _is_sheet_of(path, directory)
            write_png(path, found.sheet, overwrite=own, metadata={_SHEET_OF: directory})
        for line in _lines(found, frames):
            console.result(line)
        if path is not None:
            console.result(f"contact sheet: {path}")
        lacking = [
            lacking_rate(stage, fps, frames, found.rates) for stage, fps in asked.items() if found.rates
        ]
        told = [text for text in lacking if text is not None]
        for text in told:
            console.warning(text)
        console.result_object(_object(found, frames, path) | {"warnings": told})
        if not found.rows:
            raise InputError(f"`{found.root}` holds nothing that can be trained on")


def _is_sheet_of(path: Path, directory: str) -> bool:
    """Whether `path` is a contact sheet that an earlier check of the same folder drew."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            return image.info.get(_SHEET_OF) == directory
    except (OSError, SyntaxError, ValueError):
        return False


@app.command("preview", short_help="Write a picture of what a stage will really see.")
def preview(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a YAML file.")],
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="clip, prior, decoder, ... sr_lt.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The PNG; `preview-STAGE.png` otherwise."),
    ] = None,
    step: Annotated[
        int,
        typer.Option("--step", min=0, max=10**9, metavar="N", help="The step of the training that is shown."),
    ] = 0,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=1000, metavar="N", help="Rows, at most a batch.")
    ] = 4,
    sets: SetOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a picture of what the network of a stage will see at a step: frames, their rate, masks, low-res inputs.

    The samples are those that the training draws at that step, crops and all. No weights are needed.
    """
    from mavcli.media.image import write_png
    from mavcli.recipe.load import load_recipe
    from mavcli.training.previews import seen
    from mavcli.training.stages import get_stage

    known = get_stage(stage)
    loaded = load_recipe(recipe, sets=sets or ())
    with Console(quiet=quiet, json=json) as console:
        target = out or Path(f"preview-{stage}.png")
        shown = seen(loaded, known, step=step, samples=samples, report=console)
        console.close()
        write_png(target, shown.sheet, overwrite=force)
        for line in shown.lines:
            console.message(line)
        console.result(target)
        console.result_object({"path": str(target), "stage": stage, "step": step, "samples": shown.lines})


@app.command("make-pocket", short_help="Write the pocket family's training data as files.")
def make_pocket(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")
    ],
    images: Annotated[
        int, typer.Option("--images", min=0, max=10**7, metavar="N", help="Pictures with captions.")
    ] = 2000,
    clips: Annotated[
        int, typer.Option("--clips", min=0, max=10**7, metavar="N", help="Video clips without captions.")
    ] = 200,
    pixels: Annotated[
        int, typer.Option("--size", min=16, max=1024, metavar="PX", help="Pixels a side, an even number.")
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


def _lines(found: Checked, frames: int) -> list[str]:
    """The whole report, as lines."""
    lines: list[str] = []
    if found.kind == "video":
        rows = [
            (
                row.name,
                str(row.frames),
                f"{row.fps:.3f}".rstrip("0").rstrip(".") + (" uneven" if row.uneven else ""),
                duration(row.seconds or 0) if (row.seconds or 0) >= 60 else f"{row.seconds:.2f} s",
                f"{row.width} x {row.height}",
                row.codec or "",
                str(len(row.cuts)),
                "; ".join(_remarks(row.static, row.duplicate_of, row.warnings)),
            )
            for row in found.rows
        ]
        lines += table(rows, heads=("file", "frames", "fps", "length", "pixels", "codec", "cuts", "remarks"))
    elif found.rows:
        rows_of = [
            (
                row.name,
                f"{row.width} x {row.height}",
                "; ".join(_remarks(False, row.duplicate_of, row.warnings)),
            )
            for row in found.rows
        ]
        lines += table(rows_of, heads=("file", "pixels", "remarks"))
    if found.rejected:
        lines += ["", *table(sorted(found.rejected.items()), heads=("left out", "because it"))]
    if found.fps:
        most = max(found.fps.values())
        bars = [(rate, str(n), "#" * max(1, round(40 * n / most))) for rate, n in found.fps.items()]
        lines += ["", *table(bars, heads=("fps", "files", ""))]
    if found.drawable:
        drawn = [(f"{d.fps:g}", str(d.clips), str(d.samples)) for d in found.drawable]
        lines += ["", *table(drawn, heads=("at fps", "files", f"starts of {frames}-frame samples"))]
    static = sum(row.static for row in found.rows)
    copies = sum(row.duplicate_of is not None for row in found.rows)
    cuts = sum(len(row.cuts) for row in found.rows)
    line = f"{found.kind}: used {len(found.rows)} of {len(found.rows) + len(found.rejected)}"
    line += f", {len(found.rejected)} rejected, {copies} copies"
    return [*lines, "", line + (f", {static} static, {cuts} cuts" if found.kind == "video" else "")]


def _remarks(static: bool, duplicate_of: str | None, warnings: tuple[str, ...]) -> list[str]:
    return [
        *(["static"] if static else []),
        *([f"same as {duplicate_of}"] if duplicate_of is not None else []),
        *warnings,
    ]


def _object(found: Checked, frames: int, sheet: Path | None) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "root": found.root,
        "kind": found.kind,
        "used": len(found.rows),
        "rejected": found.rejected,
        "files": [asdict(row) for row in found.rows],
        "fps_histogram": found.fps,
        "frames": frames,
        "drawable": [asdict(rate) for rate in found.drawable],
        "sheet": None if sheet is None else str(sheet),
    }
