"""What generation asks of a network beyond what its training meets is told, and nothing where it asks no more."""

from __future__ import annotations

import json

import pytest

from mavcli.cli.app import run
from mavcli.recipe.load import list_recipes, load_recipe
from mavcli.recipe.remarks import asked_rates, lacking_rate, remarks, trained_skips, untrained_skip


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_trains_what_it_asks_for(name: str) -> None:
    assert remarks(load_recipe(name).recipe) == []


def test_recipe_check_says_when_a_factor_was_never_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "check", "pocket", "--set", "cascade.interp.frame_skip=4", "--json"]) == 0
    shown = capsys.readouterr()
    told = "↑F was never trained to fill in between frames that are 4 apart; it learnt 2, 3, 5, 7, 15"
    assert json.loads(shown.out)["warnings"] == [told]
    assert told in " ".join(shown.err.split())


def test_a_window_holds_two_known_frames(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "check", "pocket", "--set", "cascade.interp.frame_skip=16"]) == 2
    assert "frame_skip=16: `16` must be less than `window`, 16" in " ".join(capsys.readouterr().err.split())


def test_d_t_that_is_asked_for_a_rate_outside_its_curriculum_is_told() -> None:
    (text,) = remarks(load_recipe("pocket", sets=["output.fps=5"]).recipe)
    assert text == "generation tells D^t 1 fps, `train.stages.decoder_t.fps` trains 2 to 30"


def test_which_distances_are_trained() -> None:
    at = "train.stages.interp"
    assert trained_skips(load_recipe("karlo").recipe) == tuple(range(2, 16))
    ends = load_recipe("pocket", sets=[f"{at}.masks.interpolate=0", f"{at}.masks.endpoints=1"]).recipe
    assert trained_skips(ends) == (15,)
    assert untrained_skip([1], ()) is None and untrained_skip([3], (2, 3)) is None


def test_rates_that_clips_cannot_give() -> None:
    assert asked_rates(load_recipe("karlo").recipe)["decoder_t"] == pytest.approx(4.8)
    short = [(6.0, 30.0)] * 20 + [(40.0, 30.0)]  # the last one gives none
    text = lacking_rate("decoder_t", 4.8, 16, short)
    assert text is not None and "D^t 4.8 fps, and none of 21 clips gives 16 frames at that rate" in text
    assert "they give 6 to 30 fps" in text and "clips of 3.12 s without a cut" in text
    one = lacking_rate("decoder_t", 4.8, 16, [*short, (4.8, 30.0)])
    assert one is not None and "and 1 of 22 clips gives" in one
    assert lacking_rate("decoder_t", 4.8, 16, [*short, *[(4.0, 30.0)] * 3]) is None
