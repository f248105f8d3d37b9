"""Videos as people have them, each from a situation that was reported, and the frames that they should give."""

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from mavcli.data.check import check_data, find_kind
from mavcli.errors import InputError
from mavcli.evaluation.clips import FrameChoice, read_frames
from mavcli.media import video as V
from mavcli.media.image import is_still
from mavcli.media.scenes import Scenes
from mavcli.media.video.source import Source
from mavcli.media.video.times import same_rate
from mavcli.recipe.schema import FpsCurriculum

CASES = Path(__file__).parents[1] / "data" / "cases"


def grey_levels(path: Path, codec: str, *, count: int = 100, rate: int = 25, container: str | None = None,
                **options: str) -> Path:  # fmt: skip
    """A video whose frame i is of grey level 10 + 2 i, with B-frames and a keyframe every twelve."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options={"bf": "2", "g": "12", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 + 2 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def in_order(frames) -> bool:
    """Whether each picture is the one of `grey_levels` with its number."""
    levels = frames.mean((1, 2, 3))
    return bool(np.abs(levels - (10 + 2 * np.arange(len(frames)))).max() < 1.5)


# --- side data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timelapse.avi", "timelapse_rot.mov"])
def test_side_data_of_a_kind_without_a_name_ends_nothing(name):
    assert V.read_clip(CASES / name).frames.shape == (6, 48, 64, 3)
    assert V.survey(CASES / name).width == 64 and V.probe(CASES / name).frames == 6


def test_a_time_lapse_is_turned_as_the_exif_of_its_photographs_says():
    """They are 48 wide and 64 high and ask for a quarter turn: 64 x 48 is shown, as Pillow and the program ffmpeg do."""
    with av.open(str(CASES / "timelapse_rot.mov")) as container:
        photo = Image.open(io.BytesIO(bytes(next(container.demux(video=0)))))
    assert photo.size == (48, 64) and photo.getexif()[ExifTags.Base.Orientation] == 6
    upright = np.asarray(ImageOps.exif_transpose(photo).convert("RGB")).astype(int)
    assert upright.shape == (48, 64, 3)
    assert np.abs(V.read_clip(CASES / "timelapse_rot.mov").frames[0] - upright).mean() < 3


# --- what is missing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames", "words"),
    [
        ("bad_zero_c264.mp4", 119, "after 28 frames (1.12 s): .*; 1 of 120 frames is missing"),
        ("lastbad_c264.mp4", 119, "; 1 of 120 frames is missing"),
        ("bad_zero_cvp9.webm", 102, "damaged data after 30 frames .*; 18 of 120 frames are missing"),
    ],
)
def test_one_bad_packet_loses_its_own_frames_and_says_how_many(name, frames, words):
    clip = V.read_clip(CASES / name)
    assert len(clip.frames) == frames == len(V.survey(CASES / name).times)
    (line,) = clip.warnings
    assert isinstance(line, V.Damage)
    assert re.search(words.replace("(", r"\(").replace(")", r"\)"), line)


def test_four_bad_bytes_of_a_long_video_lose_one_frame(shared_data):
    found = V.survey(shared_data / "cases" / "min_bad.mp4")
    assert len(found.times) == 1499 and found.times[-1] == pytest.approx(1499 / 25)
    assert [line.endswith("; 1 of 1,500 frames is missing") for line in found.warnings] == [True]


def test_what_a_decoder_marks_as_damaged_is_left_out(shared_data):
    clip = V.read_clip(shared_data / "nasty_real" / "decord_corrupted.mp4")
    assert len(clip.frames) == 48
    assert any("after 28 frames" in line and "2 of 50 frames are missing" in line for line in clip.warnings)


def test_a_matroska_that_was_cut_off_says_what_is_missing(tmp_path):
    whole = grey_levels(tmp_path / "a.mkv", "libx264", crf="1")
    assert V.read_clip(whole).warnings == ()
    data = whole.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) * 7 // 10])
    clip = V.read_clip(cut)
    (line,) = clip.warnings
    assert 20 < len(clip.frames) < 95 and isinstance(line, V.Damage)
    said = re.fullmatch(
        r"the file ends at .* s of the 4.00 s that it promises; (\d+) of .* frames are missing", line
    )
    # two frames before the last one, which is shown out of its turn, are gone too
    assert said is not None and 98 <= int(said[1]) + len(clip.frames) <= 100


@pytest.mark.parametrize(("name", "frames"), [("editlist.mp4", 26), ("negpts.mp4", 43)])
def test_a_clip_trimmed_by_an_edit_list_is_whole(name, frames):
    clip = V.read_clip(CASES / name)
    assert len(clip.frames) == frames and clip.warnings == V.survey(CASES / name).warnings == ()


def test_frames_that_were_dropped_while_recording_are_no_damage(shared_data):
    assert V.survey(shared_data / "nasty_real" / "sample.avi").warnings == ()


# --- times ---------------------------------------------------------------------------------------------------------

CODED = {"x264-params": "scenecut=0:b-adapt=0", "crf": "1"}


@pytest.mark.parametrize("suffix", ["avi", "mxf"])
def test_h264_with_b_frames_keeps_its_times_where_a_container_only_numbers_packets(suffix, tmp_path):
    path = grey_levels(tmp_path / f"a.{suffix}", "libx264", **CODED)
    clip = V.read_clip(path)
    assert len(clip.frames) == 100 and in_order(clip.frames)
    assert np.allclose(clip.times, np.arange(100) / 25) and (clip.rate, clip.vfr) == (25, False)
    survey = V.survey(path)
    assert survey.seekable and len(survey.keyframes) == 9 and np.array_equal(survey.times, clip.times)


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.avi", "libx264", None),
        ("b.avi", "mpeg4", None),
        ("a.mxf", "libx264", None),
        ("a.mpg", "mpeg2video", "mpeg"),
        ("a.vob", "mpeg2video", "vob"),
        ("a.ts", "libx264", None),
        ("a.mkv", "libx264", None),
    ],
)
def test_starting_anywhere_gives_what_reading_in_order_gives(name, codec, container, tmp_path):
    options = CODED if codec == "libx264" else {"b:v": "4000000"}
    path = grey_levels(tmp_path / name, codec, container=container, **options)
    whole, survey = V.read_clip(path), V.survey(path)
    for start in (1.01, 1.5, 2.02, 2.44, 3.17, 3.9):
        tail = V.read_clip(path, start=start, max_frames=2)
        first = int(np.searchsorted(whole.times, start - 1e-6))
        assert np.allclose(tail.times, whole.times[first : first + 2]), start
        assert np.array_equal(tail.frames, whole.frames[first : first + 2]), start
    for index in (0, 11, 13, 43, 50, 97) if survey.seekable else ():
        key = survey.times[survey.keyframes[survey.keyframes <= index][-1]]
        got = V.frames_at(path, survey.times[[index]], start=survey.start, keyframe=float(key))
        assert np.array_equal(got[0], whole.frames[index]), index


def test_ntsc_rates_count_as_the_whole_ones():
    clip = V.read_clip(CASES / "ntsc" / "a.mp4")
    assert clip.rate == Fraction(30000, 1001)
    assert same_rate(clip.fps, 30) and same_rate(60000 / 1001, 60) and same_rate(24, 24000 / 1001)
    assert not same_rate(24, 25) and not same_rate(29.9, 30)


def test_an_ntsc_file_is_drawn_at_the_whole_rate(tmp_path):
    (tmp_path / "a.mp4").write_bytes((CASES / "ntsc" / "a.mp4").read_bytes())
    found = check_data(str(tmp_path), frames=16, curriculum=FpsCurriculum(low=1, high=30))
    assert [(d.fps, d.clips) for d in found.drawable][-1] == (30, 1)
    assert len(read_frames(tmp_path / "a.mp4", FrameChoice(None, fps=30))) == 90


def test_a_gif_is_as_slow_as_browsers_play_it():
    clip = V.read_clip(CASES / "d10.gif")
    assert len(clip.frames) == 12 and clip.rate == 10 and clip.duration == pytest.approx(1.2)
    info = V.probe(CASES / "d10.gif")
    assert (info.rate, info.frames, info.duration) == (10, 12, pytest.approx(1.2))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_last_picture_that_is_held_counts(suffix, tmp_path):
    pictures = [Image.new("RGB", (32, 24), (i * 60, 100, 50)) for i in range(4)]
    path = tmp_path / f"a.{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 100, 100, 2000], loop=0)
    clip = V.read_clip(path)
    assert np.allclose(clip.times, [0, 0.1, 0.2, 0.3]) and clip.duration == pytest.approx(2.3)
    assert clip.rate == 10 and V.probe(path).duration == pytest.approx(2.3)


def test_the_rate_of_a_raw_stream_is_that_in_its_header():
    clip = V.read_clip(CASES / "raw.h264")
    assert len(clip.frames) == 48 and clip.rate == 24 and clip.duration == pytest.approx(2)
    assert V.probe(CASES / "raw.h264").frames == 48


# --- what is shown -------------------------------------------------------------------------------------------------


def test_a_container_may_crop():
    clip = V.read_clip(CASES / "clap.mp4")
    assert clip.frames.shape == (48, 48, 32, 3)
    with av.open(str(CASES / "clap.mp4")) as container:
        raw = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(clip.frames[0].astype(int) - raw[:, 16:48]).mean() < 3
    assert (V.probe(CASES / "clap.mp4").width, V.survey(CASES / "clap.mp4").width) == (32, 32)


def test_a_matroska_may_crop_each_side_by_its_own_amount(tmp_path):
    path = grey_levels(tmp_path / "a.mkv", "libx264", count=12, crf="1")
    data = path.read_bytes()
    size, after = bytes.fromhex("b08140ba8130"), bytes.fromhex("54b2810455ee8100ec010000000000000200 00")
    crop = bytes.fromhex("54aa8104 54bb8106 54cc810a 54dd8102")  # PixelCropBottom, Top, Left, Right
    assert data.count(b"\xe0\x8a" + size + after) == 1
    path.write_bytes(
        data.replace(b"\xe0\x8a" + size + after, b"\xe0\x99" + size + crop + bytes.fromhex("ec8100"))
    )
    source = Source(path)
    next(source.decode())
    assert source.shape == (48 - 4 - 6, 64 - 10 - 2) and source._crop == (10, 2, 6, 4)
    assert V.read_clip(path).frames.shape == (12, 38, 52, 3)


def test_pictures_that_move_are_videos():
    for name in ("anim.png", "anim.webp"):
        clip = V.read_clip(CASES / name)
        assert clip.frames.shape == (12, 48, 64, 3) and clip.rate == 10 and clip.warnings == ()
        assert V.is_video(CASES / name) and not is_still(CASES / name)
        data = (CASES / name).read_bytes()
        assert np.array_equal(V.frames_at(data, clip.times[[2, 9]]), clip.frames[[2, 9]])
        with Image.open(CASES / name) as image:
            image.seek(7)
            assert np.array_equal(clip.frames[7], np.asarray(image.convert("RGB")))


def test_a_folder_of_pictures_that_move_is_one_of_videos_and_is_listed(tmp_path):
    for name in ("anim.png", "anim.webp"):
        (tmp_path / name).write_bytes((CASES / name).read_bytes())
    assert find_kind(str(tmp_path)) == "video"
    assert [(row.name, row.frames, row.fps) for row in check_data(str(tmp_path)).rows] == [
        ("anim.png", 12, 10.0),
        ("anim.webp", 12, 10.0),
    ]
    for i in range(3):  # most are still: pictures
        (tmp_path / f"{i}.gif").write_bytes((CASES / "still.gif").read_bytes())
    assert find_kind(str(tmp_path)) == "image"


def test_an_animated_avif_is_a_video(tmp_path):
    pictures = [Image.new("RGB", (64, 48), (i * 60, 100, 50)) for i in range(4)]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=200)
    clip = V.read_clip(tmp_path / "a.avif")
    assert len(clip.frames) == 4 and clip.rate == 5
    assert np.abs(clip.frames[2, 20, 20].astype(int) - (120, 100, 50)).max() <= 3


def test_a_gif_of_one_frame_is_a_picture():
    assert is_still(CASES / "still.gif") and not V.is_video(CASES / "still.gif")
    assert not is_still(CASES / "d10.gif") and V.is_video(CASES / "d10.gif")


def test_a_cover_picture_is_no_video():
    with pytest.raises(InputError, match="only audio and a cover picture, wanted a video"):
        V.read_clip(CASES / "song.m4a")
    assert not V.is_video(CASES / "song.m4a")


def test_a_cut_is_found_at_its_frame():
    scenes = Scenes()
    V.survey(CASES / "scene_cut.mp4", visit=scenes.see)
    assert scenes.cuts == [6]
