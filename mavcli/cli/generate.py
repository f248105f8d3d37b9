"""`mav generate "PROMPT"`: text to video."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from mavcli.cli.making import Job
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.family import Piece
    from mavcli.engine.uses.film import Film


Kind = Literal["video", "draft", "keys", "still"]


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
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A prompt a line, or a table with a column `prompt`; `-` reads lines from stdin.",
        ),
    ] = None,
    draft: Annotated[
        bool,
        typer.Option("--draft", help="Stop after the 16 key frames; the command without it goes on there."),
    ] = False,
    still: Annotated[
        bool,
        typer.Option(
            "--still", help="Make a picture (PNG) and no video: also the quickest check of an import."
        ),
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
    """Make a video from a text, or with --still a picture.

    Without --frames and --seconds it has the 76 frames that 16 key frames give. Fewer are cut from these; for more, the
    row of key frames is extended by sliding windows first. What each stage made is kept in the cache folder, so that a
    rerun or a draft's finish goes on from there.

    A failing line of --prompts does not end the batch: the exit code is 8, and a rerun skips what is finished.
    """
    with Console(quiet=quiet, json=json) as console:
        common = Common(recipe, sets or (), backend, out, seed, dry_run, force, random_weights)
        texts = _texts(prompt, prompts)
        session = Session(console, "generate", common, fps=fps)
        if still:
            _refuse_with_still(draft=draft, frames=frames, seconds=seconds, fps=fps)
        if prompts is None:
            check_prompt(session.recipe, texts[0], console)
        kind: Kind = "still" if still else "draft" if draft else "video"
        if kind == "still":
            session.need("clip", "prior", "decoder_t", "sr_l", "sr_h", stills=True)
            total = 1
        else:
            ends: tuple[Piece, ...] = () if draft else ("interp", "sr_l", "sr_h")
            total = wanted_frames(frames, seconds, fps=session.fps, natural=natural_frames(session.recipe))
            session.need("clip", "prior", "decoder_t", *ends, keys_suffice=True)
            if kind == "video" and "interp" not in session.family.parts:
                kind, total = "keys", _only_keys(session, frames, seconds)
        plan = _Plan(kind, total, count, checked=prompts is None)
        stems = _stems(texts)
        items = [item for text in texts for item in _items(session, text, stems[text], plan)]
        session.run(items, batch=prompts is not None)


@dataclass(frozen=True)
class _Plan:
    """What each prompt becomes: a `video` of `frames`, the key frames as they are (`draft`) or enlarged (`keys`), a `still`."""

    kind: Kind
    frames: int
    count: int
    checked: bool
    """Whether the prompts were checked already."""


def _refuse_with_still(**others: object) -> None:
    given = [f"--{name}" for name, value in others.items() if value]
    if given:
        raise UsageError(f"--still and {given[0]} are both given, a picture has no {given[0][2:]}")


def _only_keys(session: Session, frames: int | None, seconds: float | None) -> int:
    """How many of the key frames are asked for, where there is nothing to fill in between them."""
    parts = session.recipe.cascade
    keys, rate = parts.decoder.frames, session.fps / parts.interp.frame_skip
    wanted = wanted_frames(frames, seconds, fps=rate, natural=keys)
    if wanted > keys:
        raise UsageError(
            f"{wanted} frames were asked for, without ↑F there are the {keys} key frames alone",
            hint=f"--frames {keys}, or train `decoder_t` and `interp` first",
        )
    return wanted


def _stems(texts: list[str]) -> dict[str, str]:
    """Prompt -> the beginning of its file names; where several would share it, a digest tells them apart."""
    import hashlib

    from mavcli.engine.output import slug

    stems = {text: slug(text) for text in texts}
    taken = Counter(stems.values())
    return {
        text: stem if taken[stem] == 1 else f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
        for text, stem in stems.items()
    }


def _items(session: Session, text: str, stem: str, plan: _Plan) -> list[Item]:
    fault: MavError | None = None
    if not plan.checked:
        try:
            check_prompt(session.recipe, text, session.console)
        except MavError as error:
            fault = error
    seed, parts, fps = session.common.seed, session.recipe.cascade, session.fps
    size = parts.decoder.network.image_size if plan.kind == "draft" else out_size(session.recipe)
    rate = fps if plan.kind == "video" else fps / parts.interp.frame_skip
    frames = parts.decoder.frames if plan.kind == "draft" else plan.frames
    shape = (
        f"a picture of {size} x {size} px" if plan.kind == "still" else shape_words(frames, size, size, rate)
    )
    options: dict[str, Any] = {"still": True}
    if plan.kind != "still":
        options = {"fps": fps, "frames": plan.frames, "draft": plan.kind == "draft"}
        options |= {"keys": True} if plan.kind == "keys" else {}
    return [
        Item(
            stem=f"{stem}-{seed}"
            + (f"-{sample + 1}" if plan.count > 1 else "")
            + ("-draft" if plan.kind == "draft" else ""),
            make=_maker(session, text, sample, plan),
            cost=_costs(plan),
            shape=shape,
            seed=seed,
            sample=sample,
            prompt=text,
            options=options,
            still=plan.kind == "still",
            shows_base=plan.kind in ("video", "keys"),
            fault=fault,
        )
        for sample in range(plan.count)
    ]


def _maker(session: Session, text: str, sample: int, plan: _Plan) -> Any:
    def make(cascade: Cascade, job: Job) -> Film:
        from mavcli.engine.randomness import Draw
        from mavcli.engine.uses.film import whole
        from mavcli.media.frames import to_uint8

        draws, fps = [Draw(session.common.seed, sample)], session.fps
        embedding = cascade.image_embedding([text], draws)
        if plan.kind == "still":
            picture = cascade.enlarge(cascade.decode(embedding, draws, fps=fps, frames=1), draws, fps=fps)
            return whole(to_uint8(picture[0]), fps)
        base = cascade.decode(embedding, draws, fps=fps)
        rate = fps / cascade.skip
        if plan.kind == "draft":
            return whole(to_uint8(base[0]), rate)
        show_base(session, job, base, fps=rate)
        if plan.kind == "keys":
            return whole(to_uint8(cascade.enlarge(base[:, : plan.frames], draws, fps=rate)[0]), rate)
        return whole(to_uint8(cascade.finish(base, draws, fps=fps, frames=plan.frames)[0]), fps)

    return make


def _costs(plan: _Plan) -> Any:
    def cost(cascade: Cascade) -> float:
        if plan.kind == "still":
            return (
                cascade.cost_of_prior(1) + cascade.cost_of_decoder(1, frames=1) + cascade.cost_of_enlarge(1)
            )
        first = cascade.cost_of_prior(1) + cascade.cost_of_decoder(1)
        if plan.kind == "draft":
            return first
        keys = cascade.parts.decoder.frames
        filled = cascade.cost_of_fill_up(keys, plan.frames) if plan.kind == "video" else 0.0
        return first + filled + cascade.cost_of_enlarge(plan.frames)

    return cost


def _texts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts, each once."""
    if (prompt is None) == (file is None):
        what = "no prompt is given" if prompt is None else "a prompt and --prompts are both given"
        raise UsageError(what, hint='mav generate "a dog surfing", or --prompts FILE')
    if file is None:
        assert prompt is not None
        return [prompt]
    from mavcli.data.captions import read_lines, text_lines
    from mavcli.data.tables import TABLES, Table

    if file.suffix.lower() in TABLES:
        table = Table(file, keys=(), texts=("prompt", "caption", "text"))
        if not table.fits:
            raise table.misfit()
        found = []
        for line, _, text, fault in table.rows():
            if fault is not None:
                raise InputError(f"`{file}:{line}` {fault}")
            if text:
                found.append(text)
    else:
        lines = text_lines(sys.stdin.buffer.read(), "stdin") if str(file) == "-" else read_lines(file)
        found = [line for _, line in lines if not line.startswith("#")]
    if not found:
        raise InputError(f"`{file}` holds no prompt", hint="write one a line")
    return list(dict.fromkeys(found))
