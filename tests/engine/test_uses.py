"""What the cascade is used for: time lines, pieces of long videos, sound; a whole tiny family."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_family import tiny_recipe

from mavcli.engine.backend import open_backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.engine.uses import film
from mavcli.engine.uses.film import Enlarged, Footage
from mavcli.engine.uses.interpolate import timeline
from mavcli.engine.windows import gap_windows, key_windows
from mavcli.engine.work import Work
from mavcli.media.frames import to_float, to_uint8
from mavcli.recipe.resolve import probe_machine, resolve


def footage(times, *, rate=10, uneven=False, cuts=()) -> Footage:
    return Footage(Path("x.mp4"), np.array(times), Fraction(rate), uneven, (8, 8), tuple(cuts), None)


@pytest.fixture(scope="module")
def cascade(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    recipe = tiny_recipe(tiny)
    backend = open_backend(resolve(recipe, machine=probe_machine()))
    work = Work(tmp_path_factory.mktemp("work"))
    return Cascade(recipe, find_family(recipe, ["clip", "interp", "sr_l", "sr_h"]), backend, work=work)


def test_a_clip_lasts_as_long_at_three_times_its_rate():
    line = timeline(footage(np.arange(6) / 10), factor=3, window=16)
    assert (line.count, line.known, line.drawn) == (18, (0, 3, 6, 9, 12, 15), 10)
    assert line.held == ((15, 18),) and line.scenes == (0,)


def test_nothing_is_drawn_across_a_cut():
    line = timeline(footage(np.arange(6) / 10, cuts=(3,)), factor=2, window=16)
    assert line.scenes == (0, 6) and line.held == ((4, 6), (10, 12)) and line.count == 12
    assert line.stretches == [(0, 2, 4), (5,), (6, 8, 10), (11,)] and line.drawn == 4


def test_a_gap_of_uneven_frames_is_drawn_and_not_filled_with_repeats():
    line = timeline(footage([0, 0.1, 0.2, 0.6, 0.7], uneven=True), factor=2, window=16)
    assert line.known == (0, 2, 4, 12, 14) and line.count == 16
    assert line.drawn == 1 + 1 + 7 + 1 and line.held == ((14, 16),)


def test_a_gap_wider_than_a_window_stands_until_a_window_reaches_its_end():
    line = timeline(footage([0, 0.1, 5.0, 5.1], uneven=True), factor=2, window=16)
    assert line.known == (0, 2, 100, 102) and line.held[0] == (2, 86)
    assert line.stretches[:2] == [(0, 2), (85, 100, 102)]


def test_of_two_frames_on_one_place_the_second_has_none():
    places, count = footage([0, 0.01, 0.1, 0.2], uneven=True).places(1)
    assert list(places) == [0, -1, 1, 2] and count == 3


@pytest.mark.parametrize(("keys", "skip"), [(2, 1), (16, 5), (7, 3), (2, 15), (40, 2)])
def test_windows_between_frames_that_stand_evenly_are_those_of_key_frames(keys, skip):
    known = range(0, (keys - 1) * skip + 1, skip)
    assert gap_windows(known, length=16) == key_windows(keys, skip=skip, length=16)


def test_a_gap_wider_than_a_window_cannot_be_filled():
    with pytest.raises(ValueError, match="no known frame"):
        gap_windows([0, 3, 30], length=16)


def test_gaps_filled_piece_by_piece_are_those_filled_at_once(cascade):
    """Noise belongs to a frame's number in the whole video, so the cut into pieces cannot be seen."""
    video = torch.rand(1, 61, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = list(range(0, 61, 5))
    whole = cascade.fill_gaps(video, known, [Draw(0)], fps=24.0)
    pieces = [
        cascade.fill_gaps(video[:, begin : begin + 31], known[:7], [Draw(0)], fps=24.0, first=begin)
        for begin in (0, 30)
    ]
    assert torch.equal(whole, torch.cat([pieces[0], pieces[1][:, 1:]], dim=1))
    assert torch.equal(whole[:, known], video[:, known])


def test_a_video_enlarged_as_it_goes_by_is_the_one_enlarged_at_once_and_a_long_one_is_not_kept(
    cascade, monkeypatch
):
    video = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    whole = to_uint8(cascade.enlarge(to_float(video)[None], [Draw(0)], fps=24.0)[0])
    assert np.array_equal(np.stack(list(Enlarged(cascade, video, [Draw(0)], fps=24.0))), whole)
    tail = np.stack(list(Enlarged(cascade, video, [Draw(0)], fps=24.0, start=10)))
    assert np.array_equal(tail, whole[10:])
    kept = cascade.work.size()
    monkeypatch.setattr(film, "_PIECE", 10)
    monkeypatch.setattr(film, "_HALO", 2)
    assert len(list(Enlarged(cascade, video[::-1], [Draw(0)], fps=24.0))) == 12
    assert cascade.work.size() == kept


def test_frames_of_one_scene_do_not_depend_on_another_scene(cascade):
    video = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    other = video.copy()
    other[4:] = 255 - other[4:]
    one, two = (list(Enlarged(cascade, x, [Draw(0)], fps=24.0, scenes=(0, 4))) for x in (video, other))
    assert np.array_equal(one[:4], two[:4]) and not np.array_equal(one[4:], two[4:])
