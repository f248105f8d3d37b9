"""Video files in and out: exact decoding, awkward files, exact encoding."""

import gc
import json
import resource
import subprocess
import sys
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from mavcli.errors import DiskError, InputError, UsageError
from mavcli.media import video as V
from mavcli.media.frames import frames_sha256
from mavcli.media.scenes import Scenes
from mavcli.media.video.colour import reformatted
from mavcli.media.video.source import Source

CASES = Path(__file__).parents[1] / "data" / "cases"


def moving(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i has a grey level and a bright column of its own."""
    out = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        out[i] = 40 + (i * 7) % 120
        out[i, :, (i * 3) % width] = 220
    return out


def encode(path, stamps, *, time_base=Fraction(1, 1000), size=(48, 32), rate=30) -> None:
    """A video whose frame i, of grey level 10 + 5 (i mod 49), is shown at `stamps[i]` ticks."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = time_base
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(
                np.full((size[1], size[0], 3), 10 + 5 * (i % 49), np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def shown(frames) -> list[int]:
    """Which frame of `encode` each picture is, modulo 49."""
    return [round((float(frame.mean()) - 10) / 5) for frame in frames]


# --- decoding -------------------------------------------------------------------------------------------------------


def references(folder):
    """(name, PyAV's difference, the frame as it decodes, its source, the RGB of the plain `ffmpeg` program)."""
    for name, facts in json.loads((folder / "PYAV_CHECK.json").read_text()).items():
        file, stream, frame, _ = name.rsplit(".", 3)
        wanted = torch.load(folder / name, weights_only=True).numpy()
        wanted = wanted.transpose(1, 2, 0) if wanted.shape[0] == 3 else wanted
        source = Source(folder / file, stream=int(stream.removeprefix("stream")))
        number = int(frame.removeprefix("frame"))
        yield name, facts, next(islice(source.decode(), number, None))[1], source, wanted


@pytest.mark.skipif(
    av.__version__ < "17", reason="PyAV 16's conversion without more words takes no matrix from the frame"
)
def test_decoding_equals_the_ffmpeg_program_bit_for_bit(shared_data):
    """The frames before they become RGB: converted with the flags of the plain program they are the stored pictures."""
    exact = 0
    for name, facts, frame, _, wanted in references(shared_data / "decode_refs"):
        plain = reformatted(VideoReformatter(), frame, format="rgb24").to_ndarray()
        assert list(plain.shape) == facts["shape"]
        assert np.abs(plain.astype(int) - wanted).max() <= facts["max_abs_diff_pyav"], name
        exact += facts["max_abs_diff_pyav"] == 0
    assert exact >= 13


def test_pictures_are_brighter_than_the_plain_program_by_what_it_cuts_off(shared_data):
    """The stored pictures are of `ffmpeg` without flags; with full chroma interpolation and accurate rounding its bias is gone."""
    for name, _, frame, source, wanted in references(shared_data / "decode_refs"):
        got = source.picture(frame).astype(int)
        difference = got - wanted
        if frame.format.name == "yuv420p" and name.startswith(
            "nasa"
        ):  # a camera's, in which nothing saturates
            assert 0.4 < difference.mean() < 1.2, name
        assert np.median(np.abs(difference)) <= 1 and np.abs(difference).mean() < 3, name


def exact_rgb(frame) -> np.ndarray:
    """RGB of a yuv420p frame of limited range in real numbers (ITU-T H.273), chroma taken from the nearest sample."""
    planes = frame.to_ndarray().astype(np.float64)
    h, w = frame.height, frame.width
    y = (planes[:h] - 16) * 255 / 219
    u, v = (planes[h:].reshape(2, h // 2, w // 2).repeat(2, 1).repeat(2, 2) - 128) * 255 / 224
    kr, kb = (0.2126, 0.0722) if frame.colorspace == 1 else (0.299, 0.114)
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    return np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], -1).clip(0, 255)


def test_reading_makes_no_clip_darker(shared_data):
    bias = []
    for name in ("bolts", "carphone", "dog_fetch_0", "asl_again", "steel_battle_0"):
        source = Source(shared_data / "clips" / f"{name}.mp4")
        for _, frame in islice(source.decode(), 0, 40, 10):
            bias.append((source.picture(frame) - exact_rgb(frame)).mean((0, 1)))
    assert np.abs(np.mean(bias, 0)).max() < 0.2


PATCHES = np.array(
    [(200, 50, 30), (20, 180, 60), (30, 40, 220), (128, 128, 128), (235, 235, 20), (10, 10, 10)]
)
MATRICES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}  # fmt: skip


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "ffv1"])
@pytest.mark.parametrize("span", [1, 2])
@pytest.mark.parametrize("matrix", MATRICES)
def test_every_matrix_range_and_codec_gives_the_colours_that_were_put_in(matrix, span, codec, tmp_path):
    kr, kb = MATRICES[matrix]
    r, g, b = PATCHES.T / 255
    luma = kr * r + (1 - kr - kb) * g + kb * b
    y, u, v = luma, (b - luma) / (2 - 2 * kb), (r - luma) / (2 - 2 * kr)
    if span == 1:
        y, u, v = 16 + 219 * y, 128 + 224 * u, 128 + 224 * v
    else:
        y, u, v = 255 * y, 128 + 255 * u, 128 + 255 * v
    planes = np.stack([y, u, v]).round().clip(0, 255).astype(np.uint8).repeat(32, 1)
    path = tmp_path / "a.mkv"
    options = {"libx264": {"crf": "2"}, "libx265": {"x265-params": "lossless=1:log-level=none:pools=1"}, "libvpx-vp9": {"lossless": "1", "cpu-used": "8"}}  # fmt: skip
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = planes.shape[1], 64, "yuv444p"
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, span
        rows = planes[:, None].repeat(64, 1)
        frame = av.VideoFrame.from_ndarray(rows, format="yuv444p")
        frame.colorspace, frame.color_range = matrix, span
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    got = V.read_clip(path).frames[0][32, 16::32].astype(int)
    assert np.abs(got - PATCHES).max() <= 2


def test_hd_without_tags_is_bt709_and_smaller_is_bt601(tmp_path):
    red = V.read_clip(CASES / "untagged_bt709_1280x720.mp4", max_frames=1).frames[0, 90, 160]
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 6
    for size, (kr, kb) in {(64, 48): (0.299, 0.114), (1280, 720): (0.2126, 0.0722)}.items():
        planes = [16 + 219 * kr, 128 - 224 * kr / (2 - 2 * kb), 128 + 224 / 2]
        sizes = (size, (size[0] // 2, size[1] // 2), (size[0] // 2, size[1] // 2))
        flat = np.concatenate(
            [np.full(w * h, value, np.uint8) for value, (w, h) in zip(planes, sizes, strict=True)]
        )
        path = tmp_path / "a.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=8)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            frame = av.VideoFrame.from_ndarray(flat.reshape(-1, size[0]), format="yuv420p")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        assert np.abs(V.read_clip(path).frames[0, 20, 20].astype(int) - (255, 0, 0)).max() <= 2, size


@pytest.mark.parametrize(("primaries", "name"), [(12, "Display P3"), (9, "BT.2020")])
def test_a_wide_gamut_is_converted(primaries, name, tmp_path):
    # values of the gamut -> of sRGB, as ICC profiles have them (colour.science, gamma 2.4)
    wide = {12: [(187, 39, 32), (120, 168, 70), (128, 128, 128)], 9: [(160, 60, 45), (120, 160, 80), (128, 128, 128)]}[primaries]  # fmt: skip
    to_xyz = {
        12: [
            [0.4865709, 0.2656677, 0.1982173],
            [0.2289746, 0.6917385, 0.0792869],
            [0.0, 0.0451134, 1.0439444],
        ],
        9: [
            [0.6369580, 0.1446169, 0.1688810],
            [0.2627002, 0.6779981, 0.0593017],
            [0.0, 0.0280727, 1.0609851],
        ],
    }[primaries]
    from_xyz = [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]  # fmt: skip
    light = (np.array(wide) / 255) ** 2.4 @ np.array(to_xyz).T @ np.array(from_xyz).T
    wanted = 255 * light.clip(0, 1) ** (1 / 2.4)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "bgr0"
        stream.codec_context.color_primaries, stream.codec_context.color_trc = primaries, 1
        picture = np.array(wide, np.uint8).repeat(32, 0)[None].repeat(32, 0)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            format="bgr0"
        )
        if hasattr(frame, "color_primaries"):  # not in PyAV 16
            frame.color_primaries, frame.color_trc = primaries, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = V.read_clip(path)
    assert np.abs(clip.frames[0, 16, 16::32] - wanted).max() <= 2 and clip.warnings == ()
    assert np.abs(np.array(wide) - wanted).max() > 8, f"{name} is another gamut"


def test_hdr_is_named(shared_data):
    clip = V.read_clip(shared_data / "decode_refs" / "testsrc2_12bit_hdr.mp4", max_frames=1)
    assert clip.warnings == ("the video is HDR (PQ); its colours are shown without tone mapping",)


def test_five_generations_keep_colours_and_their_place(shared_data, tmp_path):
    frames = first = V.read_clip(shared_data / "clips" / "building_pan.mp4", max_frames=3).frames[:, :, :-2]
    for generation in range(5):
        V.write_video(tmp_path / f"{generation}.mp4", frames, fps=8, crf=4)
        frames = V.read_clip(tmp_path / f"{generation}.mp4").frames
    assert np.abs((frames.astype(float) - first).mean((0, 1, 2))).max() < 0.5
    chroma = [x[..., 0].astype(float) - x[..., 2] for x in (frames, first)]
    errors = {
        shift: np.abs(np.roll(chroma[0], shift, 2) - chroma[1])[:, :, 4:-4].mean() for shift in (-1, 0, 1)
    }
    if int(av.__version__.split(".")[0]) > 16:  # which reads every chroma as if it lay in the middle
        assert min(errors, key=errors.get) == 0, "the colours have not moved"


def test_timestamps_equal_those_of_ffprobe(shared_data):
    folder = shared_data / "decode_refs"
    for path in sorted(folder.glob("*.all_frames_info.json")):
        file, stream, _, _ = path.name.rsplit(".", 3)
        wanted = [float(entry["pts_time"]) for entry in json.loads(path.read_text())]
        clip = V.read_clip(folder / file, stream=int(stream.removeprefix("stream")))
        assert np.allclose(clip.times + clip.start, wanted, atol=2e-6), path.name
        assert clip.times[0] == 0


def test_every_awkward_file_ends_in_the_expected_frames_or_an_input_error(shared_data):
    for folder in ("nasty_made", "nasty_real"):
        for entry in json.loads((shared_data / folder / "EXPECTED.json").read_text()):
            path = shared_data / folder / entry["file"]
            images = ("webp_pipe", "png_pipe")
            expected = 0 if entry.get("container") in images else entry.get("frames", 0)
            damaged = "decode error" in entry["outcome"] and expected > 0
            if entry["file"] == "iss634.webp":  # FFmpeg has no decoder for it
                expected = 42
            limit = (
                500 if entry.get("width", 0) < 1000 else 8
            )  # large ones only in part: this is about awkwardness
            started = time.perf_counter()
            try:
                clip = V.read_clip(path, max_frames=limit)
            except InputError as error:
                assert expected == 0, error.message
                assert entry["file"] in error.message and not V.is_video(path)
            else:
                assert len(clip.frames) == len(clip.times)
                if damaged:  # so many before the first error, and whole ones after it
                    assert len(clip.frames) >= min(expected, limit)
                else:
                    assert len(clip.frames) == min(expected, limit), entry["file"]
                assert (np.diff(clip.times) > 0).all() and clip.times[0] == 0 and clip.fps > 0
                if damaged and expected <= limit:
                    assert any("damaged data" in line and "missing" in line for line in clip.warnings)
            assert time.perf_counter() - started < 10, entry["file"]


def test_mutated_files_never_raise_anything_else(tmp_path):
    path = tmp_path / "a.mp4"
    V.write_video(path, moving(8), fps=8)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    outcomes = {"frames": 0, "refused": 0}
    for i in range(60):
        broken = bytearray(data)
        if i % 3 == 0:
            del broken[int(rng.integers(1, len(broken))) :]
        else:
            for place in rng.integers(0, len(broken), 1 + i % 20):
                broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            V.read_clip(path, max_frames=100)
            V.probe(path)
            outcomes["frames"] += 1
        except InputError as error:
            assert "a.mp4" in error.message
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5


def test_a_truncated_stream_gives_what_decodes_and_says_so(shared_data):
    clip = V.read_clip(shared_data / "nasty_made" / "truncated_moov_first.mp4")
    assert len(clip.frames) == 15  # two of them were still in the decoder
    assert any("after 13 frames" in line and "45 of 60 frames" in line for line in clip.warnings)


def test_rotation_is_that_of_the_display_matrix(shared_data):
    upright = V.read_clip(shared_data / "nasty_real" / "video_90.mov").frames
    assert upright.shape[1:] == (568, 320, 3)
    with av.open(str(shared_data / "nasty_real" / "video_90.mov")) as container:
        raw = next(container.decode(video=0))
        assert raw.rotation == -90
        turned = np.rot90(raw.to_ndarray(format="rgb24"), -1).astype(int)
        assert np.abs(upright[0] - turned).mean() < 2 < np.abs(upright[0] - turned[::-1]).mean()
    info = V.probe(shared_data / "nasty_real" / "video_90.mov")
    assert (info.width, info.height, info.rotation) == (320, 568, 90)


def test_pixels_that_are_not_square_are_made_square(shared_data):
    path = shared_data / "nasty_real" / "bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4"  # 1137:800
    assert V.read_clip(path, max_frames=1).frames.shape[1:3] == (640, 1137)
    # codec says 12:11, container 1:1; the container is nearer to the user, and FFmpeg decides so too
    assert V.read_clip(path.with_name("bbb_176x144_128kbps_15fps_h263.3gp"), max_frames=1).frames.shape[
        1:3
    ] == (144, 176)


def test_transparency_is_shown_on_white_whichever_codec_carries_it(shared_data):
    vp9 = V.read_clip(shared_data / "nasty_made" / "alpha_vp9.webm", max_frames=1).frames[0]
    qtrle = V.read_clip(shared_data / "nasty_made" / "alpha_qtrle.mov", max_frames=1).frames[0]
    assert vp9[5, 0].tolist() == qtrle[5, 0].tolist() == [255, 255, 255]
    assert np.abs(vp9.astype(int) - qtrle).mean() < 6


def test_a_change_of_size_in_the_stream_is_scaled_to_the_first_size_and_told(shared_data):
    clip = V.read_clip(shared_data / "nasty_made" / "size_change.ts")
    assert clip.frames.shape == (40, 128, 228, 3)
    assert any("228 x 128 to 160 x 96" in line for line in clip.warnings)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_frames_keep_their_own_times(suffix, tmp_path):
    stamps = [0, 40, 80, 120, 500, 540, 580, 620]
    encode(tmp_path / f"a.{suffix}", stamps)
    clip = V.read_clip(tmp_path / f"a.{suffix}")
    assert clip.vfr and np.allclose(clip.times, np.array(stamps) / 1000, atol=1.1e-3)
    assert clip.fps == pytest.approx(25, rel=0.03)
    assert np.allclose(V.survey(tmp_path / f"a.{suffix}").times, clip.times)


def test_the_rate_of_even_frames_is_exact_even_where_the_container_rounds_times(tmp_path):
    for fps in (24, 23.976, 29.97, 7, 4.8):
        V.write_video(tmp_path / "a.mkv", moving(10), fps=fps, codec="ffv1", overwrite=True)
        assert V.read_clip(tmp_path / "a.mkv").rate == V.exact_rate(fps)
        assert not V.probe(tmp_path / "a.mkv").vfr


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_by_their_times_are_those_of_reading_all(suffix, tmp_path):
    encode(tmp_path / f"a.{suffix}", [t + (t > 1500) * 500 for t in range(0, 2000, 40)])
    survey = V.survey(tmp_path / f"a.{suffix}")
    whole = V.read_clip(tmp_path / f"a.{suffix}")
    assert survey.seekable and survey.keyframes[0] == 0 and np.array_equal(survey.times, whole.times)
    for index in ([0, 1, 7], [30, 40, 49], [12, 12]):
        before = survey.keyframes[survey.keyframes <= index[0]][-1]
        for keyframe in (0.0, float(survey.times[before])):
            media = tmp_path / f"a.{suffix}"
            for source in (media, media.read_bytes()):
                got = V.frames_at(source, survey.times[index], start=survey.start, keyframe=keyframe)
                assert np.array_equal(got, whole.frames[index])
    with pytest.raises(InputError, match=r"shows no frame at 0\.0210 s"):
        V.frames_at(tmp_path / f"a.{suffix}", [0.021])


def test_a_survey_stops_at_a_number_of_frames(tmp_path):
    encode(tmp_path / "a.mp4", range(0, 400, 40))
    assert len(V.survey(tmp_path / "a.mp4", max_frames=10).times) == 10
    with pytest.raises(InputError, match="holds more than 9 frames"):
        V.survey(tmp_path / "a.mp4", max_frames=9)


def test_reading_from_a_start_gives_the_tail_of_reading_all(tmp_path):
    encode(tmp_path / "a.mp4", range(50 * 40, 150 * 40, 40))
    whole, tail = V.read_clip(tmp_path / "a.mp4"), V.read_clip(tmp_path / "a.mp4", start=2.5, max_frames=20)
    first = int(np.searchsorted(whole.times, 2.5 - 1e-6))
    assert np.allclose(tail.times, whole.times[first : first + 20])
    assert np.array_equal(tail.frames, whole.frames[first : first + 20])
    with pytest.raises(InputError, match="ends before 9 s"):
        V.read_clip(tmp_path / "a.mp4", start=9)


def test_nearest_frames_refuses_what_lies_more_than_half_a_frame_away():
    times = np.array([0.0, 0.1, 0.2, 0.3, 1.0, 1.1])
    assert V.nearest_frames(times, np.array([0.04, 0.06, 0.349, 1.14])).tolist() == [0, 1, 3, 5]
    assert V.nearest_frames(times, np.array([0.0, 0.6])) is None
    assert V.nearest_frames(times, np.array([1.16])) is None
    assert V.nearest_frames(times, np.array([-0.06])) is None


def test_too_much_for_the_memory_is_refused_with_advice(tmp_path):
    V.write_video(tmp_path / "a.mp4", moving(16), fps=8)
    with pytest.raises(InputError, match="more than 10 frames") as raised:
        V.read_clip(tmp_path / "a.mp4", max_bytes=10 * 32 * 48 * 3)
    assert "trim" in raised.value.hint
    assert len(V.read_clip(tmp_path / "a.mp4", max_bytes=10 * 32 * 48 * 3, max_frames=10).frames) == 10


def test_a_playlist_cannot_make_other_files_open(tmp_path):
    V.write_video(tmp_path / "secret.mp4", moving(4), fps=8)
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "b.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "c.mp4").write_bytes(b"\0" + (tmp_path / "a.mp4").read_bytes())
    for name in ("a.mp4", "b.m3u8", "c.mp4"):
        with pytest.raises(InputError):
            V.read_clip(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "words", "hint"),
    [
        ("nasty_made/git_lfs_pointer.mp4", "a git-lfs pointer", "git lfs pull"),
        ("nasty_made/html_error_page.mp4", "an HTML page", "download"),
        ("nasty_made/zero_bytes.mp4", "an empty file", "again"),
        ("nasty_real/test_image_rgba.png", "a PNG image, wanted a video", "mav animate"),
        ("nasty_real/nasa_audio.mp3", "an MP3 sound file", None),
        ("nasty_real/sample_audio_only.mp4", "no video stream, only audio", None),
        ("nasty_real/black_large.webp", "a WEBP image, wanted a video", "mav animate"),
    ],
)
def test_what_is_no_video_is_named_with_what_helps(file, words, hint, shared_data):
    with pytest.raises(InputError, match=words) as raised:
        V.probe(shared_data / file)
    assert hint is None or hint in raised.value.hint


def test_a_video_is_known_by_its_content(shared_data):
    made, real = shared_data / "nasty_made", shared_data / "nasty_real"
    assert V.is_video(made / "no_extension") and V.is_video(made / "wrong_extension_is_mp4.avi")
    assert V.is_video(real / "animated_hopper.gif") and not V.is_video(real / "gradient.gif")
    assert not V.is_video(shared_data / "photos" / "bee.jpg")


# --- encoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [8, 23.976, 24, 30])
@pytest.mark.parametrize("count", [1, 2, 16, 17, 76])
@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_count_rate_and_duration_are_exact(fps, count, size, tmp_path):
    path = tmp_path / "a.mp4"
    frames = moving(count, *size)
    written = V.write_video(path, iter(frames), fps=fps)
    rate = Fraction(24000, 1001) if fps == 23.976 else Fraction(fps)
    assert (written.frames, written.rate, written.duration) == (count, rate, count / rate)
    assert written.padded == (size[1] % 2, size[0] % 2) and written.frames_sha256 == frames_sha256(frames)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == count / rate
        assert stream.frames == count and stream.average_rate == rate
        decoded = list(container.decode(stream))
        assert [frame.pts * stream.time_base for frame in decoded] == [i / rate for i in range(count)]
    info = V.probe(path)
    assert (info.frames, info.rate, info.vfr) == (count, rate, False)
    assert (info.height, info.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)


def test_the_file_is_what_players_and_phones_open(tmp_path):
    path = tmp_path / "a.mp4"
    V.write_video(path, moving(8), fps=24)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.profile, context.pix_fmt) == ("High", "yuv420p")
        assert (context.color_range, context.colorspace, context.color_primaries, context.color_trc) == (
            1,
            1,
            1,
            1,
        )


def test_colours_are_converted_with_the_matrix_that_the_tags_name(tmp_path):
    patches = [
        (200, 50, 30),
        (20, 180, 60),
        (30, 40, 220),
        (128, 128, 128),
        (255, 255, 255),
        (0, 0, 0),
        (250, 220, 20),
    ]
    for colour in patches:
        V.write_video(
            tmp_path / "a.mp4", np.full((2, 32, 32, 3), colour, np.uint8), fps=8, crf=8, overwrite=True
        )
        with av.open(str(tmp_path / "a.mp4")) as container:
            planes = next(container.decode(video=0)).to_ndarray()
        r, g, b = (channel / 255 for channel in colour)
        luma = 0.2126 * r + 0.7152 * g + 0.0722 * b  # BT.709
        wanted = [16 + 219 * luma, 128 + 224 * (b - luma) / 1.8556, 128 + 224 * (r - luma) / 1.5748]
        got = [planes[:32].mean(), planes[32:40].mean(), planes[40:].mean()]
        assert np.abs(np.array(got) - wanted).max() < 1.5, colour
        assert np.abs(V.read_clip(tmp_path / "a.mp4").frames.astype(int) - colour).max() <= 4, colour


def test_odd_sides_repeat_their_edge(tmp_path):
    frame = np.zeros((2, 31, 33, 3), np.uint8)
    frame[:, -1], frame[:, :, -1] = 200, 200
    V.write_video(tmp_path / "a.mp4", frame, fps=8, crf=4)
    out = V.read_clip(tmp_path / "a.mp4").frames
    assert out.shape == (2, 32, 34, 3) and out[:, -1].min() > 150 and out[:, :, -1].min() > 150


def test_ffv1_gives_back_every_bit(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), np.uint8)
    written = V.write_video(tmp_path / "a.mkv", frames, fps=Fraction(24000, 1001), codec="ffv1")
    clip = V.read_clip(tmp_path / "a.mkv")
    assert np.array_equal(clip.frames, frames) and frames_sha256(clip.frames) == written.frames_sha256
    assert clip.rate == Fraction(24000, 1001) and written.padded == (0, 0)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_metadata_comes_back_exactly(name, tmp_path):
    recipe = json.dumps(
        {"prompt": 'a "red" ball = 🎈 \\ ü\n שלום; #x', "pad": "x" * 70_000}, ensure_ascii=False
    )
    V.write_video(tmp_path / name, moving(2), fps=8, metadata={"mav_recipe": recipe, "mav_seed": "0"})
    tags = V.read_metadata(tmp_path / name)
    assert tags["mav_recipe"] == recipe and tags["mav_seed"] == "0"


def test_metadata_that_no_container_can_hold_is_refused_before_encoding(tmp_path):
    for value in ("a\0b", "", "\ud800"):
        with pytest.raises(UsageError):
            V.write_video(tmp_path / "a.mp4", moving(2), fps=8, metadata={"mav_recipe": value})
    assert not list(tmp_path.iterdir())


def test_one_thread_writes_the_same_bytes_every_time(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        V.write_video(tmp_path / name, moving(20), fps=24)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(DiskError, match="exists") as raised:
        V.write_video(path, moving(2), fps=8)
    assert raised.value.exit_code == 6 and path.read_bytes() == b"mine"
    V.write_video(path, moving(2), fps=8, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    def failing():
        yield from moving(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        V.write_video(tmp_path / "a.mp4", failing(), fps=8)
    with pytest.raises(InputError, match="no frames"):
        V.write_video(tmp_path / "a.mp4", [], fps=8)
    with pytest.raises(ValueError, match="frame 1 has shape"):
        V.write_video(tmp_path / "a.mp4", [moving(1)[0], moving(1, 16, 16)[0]], fps=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [100, 4_000, 60_000])
def test_a_full_disk_is_exit_6_and_leaves_nothing(limit, tmp_path):
    code = (
        "import sys, resource, numpy as np\n"
        "from mavcli.media.video import write_video\n"
        "from mavcli.errors import DiskError\n"
        "frames = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), np.uint8)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    write_video(sys.argv[1], frames, fps=8)\n"
        "except DiskError as error:\n"
        "    print(error.message)\n"
        "    sys.exit(error.exit_code)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.mp4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6, done.stderr
    assert "a.mp4" in done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", {}),
        ("a.mp4", {"codec": "ffv1"}),
        ("a.mp4", {"crf": 0}),
        ("a.mp4", {"fps": 0}),
        ("a.mp4", {"fps": float("nan")}),
        ("a.mp4", {"fps": 5000.0}),
    ],
)
def test_what_cannot_be_encoded_is_a_usage_error(name, options, tmp_path):
    with pytest.raises(UsageError):
        V.write_video(tmp_path / name, moving(2), **{"fps": 8, **options})


def test_a_folder_that_is_not_there_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match="no folder"):
        V.write_video(tmp_path / "no" / "a.mp4", moving(2), fps=8)


def test_a_rate_is_the_fraction_that_it_stands_for():
    assert V.exact_rate(23.976) == Fraction(24000, 1001) and V.exact_rate(29.97) == Fraction(30000, 1001)
    assert (
        V.exact_rate(4.8) == Fraction(24, 5)
        and V.exact_rate(24.0) == 24
        and V.exact_rate(Fraction(7, 3)) == Fraction(7, 3)
    )


def test_a_gif_holds_every_frame_at_the_rounded_rate(tmp_path):
    frames = moving(9)
    written = V.write_gif(tmp_path / "a.gif", frames, fps=12)
    clip = V.read_clip(tmp_path / "a.gif")
    assert written.rate == Fraction(100, 8) == clip.rate and len(clip.frames) == 9
    assert np.abs(clip.frames.astype(int) - frames).mean() < 3


def test_frames_that_were_read_do_not_stay_in_memory(tmp_path):
    """PyAV's frames and their side data refer to each other, so that only Python's search for garbage would free them."""
    V.write_video(tmp_path / "a.mkv", np.zeros((20, 16, 16, 3), np.uint8), fps=10, codec="ffv1")
    gc.collect()
    gc.disable()
    try:
        assert len(list(V.read_video(tmp_path / "a.mkv"))) == 20
        alive = sum(type(one) is av.VideoFrame for one in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 3


def test_a_cut_between_scenes_of_one_brightness_is_seen(tmp_path):
    """Red and blue of nearly one luma: a detector of grey pictures sees nothing."""
    frames = np.empty((12, 32, 32, 3), np.uint8)
    frames[:6], frames[6:] = (200, 60, 60), (45, 94, 200)
    for i, frame in enumerate(frames):
        frame[8:12, 2 * i : 2 * i + 4] = 255
    V.write_video(tmp_path / "a.mkv", frames, fps=12, codec="ffv1")
    scenes = Scenes()
    V.survey(tmp_path / "a.mkv", visit=scenes.see)
    assert scenes.cuts == [6]
