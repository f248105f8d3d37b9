"""Every call below Python with which the store of votes changes the disk fails in turn; run with `faults_preload.c` preloaded.

`python store_faults.py FOLDER`: prints how many points were tried, and a line for each that lost, doubled or made up a vote.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from mavcli.errors import MavError
from mavcli.evaluation.human import Item, Study
from mavcli.evaluation.pairs import Pair
from mavcli.evaluation.votes import STORE, Vote, VoteStore, gather_votes

STUDY = Study(
    "study-1", "a", "b", ("quality",),
    tuple(Item(Pair(str(n), None, Path("a"), Path("b")), f"item-{n}", 0, (f"{n}a", f"{n}b"), ("a", "b")) for n in range(4)),
)  # fmt: skip
RATER = "a-rater-of-sixteen-letters"
KINDS = {"kill": -1, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "short": -2}


def votes() -> list[Vote]:
    return [
        Vote("study-1", RATER, "Anna", f"vote-number-{n:06}", item.id, "quality", 0, f"{n}a", f"{n}a", f"{n}b", 1.0, "2026Z")
        for n, item in enumerate(STUDY.items)
    ]  # fmt: skip


def cast(folder: Path, told: int) -> None:
    """Begin a store and cast every vote until it is taken, at most three times; what is acknowledged goes to `told`."""
    for _ in range(3):
        try:
            store = VoteStore(folder / STORE, STUDY)
            break
        except MavError:
            continue
    for _ in range(3):
        try:
            with store._lock:
                store._db.execute("INSERT OR IGNORE INTO raters VALUES (?, 'Anna', '')", (RATER,))
            break
        except Exception:
            continue
    for vote in votes():
        for _ in range(3):
            try:
                store.add(vote)
            except MavError:
                continue
            os.write(told, f"{vote.id}\n".encode())
            break
    os.write(told, b"end\n")


def run(library: ctypes.CDLL, folder: Path, kind: int, at: int) -> tuple[list[str], int]:
    """In a child: the ids that were acknowledged, and how many calls there were."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        library.mav_faults_arm(str(folder).encode(), kind, ctypes.c_long(at))
        try:
            cast(folder, writer)
        finally:
            os.write(writer, f"calls {library.mav_faults_calls()}\n".encode())
            os._exit(0)  # as at a kill: nothing is closed
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = stream.read().splitlines()
    os.waitpid(pid, 0)
    calls = [int(line.split()[1]) for line in lines if line.startswith("calls")]
    return [line for line in lines if not line.startswith("calls")], calls[0] if calls else 0


def main() -> None:
    root = Path(sys.argv[1])
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.mav_faults_calls.restype = ctypes.c_long
    every = [vote.id for vote in votes()]
    _, calls = run(library, fresh(root), 0, 0)
    tried = 0
    for name, kind in KINDS.items():
        for at in range(1, calls + 1):
            tried += 1
            folder = fresh(root)
            told, _ = run(library, folder, kind, at)
            acknowledged = [line for line in told if line != "end"]
            kept = sorted(vote.id for vote in gather_votes(folder, STUDY)[0])
            wrong = []
            if set(acknowledged) - set(kept):
                wrong.append(f"lost {set(acknowledged) - set(kept)}")
            if name != "kill" and (kept != every or acknowledged != every):
                wrong.append(f"only {acknowledged} were taken, {kept} are there")
            cast_again, _ = run(library, folder, 0, 0)
            store = VoteStore(folder / STORE, STUDY)
            if cast_again != [*every, "end"] or sorted(vote.id for vote in store.votes()) != every:
                wrong.append(f"afterwards {cast_again}, {store.votes()}")
            store.close()
            if left := sorted(set(os.listdir(folder)) - {STORE}):
                wrong.append(f"left {left}")
            for line in wrong:
                sys.stdout.write(f"{name} at {at}: {line}\n")
    sys.stdout.write(f"{tried} points\n")


def fresh(root: Path) -> Path:
    shutil.rmtree(root / "out", ignore_errors=True)
    (root / "out").mkdir(parents=True)
    return root / "out"


if __name__ == "__main__":
    main()
