"""Commands that torchrun starts several times: one process speaks, and all end as it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mavcli.cli.console import Console
from mavcli.errors import Interrupted, MavError

if TYPE_CHECKING:
    from mavcli.evaluation.shards import Shard


@contextmanager
def open_ranks(device: str, *, quiet: bool, json: bool) -> Iterator[tuple[Shard, Console]]:
    """This process among the ranks, and its console; one that does not lead is quiet, and ends with the same exit code.

    Raises UsageError where there is no such `device`.
    """
    from mavcli.evaluation.shards import open_shard

    with open_shard(device) as shard, Console(quiet=quiet or not shard.leads, json=json) as console:
        try:
            yield shard, console
        except (MavError, Interrupted) as error:
            if shard.leads:
                raise
            raise SystemExit(error.exit_code) from error
