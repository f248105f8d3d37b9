"""Figures of motion on clips whose motion is known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mavcli.evaluation import motion
from mavcli.evaluation.motion import (
    Motion,
    MotionFigures,
    mean_motion,
    motion_of,
    rank_correlation,
    shuffled,
)
from mavcli.media.frames import to_float


def sliding_bar(frames: int = 16, *, speed: float = 1.0) -> Tensor:
    """A soft bar that moves evenly to the right."""
    x = torch.arange(64.0)
    rows = [torch.exp(-(((x - 20 - speed * i) / 6) ** 2)) for i in range(frames)]
    return torch.stack(rows)[:, None, None, :].expand(frames, 3, 8, 64) * 2 - 1


def test_a_still_does_not_move() -> None:
    assert motion_of(torch.full((5, 3, 4, 4), 0.3)) == Motion(0.0, 1.0, 0.0)


def test_black_to_white_and_back_is_all_the_motion_there_is() -> None:
    clip = torch.tensor([-1.0, 1.0] * 4)[:, None, None, None].expand(8, 3, 4, 4)
    found = motion_of(clip)
    assert found.motion == pytest.approx(1.0) and found.coherence == pytest.approx(-1.0)
    assert found.flicker == pytest.approx(2.0)


def test_noise_has_no_coherence_and_the_flicker_of_noise() -> None:
    clip = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = motion_of(clip)
    assert found.coherence == pytest.approx(-1 / 16, abs=0.02)
    assert found.flicker == pytest.approx(3**0.5, abs=0.02)


def test_smooth_motion_is_coherent_until_its_frames_are_shuffled() -> None:
    smooth = motion_of(sliding_bar())
    control = motion_of(shuffled(sliding_bar(), seed=0))
    assert smooth.coherence > 0.7 and smooth.flicker < 0.6
    assert control.coherence < 0.3 and control.motion > 2 * smooth.motion and control.flicker > 1.2


def test_faster_is_more_motion() -> None:
    assert motion_of(sliding_bar(speed=2)).motion > 1.5 * motion_of(sliding_bar()).motion


def test_two_frames_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least 3 frames"):
        motion_of(torch.zeros(2, 3, 4, 4))


def test_strips_of_rows_give_the_figures_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (7, 13, 10, 3), dtype=np.uint8)
    whole = MotionFigures().prepare(frames)
    clip = to_float(frames).double()
    step, rest = clip.diff(dim=0), clip - clip.mean(dim=0)
    wanted = [
        step.abs().mean() / 2,
        (rest[1:] * rest[:-1]).mean() / rest.square().mean(),
        step.diff(dim=0).abs().mean() / step.abs().mean(),
        clip.mean(dim=(1, 2, 3)).diff().abs().mean() / 2,
    ]
    assert whole[0].tolist() == pytest.approx([float(value) for value in wanted], rel=1e-6)
    monkeypatch.setattr(motion, "_AT_ONCE", 4 * 7 * 10 * 3)  # four rows
    assert MotionFigures().prepare(frames)[0].tolist() == pytest.approx(whole[0].tolist(), rel=1e-6)
    parts, one = motion_of(to_float(frames)), whole[0].tolist()
    assert [parts.motion, parts.coherence, parts.flicker] == pytest.approx(one[:3], rel=1e-6)


def test_the_mean_of_two_clips() -> None:
    assert mean_motion([Motion(0.0, 1.0, 0.0), Motion(0.2, 0.0, 1.0)]) == Motion(0.1, 0.5, 0.5)


def test_rank_correlation_sees_order_alone() -> None:
    assert rank_correlation([1, 4, 8, 15], [0.1, 0.2, 0.3, 9.0]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0.0
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 3], [1, 1, 2]) == pytest.approx(0.8660, abs=1e-4)
