"""Drawing training clips from a folder of videos."""

import json
import re
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mavcli.data.clips import Draw, Plan, Redrawn, Refused, VideoFolder
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
    assert [source.name for source in videos.sources] == ["Deep/er/Short.MP4", "long.mp4"]
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
    draws = [videos.draw_fitting(rng, frames=16, fps=2.0, size=SIZE) for _ in range(20)]
    # the other file has no 16 frames at any rate
    assert {(draw.clip, round(draw.fps, 2)) for draw in draws} == {(1, 7.5)}
    counted = sum((draw.redrawn for draw in draws), Redrawn())
    assert counted.rate == 20 and counted.clip > 0
    quiet = [videos.draw_fitting(rng, frames=4, fps=7.0, size=SIZE).redrawn for _ in range(20)]
    assert quiet == [Redrawn()] * 20, "a rate that both files allow"


def test_a_folder_without_long_enough_videos_says_so(folder):
    with pytest.raises(InputError, match="no clip of 60 frames; its longest scene has 51"):
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
    videos = VideoFolder(tmp_path, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(done, 6) for done in range(7)]
    assert videos.used == f"used 2 of 6 clips (4 rejected: mav data check {tmp_path})"
    assert videos.rejected["a.mp4"] == videos.rejected["b.mp4"] == "is an empty file, wanted a video"
    assert videos.rejected["c.mp4"].startswith("is a git-lfs pointer")
    assert videos.rejected["one.mp4"] == "has 1 frame, wanted at least 2"


@pytest.mark.parametrize("content", [None, b"", b"noise" * 100])
def test_a_folder_with_nothing_usable_is_exit_4_with_the_reasons(content, tmp_path):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match="holds no usable video: (no files|1 x is)") as raised:
        VideoFolder(tmp_path)
    assert raised.value.exit_code == 4 and str(tmp_path) in raised.value.message
    with pytest.raises(InputError, match="no folder"):
        VideoFolder(tmp_path / "none")


def test_real_clips_are_all_usable_and_seeking_in_them_gives_the_frames_of_reading_all(shared_data):
    videos = VideoFolder(shared_data / "clips")
    assert videos.used == "used 117 of 117 clips" and all(source.seekable for source in videos.sources)
    parts = VideoFolder(shared_data / "clips", cache_bytes=0)
    for seed in range(12):
        draws = [
            folder.draw_fitting(np.random.default_rng(seed), frames=16, fps=12.0, size=32)
            for folder in (videos, parts)
        ]
        assert draws[0].frames.shape == (16, 32, 32, 3) and draws[0].frames.std() > 5
        assert np.array_equal(draws[0].frames, draws[1].frames)


# scenes and rates, told from a number that is drawn into each frame --------------------------------------------------

BITS, CELL = 9, 8


def stamped(number: int) -> np.ndarray:
    """A frame whose nine squares say its number in two greys, too near for a cut."""
    bits = 118 + 20 * np.array([number >> i & 1 for i in range(BITS)], np.uint8)
    cells = bits.reshape(3, 3).repeat(CELL, 0).repeat(CELL, 1)
    return np.repeat(cells[..., None], 3, axis=2)


def read_numbers(frames: np.ndarray) -> np.ndarray:
    """The numbers of `stamped` frames, at any size."""
    side = frames.shape[1] // 3
    centre = side // 2
    bits = frames[:, centre::side, centre::side, 0].reshape(len(frames), BITS) > 128
    return (bits * (1 << np.arange(BITS))).sum(1)


def write_stamped(path: Path, ticks: list[int], *, base: Fraction, codec: str = "libx264") -> None:
    """Frame i at `ticks[i]` of `base` seconds, a keyframe at every 40th, B frames between."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width = stream.height = 3 * CELL
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        stream.options = {"crf": "5", "g": "40", "keyint_min": "40", "sc_threshold": "0"}
        stream.codec_context.thread_count = 1
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(stamped(number), format="rgb24")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


UNEVEN = np.random.default_rng(0)
COUNTED: dict[str, tuple[list[int], Fraction]] = {
    "film.mp4": ([i * 1001 for i in range(240)], Fraction(1, 24000)),
    "pal.mkv": ([i * 40 for i in range(300)], Fraction(1, 1000)),
    "ntsc.mkv": ([round(i * 1001 / 30) for i in range(300)], Fraction(1, 1000)),
    "slow.mp4": (list(range(60)), Fraction(1, 5)),
    "phone.mp4": (np.cumsum(UNEVEN.choice([2900, 3000, 3100], 400)).tolist(), Fraction(1, 90000)),
    "dropped.mp4": ([i * 20 for i in range(400) if i % 37 not in (5, 6, 21)], Fraction(1, 600)),
    "paused.mkv": ([i * 33 + 2000 * (i > 150) for i in range(300)], Fraction(1, 1000)),
}
"""Constant rates, times rounded by the container, jitter, lost frames, and a pause: ticks and their length in seconds."""


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Videos whose every frame says its number, and the true time of each frame, by name."""
    root = tmp_path_factory.mktemp("counted")
    truth = {}
    for name, (ticks, base) in COUNTED.items():
        write_stamped(root / name, ticks, base=base)
        truth[name] = (np.array(ticks) - ticks[0]) * float(base)
    return root, truth


def test_drawn_frames_are_the_ones_that_the_timestamps_ask_for_in_ten_thousand_draws(counted):
    root, truth = counted
    videos, rng = VideoFolder(root), np.random.default_rng(1)
    parts = VideoFolder(root, cache_bytes=0)
    assert [source.name for source in videos.sources] == sorted(COUNTED)
    by_name = {source.name: source for source in videos.sources}
    for name, times in truth.items():
        np.testing.assert_allclose(by_name[name].times, times, atol=6e-4, err_msg=name)
    planned = refused = 0
    seen: Counter[str] = Counter()
    while planned < 10_000 and refused < 30_000:
        fps = float(rng.uniform(1, 30))
        plan = videos.plan(rng, frames=16, fps=fps)
        if isinstance(plan, Refused):
            refused += 1
            continue
        source = videos.sources[plan.clip]
        times, wanted = truth[source.name], plan.start + np.arange(16) / fps
        nearest = np.abs(times[:, None] - wanted).argmin(0)
        off = np.abs(times[plan.index] - wanted)
        # containers of milliseconds move a frame by half of one
        assert (off <= np.abs(times[nearest] - wanted) + 1.1e-3).all(), (source.name, fps)
        assert off.max() <= 0.5 * float(np.median(np.diff(times))) + 1.1e-3
        assert (np.diff(plan.index) > 0).all()
        planned += 1
        seen[source.name] += 1
        if planned % 40 == 0:  # what really decodes, by both ways
            for folder in (videos, parts) if planned % 200 == 0 else (videos,):
                frames = folder._pixels(plan.clip, plan.index, 3 * CELL, "crop")[0]
                assert read_numbers(frames).tolist() == plan.index.tolist(), source.name
    assert planned == 10_000 and seen.keys() == COUNTED.keys() and refused > 0


def test_every_true_rate_is_found_in_the_timestamps(counted):
    rates = {source.name: source.fps for source in VideoFolder(counted[0]).sources}
    wanted = {"film.mp4": 24000 / 1001, "pal.mkv": 25, "ntsc.mkv": 30000 / 1001, "slow.mp4": 5, "phone.mp4": 30,
              "dropped.mp4": 30, "paused.mkv": 30}  # fmt: skip
    assert rates == {name: pytest.approx(rate, rel=1e-4) for name, rate in wanted.items()}


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A film of four scenes of 20, 9, 30 and 2 frames at 10 fps, each with a bar that moves; and one scene that stands."""
    root = tmp_path_factory.mktemp("cut")
    frames = []
    for scene, length in enumerate((20, 9, 30, 2)):
        for i in range(length):
            frame = np.full((32, 48, 3), (20, 130, 60, 240)[scene], np.uint8)
            frame[:, i : i + 2] += 10
            frames.append(frame)
    write_video(root / "film.mp4", frames, fps=10, crf=4)
    write_video(root / "still.mp4", frames[:1] * 24, fps=10, crf=4)
    write_video(root / "slides.mp4", [frames[i] for i in (0, 25, 45) for _ in range(8)], fps=10, crf=4)
    (root / "again").mkdir()
    shutil.copy(root / "still.mp4", root / "again" / "copy.mp4")
    return root


def test_cuts_still_videos_and_copies_are_found(cut):
    by_name = {source.name: source for source in VideoFolder(cut).sources}
    assert by_name["film.mp4"].cuts == (20, 29, 59) and not by_name["film.mp4"].static
    assert by_name["slides.mp4"].cuts == (8, 16) and by_name["slides.mp4"].static
    assert by_name["still.mp4"].static and by_name["still.mp4"].cuts == ()
    assert by_name["still.mp4"].duplicate_of == "again/copy.mp4"
    assert [s.name for s in by_name.values() if s.duplicate_of] == ["still.mp4"]


def test_a_clip_never_crosses_a_cut(cut):
    videos, rng = VideoFolder(cut), np.random.default_rng(0)
    film = next(i for i, source in enumerate(videos.sources) if source.name == "film.mp4")
    scene_of = np.repeat(np.arange(4), (20, 9, 30, 2))
    seen: Counter[int] = Counter()
    for _ in range(2000):
        plan = videos.plan(rng, frames=5, fps=float(rng.uniform(2, 10)), clip=film)
        if isinstance(plan, Refused):
            continue
        scenes_seen = set(scene_of[plan.index].tolist())
        assert len(scenes_seen) == 1
        seen[scenes_seen.pop()] += 1
    assert set(seen) == {0, 1, 2}, "a scene of two frames gives no clip of five"
    assert videos.bounds(film, frames=5)[0] == pytest.approx(4 / 2.9)
    longest = videos.plan(rng, frames=30, fps=10.0, clip=film)
    assert isinstance(longest, Plan) and longest.index[[0, -1]].tolist() == [29, 58]
    assert isinstance(videos.plan(rng, frames=31, fps=10.0, clip=film), Refused)
    pixels = videos.draw_clip(rng, frames=20, fps=10.0, size=16, clip=film)
    assert isinstance(pixels, Draw) and np.ptp(pixels.frames.mean(axis=(1, 2, 3))) < 15


def test_still_videos_and_copies_train_nothing_where_the_recipe_says_so(cut):
    videos = VideoFolder(cut, leave_out=("static", "duplicate"))
    assert [source.name for source in videos.sources] == ["film.mp4"]
    assert videos.rejected["slides.mp4"] == "is static, and `train.data.leave_out` names that"
    copies = VideoFolder(cut, leave_out=("duplicate",))
    assert copies.rejected == {
        "still.mp4": "is a duplicate of `again/copy.mp4`, and `train.data.leave_out` names that"
    }


def test_the_awkward_files_of_this_world_are_used_or_left_out_with_a_reason(shared_data, tmp_path):
    expected = {}
    for name in ("nasty_real", "nasty_made"):
        (tmp_path / name).symlink_to(shared_data / name)
        for entry in json.loads((shared_data / name / "EXPECTED.json").read_text()):
            expected[f"{name}/{entry['file']}"] = entry
    videos = VideoFolder(tmp_path)
    assert videos.used.startswith("used 95 of 132 clips (37 rejected: mav data check ")
    assert {source.name for source in videos.sources} | videos.rejected.keys() == expected.keys()
    for source in videos.sources:
        entry = expected[source.name]
        if source.name == "nasty_real/iss634.webp":  # FFmpeg, which made the table, has no decoder for it
            assert len(source.times) == 42
        elif "decode error" in entry["outcome"]:  # after so many frames; whole ones follow
            assert len(source.times) >= entry["frames"] and source.warnings
        else:
            assert len(source.times) == entry["frames"], source.name
    for name, reason in videos.rejected.items():
        entry = expected[name]
        words = {
            "cannot open": r"is an? |is not a video",
            "no video stream": r"has no video stream|is an MP3",
            "opens, 0 frames": r"holds no frame",
            "decode error after 0 frames": r"holds no frame|is an? .*WebP|is a WEBP",
            "ok": r"has 1 frame, wanted at least 2|is a (PNG|WEBP) image",
        }[entry["outcome"]]
        assert re.match(words, reason), (name, entry["outcome"], reason)
        assert entry.get("frames", 0) < 2
    rng = np.random.default_rng(0)
    for _ in range(30):
        draw = videos.draw_fitting(rng, frames=8, fps=float(rng.uniform(1, 30)), size=16)
        assert draw.frames.shape == (8, 16, 16, 3)
