"""`mav eval fvd` and its like as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from standin_networks import standin_tensors, write_clips

from mavcli.cli.app import run


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mav(capsys: pytest.CaptureFixture[str]):
    """Run a command: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([*map(str, arguments)])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return call


def test_fvd_says_its_score_with_everything_that_was_chosen(mav, shared_data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "i3d.safetensors"
    save_file(standin_tensors(shared_data, "i3d_400"), weights)
    write_clips(tmp_path / "real", 2, frames=9)
    write_clips(tmp_path / "made", 2, frames=9)
    command = ("eval", "fvd", "real", "made", "--weights", weights, "--frames", 9)
    code, out, err = mav(*command, "-o", "score.json")
    assert code == 0 and out.startswith("FVD ") and "I3D Kinetics-400; i3d.safetensors" in out
    assert "2 samples for 400 features: the covariance is singular" in err
    told = json.loads((tmp_path / "score.json").read_text())
    assert told["fingerprint"]["network"]["batchnorm_eps"] == 1e-5
    assert told["fingerprint"]["real"]["sizes"] == {"16 x 16": 2}
    assert "| network.weights_sha256 |" in (tmp_path / "score.md").read_text()
    code, _, err = mav(*command, "-o", "score.json")
    assert code == 0 and "score.json is there already, the same score" in err
    assert mav(*command, "-o", "score.json", "--covariance", "biased")[0] == 6
    # A second time nothing is computed: other weights of the same bytes would do.
    again = json.loads(mav(*command, "--json")[1])
    assert again["value"] == told["value"] and again["fingerprint_sha256"] == told["fingerprint_sha256"]
    biased = json.loads(mav(*command, "--json", "--covariance", "biased")[1])
    assert biased["value"] < told["value"]


def test_motion_is_told_beside_a_reference(mav, tmp_path: Path) -> None:
    write_clips(tmp_path / "real", 3, frames=5)
    write_clips(tmp_path / "made", 4, frames=5)
    code, out, _ = mav("eval", "motion", "made", "--reference", "real", "--frames", 5)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:5]] == [
        "figure",
        "motion",
        "coherence",
        "flicker",
        "brightness",
    ]
    told = json.loads(mav("eval", "motion", "made", "--reference", "real", "--frames", 5, "--json")[1])
    assert len(told["clips"]) == 4 and 0 <= told["beside"]["motion"]["above"] <= 1
    same = json.loads(mav("eval", "motion", "made", "--reference", "made", "--frames", 5, "--json")[1])
    assert same["beside"]["flicker"] == {"difference": 0.0, "above": 0.5, "distance": 0.0}


def test_a_score_s_files_are_whole_and_replaced_by_force_alone(mav, tmp_path: Path) -> None:
    write_clips(tmp_path / "made", 3, frames=5)
    command = ("eval", "motion", "made", "--frames", 5, "-o", "new/score")
    assert mav(*command)[0] == 0
    json_file, table = tmp_path / "new" / "score.json", tmp_path / "new" / "score.md"
    first = json_file.read_text()
    table.write_text("notes of mine")
    code, out, err = mav(*command)
    assert (code, out) == (6, "") and "score.json` exists" in err
    assert json_file.read_text() == first and table.read_text() == "notes of mine"
    # The score goes on from kept features, and says the same.
    assert mav(*command, "--force")[0] == 0
    assert json_file.read_text() == first and table.read_text().startswith("## motion")
    assert sorted(path.name for path in json_file.parent.iterdir()) == ["score.json", "score.md"]


def test_a_place_where_no_score_can_be_written_is_told_before_anything_is_measured(
    mav, tmp_path: Path
) -> None:
    write_clips(tmp_path / "made", 2, frames=5)
    (tmp_path / "file").touch()
    (tmp_path / "taken.json").mkdir()
    for name, wanted, code in (
        ("file/score", "file", 6),
        ("taken", "`taken.json` is a folder", 6),
        (".", "-o . names no file", 2),
    ):
        found, out, err = mav("eval", "motion", "made", "--frames", 5, "-o", name)
        assert (found, out) == (code, "") and wanted in err
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_measured_is_one_clear_line(mav, tmp_path: Path) -> None:
    write_clips(tmp_path / "made", 2, frames=5)
    write_clips(tmp_path / "one", 1, frames=5)
    (tmp_path / "empty").mkdir()
    for arguments, wanted, code in (
        (("fvd", "nowhere", "made"), "`nowhere` does not exist", 4),
        (("fvd", "empty", "made"), "`empty` is empty, a folder of videos is wanted", 4),
        (("fvd", "made", "made", "--count", 3), "`made` holds 2 videos, 3 are wanted", 4),
        (("fvd", "made", "made"), "no weights of `i3d` are here", 3),
        (("fvd", "made", "made", "--weights", "x.pt"), "x.pt is no file", 3),
        (("fvd", "made", "made", "--frames", 8), "clips of 8 frames, I3D needs at least 9", 2),
        (("fvd", "made", "made", "--frames", "some"), "wanted a number or `all`", 2),
        (("is", "made", "--frames", 8), "clips of 8 frames, C3D reads 16", 2),
        (("fid", "made", "made", "--device", "cuda"), "sees no CUDA device", 2),
        (("clipsim", "made"), "does not say which prompt it was made from", 4),
        (("motion", "made"), "2 of the 2 videos in `made` cannot be measured:\n  `made/", 4),
        (("motion", "made"), "has 5 frames, 16 are wanted\nhint: mav data check made\n", 4),
        (("motion", "one", "--count", 2), "`one` holds 1 video, 2 are wanted", 4),
        (("fvd", "made", "made", "--eps", "-1"), "invalid value for `--eps`", 2),
        (("fvd", "made", "made", "--port", "nope"), "for `--port`: `nope` is not one of `tensorflow`", 2),
    ):
        if "cuda" in arguments and has_cuda():
            continue
        found, out, err = mav("eval", *arguments)
        assert (found, out) == (code, ""), err
        assert wanted in err


def test_a_score_of_one_video_says_one_video(mav, tmp_path: Path) -> None:
    write_clips(tmp_path / "one", 1, frames=5)
    code, out, _ = mav("eval", "motion", "one", "--frames", 5)
    assert code == 0 and "  generated: 1 video, 1 row (1 of 16 x 16)\n" in out


def test_more_faults_than_are_shown_are_counted(mav, tmp_path: Path) -> None:
    write_clips(tmp_path / "made", 23, frames=2)
    write_clips(tmp_path / "whole", 1, frames=5)
    (tmp_path / "whole").rename(tmp_path / "made" / "whole")
    code, _, err = mav("eval", "motion", "made", "--frames", 5)
    assert code == 4 and err.startswith("error: 23 of the 24 videos in `made` cannot be measured:\n  `made/")
    assert err.count("has 2 frames, 5 are wanted\n") == 20
    assert err.endswith("  and 3 more\nhint: --skip-unusable measures the rest, and the score says so\n")


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
