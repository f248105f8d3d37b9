"""Several processes that train one network: who this process is, and the few things they tell each other.

A launcher says who is who: `torchrun` (and `mav train-stage --gpus N`, which starts it) or SLURM's `srun`, in environment
variables. Without one there is a single process and everything here does nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from mavcli.errors import MavError, UsageError

T = TypeVar("T")
# Longer than the longest thing that one process does while the others wait: a preview, writing a checkpoint.
_PATIENCE = timedelta(minutes=30)
_HOSTS = re.compile(r"([^,\[]+)(?:\[([^\]]+)\])?")


class PeerLost(MavError):
    """Another process of the training is gone, so this one cannot go on."""


@dataclass(frozen=True)
class Place:
    """Which of `world` processes this is, and which on its machine; `address` and `port` are where they meet."""

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that a launcher gave this process; None without a launcher.

    Raises UsageError when the variables are there and make no sense.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:  # torchrun
            return Place(
                int(environment["RANK"]),
                int(environment["WORLD_SIZE"]),
                int(environment.get("LOCAL_RANK", 0)),
                environment.get("MASTER_ADDR", "127.0.0.1"),
                int(environment.get("MASTER_PORT", 29500)),
            )
        if (
            int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        ):  # srun; a batch script alone has no such variable
            job = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", 0))
            return Place(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                int(environment["SLURM_LOCALID"]),
                environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
                int(environment.get("MASTER_PORT", 20000 + job % 20000)),
            )
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"the launcher's environment cannot be read: {error}",
            hint="start it with `mav train-stage --gpus N`, `torchrun` or `srun`",
        ) from error
    return None


def first_host(nodes: str) -> str:
    """The first host of SLURM's short form: `gpu[03-07,9],login` -> `gpu03`."""
    match = _HOSTS.match(nodes)
    if match is None:
        raise ValueError(f"no host in `{nodes}`")
    return match[1] + (re.split(r"[-,]", match[2])[0] if match[2] else "")


class Group:
    """The processes of one training, which meet at `address`; without arguments, this process alone."""

    def __init__(
        self, rank: int = 0, world: int = 1, device: torch.device | None = None, *, address: str = "127.0.0.1"
    ) -> None:
        self.rank, self.world, self.address = rank, world, address
        self.device = device or torch.device("cpu")
        self.mesh: DeviceMesh | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise over all processes, in float64 on the CPU."""
        if self.world == 1:
            return values.double().cpu()
        total = values.double().to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of the ranks. For small objects, on rare occasions."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agree(self, error: MavError | None = None) -> None:
        """All processes meet here; an error that one of them brings is raised in all of them."""
        found = [e for e in self.gather(error) if e is not None]
        if found:
            raise found[0]

    def rows(self, x: Tensor) -> Tensor:
        """(b, ...) -> the rows of all processes in order, with gradients back to each."""
        return x if self.world == 1 else torch.cat(differentiable.all_gather(x))

    def shards(self) -> DeviceMesh:
        """The mesh over which FSDP cuts parameters."""
        if self.mesh is None:
            self.mesh = init_device_mesh(self.device.type, (self.world,))
        return self.mesh


@contextmanager
def open_group(place: Place | None, device: torch.device) -> Iterator[Group]:
    """The processes that a launcher started, joined for as long as the context lasts."""
    if place is None or place.world == 1:
        yield Group(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with lost_peers():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{place.address}:{place.port}",
            rank=place.rank,
            world_size=place.world,
            timeout=_PATIENCE,
        )
        try:
            yield Group(place.rank, place.world, device, address=place.address)
        finally:
            dist.destroy_process_group()


@contextmanager
def lost_peers() -> Iterator[None]:
    """Torch's words for a lost process are many and none is clear; they come out of the backward pass too."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise PeerLost(
            f"another process of this training is gone: {line[:200]}",
            hint="run the same command again: it goes on from the last checkpoint",
        ) from error


def _is_lost_peer(error: RuntimeError) -> bool:
    words = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "ProcessGroup")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor that FSDP cut, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
