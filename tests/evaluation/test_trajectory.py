"""The judge of motion: its statistics are those of the signals, and it reads rendered clips and refuses what does not move."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mavcli.data import world
from mavcli.errors import WeightsError
from mavcli.evaluation import trajectory
from mavcli.evaluation.trajectory import (
    LABELS,
    NO_MOTION,
    TEST_SEED,
    MotionJudge,
    accuracy,
    course_of,
    load_motion_judge,
    read_motion,
    rendered_clips,
    rendered_pairs,
    save_motion_judge,
    thinned,
    track,
    train_motion_judge,
)
from mavcli.media.frames import to_float


@pytest.fixture(scope="module")
def judge() -> MotionJudge:
    return load_motion_judge()


def test_a_pose_is_where_the_picture_shows_the_actor():
    scene = world.scene_for(3, 1, split="all", action="skating", place="snow")
    positions = [world.pose(scene, t).x for t in np.linspace(0, 2.4, 9)]
    turning = [world.pose(world.scene_for(3, 2, split="all", action="spinning"), t).angle for t in (0.0, 1.0)]
    assert max(positions) - min(positions) > 0.2
    assert 2 * math.pi / (2.2 * 1.25) <= abs(turning[1] - turning[0]) <= 2 * math.pi / (2.2 * 0.8)
    falling = world.scene_for(3, 4, split="all", action="falling")
    assert world.pose(falling, 2.0).lift < world.pose(falling, 0.0).lift - 0.05


@pytest.mark.parametrize("frequency", [0.4, 1.1])
def test_a_course_has_the_speed_amplitude_and_frequency_of_its_signal(frequency):
    t = torch.arange(24) / 8
    course = course_of(0.3 * t + 0.1 * torch.sin(2 * math.pi * frequency * t + 0.7), fps=8)
    assert course.frequency == pytest.approx(frequency, abs=0.06)
    assert course.share > 0.99
    assert course.amplitude == pytest.approx(0.1, rel=0.2)
    assert course_of(0.5 * t, fps=8).speed == pytest.approx(0.5, abs=1e-5)
    assert course_of(torch.full((24,), 0.4), fps=8) == trajectory.Course(
        pytest.approx(0, abs=1e-6), 0.0, 0.0, 0.0
    )


def test_a_clip_is_thinned_out_to_the_rate_that_the_judge_knows():
    clip = torch.arange(76.0)[:, None, None, None].expand(76, 3, 2, 2)
    some, fps = thinned(clip, 24)
    assert fps == 4.8 and some[:, 0, 0, 0].tolist() == list(range(0, 76, 5))
    assert thinned(clip[:16], 4.8)[1] == 4.8 and len(thinned(clip[:16], 4.8)[0]) == 16


def test_poses_are_read_off_pictures(judge):
    pairs = rendered_pairs(60, seed=TEST_SEED)
    with torch.no_grad():
        first, second, step = judge.read_pairs(to_float(pairs.first), to_float(pairs.second))
    for read, truth in ((first, pairs.first_pose), (second, pairs.second_pose)):
        assert (read[:, :2] - truth[:, :2]).abs().mean() < 0.02
        turn = torch.atan2(read[:, 3], read[:, 2]) - torch.atan2(truth[:, 3], truth[:, 2])
        assert (torch.remainder(turn + math.pi, 2 * math.pi) - math.pi).abs().median() < 0.12
    assert (step[:, 0] - pairs.step[:, 0]).abs().mean() < 0.01


def test_a_spinning_actor_is_tracked_through_whole_turns(judge):
    scene = world.scene_for(TEST_SEED, 7, split="all", actor="dog", action="spinning", place="snow")
    path = track(judge, to_float(world.render_clip(scene, fps=5, frames=16, size=64)), fps=5)
    truth = world.pose(scene, 3.0).angle - world.pose(scene, 0.0).angle
    assert float(path.angle[-1] - path.angle[0]) == pytest.approx(truth, rel=0.12)


def test_the_motion_of_rendered_clips_is_read_and_disorder_and_stills_are_refused(judge):
    moving = rendered_clips(54, seed=TEST_SEED)
    assert NO_MOTION in {LABELS[int(label)] for label in moving.labels}
    assert accuracy(judge, moving) > 0.9


def test_a_picture_that_stands_still_shows_no_motion_whatever_it_shows(judge):
    for action in world.ACTIONS:
        scene = world.scene_for(TEST_SEED, 11, split="all", action=action)
        still = to_float(world.render(scene, 0.5, 64)[None]).expand(16, -1, -1, -1)
        assert read_motion(judge, still, fps=4.8).found == NO_MOTION


def test_a_clip_of_three_frames_has_no_trajectory(judge):
    with pytest.raises(ValueError, match="at least 4 frames"):
        track(judge, torch.zeros(3, 3, 64, 64), fps=8)


def test_a_judge_is_trained_saved_and_read_again(tmp_path: Path):
    class Silent:
        def stage(self, name: str, total: float) -> None: ...
        def advance(self, amount: float = 1) -> None: ...

    made = train_motion_judge(report=Silent(), steps=2, batch_size=4, pairs=8, clips=9)  # type: ignore[arg-type]
    path = tmp_path / "judge.safetensors"
    save_motion_judge(made.network, path, steps=made.steps, samples_seen=made.samples_seen)
    again = load_motion_judge(path)
    clip = torch.rand(16, 3, 64, 64) * 2 - 1
    assert read_motion(again, clip, fps=5).confidence == pytest.approx(
        read_motion(made.network, clip, fps=5).confidence, abs=0.05
    )
    with pytest.raises(WeightsError, match="motion"):
        load_motion_judge(trajectory.share_dir("weights") / "judges" / "pocket.safetensors")
