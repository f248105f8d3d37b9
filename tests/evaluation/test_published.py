"""The clips behind values that other repositories state are those that they name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mavcli.evaluation.published import Row, constant, noise, stated_values


def test_noise_is_that_of_one_draw(shared_data: Path) -> None:
    whole = np.random.RandomState(2).rand(5, 9, 224, 224, 3).astype(np.float32)
    drawn = torch.cat(list(noise(2, clips=5, frames=9)()))
    assert drawn.shape == (5, 3, 9, 224, 224)
    assert np.array_equal(drawn.permute(0, 2, 3, 4, 1).numpy(), whole)


def test_grey_clips_are_floats_of_the_asked_number() -> None:
    clips = torch.cat(list(constant(-1, clips=6, frames=9)()))
    assert clips.shape == (6, 3, 9, 224, 224) and clips.dtype == torch.float32
    assert bool((clips == -1).all())


def test_the_stated_values_are_those_of_the_repositories(shared_data: Path) -> None:
    told = json.loads((shared_data / "metric_references" / "published.json").read_text())
    values = {value.name: value for value in stated_values(eps=1e-3)}
    by_length = told["fvd_common_metrics"]["by_length_T10_to_T30_styleganv"]
    for name, value in values.items():
        if name.startswith("common metrics"):
            assert value.value == by_length[int(name.split()[-2]) - 10]
    again = told["fvd_common_metrics"]["stylegan_v_i3d_torchscript"]  # stated twice, 7e-8 apart
    assert values["common metrics, 30 frames"].value == pytest.approx(again, rel=1e-6)
    assert values["fvd-comparison"].value == told["fvd_comparison"]["stylegan_v"]


def test_a_value_is_met_within_what_its_code_allows() -> None:
    assert Row("a", "source", 100.0, 100.9, 0.01).met
    assert Row("a", "source", 100.0, 102.0, 0.01).verdict == "not met, 1 % allowed"
