"""`mav estimate RECIPE [STAGE]`: what training and using a family costs, before anything is trained."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from mavcli.cli.console import Console, duration, size, table
from mavcli.cli.options import JsonOption, QuietOption, SetOption, finite
from mavcli.errors import counted

if TYPE_CHECKING:
    from mavcli.training.estimate import Devices, Generation, StageEstimate


def estimate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a YAML file.")],
    stage: Annotated[
        str | None, typer.Argument(metavar="[STAGE]", help="One stage alone, with every part of its memory.")
    ] = None,
    sets: SetOption = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", min=1, max=65536, metavar="N", help="For N GPUs that are not of this machine."
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            callback=finite,
            min=1,
            max=100_000,
            metavar="GIB",
            help="Memory of each such GPU; 80 unless said.",
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops",
            callback=finite,
            min=0.001,
            max=1e6,
            metavar="X",
            help="What each such GPU keeps up in training; 300 unless said.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="Run two steps of each stage that fits on this machine."),
    ] = True,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what a recipe's stages cost: parameters, FLOPs, memory, disk and time; and what a clip costs to make.

    Networks of any size are counted without memory. Where a stage fits on this machine two real steps are timed; for GPUs
    that are not here, and for stages that do not fit, the time comes from the FLOPs and a rate, and the table says
    so. Where a stage does not fit, the `--set` options are named that make it fit.
    """
    from mavcli.recipe.load import load_recipe
    from mavcli.recipe.resolve import probe_machine
    from mavcli.recipe.schema import STAGES
    from mavcli.training.stages import get_stage, has_stage
    from mavcli.weights.locate import is_imported

    if stage is not None:
        get_stage(stage)  # before a `--set` that would name it
    loaded = load_recipe(recipe, sets=sets or ())
    from mavcli.training.estimate import GIB, estimate_generation, estimate_stage, find_devices
    from mavcli.training.start import check_stage

    if stage is not None:
        check_stage(get_stage(stage), loaded.recipe, 1)
    with Console(quiet=quiet, json=json) as console:
        devices = find_devices(
            loaded.recipe,
            machine=probe_machine(),
            gpus=gpus,
            memory=None if memory is None else round(memory * GIB),
            rate=None if tflops is None else tflops * 1e12,
        )
        trained = [n for n in STAGES if has_stage(loaded.recipe, n) and not is_imported(loaded.recipe, n)]
        names = [stage] if stage else trained
        found = []
        console.stage("estimating", len(names))
        for name in names:
            found.append(
                estimate_stage(loaded.recipe, name, devices=devices, probe=probe, both=stage is not None)
            )
            console.advance()
        temporal = loaded.recipe.cascade.decoder.network.temporal != "none"
        clip = estimate_generation(loaded.recipe, devices=devices) if stage is None and temporal else None
        console.close()
        for line in _lines(loaded.recipe.name, devices, found, clip, alone=stage is not None):
            console.result(line)
        console.result_object(
            {
                "recipe": loaded.recipe.name,
                "sha256": loaded.sha256,
                "devices": {
                    "kind": devices.kind,
                    "processes": devices.processes,
                    "memory_bytes": devices.memory,
                    "dtype": devices.dtype,
                    "here": devices.here,
                    "why": devices.why,
                    "flops_per_s": devices.rate,
                },
                "stages": [_object(one) for one in found],
                "parameters": sum(one.parameters for one in found),
                "seconds": sum(one.seconds for one in found),
                "disk_bytes": sum(one.disk_bytes for one in found),
                "generation": None if clip is None else _generation_object(clip),
            }
        )


def _lines(
    name: str,
    devices: Devices,
    stages: list[StageEstimate],
    clip: Generation | None,
    *,
    alone: bool,
) -> list[str]:
    lines = [f"recipe {name}: {devices.why}, {devices.dtype}", ""]
    heads = (
        "stage",
        "parameters",
        "a sample",
        "a step",
        "memory",
        "fits",
        "one step",
        "steps",
        "all steps",
        "disk",
    )
    rows = [
        (
            one.stage,
            _count(one.parameters),
            _flops(one.flops_forward + one.flops_backward),
            f"{one.batch_size} x",
            size(one.memory.total),
            {True: "yes", False: "NO", None: "?"}[one.fits],
            _seconds(one.seconds_per_step),
            str(one.steps),
            _long(one.seconds),
            size(one.disk_bytes),
        )
        for one in stages
    ]
    lines += table(rows, heads=heads)
    if not alone:
        total = sum(one.seconds for one in stages)
        lines.append(
            f"together {_count(sum(one.parameters for one in stages))} parameters, {_long(total)}, "
            f"{size(sum(one.disk_bytes for one in stages))} of disk"
        )
    for one in stages:
        if alone:
            lines += ["", *_details(one)]
        if one.fits is False:
            helps = " ".join(f"--set {text}" for text in one.advice)
            limit = size(devices.memory)
            lines += [
                "",
                f"{one.stage} needs {size(one.memory.total)} of {limit}: "
                + (f"it fits with {helps}" if helps else "no setting makes it fit; take a smaller network"),
            ]
    hows = dict.fromkeys(one.how for one in stages)
    lines += ["", "time: " + "; ".join(_told(how, stages, alone=alone) for how in hows)]
    if clip is not None:
        lines += ["", *_clip_lines(clip)]
    return lines


def _told(how: str, stages: list[StageEstimate], *, alone: bool) -> str:
    names = ", ".join(one.stage for one in stages if one.how == how)
    return how if alone or all(one.how == how for one in stages) else f"{names}: {how}"


def _details(one: StageEstimate) -> list[str]:
    memory, other = one.memory, str(not one.recompute).lower()
    parts = [
        ("weights", memory.weights, ""),
        ("gradients", memory.gradients, f"of {_count(one.trained)} parameters that train"),
        ("optimiser", memory.optimizer, ""),
        ("moving average", memory.average, ""),
        ("frozen networks", memory.frozen, ""),
        ("fetched blocks", memory.exchange, ""),
        (
            "activations",
            memory.activations,
            f"of {one.at_once} at once, {one.memory_from}"
            + ("" if one.otherwise is None else f"; {size(one.otherwise)} with `recompute: {other}`"),
        ),
    ]
    return [
        f"{one.title}: {_flops(one.flops_forward)} forward and {_flops(one.flops_backward)} backward a sample, "
        f"{_flops(one.flops_per_step)} a step",
        f"each of {one.processes} processes holds" if one.processes > 1 else "memory",
        *(f"  {line}" for line in table([(what, size(count), why) for what, count, why in parts if count])),
        f"a checkpoint is {size(one.checkpoint_bytes)}",
    ]


def _clip_lines(clip: Generation) -> list[str]:
    lines = [f"one clip of {clip.frames} frames of {clip.size} x {clip.size}"]
    rows = [
        (
            one.title,
            _count(one.parameters),
            counted(one.calls, "step") if one.calls else "",
            _flops(one.flops) if one.flops else "",
            f"weights {size(one.weight_bytes)}",
            f"largest call {size(one.activation_bytes)}" if one.activation_bytes else "",
        )
        for one in clip.pieces
    ]
    lines += [f"  {line}" for line in table(rows)]
    lines.append(
        f"  together {_flops(clip.flops)}, about {_long(clip.seconds)} on one device; "
        f"weights {size(clip.weight_bytes)}, at most {size(clip.memory)} at once"
    )
    return lines


def _object(one: StageEstimate) -> dict[str, object]:
    return {**dataclasses.asdict(one), "memory_total": one.memory.total}


def _generation_object(clip: Generation) -> dict[str, object]:
    whole = {"flops": clip.flops, "weight_bytes": clip.weight_bytes, "memory": clip.memory}
    return {**dataclasses.asdict(clip), **whole}


def _count(number: float) -> str:
    """Parameters for people: `7.9 M`, `3.27 B`."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _flops(number: float) -> str:
    """`152 GFLOP`, `99.1 TFLOP`, `51 PFLOP`."""
    for unit in ("GFLOP", "TFLOP", "PFLOP"):
        if number < 1e12:
            return f"{number / 1e9:.3g} {unit}"
        number /= 1000
    return f"{number / 1e9:.3g} EFLOP"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _long(seconds: float) -> str:
    """`3 h 10 min`, `5.2 days`, `4.1 years`."""
    days = seconds / 86400
    if days < 2:
        return duration(seconds)
    return f"{days:.1f} days" if days < 730 else f"{days / 365:,.1f} years"
