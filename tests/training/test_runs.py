"""`mav runs` tells what the files of a training say, and disturbs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from filelock import FileLock

from mavcli.cli.app import run as mav
from mavcli.training.runs import find_runs, read_run

NOW = 1_000_000.0


def write(folder: Path, *lines: dict[str, Any], manifest: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"time": NOW + line["step"], **line}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if manifest is not None:
        checkpoint = folder / f"step-{manifest['step']:07d}"
        checkpoint.mkdir()
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return folder


def logged(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, "steps": 1000, "loss": 1 / step, "steps_per_s": 2.0, **values}


def test_a_run_tells_its_step_loss_speed_and_time_left(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "decoder",
        logged(100),
        {"step": 100, "held_out": 0.5},
        logged(200),
        manifest={"step": 100, "stage": "decoder"},
    )
    found = read_run(folder)
    assert (found.stage, found.step, found.steps, found.saved) == ("decoder", 200, 1000, 100)
    assert (found.loss, found.held_out, found.steps_per_s, found.left_s) == (1 / 200, 0.5, 2.0, 400.0)
    assert found.written == NOW + 200


def test_a_run_is_running_while_its_lock_is_held_and_stopped_after(tmp_path: Path) -> None:
    folder = write(tmp_path / "sr_l", logged(100))
    with FileLock(folder / ".lock"):
        assert read_run(folder).state == "running"
        assert read_run(folder).state == "running"  # asking did not take the lock away
    assert read_run(folder).state == "stopped"
    with FileLock(folder / ".lock", blocking=False):
        pass


def test_without_a_lock_the_last_line_tells(tmp_path: Path) -> None:
    folder = write(tmp_path / "sr_l", logged(100), logged(200))
    assert read_run(folder, now=NOW + 230).state == "running"
    assert read_run(folder, now=NOW + 2000).state == "stopped"


def test_a_run_is_done_at_its_last_step_and_diverged_where_no_number_came(tmp_path: Path) -> None:
    done = read_run(write(tmp_path / "a", logged(900), logged(1000)))
    assert (done.state, done.left_s) == ("done", None)
    lines = [logged(300), {"step": 301, "not_finite": 4.0}]
    folder = write(tmp_path / "b", *lines)
    assert read_run(folder, now=NOW + 5000).state == "diverged"
    went_on = write(tmp_path / "c", *lines, logged(400))
    assert read_run(went_on, now=NOW + 5000).state == "stopped"


def test_damaged_lines_and_manifests_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", logged(10), logged(20), manifest={"step": 10, "stage": "clip"})
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"step": "x"}\n{"step": 30, "loss": NaN}\n{"step": 40, "lo')
    broken = folder / "step-0000020"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    found = read_run(folder)
    assert (found.step, found.loss, found.saved, found.stage) == (30, 1 / 20, 10, "clip")


def test_runs_are_found_at_any_of_four_levels_the_latest_first(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "er" / "still", logged(50))
    write(tmp_path / "near", logged(70))
    write(tmp_path / "near" / "step-0000001", logged(1))  # inside a checkpoint there is no run
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [found.folder.name for found in find_runs(tmp_path)] == ["near", "still"]


def test_mav_runs_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "mine" / "decoder", logged(100), manifest={"step": 50, "stage": "decoder"})
    assert mav(["runs", str(tmp_path)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "stage", "state"]
    assert line.split()[:2] == ["mine/decoder", "decoder"] and "100 of 1000, saved 50" in line
    assert mav(["runs", str(tmp_path), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert (told["stage"], told["state"], told["step"]) == ("decoder", "stopped", 100)


def test_mav_runs_tells_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mav(["runs", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"runs": []} and "no training has written to" in told.err
    assert mav(["runs", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_runs_are_listed_without_torch(tmp_path: Path) -> None:
    write(tmp_path / "clip", logged(10))
    code = (
        f"import sys; from mavcli.cli.app import run; assert run(['runs', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'numpy', 'av', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def points_of(svg: Path) -> dict[str, int]:
    """Name of each line of a drawing -> number of its points."""
    root = ElementTree.fromstring(svg.read_text())
    space = "{http://www.w3.org/2000/svg}"
    lines = [len(e.get("points", "").split()) for e in root.iter(f"{space}polyline")]
    names = [e.text for e in root.iter(f"{space}text") if e.get("class") == "soft" and e.text]
    return dict(zip((name.rsplit(" ", 1)[0] for name in names), lines, strict=True))


def test_curves_of_one_training_are_its_losses_and_of_several_what_each_holds_out(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "interp", logged(10), logged(20), {"step": 20, "held_out": 0.5}, logged(30))
    drawing = tmp_path / "one.svg"
    assert mav(["runs", str(one), "--curves", str(drawing)]) == 0
    assert points_of(drawing) == {"loss": 3, "held out": 1}
    write(tmp_path / "b" / "sr_l", logged(10), {"step": 10, "held_out": 0.2}, {"step": 20, "held_out": 0.1})
    several = tmp_path / "several.svg"
    assert mav(["runs", str(tmp_path), "--curves", str(several)]) == 0
    assert points_of(several) == {"a/interp": 1, "b/sr_l": 2}


def test_a_drawing_is_not_overwritten_unasked_and_has_its_own_suffix(tmp_path: Path, capsys) -> None:
    folder = write(tmp_path / "interp", logged(10))
    drawing = tmp_path / "x.svg"
    drawing.write_text("mine")
    assert mav(["runs", str(folder), "--curves", str(drawing)]) == 6
    assert drawing.read_text() == "mine" and "--force" in capsys.readouterr().err
    assert mav(["runs", str(folder), "--curves", str(drawing), "--force"]) == 0
    assert drawing.read_text().startswith("<svg")
    assert mav(["runs", str(folder), "--curves", str(tmp_path / "x.png")]) == 2
    assert not (tmp_path / "x.png").exists()
