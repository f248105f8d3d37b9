"""`mav generate "PROMPT"`: text to video."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    check_prompt,
    natural_frames,
    out_size,
    shape_words,
    show_base,
    wanted_frames,
)
from mavcli.cli.options import (
    BackendOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    OutOption,
    QuietOption,
    RecipeOption,
    SeedOption,
    SetOption,
)
from mavcli.errors import InputError, MavError, UsageError

if TYPE_CHECKING:
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.output import Target


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to show.")] = None,
    fps: FpsOption = None,
    frames: FramesOption = None,
    seconds: SecondsOption = None,
    count: Annotated[
        int, typer.Option("-n", min=1, max=1000, metavar="COUNT", help="Videos of each prompt.")
    ] = 1,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="A prompt a line; `-` reads them from stdin."),
    ] = None,
    draft: Annotated[
        bool,
        typer.Option("--draft", help="Stop after the 16 key frames; the command without it goes on there."),
    ] = False,
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
    """Make a video from a text.

    Without --frames and --seconds it has the 76 frames that 16 key frames give. Fewer are cut from these; for more, the
    row of key frames is extended by sliding windows first. What each stage made is kept in the cache folder, so that a
    rerun or a draft's finish goes on from there.

    A failing line of --prompts does not end the batch: the exit code is 8, and a rerun skips what is finished.
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        texts = _texts(prompt, prompts)
        session = Session(console, "generate", common, fps=fps)
        total = wanted_frames(frames, seconds, fps=session.fps, natural=natural_frames(session.recipe))
        if prompts is None:
            check_prompt(session.recipe, texts[0], console)
        if draft:
            session.need("clip", "prior", "decoder_t")
        else:
            session.need("clip", "prior", "decoder_t", "interp", "sr_l", "sr_h")
        items = [
            item
            for text in texts
            for item in _items(session, text, texts, total, count, draft, checked=prompts is None)
        ]
        session.run(items, batch=prompts is not None)


def _items(
    session: Session, text: str, texts: list[str], frames: int, count: int, draft: bool, *, checked: bool
) -> list[Item]:
    from mavcli.engine.output import slug

    fault: MavError | None = None
    if not checked:
        try:
            check_prompt(session.recipe, text, session.console)
        except MavError as error:
            fault = error
    seed, parts, fps = session.common.seed, session.recipe.cascade, session.fps
    stem = slug(text)
    if sum(slug(other) == stem for other in texts) > 1:
        import hashlib

        stem += f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    size = parts.decoder.network.image_size if draft else out_size(session.recipe)
    if draft:
        shape = shape_words(parts.decoder.frames, size, size, fps / parts.interp.frame_skip)
    else:
        shape = shape_words(frames, size, size, fps)
    return [
        Item(
            stem=f"{stem}-{seed}" + (f"-{sample + 1}" if count > 1 else "") + ("-draft" if draft else ""),
            make=_maker(session, text, sample, frames, draft),
            cost=_costs(frames, draft),
            shape=shape,
            seed=seed,
            sample=sample,
            prompt=text,
            options={"fps": fps, "frames": frames, "draft": draft},
            fault=fault,
        )
        for sample in range(count)
    ]


def _maker(session: Session, text: str, sample: int, frames: int, draft: bool) -> Any:
    def make(cascade: Cascade, target: Target) -> Made:
        from mavcli.engine.randomness import Draw
        from mavcli.media.frames import to_uint8

        draws, fps = [Draw(session.common.seed, sample)], session.fps
        base = cascade.decode(cascade.image_embedding([text], draws), draws, fps=fps)
        if draft:
            return Made(to_uint8(base[0]), fps / cascade.skip)
        show_base(session.console, target, base, fps=fps / cascade.skip)
        return Made(to_uint8(cascade.finish(base, draws, fps=fps, frames=frames)[0]), fps)

    return make


def _costs(frames: int, draft: bool) -> Any:
    def cost(cascade: Cascade) -> float:
        first = cascade.cost_of_prior(1) + cascade.cost_of_decoder(1)
        if draft:
            return first
        keys = cascade.parts.decoder.frames
        return first + cascade.cost_of_fill_up(keys, frames) + cascade.cost_of_enlarge(frames)

    return cost


def _texts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts, each once."""
    if (prompt is None) == (file is None):
        what = "no prompt is given" if prompt is None else "a prompt and --prompts are both given"
        raise UsageError(what, hint='mav generate "a dog surfing", or --prompts FILE')
    if file is None:
        assert prompt is not None
        return [prompt]
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text: byte {error.start} is no character") from error
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise InputError(f"{file} holds no prompt", hint="write one a line")
    return list(dict.fromkeys(found))
