"""The one training loop: every stage runs here, and the same command resumes it.

All randomness of a step (data, noise, diffusion step, dropout) is a function of (seed, stage, step), so the state to keep
is the network, its moving average, the optimiser and one integer.
"""

from __future__ import annotations

import json
import signal
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mavcli.data.loader import Source, batch_generator, open_source
from mavcli.engine.assemble import build_network, load_clip
from mavcli.engine.backend import Backend
from mavcli.errors import DiskError, DivergedError, Interrupted, RecipeError, UsageError, WeightsError
from mavcli.media.frames import to_uint8
from mavcli.media.image import write_png
from mavcli.recipe.load import LoadedRecipe
from mavcli.recipe.schema import Recipe, StageTraining
from mavcli.report import Report
from mavcli.training.checkpoint import Checkpoint, newest_checkpoint, remove_stale, save_checkpoint
from mavcli.training.conditioning import draw_fps, draw_known
from mavcli.training.optim import build_optimizers, learning_rate
from mavcli.training.previews import grid
from mavcli.training.stage import Batch, Stage, Task
from mavcli.training.stages import get_stage
from mavcli.weights.locate import inherit, parent_path, trained_path
from mavcli.weights.provenance import Parent, WeightsHeader, load_weights, read_header, save_weights

# What may change between two runs of one training: how long, how often, not what.
FREE_KEYS = frozenset({"steps", "save_every", "sample_every", "log_every", "decay"})
_HELD_OUT_STEPS = 4
_PREVIEW_ROWS = 8


@dataclass(frozen=True)
class Trained:
    """What a run of `train_stage` ended with."""

    stage: str
    step: int
    loss: float
    held_out: float
    weights: Path
    folder: Path


class Batches(Dataset[Batch]):
    """Batch number `step` of a stage; asking twice gives the same."""

    def __init__(self, source: Source, stage: Stage, recipe: Recipe, *, held_out: bool = False) -> None:
        self.source = source.held_out() if held_out else source
        self.stage, self.recipe, self.held_out = stage, recipe, held_out
        self.config = recipe.stage(stage.name)

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        stage, config = self.stage, self.config
        size = config.crop or stage.size(self.recipe)
        rngs = [
            batch_generator(
                self.recipe.train.seed, stage=stage.name, step=step, index=i, held_out=self.held_out
            )
            for i in range(config.batch_size)
        ]
        if stage.data == "video" and not self._is_still(step):
            return self._video(rngs, step, size)
        if stage.data == "pairs":
            pairs = [self.source.pair(rng, size) for rng in rngs]
            return Batch(_stack([p[0][None] for p in pairs]), captions=tuple(p[1] for p in pairs))
        if stage.data == "video":  # stills: as many pictures as a batch of clips has frames
            rngs = [g for rng in rngs for g in rng.spawn(config.frames)]
            pictures = [self._picture(rng, size)[None] for rng in rngs]
            known = torch.zeros(len(rngs), 1, dtype=torch.bool) if stage.masks else None
            return Batch(_stack(pictures), known=known)
        return Batch(_stack([self._picture(rng, size)[None] for rng in rngs]))

    def _picture(self, rng: np.random.Generator, size: int) -> np.ndarray:
        full = self.stage.size(self.recipe)
        picture = self.source.image(rng, full)
        return _crop(picture[None], size, rng)[0]

    def _video(self, rngs: list[np.random.Generator], step: int, size: int) -> Batch:
        config, stage = self.config, self.stage
        progress = min(1.0, step / max(1, config.steps))
        full = stage.size(self.recipe)
        clips, fps, known = [], [], []
        for rng in rngs:
            wanted = draw_fps(rng, config.fps, progress)
            clip = self.source.clip(rng, frames=config.frames, fps=wanted, size=full)
            clips.append(_crop(clip.frames, size, rng))
            fps.append(clip.fps)
            if stage.masks:
                known.append(draw_known(rng, config.masks, config.frames))
        return Batch(
            _stack(clips), fps=torch.tensor(fps), known=torch.from_numpy(np.stack(known)) if known else None
        )

    def _is_still(self, step: int) -> bool:
        """Whether a video stage sees pictures at this step: a share of the steps, evenly spread."""
        share = self.config.image_batch
        return int((step + 1) * share) > int(step * share)


def train_stage(
    loaded: LoadedRecipe,
    name: str,
    *,
    backend: Backend,
    report: Report,
    fresh: bool = False,
    workers: int = 0,
) -> Trained:
    """Train stage `name` to its last step, or go on where it was stopped.

    Raises RecipeError (data, a changed recipe), WeightsError (a parent is missing), DivergedError (7), Interrupted.
    """
    recipe, stage = loaded.recipe, get_stage(name)
    config = recipe.stage(name)
    folder = Path(recipe.train.out) / name
    source = open_source(recipe.train.data, stage.data, stage=name, base=loaded.path.parent)
    opened = source.describe()
    report.message(f"data: {opened}")
    backend.apply()

    checkpoint, skipped = (None, []) if fresh else newest_checkpoint(folder)
    for line in skipped:
        report.warning(line)
    remove_stale(folder)
    if fresh and any(folder.glob("step-*")):
        raise UsageError(
            f"{folder} holds a run already",
            hint="choose another folder with `--set train.out=...`, or delete it",
        )
    task, parents = _build(stage, recipe, config, backend)
    if checkpoint is not None:
        _refuse_changes(checkpoint, _identity(stage, recipe, parents), folder)
    trainer = _Trainer(
        task, stage, backend, inherited=any(p.role in stage.parents for p in parents), widened=stage.masks
    )
    if not trainer.count or (config.train == "temporal" and config.image_batch):
        raise RecipeError(
            f"stage `{name}` trains nothing {'on still images ' if trainer.count else ''}with `train: temporal`",
            hint=f"--set train.stages.{name}.{'image_batch=0' if trainer.count else 'train=all'}",
        )
    start, loss, held_out = 0, float("nan"), float("nan")
    if checkpoint is not None:
        trainer.load(checkpoint)
        start, loss, held_out = (
            checkpoint.step,
            trainer.smooth,
            float(checkpoint.manifest.get("held_out", "nan")),
        )
        report.message(f"resumed {checkpoint.path} at step {start} of {config.steps}")
    else:
        with torch.no_grad(), backend.autocast():
            stage.prepare(task, Batches(source, stage, recipe, held_out=True)[0])
        trainer.reset_average()
    report.message(f"{stage.title}: {trainer.count / 1e6:.2f} M parameters train, in {folder}")

    held = Batches(source, stage, recipe, held_out=True)
    batches = Batches(source, stage, recipe)
    loader = DataLoader(
        batches,
        sampler=range(start, config.steps),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # without one, the loader draws from the global generator
    )
    report.stage(name, config.steps - start)
    log = _Log(folder / "metrics.jsonl", start)
    seen_at, since = start, time.monotonic()
    with _stop_requested() as stop:
        for step, batch in enumerate(loader, start):
            loss = trainer.step(step, batch)
            report.advance(1)
            done = step + 1
            last = done == config.steps
            if done % config.log_every == 0 or last:
                now = time.monotonic()
                rate = (done - seen_at) / (now - since)
                log.write(
                    step=done,
                    loss=round(trainer.smooth, 6),
                    rate=learning_rate(step, config),
                    steps_per_s=round(rate, 4),
                )
                seen_at, since = done, now
            if done % config.sample_every == 0 or last:
                _preview(trainer, held, folder / "samples" / f"{done:07d}.png")
            if done % config.save_every == 0 or last or stop:
                held_out = trainer.held_out_loss(held)
                log.write(step=done, held_out=round(held_out, 6))
                _save(trainer, folder, done, held_out, loaded, parents)
                report.message(f"step {done}: loss {trainer.smooth:.4f}, held out {held_out:.4f}")
            if stop:
                kind = signal.Signals(stop[0])
                raise Interrupted(
                    f"stopped by {kind.name} at step {done} of {config.steps}; the state is saved in {folder}",
                    hint=f"run the same command again to go on: mav train-stage {name} {loaded.path}",
                    exit_code=128 + int(kind),
                )
    if source.describe() != opened:
        report.message(f"data: {source.describe()}")
    return Trained(name, max(start, config.steps), loss, held_out, trained_path(recipe, name), folder)


class _Trainer:
    """The network in training, its exponential moving average and its optimisers."""

    def __init__(
        self, task: Task, stage: Stage, backend: Backend, *, inherited: bool, widened: bool = False
    ) -> None:
        self.task, self.stage, self.backend, self.config = task, stage, backend, task.config
        self.network = task.network
        self.optimizers, self.count = build_optimizers(
            task.network, task.config, inherited=inherited, widened=widened
        )
        self.trained = [p for p in task.network.parameters() if p.requires_grad]
        self.average: dict[str, Tensor] = {}
        self.smooth = float("nan")
        self.reset_average()

    def reset_average(self) -> None:
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def step(self, step: int, batch: Batch) -> float:
        """One update; raises DivergedError before the optimiser could spoil the weights."""
        factor = learning_rate(step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
        generator = self._generator(step)
        with torch.random.fork_rng(devices=[]), self.backend.autocast():
            torch.manual_seed(generator.initial_seed())  # dropout has no generator of its own
            loss = self.stage.loss(self.task, batch, generator).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.config.clip_grad)
        value = float(loss.detach())
        if not (np.isfinite(value) and bool(torch.isfinite(norm))):
            raise DivergedError(
                f"stage `{self.stage.name}`, step {step}: the loss is {value}, the gradient's norm {float(norm)}",
                hint="the last checkpoint is good: lower `lr`, or rerun with `--set hardware.dtype=float32`",
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._update_average(step)
        self.smooth = value if np.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * value
        return value

    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        state = self.network.state_dict()
        names = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in names], [state[k].detach() for k in names], 1 - decay)
        for k in state.keys() - set(names):
            self.average[k].copy_(state[k])

    def _generator(self, step: int, *, held_out: bool = False) -> torch.Generator:
        key = f"{self.task.recipe.train.seed}/{self.stage.name}/{step}/{held_out}"
        return torch.Generator().manual_seed(zlib.crc32(key.encode()))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its moving average as weights."""
        own = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        self.network.eval()
        try:
            with torch.no_grad(), self.backend.autocast():
                yield
        finally:
            self.network.load_state_dict(own)
            self.network.train()

    def held_out_loss(self, batches: Batches) -> float:
        """Mean loss of the averaged network on samples that training never draws, always the same."""
        with self.averaged():
            losses = [
                self.stage.loss(self.task, batches[i], self._generator(i, held_out=True)).mean()
                for i in range(_HELD_OUT_STEPS)
            ]
        return float(torch.stack(losses).mean())

    def tensors(self) -> dict[str, Tensor]:
        state = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        state |= {f"average/{k}": v for k, v in self.average.items()}
        for i, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                state |= {f"optimizer/{i}/{index}/{k}": torch.as_tensor(v) for k, v in values.items()}
        return state

    def load(self, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors()
        self.network.load_state_dict(_below(tensors, "network/"))
        self.average = {k: v.to(self.backend.device) for k, v in _below(tensors, "average/").items()}
        for i, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            values: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimizer/{i}/").items():
                index, name = key.split("/")
                values.setdefault(int(index), {})[name] = value
            state["state"] = values
            optimizer.load_state_dict(state)
        self.smooth = float(checkpoint.manifest["loss"])


def _build(
    stage: Stage, recipe: Recipe, config: StageTraining, backend: Backend
) -> tuple[Task, list[Parent]]:
    """The network with its inherited weights, the frozen towers, and what they come from."""
    generator = zlib.crc32(f"{recipe.train.seed}/{stage.name}/init".encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator)  # layers draw their first weights from the global generator
        network = build_network(stage.network(recipe))
    parents: list[Parent] = []
    for parent in stage.parents:
        path = parent_path(recipe, parent)
        if path is not None:
            inherit(network, load_weights(path, expect_role=parent), source=path)
            parents.append(read_header(path).as_parent())
            break
    else:
        if stage.parent_needed:
            raise WeightsError(
                f"stage `{stage.name}` starts from `{stage.parents[0]}`, which is not trained yet: "
                f"no {trained_path(recipe, stage.parents[0])}",
                hint=f"mav train-stage {stage.parents[0]} RECIPE",
            )
    clip = None
    if stage.needs_clip:
        path = parent_path(recipe, "clip")
        if path is None:
            raise WeightsError(
                f"stage `{stage.name}` needs CLIP's towers, which are not trained yet: no {trained_path(recipe, 'clip')}",
                hint="mav train-stage clip RECIPE",
            )
        clip = load_clip(recipe, path).to(backend.device)
        parents.append(read_header(path).as_parent())
    network = network.to(backend.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    schedule = stage.schedule(recipe) if stage.schedule else None
    return Task(stage.name, recipe, config, network, backend.device, schedule, clip), parents


def _save(
    trainer: _Trainer,
    folder: Path,
    step: int,
    held_out: float,
    loaded: LoadedRecipe,
    parents: list[Parent],
) -> None:
    """A checkpoint to resume from, and the averaged weights for everyone else."""
    recipe, stage = loaded.recipe, trainer.stage
    manifest = {"step": step, "stage": stage.name, "loss": trainer.smooth, "held_out": held_out}
    manifest |= _identity(stage, recipe, parents)
    save_checkpoint(folder, trainer.tensors(), manifest)
    header = WeightsHeader(
        role=stage.name,
        spec=stage.network(recipe),
        schedule=None if trainer.task.schedule is None else trainer.task.schedule.spec,
        recipe_sha256=loaded.sha256,
        step=step,
        samples_seen=step * trainer.config.batch_size,
        parents=tuple(parents),
        source=f"mav train-stage {stage.name} {loaded.path.name}",
    )
    tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in trainer.average.items()}
    save_weights(trained_path(recipe, stage.name), tensors, header)


def _identity(stage: Stage, recipe: Recipe, parents: list[Parent]) -> dict[str, Any]:
    """What must stay as it was for a training to go on, as JSON has it. Not the data's paths: folders are moved."""
    clip = [parent.content_sha256 for parent in parents if parent.role == "clip"]
    return {
        "training": recipe.stage(stage.name).model_dump(mode="json", exclude=set(FREE_KEYS)),
        "seed": recipe.train.seed,
        "network": stage.network(recipe).model_dump(mode="json"),
        "schedule": stage.schedule(recipe).spec.model_dump(mode="json") if stage.schedule else None,
        "clip": clip[0] if clip else None,
    }


def _refuse_changes(checkpoint: Checkpoint, identity: dict[str, Any], folder: Path) -> None:
    changed = list(_changes(checkpoint.manifest, identity))
    if changed:
        raise RecipeError(
            f"{folder} was trained with another recipe: {'; '.join(changed)}",
            hint="set the old values again, or choose another folder with `--set train.out=...`",
        )


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """`key: old -> new` of every value in both that differs; what an older version did not know is no change."""
    for key in (k for k in new if k in old):
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from _changes(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key}: {old[key]} -> {new[key]}"


def _preview(trainer: _Trainer, held: Batches, path: Path) -> None:
    if trainer.stage.preview is None:
        return
    batch = held[0]
    few = Batch(
        batch.pixels[:_PREVIEW_ROWS],
        fps=None if batch.fps is None else batch.fps[:_PREVIEW_ROWS],
        known=None if batch.known is None else batch.known[:_PREVIEW_ROWS],
    )
    with trainer.averaged():
        rows = trainer.stage.preview(trainer.task, few, trainer._generator(0, held_out=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, to_uint8(grid(rows.float()))[0], overwrite=True)


class _Log:
    """`metrics.jsonl`: one object a line; lines of steps that a resumed run repeats are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                lines = path.read_text(encoding="utf-8").splitlines()
                kept = "".join(f"{line}\n" for line in lines if _step_of(line) <= start)
                path.write_text(kept, encoding="utf-8")

    def write(self, **values: float) -> None:
        with self._disk_errors(), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "time": round(time.time(), 1)}) + "\n")

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(f"cannot write {self.path}: {error.strerror or error}") from error


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM is put into; a second signal ends the process at once."""
    received: list[int] = []

    def remember(number: int, frame: object) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    old = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _stack(frames: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames))


def _crop(frames: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of `size` pixels out of frames (f, h, w, 3), the same for all frames."""
    h, w = frames.shape[1:3]
    if (h, w) == (size, size):
        return frames
    top, left = int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1))
    return frames[:, top : top + size, left : left + size]
