"""SR_h trained on pictures that SR_l made of smaller ones, as it gets them at sampling (`made_probability`)."""

from __future__ import annotations

import json

import pytest
import torch

from mavcli.data.degrade import downsample, upsample
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.errors import RecipeError, WeightsError
from mavcli.training import losses
from mavcli.training.batches import Batches, stage_source
from mavcli.training.draws import Draws
from mavcli.training.stages import STAGES
from mavcli.training.start import build_task, check_stage

HOW = "train.stages.sr_h.degradation={made_probability: 0.5, blur_probability: 0, noise_max: 0}"


def weights(family, *stages: str) -> list[str]:
    return [f"weights.{stage}={family}/weights/{stage}.safetensors" for stage in stages]


@pytest.mark.parametrize("lower", ["sr_lt", "sr_l"])
def test_its_share_of_the_low_res_pictures_is_what_the_cascade_makes(
    lower, family, tiny, backend, tmp_path, monkeypatch
):
    sets = [HOW, "train.stages.sr_h.crop=null", "cascade.sr_l.sampler.steps=1", "train.defaults.batch_size=8"]
    loaded = tiny(tmp_path, *sets, *weights(family, lower))
    task, parents = build_task(STAGES["sr_h"], loaded.recipe, backend=backend)
    assert [parent.role for parent in parents] == [lower]
    x0 = losses.pictures(
        task, Batches(stage_source(STAGES["sr_h"], loaded), STAGES["sr_h"], loaded.recipe)[0]
    )
    low_res, _ = losses.degraded(task, x0, Draws(3, stage="sr_h", step=0, count=8))
    plain, _ = losses.degraded(
        build_task(STAGES["sr_h"], tiny(tmp_path, HOW.replace("0.5", "0")).recipe, backend=backend)[0],
        x0,
        Draws(3, stage="sr_h", step=0, count=8),
    )
    made = (low_res != plain).flatten(1).any(1)
    draws = Draws(3, stage="sr_h", step=0, count=8)
    draws.uniform()  # whose blur
    assert torch.equal(made, draws.uniform() < 0.5) and 0 < int(made.sum()) < 8
    noise = draws.normal((8, 1, 3, 32, 32), device=torch.device("cpu"))
    cascade = Cascade(loaded.recipe, find_family(loaded.recipe, ["sr_l"], stills=True), backend)
    for row in made.nonzero().flatten().tolist():
        monkeypatch.setattr("mavcli.engine.cascade.shared_noise", lambda *a, row=row, **k: noise[row])
        drawn = cascade.sr_l(downsample(x0[row : row + 1], 16), [Draw(0)], fps=8.0)
        # what the cascade hands on is rounded to 8 bits
        assert float((low_res[row] - upsample(drawn, 64)[0]).abs().max()) < 0.012


def test_sr_h_trains_on_made_pictures_and_remembers_of_which_weights(family, train, tmp_path):
    sets = [HOW, *weights(family, "sr_lt")]
    train("sr_h", tmp_path, *sets)
    manifest = json.loads(next((tmp_path / "sr_h").glob("step-*3/manifest.json")).read_text())
    assert [parent["role"] for parent in manifest["parents"]] == ["sr_lt"] and manifest["sr_l"]
    assert train("sr_h", tmp_path, *sets).step == 3, "it goes on with the same"
    with pytest.raises(RecipeError, match=r"sr_l: \w+ -> \w+"):
        train("sr_h", tmp_path, HOW, *weights(family, "sr_l"))


def test_what_made_pictures_need_is_said_before_a_training_begins(train, tiny, tmp_path):
    with pytest.raises(
        WeightsError, match="needs SR_l for `made_probability`, which is not there yet"
    ) as error:
        train("sr_h", tmp_path, HOW)
    assert error.value.hint == "mav train-stage sr_l RECIPE"
    with pytest.raises(RecipeError, match="wants one network for SR_l, and `cascade.sr_l` has none"):
        check_stage(STAGES["sr_h"], tiny(tmp_path, HOW, "cascade.sr_l.kind=lanczos").recipe, 1)
    assert not STAGES["sr_l"].frozen(tiny(tmp_path, HOW).recipe), "of SR_h alone"
