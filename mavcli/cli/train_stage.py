"""`mav train-stage STAGE RECIPE`: train one stage, or go on where it stopped."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.options import BackendOption, DryRunOption, JsonOption, QuietOption, SetOption
from mavcli.errors import Interrupted

if TYPE_CHECKING:
    from mavcli.recipe.load import LoadedRecipe
    from mavcli.recipe.resolve import Machine, Resolved
    from mavcli.training.distributed import Place
    from mavcli.training.loop import Trained


def train_stage(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help="clip, prior, decoder, sr_l, sr_h, then on video: decoder_t, interp, sr_lt."
        ),
    ],
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a YAML file.")],
    sets: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the run, over the recipe's `train.out`."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, max=10**9, help="Train to this step instead of the recipe's."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            min=1,
            max=65536,
            metavar="N",
            help="Train on N GPUs of this machine, a process on each.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="WHAT",
            help="auto (the parent stage), scratch, own (this stage's weights in the recipe), or a file.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="KEY", help="Go on though this key of the recipe changed; repeatable."
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=0, max=1024, help="Processes that prepare batches; 0 does it in between."
        ),
    ] = 0,
    backend: BackendOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train one stage of a family. The same command goes on where it stopped, after Ctrl-C too.

    The order is clip, prior, decoder, sr_l, sr_h, then decoder_t, interp, sr_lt. Only clip and prior see captions; the
    last three learn from video files without any words. Every `save_every` steps a checkpoint is kept and
    the averaged weights are exported to DIR/weights/STAGE.safetensors. Under `torchrun` or SLURM's `srun`, on one machine
    or several, the processes that are there train together.
    """
    from mavcli.errors import UsageError
    from mavcli.recipe.load import load_recipe
    from mavcli.recipe.resolve import probe_machine, resolve
    from mavcli.training.distributed import find_place
    from mavcli.training.stages import get_stage

    known = get_stage(stage)  # before a `--set` that would name it
    if gpus is not None and backend is not None:
        raise UsageError("`--gpus` and `--backend` say the same thing", hint="leave one of them out")
    if gpus is not None:
        backend = "cuda" if gpus == 1 else "multi-gpu"
    overrides = {
        "train.out": None if out is None else str(out),
        "hardware.backend": backend,
        "hardware.processes": gpus,
    }
    names = [*(sets or ()), *([] if steps is None else [f"train.stages.{stage}.steps={steps}"])]
    names += [] if start is None else [f"train.stages.{stage}.start={start}"]
    loaded = load_recipe(recipe, sets=names, overrides=overrides)
    place = find_place()
    machine = probe_machine()
    resolved = resolve(
        loaded.recipe,
        machine=machine,
        training=True,
        launched=None if place is None else place.world,
    )
    config = loaded.recipe.stage(stage)
    first = place is None or place.rank == 0
    with Console(quiet=quiet or not first, json=json) as console:
        if dry_run:
            from mavcli.cli.recipe import describe
            from mavcli.training.start import check_stage, start_path
            from mavcli.weights.locate import command_for, parent_path, trained_path

            check_stage(known, loaded.recipe, resolved.devices)
            console.result(f"stage {stage}: {known.title} ({known.source}), data: {known.data}")
            console.result(f"starts from {start_path(known, loaded.recipe) or 'scratch'}")
            for role in known.frozen(loaded.recipe):
                path = parent_path(loaded.recipe, "sr_lt") if role == "sr_l" else None
                path = path or parent_path(loaded.recipe, role)
                name = {"clip": "CLIP's towers", "prior": "P, for captions", "sr_l": "SR_l"}[role]
                console.result(f"{name}: {path or f'missing, `{command_for(loaded.recipe, role)}` first'}")
            console.result(
                f"{config.steps} steps of {config.batch_size}, writes {trained_path(loaded.recipe, stage)}"
            )
            for line in describe(resolved):
                console.result(line)
            console.result_object(
                {"stage": stage, "steps": config.steps, "training": config.model_dump(mode="json")}
            )
            return
        if place is None and resolved.devices > 1:
            from mavcli.training.launch import launch
            from mavcli.training.start import check_memory, check_stage

            check_stage(known, loaded.recipe, resolved.devices)
            check_memory(known, loaded.recipe, machine, resolved)
            console.message(f"{resolved.devices} processes train together, on {resolved.backend}")
            launch(resolved.devices, sys.argv[1:])
            return
        done = _train(loaded, stage, machine, resolved, place, console, workers=workers, allow=allow or ())
        console.close()
        if not first:
            return
        from mavcli.training.metrics import finite

        console.result(done.weights)
        console.result_object(
            {
                "stage": done.stage,
                "step": done.step,
                "loss": finite(done.loss),
                "held_out": finite(done.held_out),
                "weights": str(done.weights),
                "folder": str(done.folder),
            }
        )


def _train(
    loaded: LoadedRecipe,
    stage: str,
    machine: Machine,
    resolved: Resolved,
    place: Place | None,
    console: Console,
    *,
    workers: int,
    allow: Sequence[str],
) -> Trained:
    """Train in this process; one of several leaves its error to whoever tells it once."""
    from mavcli.cli.console import failure_of, save_traceback
    from mavcli.engine.backend import open_backend
    from mavcli.training.distributed import PeerLost, open_group
    from mavcli.training.launch import Failed, leave_failure
    from mavcli.training.loop import train_stage as train
    from mavcli.training.stages import get_stage
    from mavcli.training.start import check_memory

    opened = open_backend(resolved, local_rank=0 if place is None else place.local_rank)
    try:
        check_memory(get_stage(stage), loaded.recipe, machine, resolved)
        with open_group(place, opened.device) as group:
            return train(
                loaded,
                stage,
                backend=opened,
                report=console,
                group=group,
                workers=workers,
                allow=allow,
                command=shlex.join(["mav", *sys.argv[1:]]),
            )
    except (Exception, Interrupted) as error:
        if place is None:
            raise
        failure = failure_of(error)
        hint = f"the traceback is in {save_traceback(error)}" if failure.bug else failure.hint
        told = Failed(failure.message, hint=hint, exit_code=failure.exit_code)
        if leave_failure(told, rank=place.rank, lost=isinstance(error, PeerLost)):
            raise SystemExit(failure.exit_code) from error  # typer's own Exit(130) is told as a Ctrl-C
        raise told from error
