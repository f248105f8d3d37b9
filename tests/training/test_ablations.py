"""The ablations of docs/ablations.md: each starts from the picture network, trains ten steps and generates."""

from __future__ import annotations

import pytest
import torch

from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.models.unet import is_temporal
from mavcli.recipe.load import load_recipe
from mavcli.training.estimate import on_meta
from mavcli.weights.provenance import load_weights


@pytest.mark.parametrize("name", ["vdm", "cogvideo"])
def test_an_ablation_starts_trains_ten_steps_and_generates(name, family, tiny, train, backend, tmp_path):
    asked = load_recipe(f"ablation-{name}").recipe
    config = asked.stage("decoder_t")
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder")]
    sets += [f"cascade.decoder.network.temporal={asked.cascade.decoder.network.temporal}"]
    sets += [
        f"train.stages.decoder_t.train={config.train}",
        f"train.stages.decoder_t.image_batch={config.image_batch}",
        f"train.stages.decoder_t.pictures_beside={config.pictures_beside}",
    ]
    sets += [
        "train.stages.decoder_t.steps=10",
        "train.stages.decoder_t.save_every=10",
        "train.defaults.optimizer=adamw",
    ]
    assert (config.pictures_beside > 0) == (name == "vdm"), "pictures and clips in one step"
    done = train("decoder_t", tmp_path, *sets)
    assert done.step == 10
    before, after = load_weights(family / "weights/decoder.safetensors"), load_weights(done.weights)
    still = [key for key in before if torch.equal(before[key], after[key])]
    new = after.keys() - before.keys()
    assert new and all(is_temporal(key) for key in new)
    if name == "cogvideo":
        assert len(still) == len(before), "the picture network's layers are held still"
    else:
        assert len(still) < len(before)
        # Conv1d weights are (out, in, kernel); attention's are matrices
        assert not any(key.endswith("temporal.weight") and after[key].ndim == 3 for key in new)
    recipe = tiny(tmp_path, *sets, f"weights.decoder_t={done.weights}").recipe
    cascade = Cascade(recipe, find_family(recipe, ("clip", "decoder_t")), backend)
    made = cascade.decode(torch.zeros(1, 16), [Draw(0)], fps=24, frames=4)
    assert made.shape == (1, 4, 3, 16, 16) and float(made.std()) > 0


def test_an_ablation_counts_its_own_parameters():
    counts = {
        name: sum(p.numel() for p in on_meta(load_recipe(name).recipe.cascade.decoder.network).parameters())
        for name in ("pocket", "ablation-vdm", "ablation-cogvideo")
    }
    assert counts["ablation-cogvideo"] == counts["pocket"]
    assert 0.8 < counts["ablation-vdm"] / counts["pocket"] < 0.9
