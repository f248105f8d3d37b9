"""Drawing training clips from a folder of videos."""

from collections import Counter

import numpy as np
import pytest

from mavcli.data.clips import Draw, Refused, VideoFolder
from mavcli.errors import InputError
from mavcli.media.video import write_video

SIZE = 16


def numbered(count: int) -> np.ndarray:
    """Frame i is a grey of level 20 + 4 i, so a drawn frame tells its number."""
    return np.stack([np.full((32, 48, 3), 20 + 4 * i, np.uint8) for i in range(count)])


def numbers(frames: np.ndarray) -> np.ndarray:
    return np.rint((frames.mean(axis=(1, 2, 3)) - 20) / 4).astype(int)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seconds at 25 fps, and one second at 8 fps in a folder of its own."""
    root = tmp_path_factory.mktemp("videos")
    (root / "Deep" / "er").mkdir(parents=True)
    write_video(root / "long.mp4", numbered(51), fps=25, crf=4)
    write_video(root / "Deep" / "er" / "Short.MP4", numbered(9), fps=8, crf=4)
    (root / "captions.csv").write_text("file,caption\n")
    (root / ".hidden.mp4").write_bytes(b"x")
    return root


def test_files_are_found_at_any_depth_in_a_fixed_order(folder):
    videos = VideoFolder(folder)
    assert [source.path.name for source in videos.sources] == ["Short.MP4", "long.mp4"]
    assert videos.used == "used 2 of 2 clips" and not videos.rejected
    assert [len(source.times) for source in videos.sources] == [9, 51]


def test_a_draw_lies_within_half_a_source_frame_of_its_times(folder):
    videos, rng = VideoFolder(folder), np.random.default_rng(0)
    for fps in (7.0, 8.0, 11.3, 12.5, 24.0, 25.0):
        for _ in range(20):
            draw = videos.draw_clip(rng, frames=8, fps=fps, size=SIZE, clip=1)
            assert isinstance(draw, Draw) and draw.frames.shape == (8, SIZE, SIZE, 3)
            wanted = draw.start + np.arange(8) / fps
            assert np.abs(numbers(draw.frames) / 25 - wanted).max() <= 0.5 / 25 + 1e-6


def test_every_start_that_fits_is_drawn(folder):
    videos, rng = VideoFolder(folder), np.random.default_rng(0)
    firsts = Counter(
        int(numbers(videos.draw_clip(rng, frames=26, fps=25.0, size=SIZE, clip=1).frames)[0])
        for _ in range(400)
    )
    assert set(firsts) == set(range(26))


def test_drawing_is_a_function_of_the_generator(folder):
    first = VideoFolder(folder).draw_fitting(np.random.default_rng(7), frames=8, fps=9.0, size=SIZE)
    videos = VideoFolder(folder)
    videos.draw_fitting(
        np.random.default_rng(1), frames=4, fps=4.0, size=SIZE
    )  # a filled cache changes nothing
    again = videos.draw_fitting(np.random.default_rng(7), frames=8, fps=9.0, size=SIZE)
    assert np.array_equal(first.frames, again.frames) and (first.clip, first.start) == (
        again.clip,
        again.start,
    )


def test_a_rate_for_which_the_clip_is_too_short_is_refused_with_the_lowest_that_fits(folder):
    videos, rng = VideoFolder(folder), np.random.default_rng(0)
    refused = videos.draw_clip(rng, frames=16, fps=2.0, size=SIZE, clip=1)
    assert isinstance(refused, Refused) and refused.lowest == pytest.approx(15 / 2.0)
    redrawn = videos.draw_clip(rng, frames=16, fps=refused.lowest, size=SIZE, clip=1)
    assert isinstance(redrawn, Draw) and numbers(redrawn.frames)[[0, -1]].tolist() == [0, 50]


def test_no_source_frame_is_shown_twice(folder):
    videos, rng = VideoFolder(folder), np.random.default_rng(0)
    refused = videos.draw_clip(rng, frames=8, fps=24.0, size=SIZE, clip=0)
    assert isinstance(refused, Refused) and refused.highest == pytest.approx(8.0, rel=0.002)
    for _ in range(50):
        draw = videos.draw_fitting(rng, frames=8, fps=float(rng.uniform(1, 30)), size=SIZE)
        assert (np.diff(numbers(draw.frames)) > 0).all()


def test_misfitting_rates_move_to_the_nearer_bound_and_are_counted(folder):
    videos, rng = VideoFolder(folder), np.random.default_rng(0)
    rates = {(draw.clip, round(draw.fps, 2)) for draw in
             (videos.draw_fitting(rng, frames=16, fps=2.0, size=SIZE) for _ in range(20))}  # fmt: skip
    assert rates == {(1, 7.5)}  # the other file has no 16 frames at any rate
    assert videos.redrawn["rate"] == 20 and videos.redrawn["clip"] > 0


def test_a_folder_without_long_enough_videos_says_so(folder):
    with pytest.raises(InputError, match="no clip of 60 frames; its longest video has 51"):
        VideoFolder(folder).draw_fitting(np.random.default_rng(0), frames=60, fps=8.0, size=SIZE)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_videos_too_long_to_keep_are_decoded_in_part_with_the_same_result(folder, fit):
    kept, parts = VideoFolder(folder), VideoFolder(folder, cache_bytes=0)
    for seed in range(5):
        draws = [videos.draw_clip(np.random.default_rng(seed), frames=8, fps=20.0, size=SIZE, fit=fit, clip=1)
                 for videos in (kept, parts)]  # fmt: skip
        assert np.array_equal(draws[0].frames, draws[1].frames)
    assert kept._cache and not parts._cache


def test_the_cache_stays_below_its_bound(folder):
    videos = VideoFolder(folder, cache_bytes=4 * 51 * 8 * 8 * 3)
    rng = np.random.default_rng(0)
    for size in (8, 7, 6, 5, 8, 4):
        for clip in (0, 1):
            videos.draw_clip(rng, frames=4, fps=8.0, size=size, clip=clip)
    assert 0 < sum(entry.nbytes for entry in videos._cache.values()) <= 4 * 51 * 8 * 8 * 3


def test_unusable_files_are_rejected_with_reasons(folder, tmp_path):
    for path in ("long.mp4", "Deep/er/Short.MP4"):
        (tmp_path / path.split("/")[-1]).write_bytes((folder / path).read_bytes())
    write_video(tmp_path / "one.mp4", numbered(1), fps=8)
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / "c.mp4").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    seen: list[tuple[int, int]] = []
    videos = VideoFolder(tmp_path, report=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (6, 6)
    assert videos.used.startswith("used 2 of 6 clips: 2 x is an empty file")
    assert videos.rejected["c.mp4"].startswith("is a git-lfs pointer")
    assert videos.rejected["one.mp4"] == "has 1 frames, wanted at least 2"


@pytest.mark.parametrize("content", [None, b"", b"noise" * 100])
def test_a_folder_with_nothing_usable_is_exit_4_with_the_reasons(content, tmp_path):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match="holds no usable video: (no files|1 x is)") as raised:
        VideoFolder(tmp_path)
    assert raised.value.exit_code == 4 and str(tmp_path) in raised.value.message
    with pytest.raises(InputError, match="no folder"):
        VideoFolder(tmp_path / "none")


def test_real_clips_are_all_usable(shared_data):
    videos = VideoFolder(shared_data / "clips")
    assert videos.used == "used 117 of 117 clips"
    draw = videos.draw_fitting(np.random.default_rng(0), frames=16, fps=8.0, size=32)
    assert draw.frames.shape == (16, 32, 32, 3) and draw.frames.std() > 5
