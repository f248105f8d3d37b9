"""Values that others state: those of printed numbers are met, the clips behind the others are those that they name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from standin_networks import standin_tensors

from mavcli.cli.app import run
from mavcli.evaluation import published
from mavcli.evaluation.published import (
    Row,
    Stated,
    constant,
    noise,
    of_printed_numbers,
    of_videos,
    stated_values,
)
from mavcli.evaluation.tables import TABLES


def test_values_of_printed_numbers_are_met_and_are_what_their_formulas_give() -> None:
    rows = of_printed_numbers()
    assert [row.stated for row in rows] == [89.091, 0.4444, 1.24357]
    assert all(row.met for row in rows)
    # compare_gan: means 4 and 8 apart, variances 25/99 and 1225/99 of one direction, 0 of the other.
    first = 4**2 + 8**2 + (math.sqrt(25 / 99) - math.sqrt(1225 / 99)) ** 2
    # MONAI: means 1/3 apart, variances 0 and 1/3.
    second = (1 / 3) ** 2 + 1 / 3
    p = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in ([1, 2, 3], [-1, 5, 3.1])]
    q = [(a + b) / 2 for a, b in zip(*p, strict=True)]
    third = math.exp(sum(x * math.log(x / y) for row in p for x, y in zip(row, q, strict=True)) / 2)
    assert [row.found for row in rows] == pytest.approx([first, second, third], rel=1e-13)


def test_noise_is_that_of_one_draw() -> None:
    whole = np.random.RandomState(2).rand(5, 9, 224, 224, 3).astype(np.float32)
    batches, times = zip(*noise(2, clips=5, frames=9)(), strict=True)
    drawn = torch.cat(batches)
    assert set(times) == {1} and drawn.shape == (5, 3, 9, 224, 224)
    assert np.array_equal(drawn.permute(0, 2, 3, 4, 1).numpy(), whole)


def test_a_grey_set_is_one_clip_that_counts_as_all() -> None:
    ((clip, times),) = constant(-1, clips=6, frames=9)()
    assert times == 6 and clip.shape == (1, 3, 9, 224, 224) and clip.dtype == torch.float32
    assert bool((clip == -1).all())


def test_the_stated_values_are_those_of_the_repositories(shared_data: Path) -> None:
    told = json.loads((shared_data / "metric_references" / "published.json").read_text())
    values = {value.name: value for value in stated_values(eps=1e-3)}
    for length, value in enumerate(told["fvd_common_metrics"]["by_length_T10_to_T30_styleganv"], start=10):
        assert values[f"common metrics, {length} frames"].value == value
    again = told["fvd_common_metrics"]["stylegan_v_i3d_torchscript"]  # stated twice, 7e-8 apart
    assert values["common metrics, 30 frames"].value == pytest.approx(again, rel=1e-6)
    assert values["fvd-comparison"].value == told["fvd_comparison"]["stylegan_v"]
    example = values["tensorflow example"]
    assert told["fvd_tf_example"]["value"] == f"about {example.value:g}"
    # The port's value of as many frames must not count as a failure of the weights.
    assert Row("a", "", example.value, values["common metrics, 15 frames"].value, example.within).met
    by_hand = {row.name: row.stated for row in of_videos()}
    paper = told["papers"]["make_a_video_zero_shot_msrvtt"]
    assert by_hand == {
        "cd-fvd example, I3D": told["cd_fvd_readme"]["i3d"],
        "FID of Make-A-Video": paper["FID"],
        "CLIPSIM of Make-A-Video": paper["CLIPSIM"],
    }
    ours = next(row for row in TABLES["msrvtt"] if row.system == "Make-A-Video")
    assert ours.scores == {"fid": paper["FID"], "clipsim": paper["CLIPSIM"]}


def test_a_value_is_met_within_what_its_code_allows() -> None:
    assert Row("a", "source", 100.0, 100.9, 0.01).met
    assert Row("a", "source", 100.0, 102.0, 0.01).verdict == "not met, 1 % allowed"
    waiting = Row("a", "source", 100.0, None, 0.01, "mav eval x")
    assert waiting.met is None and waiting.verdict == "mav eval x"


def test_without_weights_what_needs_them_is_listed_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path))
    capsys.readouterr()
    assert run(["eval", "published", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert [value["met"] for value in values[:3]] == [True] * 3
    assert len(values) == 3 + 23 + 3
    assert all(value["found"] is None and "mav eval" in value["command"] for value in values[3:])
    assert run(["eval", "published"]) == 0
    out = capsys.readouterr().out
    assert "not recomputed; with the files at hand: mav eval published --weights i3d_torchscript.pt" in out
    assert "google/compare_gan compare_gan/metrics/fid_score_test.py" in out
    assert run(["eval", "published", "--weights", "x.pt"]) == 3
    assert "x.pt is no file" in capsys.readouterr().err


def test_weights_that_give_other_values_are_told_after_the_table(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "i3d.safetensors"
    save_file(standin_tensors(shared_data, "i3d_400"), weights)
    sides = constant(-1, clips=8, frames=9), constant(1, clips=8, frames=9)
    monkeypatch.setattr(
        published, "stated_values", lambda *, eps: [Stated("black and white", "here", 131.0, *sides, 2, 0.01)]
    )
    capsys.readouterr()
    assert run(["eval", "published", "--weights", str(weights)]) == 3
    shown = capsys.readouterr()
    assert "black and white" in shown.out and "not met, 1 % allowed" in shown.out
    assert "does not give 1 of the stated values, the first is `black and white`" in shown.err
