"""`mav recipe`, `mav weights`, `mav data` and `mav doctor`, through the front door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mavcli.cli import doctor
from mavcli.cli.app import run
from mavcli.recipe.load import list_recipes, load_recipe
from mavcli.specs import UNetSpec
from mavcli.weights.provenance import Parent, WeightsHeader, save_weights


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run(list(arguments)) == code
    return capsys.readouterr().out


def test_recipe_ls_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "recipe", "ls")
    assert [line.split()[0] for line in out.splitlines()] == list(list_recipes())
    told = json.loads(shown(capsys, "recipe", "ls", "--json"))
    assert [entry["name"] for entry in told["recipes"]] == list(list_recipes())


def test_recipe_show_says_where_each_entry_comes_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: pocket\noutput:\n  crf: 3\n")
    out = shown(capsys, "recipe", "show", str(path), "--set", "output.fps=12")
    lines = {line.split("  #")[0].rstrip(): line.partition("# ")[2] for line in out.splitlines()}
    assert (
        lines["  crf: 3"] == f"{path}:3"
        and lines["  fps: 12.0"] == "--set output.fps=12"
        and lines["  sheet: true"] == ""
    )
    copy = tmp_path / "copy.yaml"
    copy.write_text(out)
    assert load_recipe(copy).recipe == load_recipe(path, sets=["output.fps=12"]).recipe


def test_recipe_show_can_show_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "recipe", "show", "pocket", "--only", "output.fps")
    assert [line.split("#")[0].rstrip() for line in out.splitlines()] == ["output:", "  fps: 24.0"]
    assert run(["recipe", "show", "pocket", "--only", "output.fbs"]) == 2
    assert "did you mean `output.fps`" in capsys.readouterr().err


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_cp_makes_a_recipe_that_says_the_same(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "new" / "copy.yaml"
    assert shown(capsys, "recipe", "cp", name, str(target)) == f"{target}\n"
    assert load_recipe(target).sha256 == load_recipe(name).sha256
    assert run(["recipe", "cp", name, str(target)]) == 6
    assert capsys.readouterr().err == f"error: `{target}` exists\nhint: --force overwrites it\n"
    assert run(["recipe", "cp", name, str(target), "--force"]) == 0


def test_recipe_check_tells_every_fault_or_how_it_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("output: {crf: 99, fps: 0}\n")
    assert run(["recipe", "check", str(path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: 2 faults",
        f"  {path}:1: output.fps: `0` must be 0.1 to 240",
        f"  {path}:1: output.crf: `99` must be 0 to 51",
    ]
    out = shown(capsys, "recipe", "check", "pocket")
    assert out.startswith("ok: pocket") and [line.split()[0] for line in out.splitlines()[1:]] == [
        "backend",
        "arithmetic",
        "threads",
    ]


def weights(folder: Path) -> Path:
    header = WeightsHeader(
        role="sr_l",
        spec=UNetSpec(model_channels=8, norm_groups=8, num_head_channels=8, low_res_channels=3),
        step=12,
        samples_seen=120,
        parents=(Parent(role="decoder", content_sha256="ab", step=5),),
    )
    save_weights(folder / "sr_l.safetensors", {"out.weight": torch.zeros(10, 10)}, header)
    return folder / "sr_l.safetensors"


def test_weights_ls_says_what_is_missing_and_how_to_get_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mavcli.weights import manifest

    (tmp_path / "pocket").mkdir()
    (tmp_path / "manifest.yaml").write_text(
        "families:\n  pocket:\n    title: t\n    licence: Apache-2.0\n    source: s\n    get: mav train-stage STAGE pocket\n"
        "    files: {sr_l: sr_l.safetensors, sr_h: sr_h.safetensors}\n"
    )
    monkeypatch.setattr(manifest, "share_dir", lambda name: tmp_path)
    monkeypatch.setenv("MAV_DATA", str(tmp_path / "none"))
    weights(tmp_path / "pocket")
    stray = weights(tmp_path).rename(tmp_path / "stray.safetensors")
    out = shown(capsys, "weights", "ls")
    assert "  1 of 2 stages present, " in out and "  sr_h  missing  mav train-stage sr_h pocket" in out
    assert f"  {stray}" in out.splitlines()
    assert shown(capsys, "weights", "ls", "-q").splitlines() == [
        str(tmp_path / "pocket" / "sr_l.safetensors"),
        str(stray),
    ]
    told = json.loads(shown(capsys, "weights", "ls", "--json"))
    assert [stage["stage"] for stage in told["families"][0]["stages"] if stage["present"]] == ["sr_l"]
    assert "sr_l" in shown(capsys, "weights", "show", "pocket/sr_l")
    assert run(["weights", "show", "pocket/sr_h"]) == 3
    assert "hint: mav train-stage sr_h pocket" in capsys.readouterr().err


def test_weights_show_tells_what_the_header_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = shown(capsys, "weights", "show", str(weights(tmp_path)))
    for part in (
        "stage sr_l",
        "12 steps, 120 samples",
        "decoder at step 5",
        "Apache-2.0",
        "  low_res_channels: 3",
    ):
        assert part in out
    told = json.loads(shown(capsys, "weights", "show", str(tmp_path), "--json"))
    assert told["weights"][0]["parameters"] == 100 and told["weights"][0]["header"]["role"] == "sr_l"


@pytest.mark.parametrize("what", ["pockett", "pocket/decodr", "none.safetensors", "no/where"])
def test_weights_that_are_not_there_are_exit_code_3(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "show", what]) == 3
    assert "hint: mav weights ls" in capsys.readouterr().err


def test_data_make_pocket_writes_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "data"
    arguments = ["data", "make-pocket", str(target), "--images", "2", "--clips", "1", "--size", "32"]
    assert shown(capsys, *arguments) == f"{target}\n"
    assert len(list(target.rglob("*.png"))) == 2 and len(list(target.rglob("*.mp4"))) == 1
    assert run(arguments) == 4


def test_the_doctor_checks_everything_and_each_doubt_has_a_fix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of these starts a Python that imports torchvision, which takes seconds.
    monkeypatch.setattr(doctor, "_fails", lambda statement: "")
    told = json.loads(shown(capsys, "doctor", "--json"))
    assert [check["name"] for check in told["checks"]] == [name for name, _ in doctor.CHECKS]
    assert told["ok"] and all(check["fix"] for check in told["checks"] if check["status"] != "ok")


def test_the_doctor_says_why_a_gpu_has_no_kernels_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mavcli.models import normalisation
    from mavcli.recipe.resolve import CudaDevice, Machine

    gpu = CudaDevice(name="GPU", memory=8 << 30)
    monkeypatch.setattr(doctor, "CHECKS", (("kernels", doctor.check_kernels),))
    monkeypatch.setattr(doctor, "_machine", lambda: Machine(cores=2, cuda=(gpu,)))
    monkeypatch.setattr(normalisation, "kernels_fault", lambda: "RuntimeError: Failed to find C compiler")
    out = shown(capsys, "doctor")
    assert "Failed to find C compiler" in out and "apt install gcc python3-dev" in out
    monkeypatch.setattr(normalisation, "kernels_fault", lambda: None)
    assert "Triton builds them" in shown(capsys, "doctor")


def test_the_doctor_names_what_does_not_load(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> doctor.Check:
        raise OSError("libfoo.so is missing")

    why = doctor._fails("raise RuntimeError('operator torchvision::nms does not exist')")
    assert why == "RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr(doctor, "_fails", lambda statement: why)
    monkeypatch.setattr(doctor, "CHECKS", (("open_clip", doctor.check_clip), ("video", broken)))
    out = shown(capsys, "doctor", code=1)
    assert "fail  open_clip" in out and "nms does not exist" in out
    assert "fail  video        OSError: libfoo.so is missing" in out


def test_the_doctor_names_what_is_older_than_its_floor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"av": "15.1.0", "torch": "2.14.1+cu130", "typer": "", "pyarrow": "16.0"}
    declared = [
        "av>=16,<19",
        "torch>=2.10",
        "typer>=0.26",
        'pyarrow>=17; extra == "parquet"',
        'ruff; extra == "dev"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda package: declared)
    monkeypatch.setattr(doctor, "_version", lambda package: installed.get(package, ""))
    monkeypatch.setattr(doctor, "CHECKS", (("libraries", doctor.check_libraries),))
    doctor._requirements.cache_clear()
    out = shown(capsys, "doctor", code=1)
    assert "fail  libraries" in out
    assert "av 15.1.0, wanted >=16,<19; typer is missing, wanted >=0.26; pyarrow 16.0, wanted >=17" in out
    assert "pip install --upgrade 'av<19,>=16' 'typer>=0.26' 'pyarrow>=17'" in out
    assert "torch" not in out and "ruff" not in out
    installed |= {"av": "18.1.0", "typer": "0.26.0"}
    assert "warn  libraries    pyarrow 16.0, wanted >=17" in shown(capsys, "doctor")
    doctor._requirements.cache_clear()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("video", "mavcli.media.video.write_video"),
        ("video", "mavcli.media.video.read_clip"),
        ("pictures", "mavcli.media.image.read_image"),
        ("networks", "mavcli.models.normalisation.GroupNorm.forward"),
        ("safetensors", "safetensors.torch.save_file"),
        ("safetensors", "mavcli.weights.provenance.write_plain"),
    ],
)
def test_the_doctor_calls_nothing_well_that_does_not_work(
    name: str, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise AttributeError("ACCURATE_RND")

    checks = tuple(check for check in doctor.CHECKS if check[0] == name)
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert f"ok    {name}" in shown(capsys, "doctor")
    monkeypatch.setattr(part, broken)
    out = shown(capsys, "doctor", code=1)
    assert f"fail  {name:<12} AttributeError: ACCURATE_RND" in out
