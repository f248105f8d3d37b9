"""What training and using a family costs, before anything is trained: parameters, FLOPs, memory, disk, time, and which
field of the recipe makes a stage fit.

Memory is that of one process: float32 weights, gradients, moments and moving average, and what `step_cost` saw live in
one step. Time is probed where the stage fits here, else reckoned from its FLOPs and a rate; `how` says which.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from mavcli.engine.assemble import on_meta
from mavcli.engine.backend import Backend, open_backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.cost import parameter_count
from mavcli.engine.family import PIECES, Family, Part, Piece
from mavcli.errors import UsageError, counted
from mavcli.models.embeddings import Condition
from mavcli.models.unet import UNet
from mavcli.recipe.resolve import Machine, resolve
from mavcli.recipe.schema import Recipe, StageTraining
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec
from mavcli.training.checkpoint import KEEP
from mavcli.training.stages import get_stage
from mavcli.training.step_cost import FLOAT, StepCost, count_step, probe_step, sustained_rate
from mavcli.training.trace import MetaAutocast, Trace

GIB = 1 << 30
USABLE = 0.92
"""Share of a device's memory that a step may plan with: the rest is the driver's, the allocator's gaps and torch's own."""
ASSUMED_MEMORY = 80 * GIB
ASSUMED_PROCESSES = 8
ASSUMED_RATE = {"bfloat16": 300e12, "float32": 50e12}
"""FLOP/s that a training step keeps up on a GPU of the H100 class: about 40 % of its bfloat16 matrix products."""
_OF_SUSTAINED = {"cpu": 0.6, "cuda": 0.4}
"""Share of `sustained_rate` that whole steps reach (benchmarks/README.md for the CPU)."""
_PROBE_SECONDS = 4.0
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Devices:
    """What a training is reckoned for: `processes` of them, each with `memory` bytes of its own (0: unknown)."""

    kind: str
    processes: int
    memory: int
    dtype: str
    here: bool
    why: str
    rate: float
    """FLOP/s of one process in a training step."""
    backend: Backend | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of one process by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    frozen: int
    exchange: int
    """What FSDP holds whole while a block runs, and the next that it fetches."""
    activations: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class StageEstimate:
    """What one stage costs with the recipe as it is."""

    stage: str
    title: str
    parameters: int
    trained: int
    steps: int
    batch_size: int
    processes: int
    at_once: int
    """Samples that a process puts through the network at once."""
    flops_forward: float
    """Of one sample, as `flops_backward`; a recomputed forward pass counts as backward."""
    flops_backward: float
    flops_per_step: float
    memory: Memory
    recompute: bool
    otherwise: int | None
    """Bytes of activations if `recompute` were the other way, where that was asked."""
    memory_from: str
    checkpoint_bytes: int
    disk_bytes: int
    seconds_per_step: float
    seconds: float
    how: str
    probed: int
    """Samples of each probed step; 0 without a probe."""
    fits: bool | None
    """None where nobody knows how much memory there is."""
    advice: tuple[str, ...] = ()
    """Settings that make it fit together, as for `--set`; empty when it fits or nothing helps."""


@dataclass(frozen=True)
class PieceEstimate:
    """What one network of the cascade costs when a clip is made."""

    piece: str
    title: str
    parameters: int
    calls: int
    flops: float
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Generation:
    """One clip of `frames` frames; the networks are loaded one after the other."""

    frames: int
    size: int
    pieces: tuple[PieceEstimate, ...]
    seconds: float

    @property
    def flops(self) -> float:
        return sum(piece.flops for piece in self.pieces)

    @property
    def weight_bytes(self) -> int:
        return sum(piece.weight_bytes for piece in self.pieces)

    @property
    def memory(self) -> int:
        return max(piece.weight_bytes + piece.activation_bytes for piece in self.pieces)


def find_devices(
    recipe: Recipe,
    *,
    machine: Machine,
    gpus: int | None = None,
    memory: int | None = None,
    rate: float | None = None,
) -> Devices:
    """The devices that the recipe asks for: this machine's, else assumed ones.

    Giving any of `gpus`, `memory` (bytes of each) and `rate` (FLOP/s that each keeps up) asks for such GPUs, whatever is
    here.
    """
    assumed = (gpus, memory, rate) != (None, None, None)
    if not assumed:
        try:
            resolved = resolve(recipe, machine=machine, training=True)
        except UsageError:
            assumed = True  # GPUs asked for by name, and not here
    if assumed:
        wanted = recipe.hardware.processes
        several = wanted if isinstance(wanted, int) else ASSUMED_PROCESSES
        count = gpus or (several if recipe.hardware.backend == "multi-gpu" else 1)
        each = memory or ASSUMED_MEMORY
        dtype = "bfloat16" if recipe.hardware.dtype == "auto" else recipe.hardware.dtype
        many = f"{count} GPUs" if count > 1 else "1 GPU"
        why = f"{many} of {each / GIB:.0f} GiB, not of this machine (--gpus, --memory, --tflops)"
        return Devices("cuda", count, each, dtype, False, why, rate or ASSUMED_RATE[dtype])
    backend = open_backend(resolved)
    backend.apply()
    kind = backend.device.type
    processes = resolved.devices
    if kind == "cuda":
        each = min(device.memory for device in machine.cuda[:processes])
        why = f"{processes} x {machine.cuda[0].name}"
    else:
        each = machine.memory // processes
        why = f"this machine's CPU, {counted(resolved.threads, 'thread')}"
    here = sustained_rate(backend) * _OF_SUSTAINED[kind]
    return Devices(kind, processes, each, resolved.dtype, True, why, here, backend)


def estimate_stage(
    recipe: Recipe, name: str, *, devices: Devices, probe: bool = True, both: bool = False
) -> StageEstimate:
    """What training `name` costs on `devices`.

    With `probe`, two real steps are run where the stage fits on this machine; they also give the memory of a CPU step,
    whose networks keep less than a GPU's. With `both`, activations are counted with and without `recompute`.
    """
    stage, config = get_stage(name), recipe.stage(name)
    count = _Counter(recipe, name, devices.dtype)
    cost = count(config)
    processes, at_once, before = _layout(config, devices.processes)
    memory = _memory(cost, config, processes, at_once, gradients_before=before)
    otherwise = None
    if both:
        other = count(config.model_copy(update={"recompute": not config.recompute}))
        otherwise = other.activations(at_once, gradients_before=before)
    source, probed = "counted without running", 0
    limit = devices.memory * USABLE
    passes = 2.0 if config.sam_rho else 1.0  # SAM takes each gradient twice
    if stage.data == "video":
        passes *= 1 + config.pictures_beside / config.frames
    flops = passes * cost.flops_per_sample * config.batch_size
    seconds = flops / processes / devices.rate
    where = "measured here" if devices.here else "assumed of each GPU"
    how = f"from its FLOPs at {devices.rate / 1e12:.3g} TFLOP/s {where}, if data keep up"

    some = 0
    if probe and devices.backend is not None:
        some = _probe_samples(cost, at_once, devices, fewest=stage.fewest)
    needed = memory.total - memory.activations + cost.activations(some, gradients_before=True)
    if some and devices.backend is not None and needed < (limit or math.inf):
        probed = some
        steps = probe_step(stage, recipe, config, backend=devices.backend, samples=some)
        seconds = passes * steps.seconds_per_sample * config.batch_size / processes + steps.seconds_per_update
        how = "two steps here, without reading data"
        if devices.kind == "cpu":
            seen = steps.cost.activations(at_once, gradients_before=before)
            if otherwise is not None:  # as much less on a CPU as the way that was seen
                otherwise = round(otherwise * seen / max(1, memory.activations))
            memory = dataclasses.replace(memory, activations=seen)
            source = f"seen in a step of {some} here"
    fits = None if not devices.memory else memory.total <= limit
    advice: tuple[str, ...] = ()
    if fits is False:
        advice = _what_fits(recipe, name, config, devices, count, limit)
    checkpoint = 2 * FLOAT * cost.parameters + cost.moments
    return StageEstimate(
        stage=name,
        title=stage.title,
        parameters=cost.parameters,
        trained=cost.trained,
        steps=config.steps,
        batch_size=config.batch_size,
        processes=processes,
        at_once=at_once,
        flops_forward=cost.forward / cost.samples,
        flops_backward=cost.backward / cost.samples,
        flops_per_step=flops,
        memory=memory,
        recompute=config.recompute,
        otherwise=otherwise,
        memory_from=source,
        checkpoint_bytes=checkpoint,
        disk_bytes=(KEEP + 1) * checkpoint + cost.parameters * 2,
        seconds_per_step=seconds,
        seconds=seconds * config.steps,
        how=how,
        probed=probed,
        fits=fits,
        advice=advice,
    )


def estimate_generation(recipe: Recipe, *, devices: Devices) -> Generation:
    """What making one clip costs: network calls, FLOPs, weights and the largest call's activations.

    Raises UsageError where the decoder has no temporal layers: it makes pictures.
    """
    parts = recipe.cascade
    if parts.decoder.network.temporal == "none":
        raise UsageError(
            f"recipe `{recipe.name}` has a decoder without temporal layers, which makes pictures and no video",
            hint="--set cascade.decoder.network.temporal=p3d",
        )
    specs: dict[Piece, ClipSpec | PriorSpec | UNetSpec] = {
        "clip": parts.clip.network,
        "prior": parts.prior.network,
        "decoder_t": parts.decoder.network,
        "interp": recipe.cascade.interp_network(),
    }
    for piece in ("sr_l", "sr_h"):
        part = getattr(parts, piece)
        if part.kind == "network":
            specs[piece] = part.network
    family = Family({piece: Part(piece, piece, spec) for piece, spec in specs.items()})
    cascade = Cascade(recipe, family, Backend(torch.device("cpu"), torch.float32, 1))
    frames = cascade.natural_frames
    halves: dict[str, float] = {  # a multiplication is two FLOPs
        "prior": cascade.cost_of_prior(1),
        "decoder_t": cascade.cost_of_decoder(1),
        "interp": cascade.cost_of_fill_up(parts.decoder.frames, frames),
        "sr_l": cascade.cost_of_super("sr_l", frames) if "sr_l" in specs else 0.0,
        "sr_h": cascade.cost_of_super("sr_h", frames) if "sr_h" in specs else 0.0,
    }
    seen = {
        "decoder_t": (cascade.size, parts.decoder.frames, parts.decoder.sampler.guidance_scale),
        "interp": (cascade.size, parts.interp.window, parts.interp.sampler.guidance_scale),
        "sr_l": (parts.sr_l.size, min(parts.sr_l.chunk, frames), 1.0),
        "sr_h": (parts.sr_h.size, min(parts.sr_h.chunk, frames), 1.0),
    }
    pieces = []
    for piece, spec in specs.items():
        count = parameter_count(spec)
        sampler = getattr(parts, "decoder" if piece == "decoder_t" else piece)
        held = 0
        if isinstance(spec, UNetSpec):
            side, at_once, scale = seen[piece]
            rows = 1 if scale in (0.0, 1.0) else 2
            held = _held_in_a_call(spec, side=side, frames=at_once, rows=rows, dtype=devices.dtype)
        pieces.append(
            PieceEstimate(
                piece=piece,
                title=PIECES[piece],
                parameters=count,
                calls=0 if piece == "clip" else sampler.sampler.calls,
                flops=2 * halves.get(piece, 0.0),
                weight_bytes=FLOAT * count,
                activation_bytes=held,
            )
        )
    total = sum(piece.flops for piece in pieces)
    return Generation(frames, cascade.out_size, tuple(pieces), total / devices.rate)


class _Counter:
    """`count_step` of one stage, each question once."""

    def __init__(self, recipe: Recipe, name: str, dtype: str) -> None:
        self.recipe, self.stage, self.dtype = recipe, get_stage(name), dtype
        self.known: dict[str, StepCost] = {}

    def __call__(self, config: StageTraining, *, dtype: str | None = None) -> StepCost:
        dtype = dtype or self.dtype
        shape = config.model_copy(
            update={"steps": 1, "batch_size": 1, "micro_batch": None, "sharding": "ddp"}
        )
        key = f"{dtype} {shape.model_dump_json()}"
        if key not in self.known:
            self.known[key] = count_step(
                self.stage, self.recipe, shape, dtype=_DTYPES[dtype], samples=self.stage.fewest
            )
        return self.known[key]


def _layout(config: StageTraining, processes: int) -> tuple[int, int, bool]:
    """Processes that take part, samples that each puts through at once, and whether it does so more than once a step."""
    processes = max(1, min(processes, config.batch_size))
    share = math.ceil(config.batch_size / processes)
    at_once = min(config.micro_batch or share, share)
    return processes, at_once, at_once < share


def _memory(
    cost: StepCost, config: StageTraining, processes: int, at_once: int, *, gradients_before: bool
) -> Memory:
    shards = processes if config.sharding == "fsdp" else 1
    return Memory(
        weights=FLOAT * cost.parameters // shards,
        gradients=FLOAT * cost.trained // shards,
        # SAM keeps the weights that it climbs from
        optimizer=(cost.moments + (FLOAT * cost.trained if config.sam_rho else 0)) // shards,
        average=FLOAT * cost.parameters // shards,
        frozen=FLOAT * cost.frozen,
        exchange=2 * FLOAT * cost.block if shards > 1 else 0,
        activations=cost.activations(at_once, gradients_before=gradients_before or shards > 1),
    )


def _probe_samples(cost: StepCost, at_once: int, devices: Devices, *, fewest: int) -> int:
    """Samples of which a step takes a few seconds; 0 where one alone takes too long."""
    affordable = _PROBE_SECONDS * devices.rate / cost.flops_per_sample
    return 0 if affordable < 0.1 else max(fewest, min(at_once, int(affordable)))


def _what_fits(
    recipe: Recipe, name: str, config: StageTraining, devices: Devices, count: _Counter, limit: float
) -> tuple[str, ...]:
    """The first of ever harder changes after which the stage fits, as `key=value`; nothing where none does.

    Smaller portions cost nothing, recomputing a third more time, sharding traffic between processes. Fewer frames, or for
    CLIP a smaller batch, change what is learnt, so they come last.
    """
    key = f"train.stages.{name}"
    sets: tuple[str, ...] = ()
    dtype = devices.dtype
    trials = [(sets, config, dtype)]
    if not config.recompute:
        sets, config = (*sets, f"{key}.recompute=true"), config.model_copy(update={"recompute": True})
        trials.append((sets, config, dtype))
    if dtype == "float32" and devices.kind == "cuda":
        sets, dtype = (*sets, "hardware.dtype=bfloat16"), "bfloat16"
        trials.append((sets, config, dtype))
    # The contrastive loss compares all pairs of a step: neither portions nor shards (training/start.py).
    together = name == "clip"
    if config.sharding == "ddp" and devices.processes > 1 and not together:
        sets, config = (*sets, f"{key}.sharding=fsdp"), config.model_copy(update={"sharding": "fsdp"})
        trials.append((sets, config, dtype))
    if get_stage(name).data == "video":
        for frames in (f for f in (12, 8, 4) if f < config.frames):
            fewer = config.model_copy(update={"frames": frames})
            trials.append(((*sets, f"{key}.frames={frames}"), fewer, dtype))
    for sets, trial, dtype in trials:
        processes, share, _ = _layout(trial.model_copy(update={"micro_batch": None}), devices.processes)
        cost = count(trial, dtype=dtype)
        at_once = share
        while at_once and (not together or at_once == share):
            before = at_once < share
            if _memory(cost, trial, processes, at_once, gradients_before=before).total <= limit:
                return (*sets, f"{key}.micro_batch={at_once}") if before else sets
            at_once //= 2
    if together:
        at_once = share
        while at_once and _memory(cost, trial, processes, at_once, gradients_before=False).total > limit:
            at_once //= 2
        return (*sets, f"{key}.batch_size={at_once * processes}") if at_once else ()
    return ()


def _held_in_a_call(spec: UNetSpec, *, side: int, frames: int, rows: int, dtype: str) -> int:
    """Bytes that one call of a network needs beside its weights, when a clip is made on a GPU."""
    network = on_meta(spec)
    assert isinstance(network, UNet)

    def zeros(channels: int) -> torch.Tensor:
        return torch.empty(rows, frames, channels, side, side, device="meta")

    vector = torch.empty(rows, device="meta")
    condition = Condition(
        image_embedding=None if spec.clip_dim is None else torch.empty(rows, spec.clip_dim, device="meta"),
        low_res=zeros(spec.low_res_channels) if spec.low_res_channels else None,
        masked_video=zeros(spec.mask_channels) if spec.mask_channels else None,
        fps=vector if spec.fps and frames > 1 else None,
        noise_level=vector if spec.noise_level else None,
    )
    trace = Trace(device=torch.device("meta"), known=[*network.parameters(), *network.buffers()])
    with torch.no_grad(), MetaAutocast(_DTYPES[dtype]), trace:
        network(zeros(spec.in_channels), vector, condition)
    return trace.peak()
