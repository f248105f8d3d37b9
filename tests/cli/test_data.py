"""`mav data check` and `mav data preview`, as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mavcli.cli.app import run
from mavcli.media.image import read_image, write_png
from mavcli.media.video import write_video

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds at 10 fps with a cut in the middle, a copy of it, a still one, and what is no video."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 60, (32, 128, 3), np.uint8)
    frames = [texture[:, i : i + 48] + np.uint8(150 * (i >= 10)) for i in range(20)]
    write_video(root / "moving.mp4", frames, fps=10, crf=10)
    shutil.copy(root / "moving.mp4", root / "second.mp4")
    write_video(root / "still.mp4", frames[:1] * 12, fps=30, crf=10)
    (root / "none.mp4").write_bytes(b"")
    (root / "notes.txt").write_text("not media")
    return root


def test_check_tells_everything_of_a_folder_of_videos(videos: Path, tmp_path: Path, capsys: Captured) -> None:
    sheet = tmp_path / "deep" / "sheet.png"
    assert run(["data", "check", str(videos), "--frames", "8", "--sheet", str(sheet), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["used"]) == ("video", 3)
    assert found["rejected"] == {"none.mp4": "is an empty file, wanted a video"}
    moving, second, still = found["files"]
    assert (moving["frames"], moving["fps"], moving["cuts"]) == (20, 10.0, [10])
    assert (moving["static"], still["static"]) == (False, True)
    assert (moving["duplicate_of"], second["duplicate_of"]) == (None, "moving.mp4")
    assert found["fps_histogram"] == {"10": 2, "30": 1}
    drawable = {rate["fps"]: (rate["clips"], rate["samples"]) for rate in found["drawable"]}
    # eight frames of a scene of ten at 10 fps begin at three of them, in two scenes of two files; of twelve at 30 at five
    assert drawable[10.0] == (2, 12) and drawable[30.0] == (1, 5)
    assert drawable[5.0] == (0, 0) and max(drawable) == 30.0
    assert read_image(sheet).shape[2] == 3


def test_check_in_words(videos: Path, capsys: Captured) -> None:
    assert run(["data", "check", str(videos), "-q"]) == 0
    shown = capsys.readouterr().out
    assert "moving.mp4  20      10   2.00 s  48 x 32  h264   1" in shown
    assert "same as moving.mp4" in shown and "static" in shown
    assert "none.mp4  is an empty file, wanted a video" in shown
    assert "video: used 3 of 4, 1 rejected, 1 copies, 1 static, 2 cuts" in shown
    assert "contact sheet: " in shown


def test_check_of_pictures_with_and_without_captions(tmp_path: Path, capsys: Captured) -> None:
    write_png(tmp_path / "a.png", np.zeros((8, 12, 3), np.uint8))
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no")
    assert run(["data", "check", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["used"], list(found["rejected"])) == ("image", 2, ["c.png"])
    assert found["files"][1]["duplicate_of"] == "a.png" and found["files"][0]["width"] == 12
    (tmp_path / "a.txt").write_text("a black field")
    assert run(["data", "check", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["used"]) == ("pairs", 1)
    assert found["rejected"]["b.png"] == "has no `.txt`, `.caption` or `.json` with a caption beside it"


def test_a_folder_with_nothing_usable_shows_its_table_and_is_exit_4(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    assert run(["data", "check", str(tmp_path)]) == 4
    shown = capsys.readouterr()
    assert "a.mp4     is an empty file" in shown.out and "nothing that can be trained on" in shown.err
    assert run(["data", "check", str(tmp_path / "none")]) == 4


@pytest.mark.parametrize("stage", ["clip", "interp", "sr_lt"])
def test_preview_shows_what_a_stage_sees(stage: str, tiny: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "seen.png"
    arguments = ["data", "preview", str(tiny), stage, "-o", str(out), "--set", "train.data.world=true"]
    assert run([*arguments, "--samples", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["samples"]) == 2
    words = {"clip": '"', "interp": "known", "sr_lt": "low-res noised at"}[stage]
    assert all(words in line for line in found["samples"])
    assert all(("fps" in line) == (stage != "clip") for line in found["samples"])
    assert read_image(out).std() > 5
    assert run(arguments) == 6, "never over a file that exists"


def test_check_says_what_there_is_to_say_of_a_picture(tmp_path: Path, capsys: Captured) -> None:
    shown = [Image.new("RGB", (16, 12), (80 * i, 250, 0)) for i in range(3)]
    shown[0].save(tmp_path / "a.gif", save_all=True, append_images=shown[1:])
    shutil.copy(Path(__file__).parents[1] / "data" / "cases" / "x.avif", tmp_path)
    assert run(["data", "check", str(tmp_path), "--kind", "image"]) == 0
    out = capsys.readouterr().out
    assert "is an animation of 3 frames, of which the first is taken" in out and "x.avif  64 x 48" in out


def test_a_picture_that_is_no_sheet_of_the_folder_is_not_overwritten(
    videos: Path, tmp_path: Path, capsys: Captured
) -> None:
    sheet = tmp_path / "sheet.png"
    check = ["data", "check", str(videos), "--sheet", str(sheet), "-q"]
    write_png(sheet, np.zeros((8, 8, 3), np.uint8))
    mine = sheet.read_bytes()
    assert run(check) == 6 and sheet.read_bytes() == mine
    assert "sheet.png` exists" in capsys.readouterr().err
    assert run([*check, "--force"]) == 0 and sheet.read_bytes() != mine
    assert run(check) == 0, "an earlier sheet of the same folder is drawn anew"


def test_check_with_a_recipe_says_which_rate_of_generation_no_clip_gives(
    videos: Path, capsys: Captured
) -> None:
    """At 24 fps and 5 frames from key to key D^t is told 4.8 fps, of which 16 frames last 3.1 s; a scene here has one."""
    assert run(["data", "check", str(videos), "--recipe", "karlo", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["frames"] == 16 and 4.8 in [rate["fps"] for rate in found["drawable"]]
    assert any(
        text.startswith("generation will tell D^t 4.8 fps, and none of 3 clips") for text in found["warnings"]
    )
    assert "generation will tell D^t 4.8 fps" in shown.err
    assert run(["data", "check", str(videos), "--recipe", "karlo", "--frames", "2", "--json"]) == 0
    assert not any("D^t" in text for text in json.loads(capsys.readouterr().out)["warnings"])
