"""Whether networks have room on this machine, said in one line before any work.

Only what cannot run is refused: of a cascade its largest network alone (they are loaded one after the other, in float32), of
a training the weights, their moving average and, where all of them train, a gradient and one moment each. Batches,
activations and frozen towers come on top; a network that is near the limit may run out of memory all the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from mavcli.engine.cost import parameter_count, without_memory
from mavcli.engine.family import PIECES, Part
from mavcli.errors import OutOfMemoryError
from mavcli.models.unet import UNet
from mavcli.recipe.resolve import Machine, Resolved
from mavcli.recipe.schema import StageTraining
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec

FLOAT = 4
"""Bytes of a float32."""
_GUESSED = 1.1
"""The kernel guesses what is free; what is a tenth more is let try."""
_SMALLER = "a smaller recipe (`mav recipe ls`), or a machine with more memory"


def check_parts(parts: Iterable[Part], *, machine: Machine, resolved: Resolved) -> None:
    """Raise OutOfMemoryError where a network of a cascade is larger than the memory here, of the machine or of its GPU."""
    for part in parts:
        name = PIECES[part.piece]
        _refuse(name, part.spec, FLOAT, machine.free, f"{_gb(machine.free)} of memory are free here")
        if resolved.backend != "cpu" and machine.cuda:
            gpu = machine.cuda[0]
            _refuse(name, part.spec, FLOAT, gpu.memory, f"{gpu.name} has {_gb(gpu.memory)}")


def check_training(
    name: str,
    spec: ClipSpec | PriorSpec | UNetSpec,
    config: StageTraining,
    *,
    machine: Machine,
    resolved: Resolved,
) -> None:
    """Raise OutOfMemoryError where stage `name`, which trains the network `spec`, is larger than the memory here."""
    held = FLOAT * (4 if config.train == "all" else 2)
    free = f"{_gb(machine.free)} of memory are free here"
    if resolved.backend == "cpu":
        _refuse(f"stage `{name}`", spec, held, machine.free, free)
        return
    # each process makes the whole network in the machine's memory; `fsdp` shares out what the GPUs then hold
    _refuse(f"stage `{name}`", spec, FLOAT, machine.free, free)
    if machine.cuda:
        gpu = machine.cuda[0]
        shards = resolved.devices if config.sharding == "fsdp" else 1
        _refuse(f"stage `{name}`", spec, held / shards, gpu.memory, f"{gpu.name} has {_gb(gpu.memory)}")


def check_inflation(spec: UNetSpec, *, free: int) -> None:
    """Raise OutOfMemoryError where the largest stage of a U-Net, which inflation holds alone, is larger than `free` bytes."""
    network = without_memory(spec)
    assert isinstance(network, UNet)
    stages = (*network.input_blocks, network.middle_block, *network.output_blocks)
    largest = max(sum(p.numel() for p in stage.parameters()) for stage in stages)
    if free and FLOAT * largest > _GUESSED * free:
        raise OutOfMemoryError(
            f"one stage of the network takes at least {_gb(FLOAT * largest)}, and {_gb(free)} of memory are free here",
            hint=_SMALLER,
        )


def _refuse(what: str, spec: ClipSpec | PriorSpec | UNetSpec, each: float, room: int, has: str) -> None:
    """OutOfMemoryError where `each` bytes for every parameter are more than `room` bytes; 0 is not known."""
    if not room:
        return
    for count in (_fewest, _exactly):  # a giant is not even built without memory
        needed = each * count(spec)
        if needed > _GUESSED * room:
            told = f"at least {count(spec) / 1e9:.3g} billion parameters, which take {_gb(needed)}, and {has}"
            raise OutOfMemoryError(f"{what} has {told}", hint=_SMALLER)


def _fewest(spec: ClipSpec | PriorSpec | UNetSpec) -> int:
    return spec.parameters


def _exactly(spec: ClipSpec | PriorSpec | UNetSpec) -> int:
    # CLIP's towers are small, and counting a published model's imports open_clip, which takes seconds
    return spec.parameters if isinstance(spec, ClipSpec) else parameter_count(spec)


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
