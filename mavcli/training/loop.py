"""The one training loop: every stage runs here, on one process or many, and the same command resumes it.

All randomness of a step (data, noise, diffusion step, dropout) is a function of (seed, stage, step, row), so the state to
keep is the network, its moving average, the optimiser and one integer.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset

from mavcli.data.clips import Redrawn
from mavcli.data.loader import Source
from mavcli.engine.backend import Backend
from mavcli.errors import (
    DiskError,
    DivergedError,
    InputError,
    Interrupted,
    MavError,
    OutOfMemoryError,
    RecipeError,
    UsageError,
    WeightsError,
)
from mavcli.media.frames import to_uint8
from mavcli.media.image import write_png
from mavcli.recipe.load import LoadedRecipe
from mavcli.recipe.remarks import asked_rates, lacking_rate, trained_skips
from mavcli.recipe.schema import Recipe
from mavcli.report import Report, Silent
from mavcli.training.batches import STILL_FPS, Batches, stage_source
from mavcli.training.checkpoint import Checkpoint, newest_checkpoint, remove_stale, save_checkpoint
from mavcli.training.distributed import Group
from mavcli.training.identity import identity, refuse_changes
from mavcli.training.metrics import Metrics, finite
from mavcli.training.optim import learning_rate
from mavcli.training.previews import grid
from mavcli.training.stage import Batch, Stage
from mavcli.training.stages import get_stage
from mavcli.training.start import build_task, check_parents, check_stage, start_path
from mavcli.training.trainer import Step, Trainer
from mavcli.training.watch import SILENCE_S, watching
from mavcli.weights.locate import trained_path
from mavcli.weights.provenance import Met, Parent, WeightsHeader, read_header, save_weights

_PREVIEW_ROWS = 8
_SAME_WISH_S = 1.0


@dataclass(frozen=True)
class Trained:
    """What a run of `train_stage` ended with."""

    stage: str
    step: int
    loss: float
    held_out: float
    weights: Path
    folder: Path


def train_stage(
    loaded: LoadedRecipe,
    name: str,
    *,
    backend: Backend,
    report: Report,
    group: Group | None = None,
    fresh: bool = False,
    workers: int = 0,
    allow: Sequence[str] = (),
    command: str | None = None,
    silence_s: float = SILENCE_S,
) -> Trained:
    """Train stage `name` to its last step, or go on where it was stopped; every process of `group` calls this.

    `allow` names changed keys of the recipe with which a training goes on all the same; `command` is what the user has to
    say again after a signal. A process that gives no sign for `silence_s` seconds is told of by its rank.
    Raises RecipeError (data, a changed recipe), WeightsError (a parent is missing, no checkpoint is whole), DivergedError (7),
    Interrupted.
    """
    recipe, stage = loaded.recipe, get_stage(name)
    group = group or Group(device=backend.device)
    check_stage(stage, recipe, group.world)
    voice, report = report, report if group.first else _Mute(report)
    folder = Path(recipe.train.out) / name
    if not any(folder.glob("step-*")):
        check_parents(stage, recipe)  # before data are read, which may take hours
    source = stage_source(stage, loaded, report=report)
    report.message(f"data: {source.describe()}")
    _tell_lacking_rate(stage, recipe, source, report)
    backend.apply()
    with _alone_in(folder, group):
        checkpoint = _last_checkpoint(folder, recipe, name, group=group, report=report, fresh=fresh)
        recorded = None
        if checkpoint is not None:
            recorded = [Parent.model_validate(parent) for parent in checkpoint.manifest["parents"]]
            _keep_files(source, checkpoint, report)
        task, parents = build_task(
            stage, recipe, backend=backend, group=group, recorded=recorded, again=source.repeats
        )
        if checkpoint is not None:
            now = identity(stage, recipe, parents)
            for change in refuse_changes(checkpoint, now, folder, allow=allow):
                report.warning(f"goes on with a changed recipe: {change}")
        if checkpoint is None and not any(parent.role == name for parent in parents):
            with torch.no_grad(), backend.autocast():
                stage.prepare(task, Batches(source, stage, recipe).__getitem__)
        trainer = Trainer(
            task,
            stage,
            backend,
            inherited=any(parent.role in (*stage.parents, name) for parent in parents)
            and bool(stage.parents),
            widened=stage.masks,
        )
        _refuse_idle(trainer)
        again = command or f"mav train-stage {name} {loaded.path}"
        run = _Run(loaded, stage, trainer, source, folder, parents, report, again=again)
        own = start_path(stage, recipe) if checkpoint is None else None
        if own is not None and any(parent.role == name for parent in parents):
            run.goes_on_from(read_header(own).met)
        if checkpoint is not None:
            run.resume(checkpoint)
        report.message(f"{stage.title}: {trainer.count / 1e6:.2f} M parameters train, in {folder}")
        if trainer.config.compile:
            report.message("blocks are compiled in the first step, which takes minutes")
        if trainer.config.cuda_graphs and backend.device.type != "cuda":
            report.message("`cuda_graphs` is for a GPU: here every layer is launched by itself")
        with watching(group, voice, silence_s=silence_s):
            run.go(workers=workers)
    return Trained(name, run.step, run.loss, run.held_out, trained_path(recipe, name), folder)


class _Run:
    """One training between its start, or its last checkpoint, and its last step, or a signal."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        stage: Stage,
        trainer: Trainer,
        source: Source,
        folder: Path,
        parents: list[Parent],
        report: Report,
        *,
        again: str,
    ) -> None:
        self.again = again
        self.loaded, self.recipe, self.stage, self.config = loaded, loaded.recipe, stage, trainer.config
        self.trainer, self.group, self.folder, self.report = trainer, trainer.group, folder, report
        self.parents = parents
        rank, world = self.group.rank, self.group.world
        self.batches = Batches(source, stage, self.recipe, rank=rank, processes=world)
        self.held = Batches(source, stage, self.recipe, held_out=True, rank=rank, processes=world)
        # a batch of about as many held-out samples as are shown
        few = max(1, self.config.batch_size // _PREVIEW_ROWS)
        self.shown = Batches(source, stage, self.recipe, held_out=True, processes=few)
        self.source, self.redrawn = source, Redrawn()
        self.drawn = torch.zeros(len(source.names), dtype=torch.int64)
        """Samples of each of a mix's sources, of all processes, in this run."""
        self.step, self.bad = 0, 0
        self.saved: int | None = None
        """The step of the newest checkpoint; none is made in a streak of `bad` steps that were not finite."""
        self.due = False
        self.lost: dict[str, str] = {}
        """Files that could not be read in this run, of all processes, with the reason."""
        self.files = sum(folder.readable for folder in source.folders())
        self.meaningless = False
        self.loss = self.held_out = float("nan")
        self.rates: tuple[float, float] | None = (math.inf, -math.inf)
        """The lowest and the highest frame rate of the moving clips that this training drew, of all processes; None where it
        goes on from one that does not say."""
        self.skips = set(trained_skips(self.recipe)) if stage.masks else set()

    def goes_on_from(self, met: Met | None) -> None:
        """Go on from weights, or a checkpoint, of this very stage, whose training met `met`."""
        self.rates = None if met is None else met.fps
        self.skips |= set() if met is None else set(met.frame_skips)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`; weights that a kill kept from being exported are exported now, later ones stay."""
        self.trainer.load(checkpoint)
        self.step = self.saved = checkpoint.step
        met = checkpoint.manifest.get("met")
        self.goes_on_from(None if met is None else Met.model_validate_json(json.dumps(met)))
        held_out = checkpoint.manifest["held_out"]
        self.loss, self.held_out = self.trainer.smooth, math.nan if held_out is None else float(held_out)
        self.report.message(f"resumed {checkpoint.path} at step {self.step} of {self.config.steps}")
        exported = 0
        if self.group.first:
            try:
                exported = read_header(trained_path(self.recipe, self.stage.name)).step
            except WeightsError:
                exported = -1
        if self.group.largest(int(exported < self.step and self.group.first)):
            self.export()

    def go(self, *, workers: int) -> None:
        """Train to the last step; raises Interrupted when a signal arrives in any process, and as `_next`."""
        config, group = self.config, self.group
        loader = DataLoader(
            _Delivered(self.batches),
            sampler=range(self.step, config.steps),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=_apart,
            generator=torch.Generator(),  # without one, the loader draws from the global generator
        )
        ahead = f"{self.stage.name}, steps {self.step} to {max(self.step, config.steps)}"
        self.report.stage(ahead, max(0, config.steps - self.step))
        log = None
        if group.first:
            log = Metrics(self.folder, self.step, tensorboard=self.recipe.train.tensorboard)
        seen, since = self.step, time.monotonic()
        mine = torch.zeros_like(self.drawn)
        with _stop_requested() as received:
            prepared, first = _Prepared(loader), self.step
            for step in range(self.step, config.steps):
                batch = self._next(prepared, log)
                result = self.trainer.step(step, batch)
                self._judge(step, batch, result, log)
                if step == first and self.stage.comparable is not None:
                    self._tell_copies(step, self.stage.comparable(self.trainer.task, batch))
                self.redrawn += batch.redrawn
                self.loss = result.loss
                self.step = done = step + 1
                self.report.advance(1)
                stop = group.largest(received[0] if received else 0)
                last = done == config.steps
                if log is not None:
                    log.count_fps(batch.fps)
                self._meet(batch)
                for name in (*batch.sources, *(batch.beside.sources if batch.beside else ())):
                    mine[self.source.names.index(name)] += 1
                if done % config.log_every == 0 or last:
                    now = time.monotonic()
                    speed = (done - seen) / (now - since)
                    seen, since = done, now
                    self._write(log, result, speed, self._count(mine))
                if done % config.sample_every == 0 or last:
                    self._preview(self.folder / "samples" / f"{done:07d}.png")
                self.due = self.due or done % config.save_every == 0 or last or bool(stop)
                if self.due and not self.bad:
                    self.save(log)
                if stop or last:
                    self._count(mine)
                    self._tell_drawn()
                    self._tell_redrawn()
                    self._tell_embeddings()
                    self._tell_lost()
                if stop:
                    raise self._stopped(signal.Signals(stop))
        if log is not None:
            log.close()
        if self.bad:
            lr = f"train.stages.{self.stage.name}.lr"
            raise DivergedError(
                f"stage `{self.stage.name}`: {self._streak()}, so the end is not saved; {self._where()}",
                hint=f"train beyond it: --steps {config.steps + config.retries}; "
                f"or with a lower rate: --set {lr}=... --allow lr",
            )

    def _meet(self, batch: Batch) -> None:
        """Remember the rates of a batch's clips that move."""
        if batch.fps is None or self.rates is None:
            return
        moving = batch.fps[batch.fps < STILL_FPS] if self.config.still_clips else batch.fps
        if len(moving):
            low, high = self.rates
            self.rates = min(low, float(moving.min())), max(high, float(moving.max()))

    def _next(self, prepared: _Prepared, log: Metrics | None) -> Batch:
        """The next batch. Files that could not be read are told of once and counted.

        Raises, in all processes and when the state is saved, InputError where these are more than the recipe allows,
        whatever a process met while it drew, and OutOfMemoryError where one that prepares batches was killed.
        """
        found = prepared.next()
        lost = {} if isinstance(found, MavError) else dict(found.lost)
        failed = found if isinstance(found, MavError) else None
        if self.group.largest(int(failed is not None or bool(lost.keys() - self.lost.keys()))):
            for others, failure in self.group.gather((lost, failed)):
                self._lose(others)
                failed = failed or failure
            failed = failed or self._too_many_lost()
        if isinstance(found, Batch) and failed is None:
            return found
        assert failed is not None
        if not self.bad and self.step and self.saved != self.step:
            self.save(log)
        self._tell_lost()
        again = f"then run the same command again: {self.again}"
        hint = f"{failed.hint}, {again}" if failed.hint else None
        raise type(failed)(f"{failed.message}; {self._where()}", hint=hint) from failed

    def _lose(self, lost: Mapping[str, str]) -> None:
        """Count files that cannot be read any more; the first is told of at once, all at the end."""
        new = {name: why for name, why in lost.items() if name not in self.lost}
        if new and not self.lost:
            name, why = next(iter(new.items()))
            self.report.warning(
                f"`{name}` is left out: {why}; other samples take its place, and of more such files is told at the end"
            )
        self.lost |= new

    def _too_many_lost(self) -> InputError | None:
        share = self.recipe.train.data.max_lost
        allowed = max(1, int(share * self.files)) if share else 0
        if len(self.lost) <= allowed:
            return None
        return InputError(
            f"{len(self.lost)} of {self.files} files of the training data cannot be read any more, "
            f"`train.data.max_lost` allows {share:g} of them: {self._lost_words()}",
            hint="bring them back, or allow more with `--set train.data.max_lost=...`",
        )

    def _tell_lost(self) -> None:
        if self.lost:
            self.report.message(
                f"data: {len(self.lost)} of {self.files} files could not be read, other samples took their place: "
                + self._lost_words()
            )

    def _lost_words(self) -> str:
        shown = [f"`{name}`: {why}" for name, why in list(self.lost.items())[:5]]
        more = len(self.lost) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

    def _tell_copies(self, step: int, comparable: torch.Tensor) -> None:
        if not int(self.group.sum(comparable.sum())):
            self.report.warning(
                f"nothing is learnt from step {step}: its pairs have all one picture or one caption, "
                "and copies are not told from each other"
            )

    def _stopped(self, kind: signal.Signals) -> Interrupted:
        at = f"stopped by {kind.name} at step {self.step} of {self.config.steps}"
        state = f"; the state is saved in {self.folder}"
        if self.bad:
            state = f"; {self._streak()}, and such steps are not saved; {self._where()}"
        goes = "to go on" if self.saved is not None else "to start anew"
        return Interrupted(
            at + state,
            hint=f"run the same command again {goes}: {self.again}",
            exit_code=128 + int(kind),
        )

    def _streak(self) -> str:
        return (
            f"the last {self.bad} steps were not finite" if self.bad > 1 else "the last step was not finite"
        )

    def _where(self) -> str:
        """What of this training is on the disk, in words."""
        if self.saved is None:
            return "nothing is saved yet"
        return f"the state of step {self.saved} is saved in {self.folder}"

    def save(self, log: Metrics | None = None) -> None:
        """A checkpoint to resume from, and the averaged weights for everyone else."""
        trainer = self.trainer
        self.held_out = self._held_out_loss()
        if self.rates is not None:
            lows, highs = zip(*self.group.gather(self.rates), strict=True)
            self.rates = min(lows), max(highs)
        if log is not None:
            log.write(step=self.step, held_out=round(self.held_out, 6))
        manifest: dict[str, Any] = {
            "step": self.step,
            "stage": self.stage.name,
            "loss": finite(trainer.smooth),
            "held_out": finite(self.held_out),
            "recipe_sha256": self.loaded.sha256,
            "parents": [parent.model_dump(mode="json") for parent in self.parents],
            "met": None if self.met is None else self.met.model_dump(mode="json"),
            **identity(self.stage, self.recipe, self.parents),
        }
        files = [folder.order for folder in self.source.folders()]
        try:
            save_checkpoint(self.folder, trainer.tensors(), manifest, files=files, group=self.group)
        except DivergedError as error:
            raise DivergedError(f"{error.message}; {self._where()}", hint=self._advice()) from error
        self.saved, self.due = self.step, False
        self.export()
        self._keep_embeddings()
        held_out = f"{self.held_out:.4f}" if math.isfinite(self.held_out) else "says nothing"
        self.report.message(f"step {self.step}: loss {trainer.smooth:.4f}, held out {held_out}")

    @property
    def met(self) -> Met | None:
        """What the clips that were drawn are said to have been, in checkpoints and weights."""
        if self.rates is None or self.rates[0] > self.rates[1]:
            return None
        low, high = self.rates
        return Met(fps=(round(low, 3), round(high, 3)), frame_skips=tuple(sorted(self.skips)))

    def _held_out_loss(self) -> float:
        """The loss of held-out samples; NaN, which is told of once, where it would mean nothing."""
        try:
            value = self.trainer.held_out_loss(self.held)
        except InputError as error:
            self.report.warning(f"the held-out loss cannot be had: {error.message}")
            value = math.nan
        if self.source.folders():
            for lost in self.group.gather(dict(self.held.lost)):
                self._lose(lost)
        if math.isnan(value) and self.stage.comparable is not None and not self.meaningless:
            self.meaningless = True
            self.report.warning(
                "the held-out loss means nothing: no two of the held-out pairs differ in both picture and caption"
            )
        return value

    def export(self) -> None:
        """The averaged weights as one file (or shards of one save) that every command reads."""
        tensors = self.trainer.exported()
        schedule = self.trainer.task.schedule
        failure: DiskError | WeightsError | None = None
        if self.group.first:
            # What a network was started from goes on in it, and so does its licence; frozen towers do not.
            inherited = [p.licence for p in self.parents if p.role in (self.stage.name, *self.stage.parents)]
            header = WeightsHeader(
                role=self.stage.name,
                spec=self.stage.network(self.recipe),
                schedule=None if schedule is None else schedule.spec,
                recipe_sha256=self.loaded.sha256,
                step=self.step,
                samples_seen=self.step * self.config.batch_size,
                parents=tuple(self.parents),
                source=f"mav train-stage {self.stage.name} {self.loaded.path.name}",
                met=self.met,
            )
            if inherited and inherited[0]:
                header = header.model_copy(update={"licence": inherited[0]})
            try:
                save_weights(trained_path(self.recipe, self.stage.name), tensors, header)
            except (DiskError, WeightsError) as error:
                failure = error
        self.group.agree(failure)

    def _judge(self, step: int, batch: Batch, result: Step, log: Metrics | None) -> None:
        """Count steps whose loss or gradient is no number; raises DivergedError after too many in a row."""
        if result.finite:
            self.bad = 0
            return
        self.bad += 1
        rows = result.bad_rows or tuple(range(len(batch.pixels) * self.group.world))
        shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        pictures = self.folder / "not-finite" / f"{step:07d}"
        what = (
            f"stage `{self.stage.name}`, step {step}: the loss is {result.loss:g}, the gradient's norm {result.norm:g}; "
            f"samples {shown} of the step, pictures in {pictures}"
        )
        mine = [row for row in rows[:64] if batch.first <= row < batch.first + len(batch.pixels)]
        for row in mine:
            frames = batch.pixels[row - batch.first]
            write_picture(pictures / f"{row:05d}.png", rearrange(frames, "f h w c -> h (f w) c"))
        if log is not None:
            log.write(step=step + 1, not_finite=float(len(rows)))
        if self.bad > self.config.retries:
            again = f", {self.bad} steps in a row" if self.bad > 1 else ""
            raise DivergedError(
                f"{what}{again}; {self._where()}",
                hint=self._advice(),
            )
        self.report.warning(f"{what}; the step was skipped ({self.bad} of {self.config.retries} in a row)")

    def _advice(self) -> str:
        """What helps a training that diverged."""
        lower = f"--set train.stages.{self.stage.name}.lr=..."
        if self.saved is None:
            return f"start again with a lower rate: {lower}; or `--set hardware.dtype=float32`"
        return (
            "the checkpoint is from before the steps that were not finite, go on from it with a lower rate: "
            f"{lower} --allow lr; or `--set hardware.dtype=float32`"
        )

    def _count(self, mine: torch.Tensor) -> dict[str, int]:
        """How many samples each of a mix's sources gave since the last call, over all processes; `mine` begins anew."""
        if len(self.source.names) < 2:
            return {}
        counts = self.group.sum(mine).long()
        mine.zero_()
        self.drawn += counts
        return dict(zip(self.source.names, counts.tolist(), strict=True))

    def _tell_drawn(self) -> None:
        whole = int(self.drawn.sum())
        if len(self.source.names) > 1 and whole:
            counts = zip(self.source.names, self.drawn.tolist(), strict=True)
            told = ", ".join(f"{name} {count} ({count / whole:.1%})" for name, count in counts)
            self.report.message(f"samples drawn in this run: {told}")

    def _tell_redrawn(self) -> None:
        """What the clips of all processes and of their workers say of how they were drawn."""
        rate, clip = self.group.sum(torch.tensor([self.redrawn.rate, self.redrawn.clip])).long().tolist()
        if rate or clip:
            self.source.count(Redrawn(rate, clip))
            self.report.message(f"data: {self.source.describe()}")

    def _keep_embeddings(self) -> None:
        """Put what the frozen towers said where the next run finds it; that this fails is told once."""
        kept = self.trainer.task.kept
        if kept is None:
            return
        before = kept.note
        kept.flush()
        if before is None and kept.note is not None:
            self.report.warning(f"embeddings: {kept.note}")

    def _tell_embeddings(self) -> None:
        kept = self.trainer.task.kept
        if kept is not None:
            found, made = self.group.sum(torch.tensor(kept.counts)).long().tolist()
            self.report.message(f"embeddings of the frozen towers: {found} were known, {made} were made")

    def _write(self, log: Metrics | None, result: Step, speed: float, sources: dict[str, int]) -> None:
        if log is None:
            return
        values: dict[str, Any] = {}
        if result.finite:
            values = {"loss": round(self.trainer.smooth, 6), "step_loss": result.loss, "norm": result.norm}
        if fps := log.fps_histogram():
            values["fps"] = fps
        if sources:
            values["sources"] = sources
        log.write(
            step=self.step,
            steps=self.config.steps,
            **values,
            rate=learning_rate(self.step - 1, self.config),
            steps_per_s=round(speed, 4),
        )

    def _preview(self, path: Path) -> None:
        draw = self.stage.preview
        if draw is None or not (self.group.first or self.trainer.layout.sharded):
            return
        try:
            batch = self.shown[0].rows(0, _PREVIEW_ROWS)
        except InputError as error:
            self.report.warning(f"no preview was drawn: {error.message}")
            return
        rows = self.trainer.preview(batch, draw)
        if self.group.first:
            write_picture(path, torch.from_numpy(to_uint8(grid(rows.float()))[0]))


def write_picture(path: Path, picture: torch.Tensor) -> None:
    """(h, w, 3) uint8 as a PNG, in a folder that is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error
    write_png(path, picture.numpy(), overwrite=True)


def _tell_lacking_rate(stage: Stage, recipe: Recipe, source: Source, report: Report) -> None:
    """Say where the clips do not give a rate that generation will tell the network; the rendered world gives every rate."""
    asked, frames = asked_rates(recipe).get(stage.name), recipe.stage(stage.name).frames
    if stage.data != "video" or asked is None or recipe.train.data.world:
        return
    rates = [rate for folder in source.folders() for rate in folder.rates(frames)]
    if (text := lacking_rate(stage.name, asked, frames, rates)) is not None:
        report.warning(text)


def _keep_files(source: Source, checkpoint: Checkpoint, report: Report) -> None:
    """Draw from the files in the order in which the training began with them; that they are others now is told."""
    before, folders = checkpoint.files(), source.folders()
    if before and len(before) != len(folders):
        report.warning(
            f"the data are not those that this training began with: {len(folders)} folders for {len(before)}"
        )
        return
    for folder, order in zip(folders, before, strict=False):
        if (changed := folder.keep_order(order)) is not None:
            report.warning(f"the files are not those that this training began with: {changed}")


class _Mute(Silent):
    """The report of a process that is not the first: it counts its steps and says nothing that the first one says."""

    def __init__(self, report: Report) -> None:
        self.advance = report.advance  # type: ignore[method-assign]


class _Delivered(Dataset[Batch | MavError]):
    """Batches, where an error of drawing one is a value: a process that prepares them would hand on its traceback."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | MavError:
        try:
            return self.batches[step]
        except MavError as error:
            return error


class _Prepared:
    """The batches of a loader, one after the other.

    That a process which prepares them was ended is heard when a batch is asked for. Torch would raise it from a handler of
    SIGCHLD, in the middle of a step, of which nothing could be saved.
    """

    def __init__(self, loader: DataLoader[Batch | MavError]) -> None:
        handler, others = signal.getsignal(signal.SIGCHLD), set(active_children())
        self._batches = iter(loader)
        signal.signal(signal.SIGCHLD, handler)
        self._workers = [process for process in active_children() if process not in others]

    def next(self) -> Batch | MavError:
        """The next batch, or why there is none."""
        try:
            return next(self._batches)
        except (RuntimeError, OSError, EOFError):  # torch's words, or those of a pipe whose other end is gone
            for process in self._workers:
                process.join(0.2)
            ended = [process.exitcode for process in self._workers if process.exitcode is not None]
            if not ended:
                raise
            how = f"by {signal.Signals(-ended[0]).name}" if ended[0] < 0 else f"with exit code {ended[0]}"
            return OutOfMemoryError(
                f"a process that prepares batches was ended {how}; a machine that runs out of memory does that",
                hint="take fewer `--workers`, or a smaller batch",
            )


def _last_checkpoint(
    folder: Path, recipe: Recipe, name: str, *, group: Group, report: Report, fresh: bool
) -> Checkpoint | None:
    """What to go on from. The first process looks, and all go on from the same."""
    found: tuple[Checkpoint | None, list[str]] = (None, [])
    failure: WeightsError | UsageError | None = None
    if group.first:
        try:
            if not fresh:
                found = newest_checkpoint(folder)
            elif any(folder.glob("step-*")):
                raise UsageError(
                    f"{folder} holds a run already",
                    hint="choose another folder with `--set train.out=...`, or delete it",
                )
            if found[0] is None and found[1]:
                raise WeightsError(
                    f"no checkpoint in {folder} is whole: {'; '.join(found[1])}; nothing was overwritten",
                    hint=f"train on from the last exported weights: `-o DIR --start {trained_path(recipe, name)}`; "
                    "or delete the damaged ones to start anew",
                )
        except (WeightsError, UsageError) as error:
            failure = error
        remove_stale(folder, exports=trained_path(recipe, name))
    group.agree(failure)
    checkpoint, skipped = group.gather(found)[0]
    for line in skipped:
        report.warning(line)
    return checkpoint


def _refuse_idle(trainer: Trainer) -> None:
    config, name = trainer.config, trainer.stage.name
    stills = "image_batch" if config.image_batch else "pictures_beside" if config.pictures_beside else None
    if not trainer.count or (config.train == "temporal" and stills):
        raise RecipeError(
            f"stage `{name}` trains nothing {'on still images ' if trainer.count else ''}with `train: temporal`",
            hint=f"--set train.stages.{name}.{f'{stills}=0' if trainer.count else 'train=all'}",
        )


@contextmanager
def _alone_in(folder: Path, group: Group) -> Iterator[None]:
    """Two trainings in one folder would prune each other's checkpoints. The lock ends with the process, however it ends."""
    if not group.first:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(
            f"another process is training in {folder}",
            hint="wait for it, or choose another folder with `--out`",
        ) from error
    except OSError as error:
        raise DiskError(
            f"cannot write to {folder}: {error.strerror or error}",
            hint="permit writing there, or choose another folder with `--out`",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _apart(worker: int) -> None:
    """A process that prepares batches does not hear what is sent to the training's group: the training ends it, after saving."""
    os.setpgrp()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM is put into; another signal ends the process at once.

    Who stops a whole group of processes may send it twice (GNU `timeout` does): what follows within a second is the same wish.
    """
    received: list[int] = []
    since = 0.0

    def remember(number: int, frame: object) -> None:
        nonlocal since
        if received and time.monotonic() - since > _SAME_WISH_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not received:
            received.append(number)
            since = time.monotonic()

    old = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
