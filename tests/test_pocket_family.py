"""The family that ships: what its files may weigh, and that each network does what it is there for."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mavcli.data import world
from mavcli.data.degrade import downsample
from mavcli.engine.assemble import load_clip
from mavcli.engine.backend import Backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.evaluation.classifier import load_classifier, probabilities
from mavcli.media.frames import resize, to_float
from mavcli.recipe.load import load_recipe
from mavcli.recipe.share import share_dir
from mavcli.weights.locate import stage_path

RECIPE = load_recipe("pocket").recipe


def cascade(*pieces: str) -> Cascade:
    return Cascade(RECIPE, find_family(RECIPE, pieces), Backend(torch.device("cpu"), torch.bfloat16, 2))


def rendered(count: int, size: int) -> torch.Tensor:
    scenes = [world.scene_for(99, i, split="all") for i in range(count)]
    return to_float(np.stack([world.render(scene, 1.0, size) for scene in scenes]))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def test_the_family_weighs_at_most_60_mb_in_files_of_at_most_16():
    sizes = [file.stat().st_size for file in (share_dir("weights") / "pocket").glob("*.safetensors")]
    assert sizes and sum(sizes) <= 60e6 and max(sizes) <= 16e6


def test_clip_finds_the_caption_of_a_picture_among_all_others():
    clip = load_clip(RECIPE, stage_path(RECIPE, "clip"))
    triples = [(a, b, c) for a in world.ACTORS for b in world.ACTIONS for c in world.PLACES]
    scenes = [world.scene_for(7, i, split="all") for i in range(48)]
    pictures = to_float(np.stack([world.render(scene, 1.0, 64) for scene in scenes]))
    with torch.no_grad():
        scores = (
            clip.encode_image(pictures) @ clip.encode_text([world.prompt(*t) for t in triples]).embedding.T
        )
    right = [
        triples[i] == (s.actor, s.action, s.place)
        for i, s in zip(scores.argmax(1).tolist(), scenes, strict=True)
    ]
    assert np.mean(right) >= 0.9


def test_neither_prompts_nor_frames_wait_for_an_import_of_open_clip():
    code = """if True:
        import sys, torch
        from mavcli.engine.backend import Backend
        from mavcli.engine.cascade import Cascade
        from mavcli.engine.family import find_family
        from mavcli.engine.randomness import Draw
        from mavcli.recipe.load import load_recipe
        recipe = load_recipe("pocket").recipe
        cascade = Cascade(recipe, find_family(recipe, ["clip", "prior"]), Backend(torch.device("cpu"), torch.float32, 1))
        print(*cascade.image_embedding(["a dog surfing"], [Draw(0)]).shape)
        print(*cascade.embed_frames(torch.zeros(2, 3, 64, 64)).shape, "open_clip" in sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "128", "2", "128", "False"]


@pytest.mark.parametrize(
    ("piece", "size"), [("sr_l", RECIPE.cascade.sr_l.size), ("sr_h", RECIPE.cascade.sr_h.size)]
)
def test_super_resolution_beats_bilinear_enlargement_by_two_decibel(piece, size):
    truth = rendered(4, size)
    small = downsample(truth[None], size // 2)
    bilinear = resize(small[0], size, kernel="bilinear")
    net = cascade(piece)
    large = net.sr_l(small, [Draw(0)], fps=24.0) if piece == "sr_l" else net.sr_h(small, [Draw(0)])
    assert psnr(large[0], truth) > psnr(bilinear, truth) + 2


def test_a_prompt_gives_what_it_says_to_a_judge_that_generation_never_sees():
    net = cascade("clip", "prior", "decoder_t")
    draws = [Draw(0)]
    frames = net.decode(net.image_embedding(["a panda driving in space"], draws), draws, fps=24.0)[0]
    judged = probabilities(load_classifier(), frames)
    names = {"actor": world.ACTORS, "action": world.ACTIONS, "place": world.PLACES}
    told = {key: names[key][int(value.mean(0).argmax())] for key, value in judged.items()}
    assert told == {"actor": "panda", "action": "driving", "place": "space"}
