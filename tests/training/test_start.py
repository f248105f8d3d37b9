"""What a stage starts from: its parent, nothing, or weights of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mavcli.errors import WeightsError
from mavcli.recipe.load import load_recipe
from mavcli.training.draws import Draws
from mavcli.training.dropout import SampleDropout, dropping, own_dropout
from mavcli.training.stages import STAGES
from mavcli.training.start import start_path
from mavcli.weights.provenance import load_weights, read_header, save_weights

CPU = torch.device("cpu")
STILL = ["train.defaults.lr=1e-12", "train.defaults.optimizer=adamw", "train.defaults.steps=1"]


def weights(family: Path, *stages: str) -> list[str]:
    return [f"weights.{s}={family}/weights/{s}.safetensors" for s in stages]


@pytest.mark.parametrize("stage", ["sr_h", "prior", "sr_lt"])
def test_a_stage_goes_on_from_weights_of_its_own(stage, family, train, tmp_path):
    train(stage, tmp_path, *weights(family, "clip", stage), *STILL, f"train.stages.{stage}.start=own")
    before, after = (load_weights(out / "weights" / f"{stage}.safetensors") for out in (family, tmp_path))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)
    old, new = (read_header(out / "weights" / f"{stage}.safetensors") for out in (family, tmp_path))
    assert new.parents[0] == old.as_parent() and new.step == 1


def test_a_file_by_name_is_of_the_stage_or_of_its_parent(family, train, tmp_path):
    clip = weights(family, "clip")
    train("decoder_t", tmp_path, *clip, *STILL, f"train.stages.decoder_t.start={family}/weights/decoder.safetensors",
          "train.stages.decoder_t.image_batch=0")  # fmt: skip
    header = read_header(tmp_path / "weights" / "decoder_t.safetensors")
    assert [parent.role for parent in header.parents] == ["decoder", "clip"]
    with pytest.raises(WeightsError, match="holds `clip` weights, stage `sr_h` starts from `sr_h`"):
        train("sr_h", tmp_path, f"train.stages.sr_h.start={family}/weights/clip.safetensors")
    with pytest.raises(WeightsError, match=r"start` is `own`, and .*sr_h\.safetensors does not exist"):
        train("sr_h", tmp_path, "train.stages.sr_h.start=own")


def test_a_licence_goes_on_in_what_was_trained_from_its_weights(family, train, tmp_path):
    source, borrowed = family / "weights" / "decoder.safetensors", tmp_path / "borrowed.safetensors"
    header = read_header(source).model_copy(update={"licence": "CreativeML Open RAIL-M"})
    save_weights(borrowed, load_weights(source), header)
    train("decoder_t", tmp_path, *weights(family, "clip"), *STILL, f"train.stages.decoder_t.start={borrowed}",
          "train.stages.decoder_t.image_batch=0")  # fmt: skip
    trained = read_header(tmp_path / "weights" / "decoder_t.safetensors")
    assert trained.licence == "CreativeML Open RAIL-M" == trained.parents[0].licence


def test_scratch_is_scratch_even_where_a_parent_is_there(family, train, tmp_path):
    train(
        "decoder_t",
        tmp_path,
        *weights(family, "clip", "decoder"),
        *STILL,
        "train.stages.decoder_t.start=scratch",
    )
    assert [p.role for p in read_header(tmp_path / "weights" / "decoder_t.safetensors").parents] == ["clip"]
    parent = load_weights(family / "weights" / "decoder.safetensors")
    child = load_weights(tmp_path / "weights" / "decoder_t.safetensors")
    assert not torch.equal(child["time_embed.0.weight"], parent["time_embed.0.weight"])


def test_what_a_training_started_from_may_be_gone_when_it_goes_on(family, train, tmp_path):
    start = tmp_path / "start.safetensors"
    shutil.copy(family / "weights" / "sr_h.safetensors", start)
    sets = [f"train.stages.sr_h.start={start}"]
    train("sr_h", tmp_path, *sets)
    start.unlink()
    train("sr_h", tmp_path, *sets, "train.defaults.steps=4", allow=["steps"])
    header = read_header(tmp_path / "weights" / "sr_h.safetensors")
    assert [(p.role, p.step) for p in header.parents] == [("sr_h", 3)] and header.step == 4


def test_a_relative_start_belongs_to_the_recipe_file_and_the_words_are_no_paths(tmp_path, monkeypatch):
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "r.yaml"
    file.write_text("train: {stages: {sr_h: {start: ../sr_h.safetensors}, sr_l: {start: own}}}")
    shutil.copy(__file__, tmp_path / "sr_h.safetensors")
    monkeypatch.chdir("/")
    recipe = load_recipe(file).recipe
    assert start_path(STAGES["sr_h"], recipe).samefile(tmp_path / "sr_h.safetensors")
    assert recipe.stage("sr_l").start == "own" and recipe.stage("clip").start == "auto"


# randomness of a row ------------------------------------------------------------------------------------------------


def test_the_draws_of_a_row_are_its_own_however_the_step_is_cut():
    whole = Draws(3, stage="decoder", step=5, count=6)
    parts = [Draws(3, stage="decoder", step=5, first=first, count=3) for first in (0, 3)]
    for draw in (
        lambda d, n: d.integers(1000),
        lambda d, n: d.integers(1000, strata=6),
        lambda d, n: d.uniform(),
        lambda d, n: d.normal((n, 2, 3), device=CPU),
    ):
        values = draw(whole, 6)
        assert torch.equal(values, torch.cat([draw(part, 3) for part in parts]))
        assert len(values.flatten().unique()) == values.numel()
    assert whole.seeds == parts[0].seeds + parts[1].seeds and len(set(whole.seeds)) == 6
    first = Draws(3, stage="decoder", step=5).normal((1, 4), device=CPU)
    for changed in ({"seed": 4}, {"stage": "sr_l"}, {"step": 6}, {"first": 1}, {"held_out": True}):
        arguments = {"seed": 3, "stage": "decoder", "step": 5, **changed}
        assert not torch.equal(Draws(arguments.pop("seed"), **arguments).normal((1, 4), device=CPU), first)


def test_stratified_integers_fall_into_every_part_and_are_uniform_within_it():
    strata, high = 4, 10
    drawn = torch.stack(
        [Draws(0, stage="s", step=i, count=8).integers(high, strata=strata) for i in range(2000)]
    )
    for row in range(8):
        low, top = row % strata * high // strata, (row % strata + 1) * high // strata
        counts = torch.bincount(drawn[:, row], minlength=high)
        assert counts[low:top].sum() == 2000, "a row never leaves its part"
        assert (counts[low:top] > 0.8 * 2000 / (top - low)).all()
    assert Draws(0, stage="s", step=0, count=5).integers(2, strata=5).max() <= 1, "more parts than values"


def test_normal_draws_are_normal():
    x = Draws(0, stage="s", step=0, count=4).normal((4, 50_000), device=CPU)
    assert abs(float(x.mean())) < 0.01 and abs(float(x.std()) - 1) < 0.01 and x.dtype == torch.float32


def test_dropout_belongs_to_the_sample_and_keeps_the_mean():
    network = torch.nn.Sequential(torch.nn.Dropout(0.25), torch.nn.Dropout(0.0), torch.nn.Dropout(0.25))
    layers = own_dropout(network)
    assert [type(m) for m in network] == [SampleDropout, torch.nn.Dropout, SampleDropout]
    x, seeds = torch.ones(4 * 3, 2000), [5, 6, 7, 8]  # three frames of each of four samples
    with dropping(layers, seeds):
        first, again, second = layers[0](x), layers[0](x), layers[1](x)
    with dropping(layers, seeds[2:]):
        assert torch.equal(layers[0](x[6:]), first[6:])
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert abs(float((first == 0).float().mean()) - 0.25) < 0.02 and abs(float(first.mean()) - 1) < 0.02
    assert torch.equal(layers[0](x), x), "outside a training step nothing is dropped"


def test_a_prior_with_a_scale_diffuses_embeddings_times_it_and_measures_none(family, train, tmp_path):
    """unCLIP, appendix C: 17.2."""
    train("prior", tmp_path, *weights(family, "clip"), *STILL, "cascade.prior.network.clip_scale=17.2")
    tensors = load_weights(tmp_path / "weights" / "prior.safetensors")
    assert not tensors["clip_mean"].any()
    exact = torch.full_like(tensors["clip_std"], 1 / 17.2)
    assert tensors["clip_std"].dtype == torch.float32 and torch.equal(tensors["clip_std"], exact)
    measured = load_weights(family / "weights" / "prior.safetensors")
    assert measured["clip_mean"].any() and measured["clip_std"].float().std() > 0
