"""Processes forked from the test's own, so that torch is imported once: a group over gloo, and children to kill."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from mavcli.training.distributed import Group, Place, open_group


def run_together(world: int, work: Callable[[Group], Any], *, limit_s: float = 300) -> list[Any]:
    """`work(group)` in `world` processes; what each returned, or the exception that it raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        place = Place(rank, world, rank, "127.0.0.1", port)
        reader, writer = os.pipe()
        pid = fork(lambda place=place, writer=writer: _member(place, work, writer))
        os.close(writer)
        children.append((pid, reader))
    ended = time.monotonic() + limit_s
    results: list[Any] = []
    for pid, reader in children:
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
        _, status = os.waitpid(pid, 0)
        assert time.monotonic() < ended, "too slow"
        results.append(pickle.loads(data) if data else RuntimeError(f"ended with status {status}"))
    return results


def _member(place: Place, work: Callable[[Group], Any], writer: int) -> None:
    result: Any
    try:
        with open_group(place, torch.device("cpu")) as group:
            result = work(group)
    except BaseException as error:
        result = error
    with os.fdopen(writer, "wb") as stream:
        stream.write(pickle.dumps(result))


def fork(work: Callable[[], None]) -> int:
    """The number of a child that does `work` and ends, without a word to pytest."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        work()
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def cpu_s(work: Callable[[], None]) -> float:
    """Seconds of processor time that a child needs for `work`."""
    _, status, usage = os.wait4(fork(work), 0)
    assert status == 0, f"the child failed, status {status}"
    return usage.ru_utime + usage.ru_stime


def kill_after(pid: int, cpu_s: float, wait_s: float = 0.0) -> bool:
    """SIGKILL a child when it has used `cpu_s` of processor time and `wait_s` more have passed; False if it ended before.

    Processor time and not the clock's: a busy machine must not kill everything before it has begun.
    """
    clock = (~pid << 3) | 2  # clock_getcpuclockid
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child failed by itself, status {status}"
            return False
        left = cpu_s - time.clock_gettime(clock)
        if left <= 0:
            break
        time.sleep(max(left, 0.0005))
    time.sleep(wait_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)
