"""Rows on disk: whole or absent, whoever writes, whatever is damaged; never more than they may be."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from forked import fork, kill_after

from mavcli.files import _Sink, sweep, temporary_path
from mavcli.training import kept
from mavcli.training.kept import KeptRows

WIDTH = 8
FACTS = {"towers": "a"}


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=kept.KEY_BYTES).digest()


def row(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=WIDTH).astype(np.float32)


def open_rows(folder: Path, facts=FACTS, *, limit: int = 10**6) -> KeptRows:
    return KeptRows(folder, facts, WIDTH, limit=limit)


def fill(rows: KeptRows, numbers: range) -> None:
    for number in numbers:
        rows.put(key(number), row(number))
    rows.flush()


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("[!.]*.rows"))


def test_a_row_is_found_by_another_run_bit_for_bit_and_by_other_facts_not(tmp_path):
    fill(open_rows(tmp_path), range(20))
    other = open_rows(tmp_path)
    assert all(np.array_equal(other.get(key(n)), row(n)) for n in range(20))
    assert other.get(key(20)) is None and (other.found, other.made) == (20, 1)
    assert open_rows(tmp_path, {"towers": "b"}).get(key(0)) is None
    assert KeptRows(tmp_path, FACTS, WIDTH + 1, limit=10**6).get(key(0)) is None


def test_rows_of_other_processes_are_seen_after_a_flush(tmp_path):
    one, two = open_rows(tmp_path), open_rows(tmp_path)
    fill(one, range(5))
    assert two.get(key(3)) is None
    fill(two, range(5, 6))
    assert np.array_equal(two.get(key(3)), row(3))


def test_every_damaged_byte_makes_a_row_absent_and_never_wrong(tmp_path):
    fill(open_rows(tmp_path), range(3))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    lost = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        rows = open_rows(tmp_path)
        for number in range(3):
            found = rows.get(key(number))
            assert found is None or np.array_equal(found, row(number))
            lost += found is None
    assert lost > 3 * WIDTH * 4, "damage was never noticed"
    for damaged in (whole[:-1], whole[:100], whole[:5], b"", b"no rows at all"):
        path.write_bytes(damaged)
        rows = open_rows(tmp_path)
        assert [
            n for n in range(3) if (f := rows.get(key(n))) is not None and not np.array_equal(f, row(n))
        ] == []


def test_a_damaged_file_goes_and_its_rows_are_kept_anew(tmp_path):
    fill(open_rows(tmp_path), range(3))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    rows = open_rows(tmp_path)
    assert rows.get(key(2)) is None and not path.exists()
    fill(rows, range(3))
    assert [n for n in range(3) if not np.array_equal(open_rows(tmp_path).get(key(n)), row(n))] == []


def test_four_processes_write_one_folder(tmp_path):
    """Half of the rows are the same in all of them."""
    from mavcli.training.kept import KeptRows as Rows

    def work(rank: int) -> None:
        rows = Rows(tmp_path, FACTS, WIDTH, limit=10**7)
        for number in (*range(40), *range(100 * rank, 100 * rank + 40)):
            if rows.get(key(number)) is None:
                rows.put(key(number), row(number))
            if number % 7 == 0:
                rows.flush()
        rows.flush()

    children = [fork(lambda rank=rank: work(rank)) for rank in range(1, 5)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    rows = open_rows(tmp_path)
    numbers = [*range(40), *(100 * rank + n for rank in range(1, 5) for n in range(40))]
    assert [n for n in numbers if not np.array_equal(rows.get(key(n)), row(n))] == []
    assert [p.name for p in tmp_path.rglob(".*")] == []


def test_a_writer_that_is_killed_leaves_whole_rows(tmp_path):
    def work() -> None:
        for start in range(0, 10**6, 4):
            fill(open_rows(tmp_path, limit=10**9), range(start, start + 4))

    for kill in range(20):
        kill_after(fork(work), 0.01 + 0.002 * kill)
        rows = open_rows(tmp_path)
        known = [n for n in range(4 * len(files(tmp_path))) if rows.get(key(n)) is not None]
        assert all(np.array_equal(rows.get(key(n)), row(n)) for n in known)
        assert len(known) == 4 * len(files(tmp_path))
    assert len(files(tmp_path)) > 5


def test_what_a_kill_left_half_written_goes_and_what_is_being_written_stays(tmp_path):
    fill(open_rows(tmp_path), range(2))
    (kept_file,) = files(tmp_path)

    def write_half() -> None:
        temporary_path(kept_file).write_bytes(b"half")

    kill_after(fork(write_half), 10)
    write_half()
    sweep(kept_file.parent, again=True)
    (left,) = kept_file.parent.glob(".*")
    assert f"-{os.getpid()}-" in left.name and kept_file.exists()


def test_the_folder_never_holds_more_than_it_may_and_says_so(tmp_path):
    """The longest unused goes first, what this run needed never; then nothing new is kept."""
    fill(open_rows(tmp_path, {"towers": "old"}), range(10))
    (old,) = files(tmp_path)
    os.utime(old, (1, 1))
    fill(open_rows(tmp_path), range(10))
    size = old.stat().st_size
    rows = open_rows(tmp_path, limit=int(2.5 * size))
    assert rows.get(key(0)) is not None
    fill(rows, range(10, 20))
    assert not old.exists() and len(files(tmp_path)) == 2 and rows.note is None
    fill(rows, range(20, 30))
    assert "the most it may" in rows.note and sum(p.stat().st_size for p in files(tmp_path)) <= 2.5 * size
    assert np.array_equal(rows.get(key(0)), row(0)) and np.array_equal(rows.get(key(15)), row(15))
    assert rows.get(key(25)) is None


def test_with_a_limit_of_nothing_nothing_is_read_or_written(tmp_path):
    fill(open_rows(tmp_path), range(2))
    rows = open_rows(tmp_path, limit=0)
    fill(rows, range(2, 4))
    assert rows.get(key(0)) is None and len(files(tmp_path)) == 1 and rows.note is None


@pytest.mark.parametrize("obstacle", ["a file in the way", "a full disk"])
def test_a_folder_that_cannot_be_written_costs_the_memory_and_nothing_else(obstacle, tmp_path, monkeypatch):
    if obstacle == "a full disk":

        def full(sink, data) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_Sink, "write", full)
    else:
        (tmp_path / "rows").write_text("in the way")
    rows = open_rows(tmp_path / "rows")
    fill(rows, range(2))
    assert rows.note.startswith("nothing new is kept in") and rows.get(key(0)) is None
    assert [p.name for p in tmp_path.rglob("*.rows*")] == []
