"""The frame-rate curriculum, the interpolator's masks, and what super-resolution is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mavcli.data.degrade import downsample, gaussian_blur, upsample
from mavcli.diffusion.schedule import Schedule
from mavcli.recipe.schema import Degradation, FpsCurriculum, Masks
from mavcli.specs import ScheduleSpec
from mavcli.training import losses
from mavcli.training.conditioning import draw_fps, draw_known, masked_video
from mavcli.training.draws import Draws
from mavcli.training.stage import Task


def test_frame_rates_go_from_high_to_low_over_training():
    rng, curriculum = np.random.default_rng(0), FpsCurriculum()
    means = []
    for progress in (0.0, 0.5, 1.0):
        drawn = np.array([draw_fps(rng, curriculum, progress) for _ in range(2000)])
        assert drawn.min() >= 1 and drawn.max() <= 30
        means.append(drawn.mean())
    # the mean of Beta(a, b) is a / (a + b)
    np.testing.assert_allclose(means, [1 + 29 * 4 / 5, 1 + 29 / 2, 1 + 29 / 5], rtol=0.05)


def test_masks_are_drawn_by_their_shares():
    rng, masks = np.random.default_rng(0), Masks()
    drawn = [draw_known(rng, masks, 16) for _ in range(4000)]
    counts = {
        "endpoints": np.mean([k.sum() == 2 and k[0] and k[-1] for k in drawn]),
        "generate": np.mean([not k.any() for k in drawn]),
        "by fives": np.mean([set(np.flatnonzero(k)) == {0, 5, 10, 15} for k in drawn]),
        "by fours": np.mean([set(np.flatnonzero(k)) == {0, 4, 8, 12} for k in drawn]),
    }
    each = masks.interpolate / 14
    assert abs(counts["endpoints"] - masks.endpoints - each) < 0.02  # fifteen apart are the two ends too
    assert abs(counts["generate"] - masks.generate) < 0.015
    assert abs(counts["by fives"] - each) < 0.012
    assert abs(counts["by fours"] - each) < 0.012  # the paper's 1 -> 4 fps
    assert not any(k.all() for k in drawn), "something is left to predict"


def test_every_factor_that_interpolate_offers_is_trained():
    rng = np.random.default_rng(0)
    masks = Masks(interpolate=1, endpoints=0, forward=0, backward=0, animate=0, generate=0)
    for frames in (4, 16):
        apart = {tuple(np.flatnonzero(draw_known(rng, masks, frames))) for _ in range(400)}
        assert apart == {tuple(range(0, frames, skip)) for skip in range(2, frames)}
    twice = masks.model_copy(update={"frame_skips": (2, 5, 5, 5)})
    fives = np.mean([draw_known(rng, twice, 16).sum() == 4 for _ in range(800)])
    assert abs(fives - 0.75) < 0.06, "one that stands three times is drawn three times as often"


@pytest.mark.parametrize("task", ["forward", "backward", "animate", "generate", "endpoints", "interpolate"])
def test_each_mask_is_what_its_name_says(task):
    masks = Masks(**{n: float(n == task) for n in Masks.model_fields if n != "frame_skips"}, frame_skips=(3,))
    rng = np.random.default_rng(1)
    for _ in range(50):
        known = draw_known(rng, masks, 7)
        indices = np.flatnonzero(known).tolist()
        if task == "forward":
            assert indices == list(range(len(indices))) and 1 <= len(indices) <= 6
        elif task == "backward":
            assert indices == list(range(7 - len(indices), 7)) and 1 <= len(indices) <= 6
        else:
            wanted = {"animate": [0], "generate": [], "endpoints": [0, 6], "interpolate": [0, 3, 6]}
            assert indices == wanted[task]


def test_masked_video_hides_what_is_unknown():
    x = torch.rand(1, 3, 3, 2, 2) + 1
    masked = masked_video(x, torch.tensor([[True, False, True]]))
    assert masked.shape == (1, 3, 4, 2, 2)
    assert torch.equal(masked[0, [0, 2], :3], x[0, [0, 2]]) and not masked[0, 1].any()
    assert (masked[0, [0, 2], 3] == 1).all()


def test_blurring_weighs_by_a_normalised_gaussian():
    x = torch.zeros(1, 1, 2, 7, 7)
    x[0, 0, 0, 3, 3] = 1
    blurred = gaussian_blur(x, kernel=3, sigma=0.6)
    e = np.exp(-0.5 / 0.36)
    line = np.array([e, 1, e]) / (1 + 2 * e)
    np.testing.assert_allclose(blurred[0, 0, 0, 2:5, 2:5].numpy(), np.outer(line, line), rtol=1e-5)
    assert blurred.shape == x.shape and not blurred[0, 0, 1].any(), "channels do not mix"
    torch.testing.assert_close(blurred.sum(), torch.tensor(1.0))
    flat = torch.full((2, 3, 3, 5, 5), 0.4)
    torch.testing.assert_close(gaussian_blur(flat, kernel=4, sigma=1.0), flat)


def test_resizing_keeps_the_mean_and_the_frames_apart():
    x = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    small = downsample(x, 4)
    assert small.shape == (2, 3, 3, 4, 4)
    torch.testing.assert_close(small[1, 2], downsample(x[1:, 2:3], 4)[0, 0])
    torch.testing.assert_close(small.mean(), x.mean(), rtol=0, atol=0.03)
    large = upsample(small, (16, 8))
    assert large.shape == (2, 3, 3, 16, 8) and float(large.abs().max()) <= 1


class Recipe:
    """As much of a recipe as `degraded` reads."""

    class cascade:  # noqa: N801
        class decoder:  # noqa: N801
            class network:  # noqa: N801
                image_size = 8

        class sr_l:  # noqa: N801
            size = 16
            enlarge = "bicubic"


def draws(x: torch.Tensor, *, seed: int = 0) -> Draws:
    return Draws(seed, stage="sr_l", step=0, count=len(x))


def a_task(**changes: object) -> Task:
    config = type("Config", (), {"degradation": Degradation(**changes)})
    schedule = Schedule.from_spec(ScheduleSpec(prediction="x0"))
    return Task("sr_l", Recipe, config, nn.Identity(), torch.device("cpu"), schedule)  # type: ignore[arg-type]


def test_without_blur_and_noise_the_low_res_picture_is_only_resized():
    x = torch.rand(4, 2, 3, 16, 16) * 2 - 1
    low_res, level = losses.degraded(a_task(noise_max=0.0, blur_probability=0.0), x, draws(x, seed=0))
    assert torch.equal(low_res, upsample(downsample(x, 8), 16))
    assert level.tolist() == [0, 0, 0, 0]


def test_noise_is_of_the_level_that_the_network_is_told():
    x = torch.zeros(64, 1, 3, 16, 16)
    task = a_task(noise_max=0.3, blur_probability=0.0)
    low_res, level = losses.degraded(task, x, draws(x, seed=0))
    assert int(level.min()) >= 0 and 200 < int(level.max()) < 300 and len(level.unique()) > 40
    _, sigma = task.schedule.alpha_sigma(level, x)
    spread = low_res.flatten(1).std(dim=1) / sigma.flatten()
    assert float(spread.std() / spread.mean()) < 0.2, "proportional to the level's sigma"


def test_blur_falls_on_its_share_of_samples():
    x = torch.rand(200, 1, 3, 16, 16) * 2 - 1
    low_res, _ = losses.degraded(a_task(noise_max=0.0, blur_probability=0.5), x, draws(x, seed=0))
    blurred = (low_res != upsample(downsample(x, 8), 16)).flatten(1).any(1).float().mean()
    assert 0.4 < float(blurred) < 0.6


def test_a_share_of_low_res_pictures_holds_what_half_of_their_pixels_would():
    x = torch.rand(200, 1, 3, 16, 16) * 2 - 1
    task = a_task(noise_max=0.0, blur_probability=0.0, half_probability=0.3)
    low_res, _ = losses.degraded(task, x, draws(x, seed=0))
    small = downsample(x, 8)
    whole, halved = upsample(small, 16), upsample(upsample(downsample(small, 4), 8), 16)
    is_halved = (low_res == halved).flatten(1).all(1)
    assert bool(((low_res == whole).flatten(1).all(1) ^ is_halved).all())
    assert 0.2 < float(is_halved.float().mean()) < 0.4


def test_the_noise_of_super_resolution_is_shifted_for_pictures_and_of_d_for_clips_alone():
    x = torch.zeros(400, 1, 3, 4, 4)
    task = a_task()
    task.config.timesteps, task.config.shift = "uniform", 20.0
    plain, _ = losses._draw(task, x, draws(x))
    shifted, _ = losses._draw(task, x, draws(x), shift_pictures=True)
    assert abs(float(plain.float().mean()) - 500) < 60 and float(shifted.float().median()) > 950


def test_the_corruption_is_a_function_of_the_generator():
    x = torch.rand(4, 1, 3, 16, 16)
    one, two, other = (losses.degraded(a_task(), x, draws(x, seed=s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
