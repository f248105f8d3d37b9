"""What one training step of a stage costs: counted without memory on `meta` tensors, or probed on this machine.

Both run the stage's own loss, so the frozen networks, the conditions and the degradations are in. Nothing is trained: the
networks have their first weights and the pixels are noise.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from mavcli.engine.assemble import build_network
from mavcli.engine.backend import Backend
from mavcli.models.clip import ClipReader
from mavcli.models.prior import Prior
from mavcli.models.unet import UNet
from mavcli.recipe.schema import Recipe, StageTraining
from mavcli.training.distributed import Group
from mavcli.training.draws import Draws
from mavcli.training.dropout import SampleDropout, dropping, own_dropout
from mavcli.training.optim import Muon, build_optimizers, choose_trained
from mavcli.training.parallel import Layout, blocks
from mavcli.training.stage import Batch, Stage, Task
from mavcli.training.stages import get_stage
from mavcli.training.trace import MetaAutocast, Trace

FLOAT = 4  # bytes of a weight, a gradient, a moment: all are float32


@dataclass(frozen=True)
class StepCost:
    """One forward and one backward pass over `samples` samples; parameters are counts, all else FLOPs or bytes."""

    samples: int
    parameters: int
    trained: int
    """Parameters that have a gradient."""
    frozen: int
    """Parameters of the networks that take part and do not train: CLIP's towers and, where captions tell clips, P."""
    moments: int
    """Bytes of the optimisers' state."""
    block: int
    """Parameters of the largest block: what FSDP holds whole, and twice while it fetches the next."""
    forward: int
    backward: int
    """FLOPs; with `recompute` the second forward pass is in here."""
    curve: tuple[tuple[int, int], ...]
    """(bytes beside weights and gradients, bytes of gradients) at the moments of which one is the peak."""
    fixed: int = 0
    """Of the former, what does not grow with the samples: the weights' copies in a smaller type."""

    @property
    def flops_per_sample(self) -> float:
        return (self.forward + self.backward) / self.samples

    def activations(self, samples: int, *, gradients_before: bool) -> int:
        """Bytes that a pass over `samples` samples needs at its peak beside weights and whole gradients.

        `gradients_before`: those of an earlier micro-batch are there all the time. Else they come while the activations go,
        and cover some of the peak.
        """
        grow = samples / self.samples
        kept = [(self.fixed + (held - self.fixed) * grow, gradients) for held, gradients in self.curve]
        if gradients_before:
            return round(max(held for held, _ in kept))
        return round(max(0.0, max(sum(both) for both in kept) - FLOAT * self.trained))


@dataclass(frozen=True)
class Probe:
    """Seconds of a real step here: of one sample's forward and backward pass, and of the optimiser's update."""

    samples: int
    seconds_per_sample: float
    seconds_per_update: float
    cost: StepCost


def count_step(
    stage: Stage,
    recipe: Recipe,
    config: StageTraining,
    *,
    dtype: torch.dtype,
    samples: int = 1,
) -> StepCost:
    """The cost on a GPU with `dtype` arithmetic, counted on `meta` tensors: seconds for a network of any size."""
    autocast = MetaAutocast(dtype)
    cost = _Work(stage, recipe, config, torch.device("meta"), samples, arithmetic=autocast).traced()
    return replace(cost, fixed=autocast.weight_bytes)


def probe_step(
    stage: Stage, recipe: Recipe, config: StageTraining, *, backend: Backend, samples: int
) -> Probe:
    """Two real steps of `samples` samples on this machine: the first is watched, the second is timed."""
    work = _Work(stage, recipe, config, backend.device, samples, arithmetic=backend)
    cost = work.traced()
    work.update()
    started = _now(backend.device)
    work.run()
    passed = _now(backend.device)
    work.update()
    return Probe(samples, (passed - started) / samples, _now(backend.device) - passed, cost)


def sustained_rate(backend: Backend, *, seconds: float = 0.5) -> float:
    """FLOP/s of this machine on convolutions as a U-Net has them, the best of several tries."""
    channels, side = 256, 32
    rows = 2 if backend.device.type == "cpu" else 64
    x = torch.randn(rows, channels, side, side, device=backend.device, dtype=backend.dtype)
    weight = torch.randn(channels, channels, 3, 3, device=backend.device, dtype=backend.dtype)
    x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    flops = 2 * rows * side * side * channels * channels * 9
    best, until = math.inf, time.monotonic() + seconds
    with torch.inference_mode():
        while math.isinf(best) or time.monotonic() < until:
            started = _now(backend.device)
            nn.functional.conv2d(x, weight, padding=1)
            best = min(best, _now(backend.device) - started)
    return flops / best


def blank_batch(
    stage: Stage, recipe: Recipe, config: StageTraining, *, samples: int, device: torch.device
) -> Batch:
    """A batch of the shapes that `stage` trains on, of noise."""
    size = config.crop or stage.size(recipe)
    video = stage.data == "video"
    frames = config.frames if video else 1
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(0)
    pixels = torch.randint(
        256, (samples, frames, size, size, 3), dtype=torch.uint8, device=device, generator=generator
    )
    known = None
    if stage.masks:
        known = torch.zeros(samples, frames, dtype=torch.bool)
        known[:, 0] = True
    return Batch(
        pixels,
        captions=("a photo",) * samples if stage.data == "pairs" or stage.told_by_captions(recipe) else (),
        fps=torch.full((samples,), 8.0) if video else None,
        known=known,
        keys=torch.arange(2 * samples).reshape(samples, 2) if stage.data == "pairs" else None,  # no copies
    )


class _Work:
    """A stage's network, its optimisers and a batch, set up to run steps."""

    def __init__(
        self,
        stage: Stage,
        recipe: Recipe,
        config: StageTraining,
        device: torch.device,
        samples: int,
        *,
        arithmetic: Backend | MetaAutocast,
    ) -> None:
        # Compiling takes minutes and changes no FLOP; what it saves in memory is left out.
        config = config.model_copy(update={"compile": False})
        self.stage, self.arithmetic = stage, arithmetic
        with torch.random.fork_rng(devices=[]), torch.device(device):
            network = build_network(stage.network(recipe))
            frozen = {
                name: build_network(get_stage(name).network(recipe)).eval().requires_grad_(False)
                for name in stage.frozen(recipe)
            }
        clip, prior, sr_l = frozen.get("clip"), frozen.get("prior"), frozen.get("sr_l")
        assert sr_l is None or isinstance(sr_l, UNet)
        assert clip is None or isinstance(clip, ClipReader)
        assert prior is None or isinstance(prior, Prior)
        network = network.to(memory_format=torch.channels_last).train()
        self.dropout: list[SampleDropout] = [] if device.type == "meta" else own_dropout(network)
        if isinstance(arithmetic, MetaAutocast):
            for block in blocks(network):
                block.forward = arithmetic.around(block.forward)
        choose_trained(network, config, widened=stage.masks)
        self.layout = Layout(network, config, Group(device=device))
        self.optimizers, self.trained = build_optimizers(network, config, inherited=False)
        schedule = stage.schedule(recipe) if stage.schedule else None
        self.frozen = list(frozen.values())
        self.task = Task(stage.name, recipe, config, network, device, schedule, clip, prior=prior, sr_l=sr_l)
        self.batch = blank_batch(stage, recipe, config, samples=samples, device=device)

    def traced(self) -> StepCost:
        """The cost of a pass, run here."""
        network = self.task.network
        known = [
            tensor for part in (network, *self.frozen) for tensor in (*part.parameters(), *part.buffers())
        ]
        trace = Trace(device=self.task.device, known=[*known, self.batch.pixels])
        with trace:
            forward = self.run(trace)
        return StepCost(
            samples=len(self.batch.pixels),
            parameters=_size(network),
            trained=self.trained,
            frozen=sum(map(_size, self.frozen)),
            moments=sum(_moments(optimizer) for optimizer in self.optimizers),
            block=max((_size(block) for block in blocks(network)), default=0),
            forward=forward,
            backward=trace.flops - forward,
            curve=trace.curve([p.grad for p in network.parameters() if p.grad is not None]),
        )

    def run(self, trace: Trace | None = None) -> int:
        """Forward and backward; returns the FLOPs of the first half, where they are traced."""
        self.task.network.zero_grad(set_to_none=True)
        draws = Draws(0, stage=self.stage.name, step=0, count=len(self.batch.pixels))
        with dropping(self.dropout, draws.seeds):
            with self.arithmetic if isinstance(self.arithmetic, MetaAutocast) else self.arithmetic.autocast():
                loss = self.layout.run(self.stage.loss, self.task, self.batch, draws).mean()
            forward = 0 if trace is None else trace.flops
            loss.backward()
        return forward

    def update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _moments(optimizer: torch.optim.Optimizer) -> int:
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return FLOAT * count * (1 if isinstance(optimizer, Muon) else 2)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
