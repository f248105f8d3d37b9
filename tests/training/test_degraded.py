"""What a super-resolution network is shown is what it is told, and what is kept of a clip is of its first frame."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mavcli.data.degrade import downsample, gaussian_blur, upsample
from mavcli.diffusion.process import add_noise
from mavcli.diffusion.schedule import Schedule
from mavcli.training.draws import Draws
from mavcli.training.losses import degraded, first_frames, sr_part
from mavcli.training.stage import Batch, Task

ROWS = 6


def task_of(tiny, tmp_path, *sets: str) -> Task:
    recipe = tiny(tmp_path, *sets).recipe
    schedule = Schedule.from_spec(recipe.cascade.sr_l.schedule)
    return Task(
        "sr_l", recipe, recipe.stage("sr_l"), torch.nn.Identity(), torch.device("cpu"), schedule=schedule
    )


def draws() -> Draws:
    return Draws(5, stage="sr_l", step=3, count=ROWS)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_low_resolution_is_blurred_as_often_and_noised_as_much_as_is_told(share, tiny, tmp_path):
    """Each row by hand, from the same draws in the same order: blur, level, noise."""
    how = [f"blur_probability={share}", "blur_kernel=5", "blur_sigma=1.5", "noise_max=0.5"]
    task = task_of(tiny, tmp_path, *(f"train.defaults.degradation.{part}" for part in how))
    x0 = torch.rand(ROWS, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low, level = degraded(task, x0, draws())
    again = draws()
    blurred = again.uniform() < share
    wanted_level = again.integers(int(0.5 * task.schedule.spec.timesteps))
    small = downsample(x0, 16)
    noise = again.normal(small.shape, device=task.device)
    assert torch.equal(level, wanted_level) and int(level.max()) > 0
    assert bool(blurred.any()) == (share > 0) and bool(blurred.all()) == (share == 1)
    for row in range(ROWS):
        shown = small[row : row + 1]
        if blurred[row]:
            shown = gaussian_blur(shown, kernel=5, sigma=1.5)
        t = wanted_level[row : row + 1]
        shown = add_noise(task.schedule, shown, t=t, noise=noise[row : row + 1])
        wanted = upsample(shown, 32, how=sr_part(task).enlarge)
        torch.testing.assert_close(low[row : row + 1], wanted)
    clean = upsample(small, 32, how=sr_part(task).enlarge)
    assert (low - clean).square().mean((1, 2, 3, 4)).min() > 1e-4, "every row is noised"


def test_what_is_told_of_a_clip_is_its_first_frame_with_and_without_a_memory():
    pixels = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 2, 2, 1).expand(-1, -1, -1, -1, 3)
    batch, cpu = Batch(pixels), torch.device("cpu")
    kept = SimpleNamespace(of_pictures=lambda pictures: pictures.float().flatten(1))
    told = first_frames(SimpleNamespace(kept=kept, device=cpu), batch)
    assert torch.equal(told, pixels[:, 0].float().flatten(1))
    clip = SimpleNamespace(encode_image=lambda pictures: (pictures + 1) * 127.5)
    told = first_frames(SimpleNamespace(kept=None, clip=clip, device=cpu), batch)
    torch.testing.assert_close(told, pixels[:, 0].permute(0, 3, 1, 2).float())
