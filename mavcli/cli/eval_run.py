"""`mav eval run PRESET`: one benchmark from its prompts to its scores, beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mavcli.cli.console import Console, cache_dir, table
from mavcli.cli.options import Family, with_options
from mavcli.cli.ranks import open_ranks
from mavcli.errors import UsageError
from mavcli.report import WithoutMessages

if TYPE_CHECKING:
    from mavcli.evaluation.benchmark import Plan, Scored
    from mavcli.evaluation.features import FeatureNetwork
    from mavcli.evaluation.protocol import Metric, Preset
    from mavcli.evaluation.shards import Shard
    from mavcli.recipe.load import LoadedRecipe
    from mavcli.recipe.resolve import Resolved

# Metric -> the networks it takes, as `--weights` and the files call them.
_FILES: dict[str, tuple[str, ...]] = {"fvd": ("i3d",), "fid": ("inception",), "is": ("c3d", "c3d mean")}
_BETTER = {"fvd": "lower", "fid": "lower", "is": "higher", "clipsim": "higher"}


@with_options(Family)
def run(
    preset: Annotated[
        str | None,
        typer.Argument(metavar="PRESET", help="msrvtt, ucf101, drawbench, ...: `--list` says all."),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions", metavar="PATH", help="The benchmark's published captions, a file or a folder."
        ),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option("--real", metavar="DIR", help="The benchmark's real videos, for FVD and FID."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Only this metric of the preset; repeatable."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="NAME=FILE",
            help="Weights of a measuring network, such as i3d=FILE; repeatable.",
        ),
    ] = None,
    sentences: Annotated[
        Literal["pyoco", "snapvideo", "classname"] | None,
        typer.Option("--sentences", help="ucf101: another list of class sentences than the preset's."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=2, max=10**7, metavar="N", help="Fewer samples than the protocol's."),
    ] = None,
    allow_small: Annotated[
        bool, typer.Option("--allow-small", help="Measure fewer samples; the score says so.")
    ] = False,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out real videos that are damaged or too short.")
    ] = False,
    resamples: Annotated[
        int,
        typer.Option(
            "--resamples",
            min=10,
            max=100_000,
            metavar="N",
            help="Bootstrap resamples, at most 100 for FVD and FID.",
        ),
    ] = 1000,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", min=1, max=4096, metavar="N", help="Samples at once [1 on a CPU, 16 on a GPU]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Samples and scores [outputs/eval-PRESET-RECIPE]"),
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="List the presets, then stop.")] = False,
    *,
    chosen: Family,
) -> None:
    """Generate a benchmark's samples, measure them, and print the scores beside the published ones.

    A preset fixes prompts, counts, frames, sizes, networks and seeds. Each published score is marked comparable or not, and
    why. Started again, it goes on where it stopped; `torchrun --nproc-per-node N -m mavcli eval run ...` shares the work
    among N devices.
    """
    from mavcli.evaluation.protocol import find_preset, presets, prompts_of, real_videos

    if list_presets:
        with Console(quiet=chosen.quiet, json=chosen.json) as console:
            for line in table([(p.name, f"{p.samples:,}", p.title) for p in presets().values()]):
                console.result(line)
            console.result_object({"presets": [p.model_dump(mode="json") for p in presets().values()]})
        return
    if preset is None:
        raise UsageError("no preset is given", hint="mav eval run --list")
    asked = find_preset(preset)
    if asked.prompts.source == "pocket":
        given = {"--captions": captions, "--real": real, "--sentences": sentences, "--metric": metrics}
        _pocket(
            asked,
            {
                name: value
                for name, value in {**given, "--weights": weights, "--batch": batch}.items()
                if value
            },
            samples=samples,
            allow_small=allow_small,
            out=out,
            chosen=chosen,
        )
        return
    wanted = _metrics(asked, metrics)
    if any(metric.metric in ("fvd", "fid") for metric in wanted) and real is None:
        names = [metric.metric for metric in wanted if metric.metric not in ("fvd", "fid")]
        without = " ".join(f"--metric {name}" for name in names)
        raise UsageError(
            f"preset `{asked.name}` compares with real videos, which are not part of mav",
            hint="--real FOLDER" + (f", or {without} alone" if without else ""),
        )
    if sentences and asked.prompts.source != "ucf101":
        raise UsageError("--sentences is for ucf101", hint=f"mav eval run {asked.name} without it")
    device = "cpu" if chosen.backend == "cpu" else "auto"
    with open_ranks(device, quiet=chosen.quiet, json=chosen.json) as (shard, console):
        from dataclasses import replace

        from mavcli.engine.family import find_family
        from mavcli.evaluation.benchmark import needed_pieces, plan_benchmark
        from mavcli.evaluation.clips import open_folder
        from mavcli.recipe.load import load_recipe
        from mavcli.recipe.resolve import probe_machine, resolve

        loaded = load_recipe(
            chosen.recipe, sets=chosen.sets or (), overrides={"hardware.backend": chosen.backend}
        )
        machine = probe_machine()
        resolved = resolve(loaded.recipe, machine=machine)
        prompts = prompts_of(asked, captions, sentences=sentences)
        pieces = needed_pieces(loaded.recipe, asked.clip)
        family = find_family(loaded.recipe, pieces, random_weights=chosen.random_weights)  # type: ignore[arg-type]
        plan = plan_benchmark(
            asked,
            prompts,
            loaded.recipe,
            random_pieces=family.random,
            samples=samples,
            allow_small=allow_small,
            sentences=sentences,
        )
        if shard.leads:
            for text in (*family.warnings, *plan.departures):
                console.warning(text)
        files = _weight_files(wanted, weights or [])
        truth = None
        if real is not None and any(metric.metric in ("fvd", "fid") for metric in wanted):
            truth, few = real_videos(asked, open_folder(real), captions, allow_small=allow_small)
            if few is not None:
                plan = replace(plan, departures=(*plan.departures, few))
                console.warning(few)
        folder = out or Path(loaded.recipe.output.dir) / f"eval-{asked.name}-{loaded.recipe.name}"
        if chosen.dry_run:
            _tell_plan(console, plan, wanted, files, folder)
            return
        from mavcli.engine.room import check_parts
        from mavcli.evaluation.benchmark import rehearse_metric, score_metric
        from mavcli.evaluation.protocol import ucf101_classes
        from mavcli.evaluation.scores import FrameChoice, Measurement

        check_parts(family.parts.values(), machine=machine, resolved=resolved)
        how = Measurement(
            FrameChoice(),
            cache_dir() / "features",
            console,
            shard=shard,
            skip_unusable=skip_unusable,
        )
        # Samples may take days: wrong weights and unusable real videos are told before the first one.
        for metric in wanted:
            rehearse_metric(metric, _network(metric, files, shard), plan, real=truth, how=how)
        told = _run_facts(loaded, resolved, family)
        _generate(
            console, shard, loaded, resolved, family, plan, folder, told, batch=batch, force=chosen.force
        )
        labels = ucf101_classes(captions) if asked.prompts.source == "ucf101" and captions else []
        scored = []
        for metric in wanted:
            network = _network(metric, files, shard)
            scored.append(
                (
                    metric,
                    score_metric(
                        metric,
                        network,
                        plan,
                        folder,
                        real=truth,
                        how=how,
                        resamples=resamples,
                        labels=labels,
                    ),
                )
            )
        console.close()
        if shard.leads:
            _tell(console, plan, scored, folder, told, captions)


def _metrics(preset: Preset, names: list[str] | None) -> list[Metric]:
    known = {metric.metric: metric for metric in preset.metrics}
    for name in names or ():
        if name not in known:
            raise UsageError(
                f"preset `{preset.name}` has no metric `{name}`", hint=f"it has {', '.join(known)}"
            )
    return [metric for name, metric in known.items() if names is None or name in names]


def _weight_files(metrics: list[Metric], given: list[str]) -> dict[str, Path]:
    """Every measuring network's file, found before anything is made."""
    from mavcli.evaluation.weight_files import find_weights

    named: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            raise UsageError(f"--weights {text}, wanted NAME=FILE", hint="--weights i3d=i3d_torchscript.pt")
        named[name.strip()] = Path(path)
    wanted = [name for metric in metrics for name in _FILES.get(metric.metric, (metric.network,))]
    unknown = [name for name in named if name not in wanted]
    if unknown:
        raise UsageError(f"no metric takes weights of `{unknown[0]}`", hint=f"--weights {wanted[0]}=FILE")
    return {name: find_weights(name, named.get(name), option=f"--weights '{name}=FILE':") for name in wanted}


def _network(metric: Metric, files: Mapping[str, Path], shard: Shard) -> FeatureNetwork:
    from mavcli.evaluation import networks

    place = shard.device
    if metric.metric == "fvd":
        return networks.I3DFeatures(files["i3d"], squaring=metric.resize, layer=metric.layer, device=place)  # type: ignore[arg-type]
    if metric.metric == "fid":
        return networks.InceptionFeatures(
            files["inception"],
            resizing=metric.resize,  # type: ignore[arg-type]
            layer=metric.layer,  # type: ignore[arg-type]
            device=place,
        )
    if metric.metric == "is":
        return networks.C3DLogits(files["c3d"], files["c3d mean"], device=place)
    return networks.ClipFeatures(metric.network, files[metric.network], device=place)


def _run_facts(loaded: LoadedRecipe, resolved: Resolved, family: Any) -> dict[str, Any]:
    """What every sample tells of the run that made it."""
    import json

    from mavcli.engine.versions import code_sha256, versions

    return {
        "recipe": {
            "name": loaded.recipe.name,
            "sha256": loaded.sha256,
            "resolved": json.loads(loaded.recipe.model_dump_json(include={"cascade"})),
        },
        "weights": {piece: part.describe() for piece, part in family.parts.items()},
        "random_weights": list(family.random),
        "versions": versions(),
        "code_sha256": code_sha256(),
        "device": resolved.device.partition(":")[0],
        "dtype": resolved.dtype,
        "threads": resolved.threads,
    }


def _generate(
    console: Console,
    shard: Shard,
    loaded: LoadedRecipe,
    resolved: Resolved,
    family: Any,
    plan: Plan,
    folder: Path,
    told: Mapping[str, Any],
    *,
    batch: int | None,
    force: bool,
) -> None:
    from dataclasses import replace

    from mavcli.engine.backend import open_backend
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.work import Work
    from mavcli.evaluation.benchmark import generate_samples

    place = open_backend(resolved)
    place.apply()
    if place.device.type == "cuda":
        place = replace(place, device=shard.device)
    cascade = Cascade(
        loaded.recipe, family, place, report=WithoutMessages(console), work=Work(cache_dir() / "work")
    )
    made = generate_samples(
        cascade,
        plan,
        folder,
        run=told,
        shard=shard,
        report=console,
        batch=batch or (1 if place.device.type == "cpu" else 16),
        force=force,
    )
    console.close()
    count = len(plan.prompts)
    console.message(
        f"{made} of {count:,} samples are made now, the others were there"
        if made < count
        else f"{made:,} samples are made"
    )


def _tell_plan(
    console: Console, plan: Plan, metrics: list[Metric], files: Mapping[str, Path], folder: Path
) -> None:
    shape = plan.preset.clip
    console.result(
        f"{len(plan.prompts):,} samples of {shape.frames} frames of {plan.size} x {plan.size} px at {shape.fps:g} fps, "
        f"into {folder}"
    )
    for metric in metrics:
        choices = metric.model_dump(exclude={"metric"}, exclude_none=True)
        console.result(f"{metric.metric}: " + ", ".join(f"{name} {value}" for name, value in choices.items()))
    for name, path in files.items():
        console.result(f"{name}: {path}")
    console.result_object(
        {
            "dry_run": True,
            "preset": plan.preset.model_dump(mode="json"),
            "samples": len(plan.prompts),
            "departures": list(plan.departures),
            "weights": {name: str(path) for name, path in files.items()},
            "out": str(folder),
        }
    )


def _tell(
    console: Console,
    plan: Plan,
    scored: list[tuple[Metric, Scored]],
    folder: Path,
    told: Mapping[str, Any],
    captions: Path | None,
) -> None:
    """The scores on stdout, and as `scores.json`, `scores.md` and plots in `folder`."""
    from mavcli.evaluation.benchmark import report_of, write_report

    report = report_of(plan, scored, run=told, captions=captions)
    paths = write_report(folder, report)
    for line in score_lines(report):
        console.result(line)
    for path in paths:
        console.message(str(path))
    console.result_object({**report, "out": str(folder), "files": [str(path) for path in paths]})


def score_lines(report: Mapping[str, Any]) -> list[str]:
    """The scores, then the table of published ones, for people."""
    lines = [f"{report['preset']['name']}, recipe {report['run']['recipe']['name']}"]
    if report["departures"]:
        lines.append("NOT THE PROTOCOL: " + "; ".join(report["departures"]))
    rows = []
    for name, found in report["scores"].items():
        interval = found["interval"]
        ends = f"[{interval['low']:.4g}, {interval['high']:.4g}]" if interval else ""
        rows.append(
            (
                name,
                f"{found['value']:.5g}",
                ends,
                f"{found['samples']:,} samples",
                f"{_BETTER[name]} is better",
            )
        )
    if rows:
        lines += ["", *table(rows, heads=("metric", "score", "95 %", "of", ""))]
    if report["published"]:
        names = list(
            dict.fromkeys([*report["scores"], *(n for row in report["published"] for n in row["scores"])])
        )
        rows = [
            (
                row["system"] + (" (!)" if row["doubt"] else ""),
                row["setting"],
                *(f"{row['scores'][name]:g}" if name in row["scores"] else "" for name in names),
                row["comparable"] + (f": {row['why'][0]}" if row["why"] else ""),
            )
            for row in report["published"]
        ]
        lines += ["", *table(rows, heads=("published", "setting", *names, "comparable"))]
        if any(row["doubt"] for row in report["published"]):
            lines.append("(!) not seen in the system's own paper")
    return lines


def _pocket(
    preset: Preset,
    given: Mapping[str, Any],
    *,
    samples: int | None,
    allow_small: bool,
    out: Path | None,
    chosen: Family,
) -> None:
    """The pocket preset is measured by its own judges: `mav eval pocket`."""
    if given:
        raise UsageError(f"preset `pocket` takes no {next(iter(given))}", hint="mav eval pocket --help")
    from mavcli.cli.eval import pocket

    wanted = preset.samples if samples is None else samples
    if wanted < preset.samples and not allow_small:
        raise UsageError(
            f"preset `pocket` asks for {preset.samples} samples, not {wanted}",
            hint="--allow-small measures fewer, and says so in the score",
        )
    if wanted != preset.samples:
        Console(quiet=chosen.quiet).warning(f"{wanted} samples, the protocol asks for {preset.samples}")
    held_out = round(wanted / 4)  # 20 of 80
    pocket(prompts=wanted - held_out, held_out=held_out, out=out, **vars(chosen))
