"""Starts the processes of a training on this machine with torchrun's own launcher, and says which of them failed first.

A process that fails leaves its error in a file (`leave_failure`), so that the user reads one message and not one from each.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mavcli.errors import Interrupted, MavError
from mavcli.training.distributed import PeerLost

_FAILURES = "MAV_FAILURES"
# A stopped training finishes its step and saves; a process that has not ended after this long is killed.
_PATIENCE_S = 300


class Failed(MavError):
    """What one of the processes left behind; `exit_code` is its own."""

    def __init__(self, message: str, *, hint: str | None, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `mav ARGUMENTS` in `processes` processes of one group and wait for them.

    Raises what the process raised that failed first, or PeerLost where one was killed.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"mav-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",  # the machine's name may lead nowhere
        max_restarts=0,
        monitor_interval=0.2,
    )
    with tempfile.TemporaryDirectory(prefix="mav-") as folder, _quiet_launcher(folder):
        try:
            elastic_launch(config, sys.executable)("-m", "mavcli", *arguments)
        except ChildFailedError as error:
            failed = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise _first_failure(Path(folder), processes, failed) from error
        except SignalException as error:
            raise _first_failure(Path(folder), processes, {}, signal_number=int(error.sigval)) from error


def leave_failure(error: MavError, *, rank: int, lost: bool) -> bool:
    """Leave an error for the launcher to tell; False where mav's own launcher is not listening.

    `lost` says that it is only the echo of another process's end.
    """
    folder = os.environ.get(_FAILURES)
    if folder is None:
        return False
    told = {
        "time": time.time(),
        "lost": lost,
        "exit_code": error.exit_code,
        "message": error.message,
        "hint": error.hint,
    }
    with contextlib.suppress(OSError):  # the launcher has gone already
        (Path(folder) / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    return True


def _first_failure(
    folder: Path, processes: int, failed: Mapping[int, int], *, signal_number: int | None = None
) -> MavError | Interrupted:
    told = {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    causes = sorted((t for t in told.values() if not t["lost"]), key=lambda t: t["time"])
    if causes:
        first = causes[0]
        return Failed(first["message"], hint=first["hint"], exit_code=first["exit_code"])
    again = "run the same command again: it goes on from the last checkpoint"
    for rank, code in sorted(failed.items()):
        if code < 0 and rank not in told:
            name = signal.Signals(-code).name
            memory = "; a machine that runs out of memory does that" if code == -signal.SIGKILL else ""
            return PeerLost(f"process {rank} of {processes} was ended by {name}{memory}", hint=again)
    if signal_number is not None:
        return Interrupted(
            f"stopped by {signal.Signals(signal_number).name} before the state could be saved",
            hint=again,
            exit_code=128 + signal_number,
        )
    if told:
        first = min(told.values(), key=lambda t: t["time"])
        return PeerLost(first["message"], hint=first["hint"])
    rank, code = next(iter(failed.items()), (0, 1))
    return PeerLost(f"process {rank} of {processes} ended with exit code {code}", hint=again)


@contextmanager
def _quiet_launcher(folder: str) -> Iterator[None]:
    """The environment of the processes, and no word of the launcher's own."""
    ours = {
        _FAILURES: folder,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_PATIENCE_S),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
