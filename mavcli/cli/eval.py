"""`mav eval`: measure what a family makes."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mavcli.cli import eval_metrics
from mavcli.cli.console import Console, cache_dir, table
from mavcli.cli.eval_human import human
from mavcli.cli.eval_interpolation import interpolation
from mavcli.cli.eval_run import run
from mavcli.cli.options import Family, SeedOption, finite, with_options
from mavcli.errors import counted
from mavcli.files import write_text
from mavcli.report import WithoutMessages

if TYPE_CHECKING:
    import numpy as np

    from mavcli.evaluation.pocket import FpsControl, Group, Reading
    from mavcli.evaluation.pocket_stages import StageDistance

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure what a family makes.")


@app.callback()
def _eval() -> None:
    """Measure what a family makes."""


app.command("fvd", short_help="Fréchet Video Distance between two folders of videos.")(eval_metrics.fvd)
app.command("fid", short_help="Fréchet Inception Distance between the frames of two folders.")(
    eval_metrics.fid
)
app.command("is", short_help="Inception Score of a folder of videos.")(eval_metrics.inception)
app.command("clipsim", short_help="How near videos are to their prompts in CLIP's space.")(
    eval_metrics.clipsim
)
app.command("motion", short_help="How videos move and flicker, without a network.")(eval_metrics.motion)
app.command("published", short_help="Recompute values that other repositories state.")(eval_metrics.published)
app.command(short_help="Generate and score one benchmark, beside the published scores.")(run)
app.command(short_help="How near ↑F comes to the frames that were there, beside blending.")(interpolation)
app.command(short_help="Let people compare two sets of videos, and count their votes.")(human)


@app.command(short_help="Whether the pocket family shows what its prompts say, and moves.")
@with_options(Family)
def pocket(
    prompts: Annotated[
        int,
        typer.Option(
            "--prompts", min=0, max=100_000, metavar="N", help="Prompts of pairs that training pictures show."
        ),
    ] = 60,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out",
            min=0,
            max=100_000,
            metavar="N",
            help="Prompts of pairs that no training data shows.",
        ),
    ] = 20,
    fps_prompts: Annotated[
        int,
        typer.Option(
            "--fps-control",
            min=0,
            max=100_000,
            metavar="N",
            help="Prompts that D^t draws at 1, 4, 8, 15 and 30 fps.",
        ),
    ] = 0,
    stages: Annotated[
        int,
        typer.Option(
            "--stages",
            min=0,
            max=100_000,
            metavar="N",
            help="Prompts whose every stage is compared with rendered clips (Fréchet).",
        ),
    ] = 0,
    inflated: Annotated[
        bool,
        typer.Option(
            "--inflated",
            help="The baseline that saw no video: D^t with temporal layers as inflation makes them.",
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read all frames of the whole chain, not the 16 frames of D^t.")
    ] = False,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            callback=finite,
            min=0.1,
            max=240,
            metavar="N",
            help="Frame rate asked for, over the recipe's.",
        ),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for the report and the contact sheets."),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            "--classifier", metavar="FILE", help="Another judge of pictures than the one that ships."
        ),
    ] = None,
    motion_judge: Annotated[
        Path | None,
        typer.Option(
            "--motion-judge", metavar="FILE", help="Another judge of motion than the one that ships."
        ),
    ] = None,
    train_classifier: Annotated[
        Path | None,
        typer.Option(
            "--train-classifier",
            metavar="FILE",
            help="Train the judge of pictures anew into FILE, then stop.",
        ),
    ] = None,
    train_motion_judge: Annotated[
        Path | None,
        typer.Option(
            "--train-motion",
            metavar="FILE",
            help="Train the judge of motion anew into FILE, then stop.",
        ),
    ] = None,
    *,
    chosen: Family,
) -> None:
    """Measure whether the pocket family shows what its prompts say, and whether it moves.

    Each prompt goes through the chain; a classifier trained on rendered pictures alone, which generation never sees,
    names actor, action and place, and another says from the trajectories whose motion it is. Intervals are Wilson's,
    95 %. Seen and held-out pairs are told apart. Started again, it goes on where it stopped.
    """
    from mavcli.recipe.load import load_recipe
    from mavcli.recipe.resolve import probe_machine, resolve

    overrides = {"output.fps": fps, "hardware.backend": chosen.backend}
    loaded = load_recipe(chosen.recipe, sets=chosen.sets or (), overrides=overrides)
    machine = probe_machine()
    resolved = resolve(loaded.recipe, machine=machine)
    with Console(quiet=chosen.quiet, json=chosen.json) as console:
        from mavcli.engine.backend import open_backend

        if train_classifier is not None or train_motion_judge is not None:
            open_backend(resolved)
            for path, train in ((train_classifier, _train), (train_motion_judge, _train_motion)):
                if path is not None:
                    _check_writable(path, chosen.force)
                    train(path, console)
            return
        from mavcli.engine.cascade import Cascade
        from mavcli.engine.room import check_parts
        from mavcli.engine.work import Work
        from mavcli.errors import UsageError
        from mavcli.evaluation import pocket as measures
        from mavcli.evaluation.classifier import load_classifier
        from mavcli.evaluation.pocket_stages import FEWEST_CLIPS, stage_distances
        from mavcli.evaluation.trajectory import load_motion_judge

        if 0 < stages < FEWEST_CLIPS:
            raise UsageError(
                f"--stages {stages} gives fewer frames than the judge has features",
                hint=f"--stages {FEWEST_CLIPS}",
            )
        if prompts + held_out + fps_prompts + stages == 0:
            raise UsageError("no prompts to measure", hint="--prompts 60")
        scope: measures.Scope = "full" if full else "base"
        family = measures.needed_family(
            loaded.recipe, scope="full" if stages else scope, random_weights=chosen.random_weights
        )
        judges = measures.Judges(load_classifier(classifier), load_motion_judge(motion_judge))
        name = f"eval-{loaded.recipe.name}-{scope}" + ("-inflated" if inflated else "")
        folder = out or Path(loaded.recipe.output.dir) / name
        rate = loaded.recipe.output.fps
        what = _scope_words(full, rate, loaded.recipe.cascade.interp.frame_skip)
        if inflated:
            what += "; D^t is inflated only, no video trained it"
            if stages or fps_prompts:
                raise UsageError(
                    "--inflated is the baseline of the prompts alone",
                    hint="leave --stages and --fps-control out",
                )
        groups: dict[Group, list[measures.Prompt]] = {
            "seen": measures.draw_prompts(prompts, group="seen", seed=seed),
            "held-out": measures.draw_prompts(held_out, group="held-out", seed=seed),
        }
        for warning in family.warnings:
            console.warning(warning)
        if chosen.dry_run:
            console.result(f"{prompts} seen and {held_out} held-out prompts, {what}, into {folder}")
            for piece, part in family.parts.items():
                console.result(f"{piece}: {part.path or 'random weights'}")
            console.result_object(
                {
                    "scope": scope,
                    "out": str(folder),
                    "prompts": {name: [p.text for p in some] for name, some in groups.items()},
                }
            )
            return
        _refuse_full_folder(folder, chosen.force)
        check_parts(family.parts.values(), machine=machine, resolved=resolved)
        place = open_backend(resolved)
        cascade = Cascade(
            loaded.recipe, family, place, report=WithoutMessages(console), work=Work(cache_dir() / "work")
        )
        batch = 1 if place.device.type == "cpu" else 16
        some_fps = measures.draw_prompts(fps_prompts, group="seen", seed=seed)
        console.plan(
            measures.plan(
                cascade,
                prompts=prompts + held_out,
                fps_prompts=fps_prompts,
                stage_prompts=stages,
                scope=scope,
            )
        )
        readings: dict[Group, list[Reading]] = {}
        looks: dict[Group, list[np.ndarray]] = {}
        for name, some in groups.items():
            readings[name], looks[name] = measures.measure(
                cascade, judges, some, scope=scope, fps=rate, seed=seed, batch=batch, inflated=inflated
            )
        distances = (
            stage_distances(
                cascade,
                judges.pictures,
                measures.draw_prompts(stages, group="seen", seed=seed),
                fps=rate,
                seed=seed,
            )
            if stages
            else []
        )
        control = measures.control_fps(cascade, some_fps, seed=seed, batch=batch) if some_fps else None
        console.close()
        told = {
            "recipe": loaded.recipe.name,
            "recipe_sha256": loaded.sha256,
            "scope": scope,
            "inflated": inflated,
            "what": what,
            "fps": rate,
            "seed": seed,
            "device": str(place.device),
            "dtype": str(place.dtype).removeprefix("torch."),
            "weights": {piece: part.describe() for piece, part in family.parts.items()},
            **measures.report_of(readings, control),
            "stages": [asdict(distance) for distance in distances],
        }
        pages = [
            page
            for name, some_readings in readings.items()
            for page in measures.write_pages(
                folder, some_readings, looks[name], name=name, force=chosen.force
            )
        ]
        written = json_module.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(folder / "report.json", written, overwrite=True)
        console.result(what)
        for line in [*_tables(told), *_fps_lines(control), *_stage_lines(distances)]:
            console.result(line)
        for path in [*pages, folder / "report.json"]:
            console.message(str(path))
        console.result_object({**told, "out": str(folder), "sheets": [str(page) for page in pages]})


def _scope_words(full: bool, fps: float, skip: int) -> str:
    if full:
        return f"all frames of the whole chain at {fps:g} fps"
    return f"the 16 frames of D^t at {fps / skip:g} fps, before ↑F and super-resolution (--full reads the whole chain)"


def _tables(told: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for group, facts in told["groups"].items():
        total = facts["shares"]["actor"]["total"]
        lines += ["", f"{group} pairs, {counted(total, 'prompt')}"]
        rows = [
            (f"  {part}", f"{s['right']}/{s['total']}", _percent(s), _frames(facts, part))
            for part, s in facts["shares"].items()
        ]
        lines += table(rows, heads=("  part", "right", "share [95 %]", "single frames"))
        if stills := facts["actors_never_in_video"]:
            texts = [f"{part} {s['right']}/{s['total']}" for part, s in stills.items()]
            lines.append(f"  of these, actors that no training clip shows: {', '.join(texts)}")
        for part, classes in facts["classes"].items():
            texts = [f"{name} {s['right']}/{s['total']}" for name, s in classes.items()]
            lines.append(f"  by {part}: {', '.join(texts)}")
            if errors := _errors(facts["confusion"][part]):
                lines.append(f"  {part} read as another: {errors}")
        rows4 = [
            (f"  {name}", f"{100 * m['motion']:.2f} %", f"{m['coherence']:+.2f}", f"{m['flicker']:.2f}")
            for name, m in facts["motion"].items()
        ]
        lines += table(rows4, heads=("  motion", "a frame", "coherence", "flicker"))
        controls = [f"{name} {s['right']}/{s['total']}" for name, s in facts["motion_controls"].items()]
        lines.append(f"  motion read rightly in the controls: {', '.join(controls)}")
        rows5 = [
            (
                f"  {row['action']}",
                f"{row['statistic']} of {row['signal']}",
                f"{row['rendered']:.3f}",
                f"{row['generated']:.3f}",
            )
            for row in facts["trajectories"]
        ]
        lines += table(rows5, heads=("  action", "what moves", "rendered", "generated"))
        for row in facts["motion_read"]:
            others = [f"{name} {n} x" for name, n in row["read"].items() if name != row["action"]]
            if others:
                lines.append(f"  motion of {row['action']} read as {', '.join(others)}")
    return lines


def _percent(share: dict[str, Any]) -> str:
    return f"{100 * share['share']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def _frames(facts: dict[str, Any], part: str) -> str:
    value = facts["frames_right"].get(part)
    return "" if value is None else f"{100 * value:.0f} %"


def _errors(confusion: dict[str, Any]) -> str:
    """The confusions that happened, the most frequent first."""
    names, counts = confusion["labels"], confusion["counts"]
    found = [
        (counts[i][j], f"{names[i]} as {names[j]}")
        for i in range(len(names))
        for j in range(len(names))
        if i != j and counts[i][j]
    ]
    ranked = sorted(found, key=lambda item: (-item[0], item[1]))
    texts = [text if count == 1 else f"{text} {count} x" for count, text in ranked]
    rest = len(texts) - 8
    return ", ".join(texts[:8]) + (f" and {rest} more" if rest > 0 else "")


def _fps_lines(control: FpsControl | None) -> list[str]:
    if control is None:
        return []
    rows = [
        (
            f"  {fps:g}",
            f"{100 * drawn:.2f} %",
            f"{100 * truth:.2f} %",
            f"{drawn * fps:.2f}",
            f"{truth * fps:.2f}",
        )
        for fps, drawn, truth in zip(control.fps, control.generated, control.rendered, strict=True)
    ]
    heads = ("  fps told", "a frame", "rendered", "a second", "rendered")
    return [
        "",
        "motion against the fps that D^t is told (mean absolute difference of frames, black to white is 1)",
        *table(rows, heads=heads),
        f"  rank correlation with fps: motion per second {control.rho_per_second:+.2f} "
        f"(rendered {control.rho_per_second_rendered:+.2f}), per frame {control.rho_per_frame:+.2f} "
        f"(rendered {control.rho_per_frame_rendered:+.2f})",
    ]


def _stage_lines(distances: list[StageDistance]) -> list[str]:
    if not distances:
        return []
    rows = [
        (f"  {d.stage}", f"{d.size}", f"{d.frames}", f"{d.distance:.2f}", f"{d.floor:.2f}") for d in distances
    ]
    heads = ("  after", "pixels", "frames", "distance", "two rendered sets")
    return ["", "Fréchet distance to rendered clips, in the judge's features", *table(rows, heads=heads)]


def _train(path: Path, console: Console) -> None:
    from mavcli.evaluation import classifier as judges

    made = judges.train_classifier(report=console)
    judges.save_classifier(made.network, path, samples_seen=made.samples_seen, steps=made.steps)
    judge = judges.load_classifier(path)
    console.close()
    told: dict[str, Any] = {"classifier": str(path)}
    for name, split, count in (("all", "all", 600), ("held-out", "held_out", 200)):
        shown = judges.rendered(count, seed=judges.TEST_SEED, split=split)  # type: ignore[arg-type]
        told[name] = judges.accuracy(judge, shown)
        figures = ", ".join(f"{part} {100 * value:.1f} %" for part, value in told[name].items())
        console.message(f"{count} fresh rendered pictures, {name} pairs: {figures}")
    console.result(path)
    console.result_object(told)


def _train_motion(path: Path, console: Console) -> None:
    from mavcli.evaluation import trajectory

    made = trajectory.train_motion_judge(report=console)
    trajectory.save_motion_judge(made.network, path, samples_seen=made.samples_seen, steps=made.steps)
    judge = trajectory.load_motion_judge(path)
    share = trajectory.accuracy(judge, trajectory.rendered_clips(270, seed=trajectory.TEST_SEED))
    console.close()
    console.message(f"270 fresh rendered clips, a ninth of them without motion: {100 * share:.1f} %")
    console.result(path)
    console.result_object({"motion": str(path), "accuracy": share})


def _check_writable(path: Path, force: bool) -> None:
    from mavcli.errors import DiskError, UsageError

    if path.suffix != ".safetensors":
        raise UsageError(f"`{path.name}` is no name for weights, wanted one that ends in .safetensors")
    if path.exists() and not force:
        raise DiskError(f"`{path}` exists", hint="--force overwrites it")


def _refuse_full_folder(folder: Path, force: bool) -> None:
    """Before anything is computed."""
    from mavcli.errors import DiskError

    if folder.exists() and not folder.is_dir():
        raise DiskError(f"`{folder}` is a file, wanted a folder", hint="-o chooses another name")
    if (folder / "report.json").exists() and not force:
        raise DiskError(f"`{folder}` holds a report", hint="--force overwrites it, -o chooses another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if force:
        for old in folder.glob("*-[0-9][0-9].png"):
            old.unlink()
