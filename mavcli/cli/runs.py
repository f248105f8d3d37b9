"""`mav runs [DIR]`: the trainings below a folder, how far each is and how long it still takes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mavcli.cli.console import Console, duration, table
from mavcli.cli.options import ForceOption, JsonOption
from mavcli.errors import UsageError
from mavcli.files import write_text

if TYPE_CHECKING:
    from mavcli.training.runs import Run


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where trainings are looked for, four levels deep.")
    ] = Path("runs"),
    curves: Annotated[
        Path | None,
        typer.Option(
            "--curves",
            metavar="FILE.svg",
            help="Draw the loss over the steps; of several trainings, the held-out loss of the newest eight.",
        ),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """List trainings: stage, step, loss, held-out loss, speed, time left, and whether it still runs.

    Read from what the trainings write; a running one is not disturbed. The one that wrote last comes first.
    """
    from mavcli.training.runs import find_runs

    console = Console(json=json)
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}", hint="mav runs DIR, with what `train.out` or `--out` said"
        )
    found = find_runs(folder)
    if not found:
        console.message(f"no training has written to {folder} yet: mav train-stage STAGE RECIPE")
    else:
        heads = ("run", "stage", "state", "step", "loss", "held out", "speed", "left", "last written")
        for line in table([_row(run, folder) for run in found], heads=heads):
            console.result(line)
    if curves is not None:
        _draw(found, folder, curves, force=force)
        console.message(str(curves))
    console.result_object({"runs": [dataclasses.asdict(run) for run in found]})


def _draw(found: list[Run], root: Path, path: Path, *, force: bool) -> None:
    from mavcli.evaluation.plots import lines_svg
    from mavcli.training.runs import loss_curves

    if path.suffix != ".svg":
        raise UsageError(f"`{path}` is no name for a drawing, wanted one that ends in .svg")
    lines = {str(run.folder.relative_to(root)): loss_curves(run.folder) for run in found}
    if len(lines) == 1:
        (series,) = lines.values()
        title = f"{found[0].stage}: loss over the steps"
    else:
        held = {name: curve["held out"] for name, curve in lines.items() if "held out" in curve}
        series, title = dict(list(held.items())[:8]), "held-out loss over the steps"
    if not series:
        raise UsageError(
            f"no training in {root} has written a loss yet", hint="the first comes after `log_every` steps"
        )
    write_text(path, lines_svg(series, title=title, x="step"), overwrite=force)


def _row(run: Run, root: Path) -> tuple[str, ...]:
    name = run.folder.relative_to(root)
    of = f"{run.step}" if run.steps is None else f"{run.step} of {run.steps}"
    if run.state in ("stopped", "diverged") and run.saved != run.step:
        of += f", saved {run.saved}" if run.saved is not None else ", nothing saved"
    return (
        str(root) if str(name) == "." else str(name),
        run.stage,
        run.state,
        of,
        _figure(run.loss),
        _figure(run.held_out),
        _speed(run.steps_per_s),
        "" if run.left_s is None or run.state == "diverged" else duration(run.left_s),
        f"{duration(max(0.0, time.time() - run.written))} ago",
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _speed(steps_per_s: float | None) -> str:
    if not steps_per_s:
        return ""
    return f"{steps_per_s:.2g} steps/s" if steps_per_s >= 1 else f"{1 / steps_per_s:.2g} s/step"
