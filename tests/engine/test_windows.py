"""The cut of long videos into what the networks know."""

import pytest

from mavcli.engine.windows import halo_windows, key_windows, sliding_windows


def taken(windows):
    return [i for w in windows for i in range(w.first, w.last)]


def test_sixteen_keys_five_apart_are_five_windows_and_76_frames():
    windows = key_windows(16, skip=5, length=16)
    assert [(w.start, w.stop) for w in windows] == [(0, 16), (15, 31), (30, 46), (45, 61), (60, 76)]
    assert taken(windows) == list(range(76))


@pytest.mark.parametrize("skip", [1, 2, 3, 4, 5, 7, 14, 15])
@pytest.mark.parametrize("keys", [2, 3, 4, 5, 8, 17])
def test_every_frame_is_taken_once_from_a_window_that_starts_on_a_key_and_knows_both_its_neighbours(
    keys, skip
):
    windows = key_windows(keys, skip=skip, length=16)
    total = (keys - 1) * skip + 1
    assert taken(windows) == list(range(total))
    for w in windows:
        assert w.start % skip == 0 and w.length == 16
        last_key = (w.stop - 1) // skip * skip
        assert all(w.start <= i <= min(last_key, total - 1) for i in range(w.first, w.last))


@pytest.mark.parametrize("length", [1, 4, 5, 16])
@pytest.mark.parametrize("total", [1, 3, 16, 17, 26, 76])
def test_halo_windows_take_every_frame_once_and_away_from_their_cut_edges(total, length):
    windows = halo_windows(total, length=length)
    assert taken(windows) == list(range(total))
    for w in windows:
        assert w.length == min(length, total) and w.start >= 0 and w.stop <= total
        assert w.start == 0 or w.first - w.start >= length // 5
        assert w.stop == total or w.stop - w.last >= length // 5


def test_sliding_windows_make_exactly_the_new_frames_and_know_at_most_half():
    assert sliding_windows(1, 15, length=16) == [(1, 15)]
    assert sliding_windows(40, 20, length=16) == [(8, 8), (8, 8), (8, 4)]
    assert sliding_windows(40, 0, length=16) == []
