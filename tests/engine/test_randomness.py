"""Invariant 8: noise is a function of what it is for."""

import torch

from mavcli.engine.randomness import START, Draw, gaussian, shared_noise, video_noise

SHAPE = (3, 4, 4)


def test_noise_does_not_know_its_neighbours():
    whole = video_noise(SHAPE, [(Draw(1), range(10)), (Draw(1, 1), range(10))], stage="interp", step=0)
    window = video_noise(SHAPE, [(Draw(1, 1), range(4, 7))], stage="interp", step=0)
    assert torch.equal(whole[1, 4:7], window[0])


def test_every_part_of_the_key_matters():
    keys = [
        (Draw(0), "interp", 0, START),
        (Draw(1), "interp", 0, START),
        (Draw(0, 1), "interp", 0, START),
        (Draw(0), "sr_l", 0, START),
        (Draw(0), "interp", 1, START),
        (Draw(0), "interp", -1, START),
        (Draw(0), "interp", 0, 0),
        (Draw(2**32), "interp", 0, START),
    ]
    drawn = [gaussian(SHAPE, draw, stage=s, frame=f, step=t) for draw, s, f, t in keys]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    x = gaussian((100_000,), Draw(3), stage="x", frame=0, step=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02


def test_noise_stays_what_it_was():
    """Golden values: a changed generator would silently give every seed another video."""
    x = gaussian((4,), Draw(7), stage="decoder_t", frame=3, step=START)
    torch.testing.assert_close(x, torch.tensor(GOLDEN), atol=1e-6, rtol=0)


def test_shared_noise_is_one_tensor_for_all_frames():
    assert shared_noise(SHAPE, [Draw(0), Draw(1)], stage="sr_h", step=0).shape == (2, 1, *SHAPE)


GOLDEN = [-0.3351607, -0.3390627, 2.4305890, -2.0028026]
