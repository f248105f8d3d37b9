"""Several processes that measure one folder: torchrun's ranks, each with every n-th batch.

What a rank has measured goes into the feature store, which all ranks share as a folder; all that they say to one another is
which files were faulty, and that they are done. The scores are then one rank's business, and do not depend on how many
ranks there were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from mavcli.errors import UsageError

_PATIENCE = timedelta(days=7)
"""A rank may finish days before the others; torchrun ends all of them when one dies."""


@dataclass(frozen=True)
class Shard:
    """This process among `size`."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process tells the score."""
        return self.rank == 0

    def gather(self, mine: Sequence[str]) -> list[str]:
        """What all ranks say, in their order; every rank waits for every other here."""
        if self.size == 1:
            return list(mine)
        said: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(said, list(mine))
        return [line for lines in said for line in lines]


@contextmanager
def open_shard(device: str = "auto") -> Iterator[Shard]:
    """The process as torchrun's environment describes it, or the only one; `device` is auto, cpu or cuda.

    Raises UsageError for `cuda` where there is none.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("torch sees no CUDA device", hint="--device cpu")
    place = torch.device("cpu")
    if has_cuda and device != "cpu":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # TF32 convolutions would move features by a thousandth.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        if size == 1:
            yield Shard(device=place)
            return
        # Words only, no tensors: gloo serves every device.
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield Shard(rank, size, place)
        finally:
            dist.destroy_process_group()
