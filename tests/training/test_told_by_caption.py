"""`told_by: caption`, the comparison with training on video that has text; but for what tells a clip, nothing differs."""

from __future__ import annotations

import pytest
import torch

from mavcli.data import world
from mavcli.data.loader import WorldSource
from mavcli.engine.assemble import load_clip, load_prior
from mavcli.errors import RecipeError, WeightsError
from mavcli.models.unet import UNet
from mavcli.training import losses
from mavcli.training.batches import STILL_FPS, Batches
from mavcli.training.draws import Draws
from mavcli.training.stage import Batch, Task
from mavcli.training.stages import STAGES
from mavcli.weights.provenance import read_header

CAPTIONED = "train.stages.{}.told_by=caption"


def parents(family, *stages: str) -> list[str]:
    return [f"weights.{stage}={family}/weights/{stage}.safetensors" for stage in stages]


def test_captions_are_those_of_the_clips_that_are_drawn_without_them(tiny, tmp_path, monkeypatch):
    scenes: list[world.Scene] = []
    real = world.draw_scene

    def noted(rng, **options):
        scene = real(rng, **options)
        scenes.extend([scene] if options.get("video") else [])
        return scene

    settings = ("train.stages.interp.still_clips=0.3", "train.stages.interp.image_batch=0.25")
    plain = Batches(WorldSource(), STAGES["interp"], tiny(tmp_path, *settings).recipe)
    told = Batches(
        WorldSource(), STAGES["interp"], tiny(tmp_path, *settings, CAPTIONED.format("interp")).recipe
    )
    captions: list[str] = []
    for step in range(12):
        without = plain[step]
        monkeypatch.setattr(world, "draw_scene", noted)
        batch = told[step]
        monkeypatch.setattr(world, "draw_scene", real)
        assert torch.equal(batch.pixels, without.pixels) and torch.equal(batch.known, without.known)
        assert without.captions == ()
        if batch.fps is None:
            assert batch.captions == (), "stills are told by themselves"
            continue
        assert torch.equal(batch.fps, without.fps)
        still = [float(fps) == STILL_FPS for fps in batch.fps]
        assert [caption == "" for caption in batch.captions] == still
        captions += [caption for caption in batch.captions if caption]
    assert len(captions) == len(scenes) > 8
    for caption, scene in zip(captions, scenes, strict=True):
        named = {world.SYNONYMS[word] for word in caption.replace(",", "").split() if word in world.SYNONYMS}
        assert {scene.actor, scene.action} <= named <= {scene.actor, scene.action, scene.place}


class Recorder(UNet):
    def forward(self, x, t, condition):
        self.x, self.t, self.condition = x, t, condition
        return torch.zeros_like(x, requires_grad=True)


def task_of(family, loaded, name: str) -> Task:
    recipe, stage = loaded.recipe, STAGES[name]
    weights = family / "weights"
    return Task(
        name,
        recipe,
        recipe.stage(name),
        Recorder(stage.network(recipe)),
        torch.device("cpu"),
        stage.schedule(recipe),
        load_clip(recipe, weights / "clip.safetensors"),
        prior=load_prior(recipe, weights / "prior.safetensors"),
    )


def test_p_tells_the_clips_that_have_a_caption_and_nothing_else_changes(family, tiny):
    task = task_of(family, tiny(family, CAPTIONED.format("decoder_t")), "decoder_t")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8, generator=generator)
    fps = torch.tensor([2.0, 8.0, 30.0])

    def condition(*captions: str):
        draws = Draws(0, stage="decoder_t", step=0, count=3)
        losses.decoder_loss(task, Batch(pixels, captions, fps=fps), draws)
        return task.network.x, task.network.t, task.network.condition

    x, t, plain = condition()
    x_told, t_told, told = condition("a dog surfing", "", "a cat running in the city")
    assert torch.equal(x, x_told) and torch.equal(t, t_told)
    assert torch.equal(plain.keep_embedding, told.keep_embedding)
    assert torch.equal(plain.image_embedding[1], told.image_embedding[1])
    for row in (0, 2):
        assert not torch.allclose(plain.image_embedding[row], told.image_embedding[row], atol=0.01)
    torch.testing.assert_close(told.image_embedding.norm(dim=-1), torch.ones(3))
    assert not told.image_embedding.requires_grad
    again = condition("a dog surfing", "", "a cat running in the city")[2]
    assert torch.equal(again.image_embedding, told.image_embedding)
    other = condition("a cat surfing", "", "a cat running in the city")[2]
    assert not torch.equal(other.image_embedding[0], told.image_embedding[0])
    assert torch.equal(other.image_embedding[2], told.image_embedding[2])


def test_the_embedding_is_the_one_that_the_cascade_would_draw(family, tiny, monkeypatch, backend):
    from mavcli.engine import cascade as engine
    from mavcli.engine.family import find_family
    from mavcli.engine.randomness import Draw

    loaded = tiny(family, CAPTIONED.format("decoder_t"), *parents(family, "clip", "prior"))
    task = task_of(family, loaded, "decoder_t")
    samples, width = loaded.recipe.cascade.prior.samples, loaded.recipe.cascade.prior.network.clip_dim

    def same(shape, draw, *, stage, frame, step):
        return torch.full(tuple(shape), 0.1 * (frame + 1) * (step + 2) / 1000)

    class Alike(Draws):
        step = -2

        def normal(self, shape, *, device):
            self.step += 1
            rows = [same((width,), None, stage="prior", frame=i, step=self.step) for i in range(samples)]
            return torch.stack(rows)[None]

    monkeypatch.setattr(engine, "gaussian", same)
    chain = engine.Cascade(loaded.recipe, find_family(loaded.recipe, ("clip", "prior")), backend)
    wanted = chain.image_embedding(["a dog surfing"], [Draw(0)])
    given = losses._told_by_captions(
        task, torch.zeros(1, width), ("a dog surfing",), Alike(0, stage="decoder_t", step=0, count=1)
    )
    torch.testing.assert_close(given, wanted)


def test_a_training_told_by_captions_goes_on_and_says_that_p_took_part(family, train, tmp_path):
    sets = [*parents(family, "clip", "prior", "decoder_t"), CAPTIONED.format("interp")]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("interp", whole, *sets)
    train("interp", parts, *sets, "train.stages.interp.steps=2")
    train("interp", parts, *sets, allow=["steps"])
    header = read_header(whole / "weights" / "interp.safetensors")
    assert [parent.role for parent in header.parents] == ["decoder_t", "clip", "prior"]
    assert read_header(parts / "weights" / "interp.safetensors").parents == header.parents
    with pytest.raises(RecipeError, match="training.told_by: caption -> frame"):
        train("interp", whole, *sets[:-1])
    train("prior", tmp_path, *parents(family, "clip"), "train.seed=9", "train.stages.prior.steps=1")
    with pytest.raises(RecipeError, match=r"prior: \w+ -> \w+"):
        train("interp", whole, *parents(family, "clip", "decoder_t"), sets[-1],
              f"weights.prior={tmp_path}/weights/prior.safetensors")  # fmt: skip


def test_captions_are_known_of_the_rendered_world_alone_and_need_p(family, train, tmp_path):
    sets = [*parents(family, "clip", "decoder_t"), CAPTIONED.format("interp")]
    with pytest.raises(WeightsError, match="needs P for captions") as error:
        train("interp", tmp_path, *sets)
    assert error.value.hint == "mav train-stage prior RECIPE"
    with pytest.raises(RecipeError, match="`train.stages.interp.told_by` is `caption`") as refused:
        train("interp", tmp_path, *sets, "train.data.world=false", "train.data.video=clips")
    assert "your clips need no words" in refused.value.hint
