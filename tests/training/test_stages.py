"""Each of the eight stages trains, from the rendered world and from folders, with what the paper lets it see."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mavcli.data import world
from mavcli.data.loader import WorldSource
from mavcli.engine.assemble import load_clip
from mavcli.errors import RecipeError, UsageError, WeightsError
from mavcli.models.clip import Clip
from mavcli.models.unet import UNet, is_temporal
from mavcli.recipe.schema import STAGES as NAMES
from mavcli.specs import UNetSpec
from mavcli.training import losses
from mavcli.training.batches import STILL_FPS, Batches
from mavcli.training.checkpoint import newest_checkpoint
from mavcli.training.draws import Draws
from mavcli.training.stage import Batch, Task
from mavcli.training.stages import STAGES, get_stage
from mavcli.weights.provenance import load_weights, read_header


def test_the_stages_are_those_a_recipe_may_name_and_each_starts_from_an_earlier_one():
    assert set(STAGES) == set(NAMES)
    names = list(STAGES)
    for stage in STAGES.values():
        assert all(names.index(parent) < names.index(stage.name) for parent in stage.parents)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_trains_and_exports_weights_that_say_where_they_come_from(name, family, tiny):
    header = read_header(family / "weights" / f"{name}.safetensors")
    assert header.role == name and header.step == 3
    assert header.spec == STAGES[name].network(tiny(family).recipe)
    roles = [parent.role for parent in header.parents]
    wanted = {"decoder_t": ["decoder", "clip"], "interp": ["decoder_t", "clip"], "sr_lt": ["sr_l"]}
    assert roles == wanted.get(name, ["clip"] if STAGES[name].needs_clip else [])
    lines = [json.loads(line) for line in (family / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "held_out" in line] == [2, 3]
    assert all(np.isfinite(line.get("loss", 0.0)) for line in lines)


def test_previews_are_drawn_for_video_stages(family):
    assert (family / "interp" / "samples" / "0000003.png").stat().st_size > 500
    assert (family / "sr_lt" / "samples" / "0000003.png").stat().st_size > 500


def test_training_moves_every_parameter_and_inflation_moves_no_spatial_one_before_it_trains(family, tiny):
    checkpoint, _ = newest_checkpoint(family / "decoder_t")
    trained = {
        k.removeprefix("network/"): v for k, v in checkpoint.tensors().items() if k.startswith("network/")
    }
    parent = load_weights(family / "weights" / "decoder.safetensors")
    assert {k for k in trained if not is_temporal(k)} == set(parent)
    moved = [k for k in parent if not torch.equal(trained[k], parent[k].float())]
    assert len(moved) > 0.9 * len(parent)
    identity = [v for k, v in trained.items() if k.endswith("temporal.weight")]
    dirac = nn.init.dirac_(torch.empty_like(identity[0]))
    assert not torch.equal(identity[0], dirac)


def test_with_temporal_training_the_inherited_layers_stay_exactly_as_they_were(family, train, tmp_path):
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder")]
    train(
        "decoder_t",
        tmp_path,
        *sets,
        "train.stages.decoder_t.train=temporal",
        "train.stages.decoder_t.image_batch=0",
    )
    checkpoint, _ = newest_checkpoint(tmp_path / "decoder_t")
    trained = {
        k.removeprefix("network/"): v for k, v in checkpoint.tensors().items() if k.startswith("network/")
    }
    parent = load_weights(family / "weights" / "decoder.safetensors")
    assert all(torch.equal(trained[k], v.float()) for k, v in parent.items())


def test_with_temporal_training_interp_moves_no_inherited_column_of_its_stem(family, train, tmp_path):
    """Weight decay would, and the columns of the mask are in the same parameter."""
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder_t")]
    few = [f"train.stages.interp.{k}" for k in ("train=temporal", "image_batch=0", "weight_decay=0.5")]
    train("interp", tmp_path, *sets, *few)
    tensors = newest_checkpoint(tmp_path / "interp")[0].tensors()
    parent = load_weights(family / "weights" / "decoder_t.safetensors")
    for kind in ("network", "average"):
        trained = {k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")}
        stem = trained.pop("input_blocks.0.0.weight")
        inherited = parent["input_blocks.0.0.weight"].float()
        assert torch.equal(stem[:, : inherited.shape[1]], inherited)
        assert stem[:, inherited.shape[1] :].any(), "the mask's columns train"
        moved = {k for k, v in parent.items() if k in trained and not torch.equal(trained[k], v.float())}
        assert moved and all(is_temporal(k) for k in moved)


def test_a_stage_that_would_train_nothing_is_refused(family, train, tmp_path):
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder")]
    with pytest.raises(RecipeError, match="trains nothing on still images"):
        train("decoder_t", tmp_path, *sets, "train.stages.decoder_t.train=temporal")
    with pytest.raises(RecipeError, match="trains nothing with"):
        train("sr_h", tmp_path, "train.stages.sr_h.train=temporal")


def test_a_stage_without_its_parent_says_which_to_train_first(train, tmp_path):
    with pytest.raises(WeightsError, match="`decoder_t` starts from `decoder`") as error:
        train("decoder_t", tmp_path)
    assert error.value.hint == "mav train-stage decoder RECIPE"
    with pytest.raises(WeightsError, match="needs CLIP's towers"):
        train("decoder", tmp_path)
    with pytest.raises(UsageError, match="did you mean `decoder_t`"):
        get_stage("decodr_t")


def test_video_stages_never_see_a_word(family, train, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("text was touched")

    monkeypatch.setattr(WorldSource, "pair", refuse)
    monkeypatch.setattr(world, "caption", refuse)
    monkeypatch.setattr(Clip, "encode_tokens", refuse)
    monkeypatch.setattr(Clip, "tokenize", refuse)
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder", "decoder_t", "sr_l")]
    for stage in ("decoder_t", "interp", "sr_lt"):
        assert train(stage, tmp_path, *sets, "train.defaults.steps=1").step == 1
    with pytest.raises(AssertionError, match="text was touched"):
        train("prior", tmp_path, *sets)


class Recorder(UNet):
    """Stands for the U-Net: remembers what it was asked, answers with a parameter."""

    def __init__(self, spec: UNetSpec, shape: tuple[int, ...]) -> None:
        super().__init__(spec)
        self.answer = nn.Parameter(torch.zeros(shape))

    def forward(self, x, t, condition):
        self.x, self.t, self.condition = x, t, condition
        return self.answer


def recorded_task(family: Path, tiny, name: str, shape: tuple[int, ...]) -> Task:
    recipe, stage = tiny(family).recipe, STAGES[name]
    return Task(
        name,
        recipe,
        recipe.stage(name),
        Recorder(stage.network(recipe), shape),
        torch.device("cpu"),
        stage.schedule(recipe),
        load_clip(recipe, family / "weights" / "clip.safetensors"),
    )


def test_video_is_conditioned_on_the_embedding_of_its_first_frame_and_its_rate(family, tiny):
    task = recorded_task(family, tiny, "decoder_t", (3, 4, 3, 16, 16))
    pixels = torch.randint(
        0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    fps = torch.tensor([2.0, 8.0, 30.0])
    losses.decoder_loss(task, Batch(pixels, fps=fps), Draws(0, stage="decoder_t", step=0, count=3))
    x0 = losses.pictures(task, Batch(pixels))
    embeddings = [task.clip.encode_image(x0[:, i]) for i in range(4)]
    given = task.network.condition.image_embedding
    assert torch.equal(given, embeddings[0]) and not any(torch.equal(given, e) for e in embeddings[1:])
    assert torch.equal(task.network.condition.fps, fps)
    assert task.network.condition.text_states is None and task.network.condition.text_embedding is None


def test_known_frames_are_shown_to_the_interpolator_and_count_like_the_others(family, tiny):
    task = recorded_task(family, tiny, "interp", (2, 4, 3, 16, 16))
    pixels = torch.randint(
        0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    known = torch.tensor([[True, False, False, True], [False, False, True, False]])
    batch = Batch(pixels, fps=torch.tensor([4.0, 8.0]), known=known)
    losses.interp_loss(task, batch, Draws(0, stage="interp", step=0, count=2)).sum().backward()
    gradient = task.network.answer.grad.abs().amax(dim=(2, 3, 4)) > 0
    assert gradient.all()
    masked, x0 = task.network.condition.masked_video, losses.pictures(task, batch)
    assert torch.equal(masked[known][:, :3], x0[known]) and not masked[~known][:, :3].any()
    assert torch.equal(masked[:, :, 3].amax(dim=(2, 3)) == 1, known)
    assert torch.equal(masked[:, :, 3].amin(dim=(2, 3)) == 1, known)


def test_the_condition_is_dropped_for_its_share_of_samples(family, tiny):
    task = recorded_task(family, tiny, "decoder", (400, 1, 3, 16, 16))
    pixels = torch.zeros(400, 1, 16, 16, 3, dtype=torch.uint8)
    losses.decoder_loss(task, Batch(pixels), Draws(0, stage="decoder", step=0, count=400))
    dropped = (~task.network.condition.keep_embedding).float().mean()
    assert 0.05 < float(dropped) < 0.16, "0.1 is the default"


@pytest.mark.parametrize("frames", [1, 4])
def test_the_noise_of_clips_is_shifted_and_that_of_stills_is_not(frames, family, tiny):
    task = recorded_task(family, tiny, "decoder_t", (64, frames, 3, 16, 16))
    task = dataclasses.replace(task, config=task.config.model_copy(update={"shift": 3.0}))
    pixels = torch.zeros(64, frames, 16, 16, 3, dtype=torch.uint8)
    losses.decoder_loss(
        task, Batch(pixels, fps=torch.full((64,), 8.0)), Draws(0, stage="decoder_t", step=0, count=64)
    )
    drawn = task.network.t
    shift = 3.0 if frames > 1 else 1.0
    keep = Draws(0, stage="decoder_t", step=0, count=64)
    assert torch.equal(drawn, task.schedule.shifted(keep.integers(1000), shift))


@pytest.mark.parametrize("frames", [1, 4])
def test_motion_weight_makes_moving_errors_of_clips_count_more(frames, family, tiny):
    task = recorded_task(family, tiny, "decoder_t", (8, frames, 3, 16, 16))
    weighted = dataclasses.replace(task, config=task.config.model_copy(update={"motion_weight": 2.0}))
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (8, frames, 16, 16, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(pixels, fps=torch.full((8,), 8.0))
    plain, more = (
        losses.decoder_loss(t, batch, Draws(0, stage="decoder_t", step=0, count=8)).detach()
        for t in (task, weighted)
    )
    if frames == 1:
        assert torch.equal(plain, more)
    else:  # frames that are noise err independently: each unit of the weight counts the error once more
        torch.testing.assert_close(more, 3 * plain, rtol=0.1, atol=0)


def test_each_super_resolution_stage_enlarges_by_its_own_factor(family, tiny):
    recipe = tiny(family, "cascade.sr_l.size=64", "cascade.sr_h.size=128").recipe
    same = recipe.cascade.sr_l.network.model_copy(update={"temporal": "none"})
    part = recipe.cascade.sr_h.model_copy(update={"network": same})
    twins = recipe.model_copy(update={"cascade": recipe.cascade.model_copy(update={"sr_h": part})})
    for name, factor in (("sr_l", 4), ("sr_lt", 4), ("sr_h", 2)):
        task = Task(name, twins, twins.stage(name), nn.Identity(), torch.device("cpu"))
        assert losses.sr_factor(task) == factor


# folders ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Pictures with captions and clips without, written by the rendered world."""
    root = tmp_path_factory.mktemp("files") / "made"
    world.write_folder(root, images=24, clips=3, size=64, seed=0)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_trains_from_folders(name, files, family, train, heard, tmp_path):
    report = heard()
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in NAMES if s != name]
    data = [f"train.data.pairs={files}", f"train.data.video={files}/video", "train.data.world=false"]
    result = train(name, tmp_path, *sets, *data, "train.defaults.steps=2", report=report)
    assert result.step == 2 and np.isfinite(result.loss) and np.isfinite(result.held_out)
    assert any("used 3 of 3 clips" in m or "used 24 of 24 pairs" in m for m in report.messages)


def test_a_recipe_without_the_data_of_a_stage_says_what_to_set(train, tmp_path):
    with pytest.raises(RecipeError, match=r"stage `clip` needs `train\.data\.pairs`") as error:
        train("clip", tmp_path, "train.data.world=false")
    assert "train.data.pairs=FOLDER" in error.value.hint


# batches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "sr_h", "decoder_t", "interp"])
def test_a_batch_is_a_function_of_seed_and_step(name, tiny, tmp_path):
    recipe = tiny(tmp_path).recipe
    first, again = (Batches(WorldSource(), STAGES[name], recipe) for _ in "ab")
    for step in (2, 0, 1):
        first[step]
    for step in range(3):
        one, two = first[step], again[step]
        assert torch.equal(one.pixels, two.pixels) and one.captions == two.captions
        for a, b in ((one.fps, two.fps), (one.known, two.known)):
            assert (a is None and b is None) or torch.equal(a, b)
    assert not torch.equal(first[0].pixels[0], first[0].pixels[1])
    other = Batches(WorldSource(), STAGES[name], tiny(tmp_path, "train.seed=4").recipe)
    assert first[0].pixels.shape != other[0].pixels.shape or not torch.equal(first[0].pixels, other[0].pixels)


def test_held_out_samples_are_never_trained_on(tiny, tmp_path):
    recipe = tiny(tmp_path, "train.defaults.steps=40").recipe
    seen, kept = (
        {bytes(p) for i in range(40) for p in batches[i].pixels.flatten(1).numpy()}
        for batches in (Batches(WorldSource(), STAGES["decoder"], recipe, held_out=h) for h in (False, True))
    )
    assert len(seen) == len(kept) == 80 and not seen & kept


def test_still_steps_of_a_video_stage_are_their_share_and_as_many_pictures_as_frames(tiny, tmp_path):
    recipe = tiny(
        tmp_path, "train.stages.decoder_t.steps=20", "train.stages.decoder_t.image_batch=0.25"
    ).recipe
    batches = Batches(WorldSource(), STAGES["decoder_t"], recipe)
    shapes = [tuple(batches[i].pixels.shape[:2]) for i in range(20)]
    assert shapes.count((8, 1)) == 5 and shapes.count((2, 4)) == 15
    assert shapes[3] == (8, 1), "spread evenly"


def test_some_clips_are_a_still_that_is_told_to_run_too_fast_to_move(tiny, tmp_path):
    recipe = tiny(
        tmp_path, "train.stages.decoder_t.image_batch=0", "train.stages.decoder_t.still_clips=0.5"
    ).recipe
    drawn = [Batches(WorldSource(), STAGES["decoder_t"], recipe)[i] for i in range(40)]
    clips = [(clip, float(fps)) for batch in drawn for clip, fps in zip(batch.pixels, batch.fps, strict=True)]
    still = [bool((clip == clip[0]).all()) for clip, _ in clips]
    assert still == [fps == STILL_FPS for _, fps in clips]
    assert 25 < sum(still) < 55, "of 80 clips a half"


@pytest.fixture
def drawn(monkeypatch):
    """The scenes that are drawn while the test runs."""
    scenes: list[world.Scene] = []
    real = world.draw_scene

    def noted(rng, **options):
        scenes.append(real(rng, **options))
        return scenes[-1]

    monkeypatch.setattr(world, "draw_scene", noted)
    return scenes


def test_an_action_of_the_world_can_be_drawn_more_often_for_clips(drawn):
    source = WorldSource({"driving": 6, "falling": 0})
    for i in range(240):
        source.clip(world.generator(5, i), frames=1, fps=4.0, size=8)
    assert source.describe().endswith("; for clips: driving 6, falling 0, others 1")
    counts = Counter(scene.action for scene in drawn)
    assert set(counts) == set(world.ACTIONS) - {"falling"}
    assert 100 < counts["driving"] < 140, "6 of 12, less its held-out pairs"
    drawn.clear()
    for i in range(240):
        source.image(world.generator(6, i), 8)
    assert 15 < Counter(scene.action for scene in drawn)["falling"] < 50, "pictures as ever"


def test_an_actor_of_the_world_can_be_drawn_more_often_for_pictures_and_clips(drawn):
    source = WorldSource({"spinning": 6}, {"whale": 5, "lion": 4, "dog": 0})
    assert source.describe().endswith("; whale 5, lion 4, dog 0, others 1; for clips: spinning 6, others 1")
    for i in range(240):
        source.pair(world.generator(7, i), 8)
    still = Counter(scene.actor for scene in drawn)
    assert set(still) == set(world.ACTORS) - {"dog"}
    assert 45 < still["whale"] < 88 and 33 < still["lion"] < 73, "5 and 4 of 18"
    drawn.clear()
    for i in range(240):
        source.clip(world.generator(8, i), frames=1, fps=4.0, size=8)
    moving = Counter((scene.actor, scene.action) for scene in drawn)
    assert not set(moving) & world.HELD_OUT_PAIRS
    assert {who for who, _ in moving} == set(world.ACTORS) - {"dog"} - world.STILL_ONLY_ACTORS
    of_whale = {does: n for (who, does), n in moving.items() if who == "whale"}
    assert 60 < sum(of_whale.values()) < 120, "5 of 13"
    assert max(of_whale, key=of_whale.__getitem__) == "spinning"


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ("world_actions={sailing: 2}", "`train.data.world_actions` names `sailing`"),
        ("world_actions={driving: -1}", "`-1` must be 0 to 1e\\+06"),
        ("world_actors={cow: 2}", "`train.data.world_actors` names `cow`, which is no actor of the world"),
        ("world_actors={whale: -1}", "`-1` must be 0 to 1e\\+06"),
        (f"world_actors={{{', '.join(f'{a}: 0' for a in world.ACTORS)}}}", "nothing is left to draw$"),
        (
            f"world_actions={{{', '.join(f'{a}: 0' for a in world.ACTIONS)}}}",
            "nothing is left to draw for clips",
        ),
    ],
)
def test_shares_of_the_world_that_cannot_be_are_refused(shares, told, train, tmp_path):
    with pytest.raises(RecipeError, match=told):
        train("clip", tmp_path, f"train.data.{shares}")
