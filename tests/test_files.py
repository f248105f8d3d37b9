"""What a file, a commit of files and a lock promise, and what is made of what a dead process left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mavcli import files
from mavcli.errors import DiskError, InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_a_dying_process(action: Callable[[], None]) -> None:
    """Run `action` in a fork that ends without any clean-up, as a kill does."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def dies_at(call: str, number: int = 1) -> Callable[[pytest.MonkeyPatch], None]:
    """A patch of `files` after which the process is gone at the `number`th call of an `os` function."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        left = number

        class Dying:
            def __getattr__(self, name: str) -> object:
                if name != call:
                    return getattr(os, name)

                def gone(*args: object, **options: object) -> object:
                    nonlocal left
                    left -= 1
                    if not left:
                        os._exit(9)
                    return getattr(os, call)(*args, **options)

                return gone

        monkeypatch.setattr(files, "os", Dying())

    return patch


def test_a_file_appears_whole_with_the_mode_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a.txt", "one\n")
        with files.whole_path(tmp_path / "b.bin") as temporary:
            private = temporary.with_name("private")
            private.write_bytes(b"as safetensors writes")
            private.chmod(0o600)
            private.replace(temporary)
    finally:
        os.umask(old)
    assert names(tmp_path) == ["a.txt", "b.bin"]
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)} == {0o640}


def test_a_name_that_is_taken_is_refused_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with pytest.raises(DiskError, match="exists"), files.whole_file(target) as file:
        file.write(b"mine")
        target.write_text("somebody's, in the meantime")
    with pytest.raises(DiskError, match="exists"):
        files.write_text(target, "mine")
    assert target.read_text() == "somebody's, in the meantime" and names(tmp_path) == ["a.txt"]
    files.write_text(target, "mine", overwrite=True)
    assert target.read_text() == "mine"


def test_a_link_stays_a_link_and_no_device_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "far" / "real.txt")
    files.write_text(tmp_path / "link.txt", "new", overwrite=True)
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "far" / "real.txt").read_text() == "new"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DiskError, match="no regular file"):
        files.write_text(tmp_path / "fifo", "x", overwrite=True)


def test_a_failing_body_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with (
        pytest.raises(DiskError, match=r"cannot write `.*a.txt`: no space left on device"),
        files.whole_file(target, overwrite=True) as file,
    ):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_what_a_dead_process_left_is_removed_and_what_others_made_stays(tmp_path: Path) -> None:
    def leave() -> None:
        files.temporary_path(tmp_path / "a.mp4").write_bytes(b"half")
        (files.temporary_path(tmp_path / "run", suffix="") / "deep").mkdir(parents=True)

    in_a_dying_process(leave)
    mine = files.temporary_path(tmp_path / "mine.mp4")
    mine.write_bytes(b"being written")
    (tmp_path / ".hidden.12345-0011aabb.tmp.mp4").write_bytes(b"a user's")
    elsewhere = tmp_path / ".b.mp4.00000000-1-00000000-00000000.tmp.mp4"
    elsewhere.write_bytes(b"of another host")
    assert len(names(tmp_path)) == 5
    files.sweep(tmp_path, again=True)
    assert names(tmp_path) == sorted([mine.name, ".hidden.12345-0011aabb.tmp.mp4", elsewhere.name])


def test_a_number_that_another_process_has_now_does_not_save_a_dead_ones_files(tmp_path: Path) -> None:
    mine = files.temporary_path(tmp_path / "a.txt").name.split("-")
    left = tmp_path / "-".join([mine[0], mine[1], "00000001", mine[3]])
    left.write_bytes(b"by an earlier process of this number")
    files.sweep(tmp_path, again=True)
    assert names(tmp_path) == []


def test_files_of_one_commit_appear_together_or_not_at_all(tmp_path: Path) -> None:
    video, sidecar = tmp_path / "a.mp4", tmp_path / "a.json"
    with pytest.raises(ZeroDivisionError), files.together():
        files.write_text(video, "video")
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with files.together() as commit:
        files.write_text(video, "video")
        files.write_text(sidecar, json.dumps(commit.describe(video)))
        assert not video.exists() and not sidecar.exists()
    assert names(tmp_path) == ["a.json", "a.mp4"]
    assert json.loads(sidecar.read_text()) == {"size": 5, "sha256": hashlib.sha256(b"video").hexdigest()}


def test_a_commit_whose_place_is_taken_meanwhile_gives_way_whole(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"b.txt` exists"), files.together():
        for name in ("a.txt", "b.txt", "c.txt"):
            files.write_text(tmp_path / name, "mine")
        (tmp_path / "b.txt").write_text("a user's")
    assert names(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_text() == "a user's"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("at", range(1, 4))
def test_a_commit_that_was_killed_halfway_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, at: int
) -> None:
    targets = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"]
    if force:
        for target in targets:
            target.write_text("old")

    def write() -> None:
        # with --force the journal itself is the first that is put in its place
        dies_at("replace" if force else "link", at + force)(monkeypatch)
        with files.together():
            for target in targets:
                files.write_text(target, "new", overwrite=force)

    in_a_dying_process(write)
    if force:
        targets[2].write_text("a user's, since")
    files.sweep(tmp_path, again=True)
    assert [target.read_text() for target in targets] == ["new", "new", "a user's, since" if force else "new"]
    assert names(tmp_path) == ["a.txt", "b.txt", "c.txt"]


def test_a_commit_that_was_killed_before_anything_appeared_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        dies_at("replace")(monkeypatch)
        with files.together():
            files.write_text(tmp_path / "a.txt", "new")

    in_a_dying_process(write)
    assert len(names(tmp_path)) == 2
    files.sweep(tmp_path, again=True)
    assert names(tmp_path) == []


def test_what_is_shown_early_goes_when_the_commit_comes_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, video = tmp_path / "a.base.png", tmp_path / "a.mp4"

    def begin() -> files.Commit:
        with commit.shown_early(early):
            files.write_text(early, "key frames")
        assert early.read_text() == "key frames"
        return commit

    with pytest.raises(ZeroDivisionError), files.together() as commit:
        begin()
        raise ZeroDivisionError
    assert names(tmp_path) == []

    def killed() -> None:
        nonlocal commit
        with files.together() as commit:
            begin()
            os._exit(9)

    in_a_dying_process(killed)
    assert early.exists()
    files.sweep(tmp_path, again=True)
    assert names(tmp_path) == []
    with files.together() as commit:
        begin()
        files.write_text(video, "video")
        assert commit.describe(early)["size"] == 10
    assert names(tmp_path) == ["a.base.png", "a.mp4"]


def test_what_is_shown_early_never_takes_a_users_place(tmp_path: Path) -> None:
    (tmp_path / "a.base.png").write_text("a user's")
    with (
        pytest.raises(DiskError, match="exists"),
        files.together() as commit,
        commit.shown_early(tmp_path / "a.base.png"),
    ):
        files.write_text(tmp_path / "a.base.png", "key frames")
    assert (tmp_path / "a.base.png").read_text() == "a user's" and names(tmp_path) == ["a.base.png"]


def test_a_lock_is_held_by_one_and_freed_by_a_death(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    told: list[str] = []
    with files.locked(target):
        waiter = threading.Thread(target=lambda: wait_for(target, told))
        waiter.start()
        while not told:
            pass
        assert told == ["waiting"]
    waiter.join()
    assert told == ["waiting", "had it"] and names(tmp_path) == []

    def die_holding() -> None:
        with files.locked(target):
            os._exit(9)

    in_a_dying_process(die_holding)
    assert len(names(tmp_path)) == 1
    files.sweep(tmp_path, again=True)
    assert names(tmp_path) == []


def wait_for(target: Path, told: list[str]) -> None:
    with files.locked(target, waiting=lambda: told.append("waiting")):
        told.append("had it")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with files.whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
    assert names(tmp_path / "a") == ["x"] and names(tmp_path) == ["a"]
    with pytest.raises(DiskError, match="exists"), files.whole_folder(tmp_path / "a"):
        pass


def test_a_line_goes_behind_what_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    files.append_line(path, '{"step": 1}')
    with open(path, "a") as file:
        file.write('{"st')
    files.append_line(path, '{"step": 2}')
    assert path.read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}']


def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"cannot read `.*gone`: no such file"),
        files.reading(tmp_path / "gone"),
    ):
        files.file_sha256(tmp_path / "gone")


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __getattr__(self, name: str) -> object:
            if name == "write":
                return lambda descriptor, data: os.write(descriptor, bytes(data)[:7])
            return getattr(os, name)

    monkeypatch.setattr(files, "os", Slow())
    files.write_text(tmp_path / "a.txt", "a text of more than seven bytes")
    with files.together():
        files.write_text(tmp_path / "b.txt", "a text of more than seven bytes")
    assert (
        (tmp_path / "a.txt").read_text()
        == (tmp_path / "b.txt").read_text()
        == "a text of more than seven bytes"
    )


@pytest.mark.parametrize("what", ["features", "kept work", "rows", "weights"])
def test_what_a_killed_writer_left_is_no_entry_of_any_store(what: str, tmp_path: Path) -> None:
    """It has its target's suffix: features once listed it, and ended in a bug when the sweep took it away."""
    from mavcli.engine.work import Work
    from mavcli.evaluation.features import FeatureStore
    from mavcli.training.kept import KeptRows
    from mavcli.weights.shelf import shelved

    store: Any = None
    if what == "features":
        store = FeatureStore(tmp_path, {"a": 1})
        folder, suffix = store.folder, ".safetensors"
    elif what == "kept work":
        store, folder, suffix = Work(tmp_path), tmp_path, ".safetensors"
    elif what == "rows":
        store = KeptRows(tmp_path, {"a": 1}, 4, limit=10**6)
        folder, suffix = store.folder, ".rows"
    else:
        folder, suffix = tmp_path / "mine", ".safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    left = files.temporary_path(folder / f"x{suffix}")
    left.write_bytes(b"half")
    assert files.finished_files(folder, f"*{suffix}") == []
    if what == "features":
        store.refresh()
        assert left.exists() and not store._known, (
            "it is the sweep's to remove, and a living writer's to finish"
        )
    elif what == "kept work":
        assert store.size() == 0
    elif what == "rows":
        store.refresh()
        assert not store._known and left.exists()
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MAV_DATA", str(tmp_path.parent))
            (tmp_path.parent / "weights").mkdir(exist_ok=True)
            shutil.copytree(folder, tmp_path.parent / "weights" / "mine")
            assert shelved("mine") == []
