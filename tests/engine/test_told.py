"""What every network of the cascade is told, call by call, written out for each use: a wrong value would still make a video.

A line of `Told.calls` is one network at work: its rate, the noise level of its low resolution, whose embedding it has, and which
frames of its window it knows; equal calls one after the other (a sampler's steps) are one line. A line of `Told.noise` is one
noise: what it is for, and the numbers of its first and last frame.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_family
import torch
from torch.nn import functional as F

from mavcli.data.degrade import upsample
from mavcli.diffusion.process import add_noise
from mavcli.diffusion.schedule import Schedule
from mavcli.engine import cascade as module
from mavcli.engine.backend import Backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import START, Draw
from mavcli.engine.uses import animate, interpolate
from mavcli.engine.uses.vary import meaning
from mavcli.media.frames import to_float
from mavcli.models.unet import UNet
from mavcli.weights.provenance import WeightsHeader, save_weights

DRAWS = [Draw(0)]
LEVEL = 20
"""0.02 of 1,000 steps."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The tiny family with an SR_l^t that is told its rate."""
    said = tiny_family.RECIPE.replace("      image_size: 16\n", "      image_size: 16\n      fps: true\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_family, "RECIPE", said)
        return tiny_family.write_family(tmp_path_factory.mktemp("told"))


class Told:
    """A cascade whose networks write down what they are told, and which noise is drawn for it."""

    def __init__(self, recipe: Path, patch: pytest.MonkeyPatch, *sets: str) -> None:
        loaded = tiny_family.tiny_recipe(recipe, *sets)
        family = find_family(loaded, ("clip", "prior", "decoder_t", "interp", "sr_l", "sr_h"))
        self.cascade = Cascade(loaded, family, Backend(torch.device("cpu"), torch.float32, 1))
        self.heard: list[tuple] = []
        self.noise: list[tuple[str, int | str, int | str]] = []
        self.x: dict[str, list[torch.Tensor]] = {}
        self.low_res: dict[str, torch.Tensor] = {}
        patch.setattr(UNet, "forward", self._recorded(UNet.forward))
        patch.setattr(module, "video_noise", self._of_frames(module.video_noise))
        patch.setattr(module, "shared_noise", self._of_all(module.shared_noise))

    def _recorded(self, real):
        def forward(network, x, t, condition=None):
            piece = next(name for name, one in self.cascade._networks.items() if one is network)
            self.x.setdefault(piece, []).append(x)
            if condition.low_res is not None:
                self.low_res.setdefault(piece, condition.low_res)
            known = None
            if condition.masked_video is not None:
                known = condition.masked_video[0, :, 3, 0, 0].nonzero().flatten().tolist()
            rate = None if condition.fps is None else round(float(condition.fps[0]), 6)
            level = None if condition.noise_level is None else int(condition.noise_level[0])
            one = (piece, rate, level, condition.image_embedding, known)
            if not self.heard or not same(self.heard[-1], one):
                self.heard.append(one)
            return real(network, x, t, condition)

        return forward

    def _of_frames(self, real):
        def drawn(shape, rows, *, stage, step):
            for _, numbers in rows:
                self._note(stage, numbers[0], numbers[-1])
            return real(shape, rows, stage=stage, step=step)

        return drawn

    def _of_all(self, real):
        def drawn(shape, draws, *, stage, step):
            self._note(stage, "all", "all")
            return real(shape, draws, stage=stage, step=step)

        return drawn

    def _note(self, *one) -> None:
        if one not in self.noise:
            self.noise.append(one)

    def calls(self, embeddings: dict[object, torch.Tensor]) -> list[tuple]:
        """(piece, rate, level, the name of its embedding among `embeddings`, known frames of the window)."""
        return [(*one[:3], named(one[3], embeddings), one[4]) for one in self.heard]

    def frames(self, video: torch.Tensor, *, first: int = 0) -> dict[object, torch.Tensor]:
        """The embeddings of a video (1, f, 3, s, s), by the number of each frame."""
        return {first + i: row for i, row in enumerate(self.cascade.embed_frames(video[0]))}


def same(one: tuple, other: tuple) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
        for a, b in zip(one, other, strict=True)
    )


def named(embedding: torch.Tensor | None, embeddings: dict[object, torch.Tensor]) -> object:
    if embedding is None:
        return None
    (name,) = [n for n, own in embeddings.items() if torch.allclose(own, embedding[0], atol=1e-6, rtol=0)]
    return name


def noise_of(count: int, *, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def video_of(count: int) -> torch.Tensor:
    return to_float(noise_of(count))[None]


@pytest.fixture
def told(recipe, monkeypatch):
    return Told(recipe, monkeypatch)


ENLARGED = [("sr_l", 24.0, LEVEL, None, None), ("sr_h", None, LEVEL, None, None)]


def noise_of_enlarging(last: int) -> list[tuple]:
    return [
        ("sr_l low-res", 0, last),
        ("sr_l", 0, last),
        ("sr_h low-res", "all", "all"),
        ("sr_h", "all", "all"),
    ]


def test_generate_tells_d_the_rate_of_its_keys_and_the_others_that_of_the_video(told):
    cascade = told.cascade
    embedding = cascade.image_embedding(["a dog"], DRAWS)
    base = cascade.decode(embedding, DRAWS, fps=24)
    small = cascade.fill_up(base, DRAWS, fps=24, frames=31)
    cascade.enlarge(small, DRAWS, fps=24)
    assert told.calls({"P": embedding[0], **told.frames(small)}) == [
        ("decoder_t", 4.8, None, "P", None),
        ("interp", 24.0, None, 0, [0, 5, 10, 15]),
        ("interp", 24.0, None, 15, [0, 5, 10, 15]),
        *ENLARGED,
    ]
    assert told.noise == [
        ("decoder_t", 0, 15),
        ("interp", 0, 15),
        ("interp", 15, 30),
        *noise_of_enlarging(30),
    ]


def test_a_still_is_told_no_rate(told):
    embedding = F.normalize(torch.ones(1, 16), dim=-1)
    picture = told.cascade.decode(embedding, DRAWS, fps=24, frames=1)
    told.cascade.enlarge(picture, DRAWS, fps=24)
    assert told.calls({"given": embedding[0]}) == [
        ("decoder_t", None, None, "given", None),
        ("sr_l", None, LEVEL, None, None),
        *ENLARGED[1:],
    ]


def test_a_longer_video_extends_its_keys_at_their_own_rate_first(told):
    keys = video_of(4)
    small = told.cascade.fill_up(keys, DRAWS, fps=24, frames=31)
    assert told.calls(told.frames(small)) == [
        ("interp", 4.8, None, 0, [0, 1, 2, 3]),
        ("interp", 24.0, None, 0, [0, 5, 10, 15]),
        ("interp", 24.0, None, 15, [0, 5, 10, 15]),
    ]
    assert told.noise == [("extrapolate", 0, 15), ("interp", 0, 15), ("interp", 15, 30)]


def test_animate_tells_the_rate_of_the_keys_and_the_embedding_of_the_picture(told):
    picture = noise_of(1)[0]
    keys = animate.first_keys(told.cascade, picture, DRAWS[0], fps=24, fit="crop")
    assert told.calls(told.frames(keys)) == [("interp", 4.8, None, 0, [0])]
    assert told.noise == [("extrapolate", 0, 15)]
    told.heard.clear()
    told.noise.clear()
    film = animate.animate(told.cascade, picture, keys, DRAWS[0], fps=24, frames=16, fit="crop")
    assert len(list(film.frames)) == 16
    assert told.calls(told.frames(keys)) == [("interp", 24.0, None, 0, [0, 5, 10, 15]), *ENLARGED]
    assert told.noise == [("interp", 0, 15), *noise_of_enlarging(15)]


def test_interpolate_tells_each_pass_its_own_rate_and_the_frame_that_a_window_begins_with(told):
    """Four pictures, 2 x 3 frames apart at 24 fps: 8 fps, then 24."""
    pictures = noise_of(4)
    film = interpolate.between_pictures(
        told.cascade, pictures, DRAWS[0], skips=(2, 3), rate=24, fit="crop", keep_source=True
    )
    assert film.count == len(list(film.frames)) == 19
    given = told.frames(to_float(pictures)[None])
    first, second, third, *enlarged = told.heard
    assert (*first[:3], named(first[3], given), first[4]) == ("interp", 8.0, None, 0, [0, 2, 4, 6])
    assert (*second[:3], named(second[3], given), second[4]) == (
        "interp",
        24.0,
        None,
        0,
        [0, 3, 6, 9, 12, 15],
    )
    # the last window is moved back so that it is full: it begins at 3, which the first pass drew
    assert third[:3] == ("interp", 24.0, None) and third[4] == [0, 3, 6, 9, 12, 15]
    assert not any(torch.allclose(third[3][0], row, atol=1e-6) for row in given.values())
    assert [one[:3] for one in enlarged] == [one[:3] for one in ENLARGED]
    assert told.noise == [("interp", 0, 15), ("interp", 3, 18), *noise_of_enlarging(18)]


def test_a_piece_of_a_longer_clip_has_the_noise_of_its_own_frames(told):
    video = video_of(9)
    filled = told.cascade.fill_gaps(video, [0, 4, 8], DRAWS, fps=12, first=40)
    assert told.calls(told.frames(filled)) == [("interp", 12.0, None, 0, [0, 4, 8])]
    assert told.noise == [("interp", 40, 55)]


def test_extrapolate_forward_goes_on_from_the_frames_that_it_made(told):
    out = told.cascade.extrapolate(video_of(3), DRAWS, frames=21, fps=12)
    assert told.calls(told.frames(out)) == [
        ("interp", 12.0, None, 0, [0, 1, 2]),
        ("interp", 12.0, None, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ]
    assert told.noise == [("extrapolate", 0, 15), ("extrapolate", 8, 23)]


def test_extrapolate_backward_numbers_frames_below_zero_and_embeds_the_first_that_is_not_hidden(told):
    out = told.cascade.extrapolate(video_of(3), DRAWS, frames=21, fps=12, direction="backward")
    assert told.calls(told.frames(out, first=-21)) == [
        ("interp", 12.0, None, 0, [13, 14, 15]),
        ("interp", 12.0, None, -13, [8, 9, 10, 11, 12, 13, 14, 15]),
    ]
    assert told.noise == [("extrapolate", -13, 2), ("extrapolate", -21, -6)]


def test_extrapolate_on_both_sides_is_each_of_them(told):
    out = told.cascade.extrapolate(video_of(3), DRAWS, frames=5, fps=12, direction="both")
    assert told.calls(told.frames(out, first=-2)) == [
        ("interp", 12.0, None, 0, [0, 1, 2]),
        ("interp", 12.0, None, 0, [13, 14, 15]),
    ]
    assert told.noise == [("extrapolate", 0, 15), ("extrapolate", -13, 2)]


def test_vary_tells_d_the_mean_embedding_of_all_frames(told):
    frames = noise_of(5)
    embedding = meaning(told.cascade, frames, fit="crop")
    base = told.cascade.decode(embedding, DRAWS, fps=24)
    told.cascade.finish(base, DRAWS, fps=24, frames=16)
    mean = torch.stack(list(told.frames(to_float(frames)[None]).values())).mean(0)
    assert told.calls({"mean": mean, **told.frames(base)}) == [
        ("decoder_t", 4.8, None, "mean", None),
        ("interp", 24.0, None, 0, [0, 5, 10, 15]),
        *ENLARGED,
    ]


@pytest.mark.parametrize("piece", ["sr_l", "sr_h"])
def test_super_resolution_is_shown_a_low_resolution_with_the_noise_that_it_is_told_of(piece, told):
    video = torch.rand(1, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    part = getattr(told.cascade.parts, piece)
    if piece == "sr_l":
        told.cascade.sr_l(video, DRAWS, fps=24, first=7)
        noise = module.video_noise((3, 8, 8), [(DRAWS[0], range(7, 12))], stage="sr_l low-res", step=START)
    else:
        told.cascade.sr_h(video, DRAWS)
        noise = module.shared_noise((3, 8, 8), DRAWS, stage="sr_h low-res", step=START).expand(1, 5, 3, 8, 8)
    noised = add_noise(Schedule.from_spec(part.schedule), video, t=torch.tensor([LEVEL]), noise=noise)
    assert torch.equal(told.low_res[piece], upsample(noised, part.size, how=part.enlarge))


def test_the_last_step_of_super_resolution_is_told_neither_a_rate_nor_a_level(recipe, tmp_path, monkeypatch):
    """Karlo's: an image network, whatever its first steps are."""
    weights = {
        piece: recipe.parent / f"weights/{piece}.safetensors"
        for piece in ("clip", "prior", "decoder_t", "interp", "sr_h")
    }
    sets = [
        "cascade.sr_l.last_step=true",
        "cascade.sr_l.network.noise_level=false",
        f"weights.dir={tmp_path}",
    ]
    sets += [f"weights.{piece}={path}" for piece, path in weights.items()]
    video = tiny_family.tiny_recipe(recipe, *sets).cascade.sr_l.network
    image = video.model_copy(update={"temporal": "none", "fps": False})
    for name, role, spec in (("sr_lt", "sr_lt", video), ("sr_l_last", "sr_l", image)):
        tensors = tiny_family.random_network(spec, seed=9).state_dict()
        save_weights(tmp_path / f"{name}.safetensors", tensors, WeightsHeader(role=role, spec=spec))
    told = Told(recipe, monkeypatch, *sets)
    told.cascade.sr_l(video_of(3), DRAWS, fps=24)
    assert told.calls({}) == [("sr_l", 24.0, None, None, None), ("sr_l_last", None, None, None, None)]


@pytest.mark.parametrize("use", ["between", "beyond"])
def test_what_is_known_stays_on_the_straight_path_from_its_noise_while_the_rest_is_drawn(
    use, recipe, monkeypatch
):
    """Not only at the end: what ↑F sees of a known frame at every step is that frame, as noisy as its own noise makes it."""
    told = Told(recipe, monkeypatch, "cascade.interp.sampler={name: ddim, steps: 3}")
    cascade = told.cascade
    known = [0, 5, 10, 15] if use == "between" else [0, 1, 2]
    if use == "between":
        truth = cascade.interpolate(video_of(4), DRAWS, skip=5, fps=24)[:, known]
    else:
        truth = cascade.extrapolate(video_of(3), DRAWS, frames=13, fps=24)[:, known]
    table = Schedule.from_spec(cascade.recipe.interp_schedule())
    steps = list(reversed(table.visited(cascade.parts.interp.sampler)))
    assert len(told.x["interp"]) == len(steps) == 3
    signal, noise = (
        [f(float(table.alphas_cumprod[t])) for t in steps]
        for f in (lambda a: a**0.5, lambda a: (1 - a) ** 0.5)
    )
    start = told.x["interp"][0][:, known]
    own = (start - signal[0] * truth) / noise[0]
    for x, a, s in zip(told.x["interp"], signal, noise, strict=True):
        torch.testing.assert_close(x[:, known], a * truth + s * own, atol=2e-5, rtol=0)
