"""Where a recipe's weights are."""

from __future__ import annotations

from mavcli.recipe.load import load_recipe
from mavcli.weights.locate import stage_path


def where(stage: str, *sets: str) -> str:
    return "/".join(stage_path(load_recipe("pocket", sets=list(sets)).recipe, stage).parts[-2:])


def test_a_stage_that_is_served_by_anothers_weights_follows_them():
    assert where("decoder_t") == "pocket/interp.safetensors"
    assert where("decoder_t", "weights.interp=/elsewhere/mine.safetensors") == "elsewhere/mine.safetensors"
    assert where("decoder_t", "weights.decoder_t=/elsewhere/own.safetensors") == "elsewhere/own.safetensors"
    assert where("decoder_t", "weights.decoder_t=null") == "pocket/decoder_t.safetensors"


def test_two_stages_that_name_each_other_come_to_an_end():
    assert where("interp", "weights.interp=decoder_t") == "pocket/interp.safetensors"
    assert where("decoder_t", "weights.interp=decoder_t") == "pocket/decoder_t.safetensors"
