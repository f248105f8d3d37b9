"""The commands that make video, on a whole tiny family: results, reuse, refusals, batches, real inputs."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mavcli.cli.app import run
from mavcli.engine import output
from mavcli.media.frames import fit
from mavcli.media.image import read_image, write_png
from mavcli.media.video import probe, read_clip, read_metadata, write_video
from mavcli.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def mav(tiny: Path, capsys: pytest.CaptureFixture[str]):
    """Run a command with the tiny recipe: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([*map(str, arguments), "--recipe", str(tiny)])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return call


def picture(path: Path, height: int = 20, width: int = 31, *, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    write_png(path, image)
    return image


def clip(path: Path, frames: int = 6, *, height: int = 18, width: int = 30, fps: float = 10) -> np.ndarray:
    """A lossless clip."""
    video = np.random.default_rng(9).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    write_video(path, video, fps=fps, codec="ffv1")
    return video


def smooth_clip(path: Path, frames: int, *, fps: float, scene: int = 0) -> np.ndarray:
    """A lossless clip of a bright disc that crosses a plain ground: no cut in it."""
    y, x = np.mgrid[:18, :30]
    video = np.full((frames, 18, 30, 3), ((200, 60, 60), (45, 94, 200))[scene], np.uint8)
    for i, frame in enumerate(video):
        frame[(y - 9) ** 2 + (x - 6 - i) ** 2 < 16] = 255
    write_video(path, video, fps=fps, codec="ffv1")
    return video


LOSSLESS = ("--set", "output.codec=ffv1")


def test_generate_prints_the_path_of_a_video_with_exact_rate_and_count(mav):
    code, out, err = mav("generate", "a dog surfing", "--fps", 12, "--frames", 11)
    assert (code, out) == (0, "outputs/a-dog-surfing-0.mp4\n")
    found = probe(out.strip())
    assert (found.frames, float(found.rate), found.width, found.height) == (11, 12.0, 32, 32)
    for name in ("a-dog-surfing-0.json", "a-dog-surfing-0.sheet.png", "a-dog-surfing-0.base.png"):
        assert Path("outputs", name).is_file()
    assert "key frames: outputs/a-dog-surfing-0.base.png" in err


def test_without_a_length_there_are_76_frames(mav):
    code, out, _ = mav("generate", "cat", "--dry-run")
    assert code == 0 and "76 frames of 32 x 32 px at 24 fps, 3.17 s; would be written" in out
    assert not Path("outputs").exists()


def test_the_metadata_tell_the_whole_run_and_the_same_run_gives_the_same_frames(mav):
    arguments = ("generate", "a dog", "--frames", 6, "--seed", 4, "--json")
    code, out, _ = mav(*arguments, "-o", "one.mp4")
    assert code == 0
    (first,) = json.loads(out)["results"]
    told = json.loads(read_metadata("one.mp4")["mav_run"])
    beside = json.loads(Path("one.json").read_text())
    assert beside.pop("files").keys() == {"one.mp4", "one.sheet.png", "one.base.png"} and told == beside
    assert told["prompt"] == "a dog" and told["seed"] == 4 and told["dtype"] == "float32"
    assert told["recipe"]["resolved"]["cascade"]["interp"]["frame_skip"] == 5
    assert all(len(part["sha256"]) == 64 for part in told["weights"].values()) and len(told["weights"]) == 6
    shutil.rmtree(Path("..") / "cache")
    (again,) = json.loads(mav(*arguments, "-o", "two.mp4")[1])["results"]
    assert again["frames_sha256"] == first["frames_sha256"] == told["frames_sha256"]


def test_an_existing_file_is_refused_before_anything_is_computed(mav):
    Path("a.mp4").write_text("mine")
    code, out, err = mav("generate", "a dog", "-o", "a.mp4")
    assert (code, out) == (6, "") and err.startswith("error: `a.mp4` exists\nhint: --force")
    assert Path("a.mp4").read_text() == "mine" and not Path("../cache").exists()
    assert mav("generate", "a dog", "--frames", 1, "-o", "a.mp4", "--force")[0] == 0


def test_the_same_run_again_has_its_result_already_and_another_run_is_refused(mav):
    assert mav("generate", "a dog", "--frames", 6)[0] == 0
    before = Path("outputs/a-dog-0.mp4").stat().st_mtime_ns
    code, out, err = mav("generate", "a dog", "--frames", 6)
    assert (code, out) == (0, "outputs/a-dog-0.mp4\n") and "is there already, made by the same run" in err
    assert Path("outputs/a-dog-0.mp4").stat().st_mtime_ns == before
    assert mav("generate", "a dog", "--frames", 7)[0] == 6


def test_a_draft_is_sixteen_key_frames_and_the_finish_goes_on_from_them(mav):
    code, out, _ = mav("generate", "a dog", "--fps", 10, "--frames", 6, "--draft")
    assert (code, out) == (0, "outputs/a-dog-0-draft.mp4\n")
    found = probe(out.strip())
    assert (found.frames, float(found.rate), found.width) == (16, 2.0, 8)
    code, out, err = mav("generate", "a dog", "--fps", 10, "--frames", 6)
    assert code == 0 and "P: reused" in err and "D^t: reused" in err and "↑F: reused" not in err
    finished = json.loads(Path("outputs/a-dog-0.json").read_text())["frames_sha256"]
    shutil.rmtree(Path("..") / "cache")
    mav("generate", "a dog", "--fps", 10, "--frames", 6, "-o", "direct.mp4")
    assert json.loads(Path("direct.json").read_text())["frames_sha256"] == finished


def test_still_makes_pictures_with_the_run_inside_and_beside(mav):
    code, out, err = mav("generate", "a dog", "--still", "-n", 2, "--seed", 3)
    assert (code, out.splitlines()) == (0, ["outputs/a-dog-3-1.png", "outputs/a-dog-3-2.png"])
    assert "a picture of 32 x 32 px" in err
    first, second = (read_image(path) for path in out.splitlines())
    assert first.shape == (32, 32, 3) and not np.array_equal(first, second)
    told = json.loads(Path("outputs/a-dog-3-1.json").read_text())
    assert told.pop("files").keys() == {"a-dog-3-1.png"}
    assert told["options"] == {"still": True} and told["frames"] == 1 and told["prompt"] == "a dog"
    with Image.open("outputs/a-dog-3-1.png") as image:
        assert json.loads(image.text["mav_run"]) == told
    assert sorted(p.name for p in Path("outputs").iterdir()) == [
        "a-dog-3-1.json", "a-dog-3-1.png", "a-dog-3-2.json", "a-dog-3-2.png"
    ]  # fmt: skip
    assert "is there already" in mav("generate", "a dog", "--still", "-n", 2, "--seed", 3)[2]
    assert mav("generate", "a dog", "--still", "-o", "x.mp4")[0] == 2
    for more in (("--draft",), ("--frames", 3), ("--seconds", 1), ("--fps", 3)):
        code, _, err = mav("generate", "a dog", "--still", *more)
        assert code == 2 and f"--still and {more[0]} are both given" in err


def test_n_makes_so_many_different_videos(mav):
    code, out, _ = mav("generate", "a dog", "-n", 3, "--frames", 1)
    assert code == 0 and out.splitlines() == [f"outputs/a-dog-0-{i}.mp4" for i in (1, 2, 3)]
    hashes = {json.loads(Path(f"outputs/a-dog-0-{i}.json").read_text())["frames_sha256"] for i in (1, 2, 3)}
    assert len(hashes) == 3
    code, _, err = mav("generate", "a dog", "-n", 2, "-o", "a.mp4")
    assert code == 2 and "names one file, there are several results" in err


def test_a_failing_prompt_does_not_end_the_batch_and_a_rerun_skips_what_is_done(mav):
    Path("prompts.txt").write_text("# mine\na dog\n\nzebra quagga\nthe cat\na dog\n")
    code, out, err = mav("generate", "--prompts", "prompts.txt", "--frames", 1)
    assert code == 8 and out.splitlines() == ["outputs/a-dog-0.mp4", "outputs/the-cat-0.mp4"]
    assert "failed: zebra quagga: the family `tiny` knows no word of" in err and "1 of 3 failed" in err
    code, out, err = mav("generate", "--prompts", "prompts.txt", "--frames", 1, "--json")
    told = json.loads(out)
    assert code == 8 and len(told["results"]) == 2 and told["failed"][0]["item"] == "zebra quagga"
    assert err.count("is there already") == 2


def test_prompts_come_from_stdin_too(mav, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a dog\nA dog!\n")))
    code, out, _ = mav("generate", "--prompts", "-", "--dry-run")
    assert code == 0
    names = [line.split(":")[0] for line in out.splitlines() if line.startswith("outputs/")]
    assert len(set(names)) == 2 and all(name.startswith("outputs/a-dog-") for name in names)


def test_unknown_words_are_named_with_their_neighbours(mav):
    code, _, err = mav("generate", "a dogs surfin on mars", "--dry-run")
    assert code == 2  # `a` alone says nothing
    assert "`dogs` (near: dog)" in err and "`surfin` (near: surfing)" in err and "`mars`" in err
    code, _, err = mav("generate", "a dog on mars", "--dry-run")
    assert code == 0 and "words that the family `tiny` never saw are ignored: `on`, `mars`" in err
    assert "it knows: cat, dog, sea, surfing" in err and "mav recipe ls" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no prompt is given"),
        (("a dog", "--prompts", "x"), "a prompt and --prompts are both given"),
        (("",), "the prompt is empty"),
        (("a dog", "--frames", 5, "--seconds", 1), "both given"),
        (("a dog", "--seconds", -1), "greater than or equal to 0.001"),
        (("a dog", "--seconds", 5000), "at most 3000"),
        (("a dog", "--fps", 0), "greater than or equal to 0.1"),
        (("a dog", "-o", "x.avi"), "wanted a name that ends in .mp4"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(mav, arguments, told):
    code, out, err = mav("generate", *arguments)
    assert (code, out) == (2, "") and told in err


def test_missing_weights_are_named_with_the_command_before_any_work(mav, tmp_path):
    missing = ("--set", f"weights.dir={tmp_path}/none", "--set", f"train.out={tmp_path}/none")
    code, out, err = mav("generate", "a dog", *missing)
    assert (code, out) == (3, "")
    assert "decoder_t.safetensors does not exist" in err and "hint: mav train-stage clip RECIPE" in err
    assert not Path("outputs").exists() and not Path("../cache").exists()


def test_random_weights_are_shouted_and_recorded(mav, tmp_path):
    sets = ("--set", f"weights.sr_h={tmp_path}/none.safetensors", "--random-weights", "--frames", 1)
    code, _, err = mav("generate", "a dog", *sets, "-q")
    assert code == 0 and "warning: RANDOM WEIGHTS in SR_h" in err
    told = json.loads(Path("outputs/a-dog-0.json").read_text())
    assert told["random_weights"] == ["sr_h"] and told["weights"]["sr_h"]["random"] is True


def test_quiet_prints_the_path_alone(mav):
    assert mav("generate", "a dog", "--frames", 1, "-q")[1:] == ("outputs/a-dog-0.mp4\n", "")


def test_animate_takes_any_picture_and_pad_keeps_its_shape(mav):
    picture(Path("Odd Name.png"), 20, 31)
    code, out, _ = mav("animate", "Odd Name.png", "--frames", 6)
    assert (code, out) == (0, "outputs/odd-name-animate-0.mp4\n")
    assert (probe(out.strip()).frames, probe(out.strip()).width) == (6, 32)
    mav("animate", "Odd Name.png", "--frames", 3, "--fit", "pad", "-o", "pad.mp4")
    found = probe("pad.mp4")
    assert (found.width, found.height) == (32, 20)


def test_interpolate_keeps_the_pictures_themselves_where_they_are_asked_for(mav):
    first, last = picture(Path("a.png"), 20, 31), picture(Path("b.png"), 20, 31, seed=1)
    code, out, err = mav(
        "interpolate", "a.png", "b.png", "--keep-source", "--fit", "pad", *LOSSLESS, "-o", "ab.mkv"
    )
    assert code == 0 and "2 frames are the source's own, 74 come from the cascade" in err
    frames = read_clip("ab.mkv").frames
    assert frames.shape == (76, 20, 31, 3)
    assert np.array_equal(frames[0], first) and np.array_equal(frames[-1], last)
    code, _, _ = mav(
        "interpolate", "a.png", "b.png", "a.png", "--frames", 16, "--keep-source", *LOSSLESS, "-o", "aba.mkv"
    )
    frames = read_clip("aba.mkv").frames
    assert frames.shape == (31, 20, 20, 3) and np.array_equal(frames[15], last[:, 5:25])
    assert np.array_equal(frames[0], first[:, 5:25])


def test_interpolate_raises_the_rate_of_a_clip_which_lasts_as_long_as_before(mav):
    video = smooth_clip(Path("in.mkv"), 6, fps=10)
    options = ("--factor", 3, "--fit", "pad", *LOSSLESS)
    code, _, err = mav("interpolate", "in.mkv", *options, "--keep-source", "-o", "out.mkv")
    assert code == 0 and "6 frames are the clip's own, 10 come from the cascade, 2 stand still" in err
    found = read_clip("out.mkv")
    assert (len(found.frames), found.rate) == (18, 30) and found.duration == pytest.approx(0.6, abs=2e-3)
    assert np.array_equal(found.frames[::3], video)
    assert np.array_equal(found.frames[16], video[5]) and np.array_equal(found.frames[17], video[5])
    assert mav("interpolate", "in.mkv", *options, "-o", "level.mkv")[0] == 0
    assert read_clip("level.mkv").frames.shape == found.frames.shape


def test_interpolate_says_which_lengths_are_possible(mav):
    picture(Path("a.png"))
    code, _, err = mav("interpolate", "a.png", "a.png", "--frames", 20)
    assert code == 2 and "possible are 3 to 16, or one of 16, 31, 46" in err
    code, _, err = mav("interpolate", "a.png")
    assert code == 4 and "hint: mav animate a.png" in err
    clip(Path("in.mkv"), 1)
    assert mav("interpolate", "in.mkv")[0] == 4
    assert mav("interpolate", "in.mkv", "--factor", 99)[0] == 2


@pytest.mark.parametrize(("direction", "first"), [("forward", 0), ("backward", 5), ("both", 2)])
def test_extrapolate_keeps_the_clip_and_adds_to_it(mav, direction, first):
    video = clip(Path("in.mkv"), 6, fps=10)
    options = ("--seconds", 0.5, "--direction", direction, "--fit", "pad", *LOSSLESS)
    code, _, _ = mav("extrapolate", "in.mkv", *options, "-o", "out.mkv")
    assert code == 0
    found = read_clip("out.mkv")
    assert (len(found.frames), found.rate) == (11, 10)
    assert np.array_equal(found.frames[first : first + 6], video)


def test_vary_takes_clips_and_pictures_blends_and_text_differences(mav):
    clip(Path("in.mkv"))
    picture(Path("b.png"))
    hashes = set()
    for name, more in (
        ("plain", ()),
        ("blend", ("--blend", "b.png:0.4")),
        ("text", ("--text-diff", "a dog", "a cat")),
    ):
        code, _, _ = mav("vary", "in.mkv", "--frames", 1, "-o", f"{name}.mp4", *more)
        assert code == 0
        hashes.add(json.loads(Path(f"{name}.json").read_text())["frames_sha256"])
    assert len(hashes) == 3
    assert mav("vary", "b.png", "--blend", "in.mkv")[0] == 2
    assert mav("vary", "b.png", "--blend", "none.png:0.5")[0] == 4


@pytest.mark.parametrize("verb", ["animate", "interpolate", "extrapolate", "vary"])
@pytest.mark.parametrize(
    "content", [None, b"", b"<!doctype html>", b"GIF89a....", b"\x89PNG\r\n\x1a\nbroken"]
)
def test_an_unusable_input_is_one_error_and_leaves_no_file(mav, verb, content):
    if content is not None:
        Path("in.png").write_bytes(content)
    more = ("--seconds", 1) if verb == "extrapolate" else ()
    code, out, err = mav(verb, "in.png", *more)
    assert (code, out) == (4, "") and err.startswith("error: ")
    assert [p.name for p in Path().iterdir() if p.name != "in.png"] == []


@pytest.mark.parametrize("name", ["bee.jpg", "butterfly.jpg"])
def test_real_photos_move(mav, shared_data, name):
    code, out, _ = mav("animate", shared_data / "photos" / name, "--frames", 2, "--fit", "pad")
    assert code == 0 and probe(out.strip()).frames == 2


def test_real_clips_are_varied_and_lengthened_at_their_own_rate(mav, shared_data):
    source = shared_data / "clips" / "asl_yes.mp4"
    code, out, _ = mav("extrapolate", source, "--frames", 2)
    before, after = probe(source), probe(out.strip())
    assert code == 0 and after.rate == before.rate and after.frames == before.frames + 2
    assert mav("vary", source, "--frames", 1)[0] == 0


CASES = Path(__file__).parents[1] / "data" / "cases"


def test_a_gif_of_one_frame_an_avif_and_a_heic_are_pictures_to_animate(mav, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    with Image.open(CASES / "x.avif") as image:
        image.save(tmp_path / "x.heic", "HEIF")
    for path in (CASES / "still.gif", CASES / "x.avif", tmp_path / "x.heic"):
        code, _, err = mav("animate", path, "--dry-run")
        assert code == 0 and "64 x 48" in err, err


def test_what_cannot_be_animated_is_named_with_the_command_that_helps(mav, tmp_path):
    shown = [Image.new("RGB", (16, 12), (80 * i, 250, 0)) for i in range(3)]
    shown[0].save(tmp_path / "a.webp", save_all=True, append_images=shown[1:])
    code, _, err = mav("animate", tmp_path / "a.webp")
    assert (
        code == 4
        and "is an animated WebP of 3 frames of 16 x 12 px (RGB" in err
        and "wanted a still picture" in err
    )
    assert f"mav extrapolate {tmp_path}/a.webp" in err
    clip(tmp_path / "a.mkv")
    code, _, err = mav("animate", tmp_path / "a.mkv")
    assert code == 4 and "is a video of 6 frames of 30 x 18 px (ffv1)" in err and "ffmpeg -i" in err
    (tmp_path / "a.png").write_text("<html>404</html>")
    code, _, err = mav("animate", tmp_path / "a.png")
    assert code == 4 and "is an HTML page, wanted a still picture" in err and "frame.png" not in err
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    code, _, err = mav("animate", tmp_path / "a.jxl")
    assert code == 4 and "is a JPEG XL image" in err and "magick" in err
    picture(tmp_path / "b.png")
    code, _, err = mav("extrapolate", tmp_path / "b.png", "--frames", 2)
    assert code == 4 and "is a PNG image of 31 x 20 px (RGB), wanted a video" in err and "mav animate" in err


def test_what_there_is_to_say_of_a_picture_is_said(mav, tmp_path):
    Image.new("RGB", (16, 12)).save(tmp_path / "a.png", icc_profile=b"no profile" * 20)
    code, _, err = mav("animate", tmp_path / "a.png", "--dry-run")
    assert code == 0 and "a.png has a damaged ICC profile" in err


def test_many_prompts_are_named_and_described_in_one_pass_over_them(tmp_path, monkeypatch, capsys):
    texts = [f"a dog running {i}" for i in range(60)] + ["a dog, running", "a dog running"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    counts = Counter()

    def counted(name, real):
        def call(*args, **more):
            counts[name] += 1
            return real(*args, **more)

        return call

    monkeypatch.setattr(output, "slug", counted("slug", output.slug))
    monkeypatch.setattr(Recipe, "model_dump_json", counted("recipe", Recipe.model_dump_json))
    folder = f"{tmp_path}/"
    assert run(["generate", "--prompts", str(tmp_path / "prompts.txt"), "--dry-run", "-o", folder]) == 0
    assert counts["slug"] == len(texts) and counts["recipe"] <= 3
    shown = [line for line in capsys.readouterr().out.splitlines() if ".mp4: " in line]
    names = {line.split(".mp4: ")[0] for line in shown}
    assert len(names) == len(texts), "two prompts of one name have a digest in theirs"


def test_a_named_result_of_the_same_run_is_there_already_and_a_changed_one_is_said_so(mav):
    same = ("generate", "a dog", "--frames", 2, "-o", "a.mp4")
    assert mav(*same)[0] == 0
    code, out, err = mav(*same)
    assert (code, out) == (0, "a.mp4\n") and "is there already, made by the same run" in err
    assert mav(*same, "--set", "output.crf=40")[0] == 6
    whole = Path("a.mp4").read_bytes()
    Path("a.mp4").write_bytes(whole[:-100])
    code, out, err = mav(*same)
    assert (code, out) == (6, "") and "`a.mp4` is not as the same run left it" in err
    Path("a.sheet.png").write_bytes(b"")
    Path("a.mp4").write_bytes(whole)
    assert mav(*same)[0] == 6
    assert mav(*same, "--force")[0] == 0 and "is there already" in mav(*same)[2]


def test_a_sheet_of_key_frames_that_is_the_users_is_not_overwritten(mav):
    Path("a.base.png").write_text("mine")
    code, out, err = mav("generate", "a dog", "--frames", 2, "-o", "a.mp4")
    assert (code, out) == (6, "") and "`a.base.png` exists" in err
    assert Path("a.base.png").read_text() == "mine" and not Path("a.mp4").exists()


def test_of_two_equal_runs_the_second_waits_before_computing_and_finds_the_result(mav, monkeypatch):
    import threading

    from mavcli import files
    from mavcli.cli.making import Session

    made, told = [], threading.Event()
    make = Session._make
    monkeypatch.setattr(Session, "_make", lambda *a: made.append(1) or make(*a))
    monkeypatch.setattr(Session, "_wait_for", lambda *a: told.set())
    Path("outputs").mkdir()

    def other() -> None:
        """A process that holds the place and makes the result."""
        with files.locked(Path("outputs/a-dog-0.mp4")):
            ready.set()
            assert told.wait(60)

    ready = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(60)
    assert mav("generate", "a dog", "--frames", 2)[0] == 0
    thread.join()
    assert told.is_set() and made == [1]
    assert sorted(path.name for path in Path("outputs").glob(".*")) == []


def with_sound(path: Path, codec: str, *, frames: int = 10, fps: int = 10) -> None:
    """A clip with a tone under it, as long as the picture."""
    silent = path.with_name(f"silent-{path.name}")
    smooth_clip(silent.with_suffix(".mkv"), frames, fps=fps)
    with av.open(str(silent.with_suffix(".mkv"))) as picture, av.open(str(path), "w") as out:
        given = picture.streams.video[0]
        video = out.add_stream_from_template(given)
        sound = out.add_stream(codec, rate=44100, layout="mono")
        for packet in picture.demux(given):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        wave = np.sin(np.arange(44100 * frames // fps) / 8)[None]
        planar = sound.format.name.endswith("p")
        for start in range(0, wave.shape[1], 4410):
            block = (20000 * wave[:, start : start + 4410]).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, format="s16p" if planar else "s16", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            for one in av.AudioResampler(format=sound.format.name, layout="mono", rate=44100).resample(frame):
                out.mux(sound.encode(one))
        out.mux(sound.encode(None))
    silent.with_suffix(".mkv").unlink()


def heard(path: Path) -> tuple[list[bytes], float]:
    """The packets of a file's sound, and when the first of them begins, in seconds from the first frame."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.audio[0]) if p.size]
        return [bytes(p) for p in packets], float(packets[0].pts * packets[0].time_base)


def test_sound_goes_along_packet_by_packet_and_stays_with_the_picture(mav):
    with_sound(Path("in.mkv"), "pcm_s16le")
    given, begins = heard(Path("in.mkv"))
    assert mav("interpolate", "in.mkv", *LOSSLESS, "-o", "x2.mkv")[0] == 0
    found = probe("x2.mkv")
    assert heard(Path("x2.mkv")) == (given, begins) and (found.frames, found.rate) == (20, 20)
    for direction, later in (("forward", 0.0), ("backward", 0.3), ("both", 0.1)):
        options = ("--frames", 3, "--direction", direction, *LOSSLESS)
        assert mav("extrapolate", "in.mkv", *options, "-o", f"{direction}.mkv")[0] == 0
        packets, start = heard(Path(f"{direction}.mkv"))
        assert packets == given and start == pytest.approx(begins + later, abs=2e-3)


def test_sound_that_a_container_cannot_hold_is_told_with_the_one_that_can(mav):
    with_sound(Path("in.mkv"), "tta")
    code, _, err = mav("interpolate", "in.mkv", "-o", "x2.mp4")
    assert code == 0 and "its sound (tta) cannot be kept in a `.mp4` file, x2.mp4 is silent" in err
    assert "`-o x2.mkv` keeps it" in err
    with av.open("x2.mp4") as container:
        assert not container.streams.audio


def test_vary_says_that_the_sound_stays_behind(mav):
    with_sound(Path("in.mkv"), "pcm_s16le")
    code, _, err = mav("vary", "in.mkv", "--frames", 1)
    assert code == 0 and "its sound is not kept" in err


def test_the_frame_before_a_cut_stands_and_the_cut_is_told(mav):
    both = np.concatenate([smooth_clip(Path(f"{i}.mkv"), 4, fps=10, scene=i) for i in (0, 1)])
    write_video("in.mkv", both, fps=10, codec="ffv1")
    options = ("--fit", "pad", *LOSSLESS, "-o", "x2.mkv")
    code, _, err = mav("interpolate", "in.mkv", *options, "--keep-source")
    assert code == 0 and "a cut at 0.40 s: nothing is drawn from one scene to another" in err
    frames = read_clip("x2.mkv").frames
    assert np.array_equal(frames[7], both[3]) and np.array_equal(frames[8], both[4])


def test_an_animated_picture_is_frame_0_itself(mav):
    image = picture(Path("a.png"), 40, 40)
    assert mav("animate", "a.png", "--frames", 4, *LOSSLESS, "-o", "a.mkv")[0] == 0
    frames = read_clip("a.mkv").frames
    assert np.array_equal(frames[0], fit(image, 32)) and not np.array_equal(frames[1], frames[0])


def waves(number: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture (h, w, 3) with fine and coarse waves, which has wandered `number` pixels to the right."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x = x - number
    fine = np.sin(x * 1.7) * np.cos(y * 1.3)
    channels = [120 + 50 * np.sin(x / 7 + k) * np.cos(y / 6 - k) + 18 * fine for k in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def sharpness_steps(frames: np.ndarray) -> np.ndarray:
    """How many times as sharp each frame is as the one before, or the other way round: (f - 1,), at least 1."""
    luma = frames @ np.array([0.299, 0.587, 0.114])
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    found = (around - 4 * luma[:, 1:-1, 1:-1]).var(axis=(1, 2)) + 1e-3
    return np.asarray(np.exp(np.abs(np.diff(np.log(found)))))


MP4 = ("--set", "output.crf=12")


def test_frames_between_a_clips_own_are_as_sharp_as_these_in_the_file_that_is_written(mav):
    write_video("in.mkv", np.stack([waves(i) for i in range(5)]), fps=12, codec="ffv1")
    assert mav("interpolate", "in.mkv", "--fit", "pad", *MP4, "-o", "x2.mp4")[0] == 0
    frames = read_clip("x2.mp4").frames
    assert len(frames) == 10 and sharpness_steps(frames).max() <= 1.2
    assert np.abs(frames[8].astype(int) - frames[9]).mean() < 1  # the last one stands


def test_an_animated_picture_is_frame_0_of_the_file_that_is_written_and_no_blow_comes_after_it(mav):
    write_png(Path("a.png"), waves(0, height=64))
    assert mav("animate", "a.png", "--frames", 6, *MP4, "-o", "a.mp4")[0] == 0
    frames = read_clip("a.mp4").frames
    off = np.square(frames[0].astype(float) - fit(waves(0, height=64), 32)).mean()
    assert 10 * np.log10(255**2 / off) >= 40 and sharpness_steps(frames)[0] <= 1.2


@pytest.mark.parametrize(("direction", "join"), [("forward", 5), ("backward", 4)])
def test_at_the_join_of_a_clip_and_what_comes_after_it_neither_sharpness_nor_colour_leaps(
    mav, direction, join
):
    write_video("in.mkv", np.stack([waves(i) for i in range(6)]), fps=12, codec="ffv1")
    options = ("--frames", 5, "--direction", direction, "--fit", "pad", *MP4)
    assert mav("extrapolate", "in.mkv", *options, "-o", "more.mp4")[0] == 0
    frames = read_clip("more.mp4").frames
    assert len(frames) == 11 and sharpness_steps(frames)[join - 1 : join + 2].max() <= 1.2
    colours = np.abs(np.diff(frames.mean((1, 2)), axis=0)).max(1)
    assert colours[join] <= 5


def test_a_last_frame_that_is_held_stands_as_long_as_in_the_source(mav):
    pictures = [Image.fromarray(waves(i)) for i in range(4)]
    pictures[0].save("in.gif", save_all=True, append_images=pictures[1:], duration=[100, 100, 100, 500])
    for verb, more, length in (("interpolate", ("--factor", 2), 0.8), ("extrapolate", ("--frames", 2), 1.0)):
        assert mav(verb, "in.gif", *more, *LOSSLESS, "-o", f"{verb}.mkv")[0] == 0
        assert read_clip(f"{verb}.mkv").duration == pytest.approx(length, abs=2e-3)


def test_a_clip_that_would_become_too_long_is_refused_from_its_header(mav, monkeypatch):
    smooth_clip(Path("in.mkv"), 20, fps=10)
    monkeypatch.setattr("mavcli.cli.making.MAX_STREAMED", 30)
    monkeypatch.setattr("mavcli.cli.extrapolate.MAX_STREAMED", 30)
    monkeypatch.setattr("mavcli.media.video.read.survey", None)  # nothing is decoded
    for verb, more in (("interpolate", ("--factor", 2)), ("extrapolate", ("--frames", 11))):
        code, _, err = mav(verb, "in.mkv", *more)
        assert code == 2 and "one result has at most 30" in err
