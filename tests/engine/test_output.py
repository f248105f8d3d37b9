"""Results on the disk: whole, named beforehand, never over another file, and telling how they were made."""

import errno
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from faulty_os import faults

from mavcli.engine.compose import kept_part, network_view, result_size, square_part, without_bars
from mavcli.engine.output import (
    choose_target,
    claim,
    finished_run,
    run_key,
    slug,
    write_base_sheet,
    write_result,
)
from mavcli.errors import DiskError, UsageError
from mavcli.files import describe_file, sweep, together
from mavcli.media.frames import frames_sha256
from mavcli.media.video import probe, read_metadata
from mavcli.recipe.schema import Output

FRAMES = np.random.default_rng(0).integers(0, 256, (20, 18, 24, 3), dtype=np.uint8)
RUN = {
    "kind": "generate",
    "prompt": "a dog",
    "seed": 0,
    "weights": {"clip": {"sha256": "abc"}},
    "recipe": {"resolved": {"cascade": {}}},
}


def test_a_result_is_a_video_with_its_run_inside_beside_it_and_a_sheet(tmp_path):
    target = choose_target(tmp_path / "new" / "clip.mp4", Output(), stem="x")
    written = write_result(target, FRAMES, fps=23.976, run=RUN, output=Output())
    found = probe(target.video)
    assert (found.frames, str(found.rate), found.width, found.height) == (20, "24000/1001", 24, 18)
    inside = json.loads(read_metadata(target.video)["mav_run"])
    beside = json.loads(target.sidecar.read_text())
    assert beside.pop("files") == {
        file.name: describe_file(file) for file in (target.video, target.sheet) if file is not None
    }
    assert inside == beside
    assert inside["mav_run"] == 1 and inside["prompt"] == "a dog"
    assert inside["frames_sha256"] == written.frames_sha256 == frames_sha256(FRAMES)
    assert target.sheet is not None and target.sheet.stat().st_size > 0
    assert sorted(p.name for p in target.video.parent.iterdir()) == [
        "clip.json",
        "clip.mp4",
        "clip.sheet.png",
    ]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.json", "clip.sheet.png"])
def test_no_file_of_a_result_is_overwritten_without_force(tmp_path, name):
    target = choose_target(tmp_path / "clip.mp4", Output(), stem="x")
    (tmp_path / name).write_text("mine")
    with pytest.raises(DiskError, match=f"{name}` exists"):
        claim(target, force=False)
    with pytest.raises(DiskError, match="exists"):
        write_result(target, FRAMES, fps=10, run=RUN, output=Output())
    assert (tmp_path / name).read_text() == "mine"
    write_result(target, FRAMES, fps=10, run=RUN, output=Output(), force=True)


def test_a_name_with_a_suffix_is_a_file_and_everything_else_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_target(None, Output(), stem="a-dog-0").video == Path("outputs/a-dog-0.mp4")
    assert choose_target(Path("here"), Output(codec="ffv1"), stem="a").video == Path("here/a.mkv")
    (tmp_path / "v1.5").mkdir()
    assert choose_target(Path("v1.5"), Output(), stem="a").video == Path("v1.5/a.mp4")
    with pytest.raises(UsageError, match="wanted a name that ends in .mp4"):
        choose_target(Path("a.avi"), Output(), stem="a")
    with pytest.raises(UsageError, match="several results"):
        choose_target(Path("a.mp4"), Output(), stem="a", several=True)


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        claim(choose_target(tmp_path / "file" / "a.mp4", Output(), stem="a"), force=True)


def test_a_finished_run_is_known_by_what_made_it(tmp_path):
    target = choose_target(tmp_path, Output(), stem="a")
    key = run_key(RUN)
    assert finished_run(target, key) is None
    write_result(target, FRAMES, fps=10, run={**RUN, "run_key": key}, output=Output())
    assert finished_run(target, key) is not None
    resolved = {"cascade": {}, "output": {"crf": 40}}
    others = [
        {**RUN, "seed": 1},
        {**RUN, "weights": {"clip": {"sha256": "abd"}}},
        {**RUN, "prompt": "a cat"},
        {**RUN, "recipe": {"resolved": resolved}},
        {**RUN, "versions": {"mavcli": "0.0.1"}},
    ]
    assert all(finished_run(target, run_key(other)) is None for other in others)
    elsewhere = {**RUN, "recipe": {"resolved": {"cascade": {}, "output": {"dir": "elsewhere"}}}}
    assert run_key(elsewhere) == key


def test_what_is_there_is_believed_when_it_is_what_the_run_left_and_made_anew_when_a_file_is_gone(tmp_path):
    target = choose_target(tmp_path, Output(), stem="a")
    key = run_key(RUN)

    def write() -> None:
        claim(target, force=False, key=key)
        write_result(target, FRAMES, fps=10, run={**RUN, "run_key": key}, output=Output())

    write()
    listed = json.loads(target.sidecar.read_text())["files"]
    assert set(listed) == {"a.mp4", "a.sheet.png"}
    for file in target.described:
        whole = file.read_bytes()
        for other in (whole[:-1], b"", bytes([whole[0] ^ 1]) + whole[1:]):
            file.write_bytes(other)
            assert finished_run(target, key) is None
            with pytest.raises(DiskError, match=f"{file.name}` is not as the same run left it"):
                write()
            assert file.read_bytes() == other
        file.unlink()
        assert finished_run(target, key) is None
        write()
        assert finished_run(target, key) is not None


def test_the_sheet_of_the_key_frames_belongs_to_the_result(tmp_path):
    target = choose_target(tmp_path, Output(), stem="a", shows_base=True)
    assert target.base_sheet is not None
    key = run_key(RUN)
    target.base_sheet.write_text("mine")
    with pytest.raises(DiskError, match=r"a.base.png` exists"):
        claim(target, force=False, key=key)
    with pytest.raises(DiskError, match=r"a.base.png` exists"):
        write_base_sheet(target, FRAMES, fps=10, key=key)
    assert target.base_sheet.read_text() == "mine"
    target.base_sheet.unlink()
    with pytest.raises(ZeroDivisionError), together():
        write_base_sheet(target, FRAMES, fps=10, key=key)
        assert target.base_sheet.exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with together():
        write_base_sheet(target, FRAMES, fps=10, key=key)
        write_result(target, FRAMES, fps=10, run={**RUN, "run_key": key}, output=Output())
    assert finished_run(target, key) is not None and len(list(tmp_path.iterdir())) == 4


def test_a_disk_that_fills_while_a_result_is_written_leaves_nothing_that_is_in_the_way(tmp_path):
    """At every call of the operating system but those of FFmpeg; the same run then finishes."""
    key = run_key(RUN)
    run = {**RUN, "run_key": key}
    target = choose_target(tmp_path / "counted", Output(), stem="a", shows_base=True)

    def write() -> None:
        claim(target, force=False, key=key)
        with together():
            write_base_sheet(target, FRAMES[:2], fps=10, key=key)
            write_result(target, FRAMES[:2], fps=10, run=run, output=Output())

    with faults() as counted:
        write()
    for at, call in enumerate(counted.names, 1):
        if call == "unlink":
            continue  # what cannot be deleted is deleted when this process is gone
        target = choose_target(tmp_path / str(at), Output(), stem="a", shows_base=True)
        with faults(errno.ENOSPC, at), suppress(DiskError):
            write()
        sweep(target.video.parent, again=True)
        if finished_run(target, key) is None:
            assert not target.video.parent.exists() or list(target.video.parent.iterdir()) == [], at
            write()
        assert finished_run(target, key) is not None
        assert len(list(target.video.parent.iterdir())) == 4


def test_a_slug_is_short_plain_and_never_empty():
    assert slug("A dog, surfing!") == "a-dog-surfing"
    assert len(slug("word " * 50)) <= 60
    assert slug("日本語").startswith("video-") and slug("日本語") != slug("中文")
    assert slug("../../etc/passwd") == "etc-passwd"


@pytest.mark.parametrize(
    "prompt", ['quote " and \\', "new\nline", "half \ud800 pair", "é日本", "nul \0 byte"]
)
def test_odd_prompts_survive_in_the_metadata(tmp_path, prompt):
    target = choose_target(tmp_path / "a.mp4", Output(), stem="x")
    write_result(target, FRAMES[:2], fps=10, run={**RUN, "prompt": prompt}, output=Output())
    assert json.loads(read_metadata(target.video)["mav_run"])["prompt"] == prompt


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (31, 31), (7, 64)])
def test_a_source_is_never_distorted_and_its_own_frames_never_touched(shape):
    own = np.random.default_rng(1).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    side = min(shape)
    assert network_view(own, 8, "crop").shape == network_view(own, 8, "pad").shape == (3, 8, 8, 3)
    assert kept_part(own, "crop").shape == (3, side, side, 3) and kept_part(own, "pad") is own
    for rule in ("crop", "pad"):
        made = np.zeros((32, 32, 3), np.uint8)
        size = result_size(*shape, rule)
        assert kept_part(own, rule).shape[1:3] == size
        assert square_part(made, size).shape == (*size, 3)
        top, left = (32 - min(32, 32 * size[0] // max(size))) // 2, (32 - 32 * size[1] // max(size)) // 2
        made[top : 32 - top, left : 32 - left] = 255  # all but the bars, as far as whole pixels go
        inner = (
            square_part(made, size)[2:-2, 2:-2]
            if max(size) > 2 * min(size)
            else square_part(made, size)[4:-4, 4:-4]
        )
        assert (inner > 200).all()


def test_bars_of_a_padded_picture_are_cut_off():
    white = np.full((1, 30, 60, 3), 255, np.uint8)
    square = network_view(white, 64, "pad")
    assert not square[0, 0].any()
    cut = without_bars(square, 30, 60)
    assert cut.shape == (1, 32, 64, 3) and (cut == 255).all()
