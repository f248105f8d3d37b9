"""Whether the other processes of a training still live: a stopped one is told of by its rank, long before a collective gives up.

Each process counts up under its own rank in a store of its own, from a thread, so a long step does not silence it; a process
that is stopped (SIGSTOP, a debugger, a machine that swaps) is silent as a whole. The lowest rank that lives tells.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import TCPStore

from mavcli.report import Report
from mavcli.training.distributed import Group

SILENCE_S = 60.0
"""After so long without a sign a process is told of."""


@contextmanager
def watching(group: Group, report: Report, *, silence_s: float = SILENCE_S) -> Iterator[None]:
    """Warn of processes of `group` that are silent for `silence_s` seconds, and say when they answer again."""
    if group.world == 1:
        yield
        return
    name = f"process {os.getpid()} on {socket.gethostname()}"
    names = group.gather(name)
    wait = timedelta(seconds=silence_s)
    server = (
        TCPStore(group.address, 0, is_master=True, timeout=wait, wait_for_workers=False)
        if group.first
        else None
    )
    port = group.gather(0 if server is None else server.port)[0]
    # A connection of its own: a store that is stopped blocks whoever asks it, and no collective must wait for that.
    store = TCPStore(group.address, port, is_master=False, timeout=wait, wait_for_workers=False)
    ended = threading.Event()
    watcher = _Watcher(group.rank, names, store, report, silence_s, ended)
    for part in (watcher.listen, watcher.judge):
        threading.Thread(target=part, name="watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _Watcher:
    """Counts up for its own rank, and reads what the others count."""

    def __init__(
        self,
        rank: int,
        names: list[str],
        store: TCPStore,
        report: Report,
        silence_s: float,
        ended: threading.Event,
    ) -> None:
        self.rank, self.names, self.store, self.report = rank, names, store, report
        self.silence_s, self.ended = silence_s, ended
        self.heard = [time.monotonic()] * len(names)
        self.told: set[int] = set()

    def listen(self) -> None:
        """Count up and read, every few seconds; a store whose process is stopped keeps this thread waiting."""
        counts = [-1] * len(self.names)
        while not self.ended.wait(self.silence_s / 6):
            try:
                self.store.add(str(self.rank), 1)
                now = [self.store.add(str(other), 0) for other in range(len(self.names))]
            except RuntimeError:  # the store's process is silent or has ended
                continue
            for other, count in enumerate(now):
                if count != counts[other]:
                    self.heard[other] = time.monotonic()
            counts = now

    def judge(self) -> None:
        """Tell of who is silent."""
        every = self.silence_s / 6
        last = time.monotonic()
        while not self.ended.wait(every):
            now = time.monotonic()
            if now - last > 3 * every:  # it was this process that was stopped: the others were not silent
                self.heard = [now] * len(self.names)
            last = now
            silent = {other for other, heard in enumerate(self.heard) if now - heard >= self.silence_s}
            silent = (
                {0} if 0 in silent else silent
            )  # the store is the first one's: nothing is known of the others
            silent -= {self.rank}
            if min(set(range(len(self.names))) - silent) == self.rank:
                for other in sorted(silent - self.told):
                    self.report.warning(
                        f"rank {other} of {len(self.names)} ({self.names[other]}) has given no sign for "
                        f"{self.silence_s:g} s, and all wait for it: it may be stopped (`kill -CONT` wakes it), or its "
                        "machine hangs"
                    )
                    self.told.add(other)
            for other in sorted(self.told - silent):
                self.report.message(f"rank {other} of {len(self.names)} answers again")
                self.told.discard(other)
