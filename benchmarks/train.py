"""How much of a training step is the network: the trainer's own loop beside the bare network, as a ratio.

    python benchmarks/train.py
    python benchmarks/train.py --look FOLDER        # what it costs that CLIP is shown pictures of its own size

Trains `decoder_t` of the recipe `pocket` through `mav train-stage`'s own loop into a temporary folder. After every step of the loop, inside the same process and on the same shapes, the bare network runs one forward and
backward pass (mean square of its output, no towers, no noise), then one of its optimiser's updates. So what a step of the loop
has more is data (rendering, in the same process), the frozen CLIP tower, noise, clipping, the optimiser and the moving
average. Wanted: bare forward + backward over the loop's step, in seconds, at least 50 %.

With `--look` steps of `interp` on the videos of a folder take turns in one process, on the same clips, network, tower and noise:
one whose batch brings the first frame at the size that CLIP reads, one that shows CLIP what the network draws, enlarged. Each
draws its batch, embeds its pictures and updates the network; which goes first changes from pair to pair. Wanted: the median
pair loses at most 5 %; nothing where CLIP reads the network's size.

One thread. Time is the CPU time of the process: with one thread that is wall time on an idle machine, and it stays
comparable on a busy one. The first step of each is not counted. The training is left before it writes its checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch

from mavcli.data.loader import open_source
from mavcli.engine.assemble import build_network
from mavcli.engine.backend import Backend, open_backend
from mavcli.models.embeddings import Condition
from mavcli.recipe.load import LoadedRecipe, load_recipe
from mavcli.recipe.resolve import probe_machine, resolve
from mavcli.report import Silent
from mavcli.training.batches import Batches
from mavcli.training.embeddings import Embeddings
from mavcli.training.loop import train_stage
from mavcli.training.optim import build_optimizers
from mavcli.training.stage import Task
from mavcli.training.stages import get_stage
from mavcli.training.trainer import Trainer

WANTED = 0.5
STAGE = "decoder_t"
LOST = 0.05
"""Of a step of `interp`, at most, by the larger pictures that CLIP is shown."""


class Bare:
    """The stage's network alone, fed with tensors that are there already."""

    def __init__(self, loaded: LoadedRecipe, backend: Backend) -> None:
        recipe, config = loaded.recipe, loaded.recipe.stage(STAGE)
        spec = recipe.cascade.decoder.network
        b, f, side = config.batch_size, config.frames, spec.image_size
        generator = torch.Generator().manual_seed(0)
        self.backend = backend
        with torch.random.fork_rng(devices=[]):
            self.network = build_network(spec).to(memory_format=torch.channels_last).train()
        self.x = torch.randn(b, f, spec.in_channels, side, side, generator=generator)
        self.t = torch.randint(0, 1000, (b,), generator=generator)
        self.condition = Condition(
            image_embedding=torch.randn(b, spec.clip_dim or 0, generator=generator),
            fps=torch.full((b,), 8.0),
        )
        self.optimizers, _ = build_optimizers(self.network, config, inherited=True)
        self.passes: list[float] = []
        self.updates: list[float] = []

    def step(self) -> None:
        """One forward and backward pass, then one update, each timed."""
        started = time.process_time()
        with self.backend.autocast():
            loss = self.network(self.x, self.t, self.condition).square().mean()
        loss.backward()
        passed = time.process_time()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.passes.append(passed - started)
        self.updates.append(time.process_time() - passed)


class Enough(Exception):
    """All steps are timed."""


class Between(Silent):
    """The report of the loop: times each of its steps, runs the bare network between two of them, and ends the training."""

    def __init__(self, bare: Bare, *, steps: int) -> None:
        self.bare, self.wanted = bare, steps
        self.steps: list[float] = []
        self._left: float | None = None

    def advance(self, amount: float = 1) -> None:
        now = time.process_time()
        if self._left is not None:
            self.steps.append(now - self._left)
        self.bare.step()
        if len(self.steps) == self.wanted:
            raise Enough
        self._left = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=5, help="of the loop, after a first one that is not counted"
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--look", metavar="FOLDER", help="compare steps of `interp` on the videos of FOLDER")
    parser.add_argument("--reads", type=int, default=224, help="with --look: pixels a side that CLIP reads")
    args = parser.parse_args()
    if args.look:
        compare_looks(args.look, reads=args.reads, pairs=args.steps, dtype=args.dtype)
        return
    with tempfile.TemporaryDirectory() as out:
        loaded = load_recipe(
            "pocket",
            sets=[
                f"train.out={out}",
                f"hardware.dtype={args.dtype}",
                f"train.stages.{STAGE}.steps={args.steps + 2}",
                f"train.stages.{STAGE}.image_batch=0",  # stills skip the temporal layers
                f"train.stages.{STAGE}.start=scratch",
            ],
            overrides={"hardware.backend": "cpu", "hardware.threads": 1},
        )
        backend = open_backend(resolve(loaded.recipe, machine=probe_machine(), training=True))
        backend.apply()
        bare = Bare(loaded, backend)
        between = Between(bare, steps=args.steps)
        with contextlib.suppress(Enough):
            train_stage(loaded, STAGE, backend=backend, report=between)
        data = data_seconds(loaded, steps=min(3, args.steps))
    tell(bare, between, data, loaded, backend)


def compare_looks(folder: str, *, reads: int, pairs: int, dtype: str) -> None:
    """Steps of `interp` with and without the pictures that CLIP is shown at its own size, in pairs."""
    stage = get_stage("interp")
    with tempfile.TemporaryDirectory() as out:
        loaded = load_recipe(
            "pocket",
            sets=[
                "train.data.world=false",
                f"train.data.video={Path(folder).resolve()}",
                f"hardware.dtype={dtype}",
                f"cascade.clip.network.image_size={reads}",
                "train.stages.interp.image_batch=0",
                "train.stages.interp.still_clips=0",
            ],
            overrides={"hardware.backend": "cpu", "hardware.threads": 1},
        )
        recipe, config = loaded.recipe, loaded.recipe.stage("interp")
        backend = open_backend(resolve(recipe, machine=probe_machine(), training=True))
        backend.apply()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(stage.network(recipe)).to(memory_format=torch.channels_last).train()
            clip = build_network(recipe.cascade.clip.network).eval().requires_grad_(False)
        schedule = stage.schedule(recipe) if stage.schedule else None
        task = Task("interp", recipe, config, network, backend.device, schedule, clip)
        trainer = Trainer(task, stage, backend, widened=True)
        source = open_source(recipe.train.data, "video", stage="interp", base=loaded.path.parent)
        kinds = {name: Batches(source, stage, recipe) for name in ("large", "small")}
        kinds["small"].look = None
        kept = {
            name: Embeddings(clip, backend, sha256="0" * 64, folder=Path(out) / name, limit=1 << 30)
            for name in kinds
        }
        for step in range(-400, 0):  # every file is drawn from, and in memory as after the first hour
            kinds["small"][-step + config.steps]
        drawn: dict[str, list[float]] = {name: [] for name in kinds}
        whole: dict[str, list[float]] = {name: [] for name in kinds}
        for step in range(pairs + 1):
            for name in list(kinds) if step % 2 else reversed(list(kinds)):
                started = time.process_time()
                batch = kinds[name][step]
                drawn[name].append(time.process_time() - started)
                trainer.task = replace(task, kept=kept[name])
                trainer.step(step, batch)
                whole[name].append(time.process_time() - started)
    ratios = [large / small for large, small in zip(whole["large"][1:], whole["small"][1:], strict=True)]
    lost = median(ratios) - 1
    shown = "the network's own size" if kinds["large"].look is None else f"{reads} px"
    print(
        f"interp of pocket on {len(source.order)} videos, {config.batch_size} clips of {config.frames} frames a step, CLIP reads "
        f"{reads} px and is shown {shown}, {str(backend.dtype).removeprefix('torch.')}, 1 thread, torch {torch.__version__}, "
        f"{pairs} pairs"
    )
    print()
    print("| CPU seconds | CLIP's size | the network's size |")
    print("| --- | --- | --- |")
    for what, of in (("a step, median", whole), ("its batch, mean", drawn)):
        average = median if of is whole else mean
        print(f"| {what} | {average(of['large'][1:]):.3f} | {average(of['small'][1:]):.3f} |")
    print()
    more = mean(drawn["large"][1:]) - mean(drawn["small"][1:])
    print(
        f"a step loses {100 * lost:.1f} % (pairs from {100 * (min(ratios) - 1):.1f} to {100 * (max(ratios) - 1):.1f} %), of which "
        f"drawing {100 * more / median(whole['small'][1:]):.1f} %; wanted at most {100 * LOST:.0f} %: {'met' if lost <= LOST else 'NOT met'}"
    )


def data_seconds(loaded: LoadedRecipe, *, steps: int) -> float:
    """The median of what a batch takes, alone."""
    recipe, stage = loaded.recipe, get_stage(STAGE)
    source = open_source(recipe.train.data, stage.data, stage=STAGE, base=loaded.path.parent)
    batches = Batches(source, stage, recipe)
    times = []
    for step in range(steps):
        started = time.process_time()
        batches[step]
        times.append(time.process_time() - started)
    return median(times)


def tell(bare: Bare, between: Between, data: float, loaded: LoadedRecipe, backend: Backend) -> None:
    config = loaded.recipe.stage(STAGE)
    passed, updated = median(bare.passes[1:]), median(bare.updates[1:])
    step = median(between.steps)
    network = sum(p.numel() for p in bare.network.parameters())
    dtype = str(backend.dtype).removeprefix("torch.")
    print(
        f"{STAGE} of pocket, {network / 1e6:.1f} M parameters, {config.batch_size} clips of {config.frames} frames a step, "
        f"{dtype}, 1 thread, torch {torch.__version__}, {len(between.steps)} steps"
    )
    print()
    print("| what | CPU seconds, median | share of the step |")
    print("| --- | --- | --- |")
    rows = [
        ("a step of the loop", step),
        ("bare network: forward + backward", passed),
        ("its optimiser's update", updated),
        ("a batch of data, alone", data),
        ("towers, noise, clipping, moving average, and what else", step - passed - updated - data),
    ]
    for what, seconds in rows:
        print(f"| {what} | {seconds:.2f} | {100 * seconds / step:.0f} % |")
    print()
    share = passed / step
    verdict = "met" if share >= WANTED else "NOT met"
    print(
        f"bare forward + backward over the loop's step: {100 * share:.1f} %, wanted {100 * WANTED:.0f} %: {verdict}"
    )


if __name__ == "__main__":
    main()
