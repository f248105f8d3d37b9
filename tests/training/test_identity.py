"""How long a training lasts is a part of what it learns from the step on at which its rate begins to fall."""

from __future__ import annotations

import pytest

from mavcli.errors import RecipeError


def steps(count: int, decay: float) -> list[str]:
    return [f"train.defaults.steps={count}", f"train.defaults.decay={decay}", "train.stages.sr_h.crop=16"]


def test_a_rate_that_had_run_down_does_not_jump_up_unasked(train, heard, tmp_path):
    train("sr_h", tmp_path, *steps(2, 1.0))
    with pytest.raises(
        RecipeError, match=r"training\.steps: 2 -> 4 \(at step 2 the rate had come to 0 of the"
    ) as no:
        train("sr_h", tmp_path, *steps(4, 1.0))
    assert "it would go on at 0.5" in no.value.message and no.value.hint.endswith("--allow training.steps")
    report = heard()
    assert train("sr_h", tmp_path, *steps(4, 1.0), allow=["steps"], report=report).step == 4
    assert any("goes on with a changed recipe: training.steps: 2 -> 4" in line for line in report.warnings)


def test_a_shorter_training_is_asked_about_when_its_rate_would_have_begun_to_fall(train, tmp_path):
    train("sr_h", tmp_path, *steps(2, 0.0))
    with pytest.raises(RecipeError, match=r"training\.decay: 0\.0 -> 1\.0"):
        train("sr_h", tmp_path, *steps(2, 1.0))


def test_before_the_rate_begins_to_fall_any_length_may_be_chosen(train, tmp_path):
    train("sr_h", tmp_path, *steps(2, 0.0))
    assert train("sr_h", tmp_path, *steps(4, 0.0)).step == 4
    assert train("sr_h", tmp_path, *steps(8, 0.5)).step == 8


def test_the_curriculum_of_frame_rates_does_not_jump_unasked(family, train, tmp_path):
    sets = [f"weights.{name}={family}/weights/{name}.safetensors" for name in ("clip", "decoder_t")]
    sets += ["train.defaults.decay=0", "train.stages.interp.frames=2"]
    train("interp", tmp_path, *sets, "train.defaults.steps=1")
    with pytest.raises(
        RecipeError, match="curriculum of frame rates was 100% through, it would go on from 50%"
    ):
        train("interp", tmp_path, *sets, "train.defaults.steps=2")
