"""Detail that is carried along the flow, and one sharpness for neighbouring frames."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mavcli.engine.detail import (
    BOUND,
    Hold,
    Shown,
    View,
    agreement,
    between,
    carried,
    flow,
    levelled,
    sharpness,
    trail,
)


def cloud(seed: int = 0, *, size: int = 64, grain: int = 16) -> torch.Tensor:
    """A smooth random picture (1, 3, size, size) in [-1, 1]."""
    coarse = torch.rand(1, 3, grain, grain, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).clamp(-1, 1)


def moved(x: torch.Tensor, right: float, down: float) -> torch.Tensor:
    """The picture, shifted by so many of 64 pixels, wherever the edge allows it."""
    theta = torch.tensor([[[1, 0, -2 * right / 64], [0, 1, -2 * down / 64]]])
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (1.5, 0.0), (-3.0, 2.0)])
def test_flow_finds_where_a_picture_went(right, down):
    before, after = cloud(), moved(cloud(), right, down)
    found = flow(after, before)[0, :, 12:-12, 12:-12]
    assert float((found[0] + right).abs().mean()) < 0.25 and float((found[1] + down).abs().mean()) < 0.25


def test_what_is_seen_again_agrees_and_what_is_not_does_not():
    one, other = cloud(0), cloud(7)
    assert float(agreement(one, one, torch.zeros(1, 2, 64, 64)).min()) > 0.95
    assert float(agreement(one, other, torch.zeros(1, 2, 64, 64)).mean()) < 0.4


def test_a_moving_picture_takes_its_detail_along_and_shows_it_once():
    """The truth is known: the picture itself, moved. Without carrying, the drawn frames lack the fine grain."""
    sharp = (cloud(size=256) + 0.3 * cloud(3, size=256, grain=128)).clamp(-1, 1)
    truth = [moved(sharp, i, 0.5 * i) for i in range(5)]
    drawn = [F.interpolate(x, 64, mode="area") for x in truth]
    large = [F.interpolate(x, 256, mode="bicubic", align_corners=False).clamp(-1, 1) for x in drawn]
    view, inner = View(256, 256), (..., slice(32, -32), slice(32, -32))
    for i, hold in enumerate(trail(torch.cat(drawn), view=view), start=1):
        got = carried(large[i], [(sharp, hold)], view=view)
        assert psnr(got[inner], truth[i][inner]) > psnr(large[i][inner], truth[i][inner]) + 3
    found = between(torch.cat([drawn[0], drawn[2]]), drawn[1])
    got = carried(large[1], [(truth[0], found.before[0]), (truth[2], found.after[0])], view=view)
    assert psnr(got[inner], truth[1][inner]) > psnr(large[1][inner], truth[1][inner]) + 3


def test_of_a_source_that_is_not_seen_again_nothing_stays_between_and_little_stays_after():
    source, other = cloud(0), cloud(7)
    found = between(torch.cat([source, source]), other)
    assert float(found.before[0].share.mean()) + float(found.after[0].share.mean()) < 0.4
    holds = trail(torch.cat([source, *[other] * 40]), view=View(64, 64))
    shares = [float(hold.share.mean()) for hold in holds]
    assert shares[0] > 0.85 and shares[12] < 0.45 and shares[-1] < 0.2
    assert all(after <= before + 1e-4 for before, after in pairwise(shares))


def test_a_frame_that_is_held_for_nothing_is_the_cascades_own():
    drawn, source = cloud(1), cloud(2)
    hold = Hold(torch.zeros(1, 2, 64, 64), torch.zeros(1, 1, 64, 64))
    assert torch.equal(carried(drawn, [(source, hold)], view=View(64, 64)), drawn)


def grain(strength: float, *, seed: int = 0) -> np.ndarray:
    """A picture (48, 64, 3) uint8 with so much grain."""
    noise = np.random.default_rng(seed).normal(size=(48, 64, 1))
    return np.clip(128 + strength * noise, 0, 255).astype(np.uint8).repeat(3, axis=2)


def steps(frames: list[np.ndarray]) -> np.ndarray:
    return np.exp(np.abs(np.diff(np.log([sharpness(frame) for frame in frames]))))


def test_frames_that_strobe_are_brought_to_one_sharpness():
    strobing = [grain(20 if i % 2 else 12, seed=i) for i in range(12)]
    assert steps(strobing).min() > 2
    assert steps(list(levelled((Shown(frame) for frame in strobing), period=2))).max() < BOUND + 0.03


def test_a_fixed_frame_is_not_changed_and_those_around_it_come_to_it():
    frames = [grain(8, seed=i) for i in range(9)]
    frames[4] = grain(16, seed=4)
    out = list(levelled((Shown(frame, fixed=i == 4) for i, frame in enumerate(frames)), ahead=8))
    assert np.array_equal(out[4], frames[4])
    assert steps(out).max() < BOUND + 0.03
    untouched = list(levelled(Shown(frame, fixed=True) for frame in frames))
    assert all(a is b for a, b in zip(untouched, frames, strict=True))


def test_a_frame_that_stands_is_one_picture_and_a_rhythm_is_even_to_the_ends_of_its_scene():
    strobing = [grain(20 if i % 2 else 12, seed=i) for i in range(9)]
    out = list(levelled((Shown(x, times=3 if i == 8 else 1) for i, x in enumerate(strobing)), period=2))
    assert len(out) == 11 and out[8] is out[9] and out[9] is out[10]
    assert steps(out).max() < 1.06


def test_sharpness_may_leap_at_a_cut_and_an_even_video_stays_as_it_is():
    frames = [grain(6)] * 4 + [grain(24)] * 4
    out = list(levelled(Shown(frame, cut=i in (0, 4)) for i, frame in enumerate(frames)))
    assert all(np.array_equal(a, b) for a, b in zip(out, frames, strict=True))
    assert list(levelled([])) == []
    flat = [np.full((8, 8, 3), 90, np.uint8)] * 3
    assert all(np.array_equal(a, flat[0]) for a in levelled((Shown(frame) for frame in flat), period=2))


def test_no_more_than_a_few_frames_are_waited_for():
    taken = []

    def source():
        for i in range(50):
            taken.append(i)
            yield Shown(grain(10, seed=i))

    out = levelled(source(), period=2, ahead=4)
    next(out)
    assert len(taken) == 5


def test_bars_beside_a_picture_do_not_let_its_detail_go_at_once():
    """All frames show bars of 16 rows, the drawn ones another picture: what is left of the source fades as without bars."""
    bars = torch.full((1, 3, 16, 64), -1.0)
    source, other = (torch.cat([bars, cloud(seed)[..., 16:48, :], bars], dim=-2) for seed in (0, 7))
    view = View(32, 64)
    holds = trail(torch.cat([source, other, other]), view=view)
    assert float(holds[0].share[..., 16:48, :].mean()) > 0.85
    assert view.inside(64).sum() == 30 * 64 and view.inside(64)[16:18, 0].tolist() == [0, 1]
    assert View(9, 9).inside(64).all() and View(1, 900).inside(64).sum() == 64
