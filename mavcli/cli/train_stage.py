"""`mav train-stage STAGE RECIPE`: train one stage, or go on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.options import BackendOption, DryRunOption, JsonOption, QuietOption, SetOption


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
        int | None, typer.Option("--steps", min=1, help="Train to this step instead of the recipe's.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that prepare batches; 0 does it in between.")
    ] = 0,
    backend: BackendOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train one stage of a family. The same command goes on where it stopped, after Ctrl-C too.

    The order is clip, prior, decoder, sr_l, sr_h, then decoder_t, interp, sr_lt. Only clip and prior see captions; the
    last three learn from video files without any words. Every `save_every` steps a checkpoint is kept and
    the averaged weights are exported to DIR/weights/STAGE.safetensors.
    """
    from mavcli.recipe.load import load_recipe
    from mavcli.recipe.resolve import probe_machine, resolve
    from mavcli.training.stages import get_stage

    known = get_stage(stage)  # before a `--set` that would name it
    overrides = {"train.out": None if out is None else str(out), "hardware.backend": backend}
    names = [*(sets or ()), *([] if steps is None else [f"train.stages.{stage}.steps={steps}"])]
    loaded = load_recipe(recipe, sets=names, overrides=overrides)
    resolved = resolve(loaded.recipe, machine=probe_machine(), training=True)
    config = loaded.recipe.stage(stage)
    with Console(quiet=quiet, json=json) as console:
        if dry_run:
            from mavcli.cli.recipe import describe
            from mavcli.weights.locate import parent_path, trained_path

            console.result(f"stage {stage}: {known.title} ({known.source}), data: {known.data}")
            needed = [*known.parents, *(["clip"] if known.needs_clip else [])]
            for parent in needed:
                found = parent_path(loaded.recipe, parent)
                console.result(
                    f"starts from {parent}: {found or 'missing, `mav train-stage ' + parent + '` first'}"
                )
            console.result(
                f"{config.steps} steps of {config.batch_size}, writes {trained_path(loaded.recipe, stage)}"
            )
            for line in describe(resolved):
                console.result(line)
            console.result_object(
                {"stage": stage, "steps": config.steps, "training": config.model_dump(mode="json")}
            )
            return
        if resolved.backend == "multi-gpu":
            console.warning("training runs on one device; several devices come with a later version")
        from mavcli.engine.backend import open_backend
        from mavcli.training.loop import train_stage as train

        done = train(loaded, stage, backend=open_backend(resolved), report=console, workers=workers)
        console.close()
        console.result(done.weights)
        console.result_object(
            {
                "stage": done.stage,
                "step": done.step,
                "loss": done.loss,
                "held_out": done.held_out,
                "weights": str(done.weights),
                "folder": str(done.folder),
            }
        )
