"""A network with more residual blocks at its levels, that says at first what the shallower one said, to the bit.

Blocks are added where a level's own stand already: after them on the way down, after the first of them on the way up. A block
ends in a convolution of zeros (ADM), so that on the way down it passes its input on. On the way up a block also reads a
skip connection, wider than what it passes on; its 1x1 convolution is set to leave that out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mavcli.errors import WeightsError
from mavcli.models.unet import ResBlock, Stage, UNet, is_temporal
from mavcli.specs import UNetSpec
from mavcli.weights.provenance import (
    WeightsHeader,
    as_described,
    load_weights,
    read_header,
    read_index,
    refuse_existing,
    save_weights,
)
from mavcli.weights.safety import check_fit


@dataclass(frozen=True)
class Deepened:
    """What `deepen_file` wrote, and the numbers of parameters before and after."""

    files: tuple[Path, ...]
    header: WeightsHeader
    before: int
    after: int


def deepen_file(
    source: Path, blocks: Sequence[int], out: Path, *, seed: int = 0, force: bool = False, command: str = ""
) -> Deepened:
    """Write `source` with `blocks[i]` residual blocks at level i, largest pixels first, into the folder `out`.

    `seed` draws the first layers of new blocks. Raises WeightsError where `source` is no U-Net or `blocks` do not fit it,
    DiskError where the target exists and `force` is not given.
    """
    header = read_header(source)
    spec = header.spec
    if not isinstance(spec, UNetSpec):
        raise WeightsError(
            f"{source} holds `{header.role}`, which has no residual blocks", hint="mav weights ls"
        )
    wanted = deeper(spec, blocks, source=source)
    target = out / f"{header.role}.safetensors"
    refuse_existing(target, force=force)
    with as_described(source), torch.device("meta"):
        own = UNet(spec).state_dict()
    check_fit(read_index(source), own, source)
    weights = load_weights(source, expect_sha256=header.content_sha256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = deepened(weights, spec, wanted)
    before, after = (sum(t.numel() for t in some.values()) for some in (weights, tensors))
    inflation = header.inflation
    if inflation is not None:
        more = _temporal_numbers(tensors) - _temporal_numbers(weights)
        inflation = inflation.model_copy(update={"parameters": after, "added": inflation.added + more})
    header = header.model_copy(
        update={
            "spec": wanted,
            "parents": (header.as_parent(),),
            "source": command or "mav weights deepen",
            "inflation": inflation,
        }
    )
    files = save_weights(target, tensors, header)
    return Deepened(tuple(files), read_header(target), before, after)


def deeper(spec: UNetSpec, blocks: Sequence[int], *, source: Path | str = "the network") -> UNetSpec:
    """`spec` with `blocks[i]` residual blocks at level i; WeightsError where that is not a deeper network."""
    now = spec.depths
    if len(blocks) != len(now):
        raise WeightsError(
            f"{source} has {len(now)} levels, and {len(blocks)} numbers of blocks are given",
            hint=f"--blocks {','.join(map(str, now))} is what it has",
        )
    if any(new < old for new, old in zip(blocks, now, strict=True)) or tuple(blocks) == now:
        raise WeightsError(
            f"{source} has {_listed(now)} blocks at its levels, and {_listed(blocks)} adds nothing to them",
            hint="give each level as many as it has, and some of them more",
        )
    return spec.model_copy(update={"num_res_blocks": tuple(blocks)})


def _temporal_numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for name, value in tensors.items() if is_temporal(name))


def _listed(blocks: Sequence[int]) -> str:
    return ",".join(map(str, blocks))


def deepened(weights: Mapping[str, Tensor], spec: UNetSpec, wanted: UNetSpec) -> dict[str, Tensor]:
    """`weights` of the network `spec` as those of `wanted`, which is `deeper`; new layers have the type of the old."""
    network = UNet(wanted)
    moved = moves(spec.depths, wanted.depths)
    kept = set(moved.values())
    for place, stage in enumerate(network.output_blocks):
        if f"output_blocks.{place}" not in kept:
            assert isinstance(stage, Stage) and isinstance(stage[0], ResBlock)
            _leave_skip_out(stage[0])
    like = next(value for value in weights.values() if value.is_floating_point()).dtype
    tensors = {name: value.to(like) for name, value in network.state_dict().items()}
    for name, value in weights.items():
        head = ".".join(name.split(".")[:2])
        tensors[moved.get(head, head) + name[len(head) :]] = value
    return tensors


def moves(before: Sequence[int], after: Sequence[int]) -> dict[str, str]:
    """Where each of `input_blocks.N` and `output_blocks.N` of a network lies in a deeper one."""
    places = {"input_blocks.0": "input_blocks.0"}
    old = new = 1
    for level, (few, many) in enumerate(zip(before, after, strict=True)):
        places |= {f"input_blocks.{old + i}": f"input_blocks.{new + i}" for i in range(few)}
        old, new = old + few, new + many
        if level != len(before) - 1:
            places[f"input_blocks.{old}"] = f"input_blocks.{new}"
            old, new = old + 1, new + 1
    old = new = 0
    for few, many in zip(reversed(before), reversed(after), strict=True):
        for i in range(few + 1):
            # the first reads what the last block on the way down says, as before: new ones there pass that on
            places[f"output_blocks.{old + i}"] = f"output_blocks.{new + i + (many - few if i else 0)}"
        old, new = old + few + 1, new + many + 1
    return places


def _leave_skip_out(block: ResBlock) -> None:
    """Let a new block on the way up pass on what comes from below, and not the skip connection behind it."""
    connection = block.skip_connection
    assert isinstance(connection, torch.nn.Conv2d) and connection.bias is not None
    width = connection.out_channels
    with torch.no_grad():
        connection.weight.zero_()
        connection.weight[:, :width, 0, 0] = torch.eye(width)
        connection.bias.zero_()
