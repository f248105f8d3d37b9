"""`mav eval run`: samples that survive a kill, scores with intervals, and what is said of published ones."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mavcli.cli import eval_run
from mavcli.cli.app import run
from mavcli.errors import InputError, UsageError, WeightsError
from mavcli.evaluation import benchmark
from mavcli.evaluation.benchmark import Groups, generate_samples, needed_pieces, plan_benchmark
from mavcli.evaluation.clips import open_folder
from mavcli.evaluation.fingerprint import Fingerprint
from mavcli.evaluation.frechet import Moments, frechet_distance
from mavcli.evaluation.intervals import bootstrap
from mavcli.evaluation.networks import ClipFeatures
from mavcli.evaluation.plots import bars_svg, curve_svg
from mavcli.evaluation.protocol import (
    ClipShape,
    Metric,
    Preset,
    Prompt,
    Prompts,
    find_preset,
    presets,
    real_videos,
)
from mavcli.evaluation.scores import Score
from mavcli.evaluation.shards import Shard
from mavcli.evaluation.tables import TABLES, compare
from mavcli.media.frames import Frames
from mavcli.media.video import read_clip, write_video
from mavcli.recipe.load import load_recipe
from mavcli.report import Silent


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


class Colours:
    """A measuring network without weights: a row a clip."""

    def __init__(self, width: int) -> None:
        self.facts = {"name": "colours", "width": width, "weights_as_published": True, "weights": "none"}
        self._map = torch.from_numpy(np.random.default_rng(0).standard_normal((6, width)).astype(np.float32))

    def prepare(self, frames: Frames) -> torch.Tensor:
        x = torch.from_numpy(frames.astype(np.float32) / 255)
        return torch.cat([x.mean((0, 1, 2)), x.std((0, 1, 2))])[None]

    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        return prepared @ self._map


class ColourClip(ClipFeatures):
    """As CLIP is used: a row a frame, and a row a text."""

    def __init__(self) -> None:
        self.facts = {"name": "colour clip"}
        self.judge = self  # type: ignore[assignment]

    def prepare(self, frames: Frames) -> torch.Tensor:
        return torch.from_numpy(frames.astype(np.float32).mean((1, 2)) / 255)

    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        return prepared

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, len(text) % 3, 1.0] for text in texts])


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Captions and 20 real videos in UCF-101's layout, with 101 classes that there are not."""
    folder = tmp_path / "ucf"
    folder.mkdir()
    names = [f"Dog{chr(65 + i // 26)}{chr(97 + i % 26)}" for i in range(101)]
    (folder / "classInd.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(names)))
    lists = [f"{name}/v_{name}_{j}.avi 1\n" for i, name in enumerate(names) for j in range(1 + i % 3)]
    (folder / "trainlist01.txt").write_text("".join(lists))
    for i in range(12):
        frames = np.random.default_rng(i).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
        (folder / "videos").mkdir(exist_ok=True)
        name = Path(lists[i].split()[0]).stem
        write_video(folder / "videos" / f"{name}.mkv", frames, fps=25, codec="ffv1")
    return folder


@pytest.fixture
def command(ucf: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`mav eval run ucf101` of six samples of the tiny family, measured by what needs no weights."""
    monkeypatch.setattr(eval_run, "_weight_files", lambda metrics, given: {})
    monkeypatch.setattr(
        eval_run, "_network", lambda metric, files, shard: Colours(101 if metric.metric == "is" else 4)
    )
    arguments = [
        "eval",
        "run",
        "ucf101",
        "--recipe",
        str(tiny),
        "--captions",
        str(ucf),
        "--real",
        str(ucf / "videos"),
    ]
    # D^t alone: 8 pixels.
    arguments += ["--set", "cascade.sr_l.kind=none", "--set", "cascade.sr_h.kind=none"]
    return [*arguments, "--sentences", "classname", "--samples", "6", "--resamples", "20", "-o", "out"]


def test_a_benchmark_that_is_killed_goes_on_and_says_what_it_is_not(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 2
    assert "preset `ucf101` asks for 10,000 samples, not 6" in capsys.readouterr().err
    assert not Path("out").exists()
    command = [*command, "--allow-small"]
    write, written = benchmark.write_result, []

    def killed(*arguments: Any, **more: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[0].video.name)
        return write(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "write_result", killed)
        assert run([*command, "-q"]) == 130
    before = {path: path.stat().st_mtime_ns for path in Path("out/samples").glob("*.mkv")}
    assert len(before) == 2
    capsys.readouterr()
    assert run([*command, "--json"]) == 0
    shown = capsys.readouterr()
    assert "4 of 6 samples are made now" in shown.err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    told = json.loads(shown.out)
    assert told["complete"] is False and told["samples"] == 6
    assert "6 samples, the protocol asks for 10,000" in told["departures"]
    assert "8 px, the protocol asks for 256 px" in told["departures"]
    assert "the sentences of `classname`, the preset's are `pyoco`" in told["departures"]
    assert any("hold words that the family `tiny` never saw" in text for text in told["departures"])
    for name in ("fvd", "is"):
        found = told["scores"][name]
        assert found["samples"] == 6 and found["curve"][-1]["samples"] == 6
        assert found["interval"]["low"] < found["value"] < found["interval"]["high"]
        assert found["curve"][-1]["value"] == pytest.approx(found["value"], rel=1e-6) or name == "is"
        assert found["fingerprint_sha256"] and found["fingerprint"]["generated"]["measured"] == 6
    assert len(told["scores"]["is"]["classes"]) == 6
    assert {row["comparable"] for row in told["published"]} == {"no"}
    for name in ("scores.json", "scores.md", "fvd.svg", "is.svg", "is-classes.svg"):
        assert Path("out", name).is_file()
    assert "**Not the protocol:** 6 samples" in Path("out/scores.md").read_text()
    # A sample is 16 lossless frames that say what they were made from.
    clip = read_clip(next(iter(before)))
    assert clip.frames.shape == (16, 8, 8, 3) and clip.rate == 25
    assert json.loads(next(iter(before)).with_suffix(".json").read_text())["label"].startswith("Dog")
    assert run(command) == 0
    shown = capsys.readouterr()
    assert (
        "NOT THE PROTOCOL: 6 samples" in shown.out and "Make-A-Video" in shown.out and "367.23" in shown.out
    )
    assert "0 of 6 samples are made now" in shown.err


def test_real_videos_and_weights_are_looked_at_before_anything_is_made(
    command: list[str], ucf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command, "--metric", "fvd", "--metric", "is", "--allow-small", "-q"]
    short = Path((ucf / "trainlist01.txt").read_text().splitlines()[12].split()[0]).stem
    write_video(ucf / "videos" / f"{short}.mkv", np.zeros((5, 16, 16, 3), np.uint8), fps=25, codec="ffv1")
    assert run(command) == 4
    assert f"{short}.mkv` has 5 frames at 25 fps, 16 are wanted" in capsys.readouterr().err

    class Another(Colours):
        def features(self, prepared: torch.Tensor) -> torch.Tensor:
            raise WeightsError("c3d.npz is no C3D")

    monkeypatch.setattr(
        eval_run, "_network", lambda metric, *_: Another(101) if metric.metric == "is" else Colours(4)
    )
    assert run([*command, "--skip-unusable"]) == 3
    assert "c3d.npz is no C3D" in capsys.readouterr().err
    assert not Path("out").exists()


def test_samples_of_another_recipe_are_not_taken_for_these(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command, "--samples", "2", "--metric", "fvd", "--allow-small", "-q"]
    assert run(command) == 0
    assert run([*command, "--set", "cascade.decoder.sampler.steps=3"]) == 6
    assert "exists" in capsys.readouterr().err
    assert run([*command, "--set", "cascade.decoder.sampler.steps=3", "--force"]) == 0


def test_clipsim_needs_no_real_videos(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(eval_run, "_network", lambda metric, files, shard: ColourClip())
    (tmp_path / "bench.txt").write_text("\n".join(f"a dog number {i}" for i in range(200)))
    arguments = ["eval", "run", "drawbench", "--recipe", str(tiny), "--captions", "bench.txt", "-o", "bench"]
    arguments += ["--set", "cascade.sr_l.kind=none", "--set", "cascade.sr_h.kind=none"]
    assert run([*arguments, "--samples", "2", "--allow-small", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["scores"]["clipsim"]["value"] <= 1
    assert {tuple(row["scores"]) for row in told["published"]} == {("quality", "faithfulness")}


def test_wrong_commands_are_refused_before_anything_is_made(
    tiny: Path, ucf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["eval", "run", "ucf101", "--recipe", str(tiny)]
    cases = [
        (["eval", "run"], 2, "no preset is given"),
        (["eval", "run", "ufc101"], 2, "did you mean `ucf101`"),
        (base, 2, "compares with real videos"),
        (
            [*base, "--metric", "is", "--captions", "."],
            4,
            "no `classInd.txt`\nhint: --captions the folder of",
        ),
        ([*base, "--metric", "fid"], 2, "has no metric `fid`"),
        ([*base, "--metric", "is"], 2, "needs the benchmark's captions"),
        (
            [*base, "--metric", "is", "--captions", str(ucf), "--sentences", "classname"],
            3,
            "no weights of `c3d`",
        ),
        (
            [*base, "--metric", "is", "--captions", str(ucf), "--sentences", "classname", "--weights", "x"],
            2,
            "NAME=FILE",
        ),
        (["eval", "run", "pocket", "--real", str(ucf)], 2, "takes no --real"),
        (["eval", "run", "pocket", "--samples", "8"], 2, "asks for 80 samples"),
        (["eval", "run", "drawbench", "--sentences", "pyoco"], 2, "--sentences is for ucf101"),
    ]
    for arguments, code, message in cases:
        assert run(arguments) == code, arguments
        assert message in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_the_pocket_preset_is_the_pocket_evaluation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("mavcli.cli.eval.pocket", lambda **options: asked.append(options))
    assert run(["eval", "run", "pocket", "--set", "output.fps=12", "-q"]) == 0
    assert run(["eval", "run", "pocket", "--samples", "8", "--allow-small", "--dry-run"]) == 0
    assert [(call["prompts"], call["held_out"], call["dry_run"]) for call in asked] == [
        (60, 20, False),
        (6, 2, True),
    ]
    assert asked[0]["sets"] == ["output.fps=12"]
    assert "8 samples, the protocol asks for 80" in capsys.readouterr().err


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "run", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [preset["name"] for preset in told["presets"]] == [
        "msrvtt",
        "msrvtt-2990",
        "ucf101",
        "ucf101-finetuned",
        "drawbench",
        "own-300",
        "vdm",
        "film",
        "film-300",
        "pocket",
    ]


# -- samples ------------------------------------------------------------------------------------------------------------------

SMALL = Preset(
    name="small",
    title="four dogs",
    prompts=Prompts(source="lines", count=4),
    samples=4,
    clip=ClipShape(frames=5, fps=4.8, size=16),
    metrics=(Metric(metric="clipsim", network="ViT-B/32"),),
)
DOGS = [Prompt(f"a dog {word}", number) for number, word in enumerate(("surfing", "sea", "cat", "the"))]


def make(tiny: Path, out: Path, *, shard: Shard, batch: int, size: int = 8) -> None:
    from mavcli.engine.backend import open_backend
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.family import find_family
    from mavcli.recipe.resolve import Machine, resolve

    loaded = load_recipe(tiny)
    resolved = resolve(loaded.recipe, machine=Machine(cores=1))
    family = find_family(loaded.recipe, ("clip", "prior", "decoder_t", "sr_l"))
    cascade = Cascade(loaded.recipe, family, open_backend(resolved))
    facts = eval_run._run_facts(loaded, resolved, family)
    preset = SMALL.model_copy(update={"clip": SMALL.clip.model_copy(update={"size": size})})
    plan = plan_benchmark(preset, DOGS, loaded.recipe)
    generate_samples(cascade, plan, out, run=facts, shard=shard, report=Silent(), batch=batch)


class Alone(Shard):
    """A rank whose fellows are elsewhere."""

    def gather(self, mine: Sequence[str]) -> list[str]:
        return list(mine)


def test_ranks_and_batches_change_no_sample(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "one", shard=Shard(), batch=1)
    for rank in range(2):
        make(tiny, tmp_path / "two", shard=Alone(rank, 2), batch=1)
    first = {path.name: json.loads(path.read_text()) for path in (tmp_path / "one/samples").glob("*.json")}
    second = {path.name: json.loads(path.read_text()) for path in (tmp_path / "two/samples").glob("*.json")}
    assert len(first) == 4 and first.keys() == second.keys()
    assert {n: r["frames_sha256"] for n, r in first.items()} == {
        n: r["frames_sha256"] for n, r in second.items()
    }
    told = first["000002.json"]
    assert (told["prompt"], told["frames"], told["width"], told["sample"]) == ("a dog cat", 5, 8, 2)


def test_each_rank_makes_its_own_batches(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "out", shard=Alone(1, 2), batch=2, size=16)
    assert read_clip(tmp_path / "out/samples/000003.mkv").frames.shape == (5, 16, 16, 3)
    assert sorted(path.stem for path in (tmp_path / "out/samples").glob("*.mkv")) == ["000002", "000003"]


def sized(size: int, *, skip: int | None = None) -> ClipShape:
    return ClipShape(frames=16, fps=24, size=size, skip=skip)


def test_the_presets_of_table_3_make_what_people_were_shown(tiny: Path) -> None:
    """76 frames, through ↑F; the study against FILM has 16 frames at 1 fps and three between each two."""
    from mavcli.engine.backend import Backend
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.family import find_family
    from mavcli.engine.randomness import Draw

    recipe = load_recipe(tiny).recipe
    for name in ("drawbench", "own-300", "vdm"):
        clip = find_preset(name).clip
        assert (clip.frames, clip.size, clip.keys) == (76, 256, 16)
    assert needed_pieces(recipe, sized(16, skip=5)) == ("clip", "prior", "decoder_t", "interp", "sr_l")
    pieces = ("clip", "prior", "decoder_t", "interp", "sr_l")
    cascade = Cascade(recipe, find_family(recipe, pieces), Backend(torch.device("cpu"), torch.float32, 1))
    clip = find_preset("film").clip
    assert (clip.frames, clip.keys, clip.fps) == (61, 16, 4)
    clip = clip.model_copy(update={"frames": 9})
    made = benchmark.make_clips(cascade, DOGS[:1], clip, size=8, seed=0)
    draws = [Draw(0, 0)]
    keys = cascade.decode(cascade.image_embedding([DOGS[0].text], draws), draws, fps=cascade.skip)[:, :3]
    assert torch.equal(made, cascade.interpolate(keys, draws, skip=4, fps=4)) and made.shape[1] == 9
    with pytest.raises(UsageError, match="takes 16"):
        plan_benchmark(
            find_preset("film"),
            DOGS,
            load_recipe(tiny, sets=["cascade.decoder.frames=8"]).recipe,
            allow_small=True,
        )


def test_super_resolution_beyond_the_protocols_size_is_left_out(tiny: Path) -> None:
    recipe = load_recipe(tiny).recipe
    assert needed_pieces(recipe, sized(8)) == ("clip", "prior", "decoder_t")
    assert needed_pieces(recipe, sized(16))[-1] == "sr_l" and needed_pieces(recipe, sized(20))[-1] == "sr_h"
    lanczos = load_recipe(tiny, sets=["cascade.sr_l.kind=none"]).recipe
    assert needed_pieces(lanczos, sized(16)) == ("clip", "prior", "decoder_t", "sr_h")


def test_a_plan_says_every_departure(tiny: Path) -> None:
    recipe = load_recipe(tiny).recipe
    assert plan_benchmark(SMALL, DOGS, recipe).departures == ()
    plan = plan_benchmark(SMALL, DOGS, recipe, samples=2, allow_small=True, random_pieces=("interp",))
    assert plan.departures == ("2 samples, the protocol asks for 4", "random weights in interp")
    with pytest.raises(UsageError, match="asks for 4 samples, not 2"):
        plan_benchmark(SMALL, DOGS, recipe, samples=2)
    with pytest.raises(UsageError, match="makes 4 key frames"):
        plan_benchmark(SMALL, DOGS, load_recipe(tiny, sets=["cascade.decoder.frames=4"]).recipe)


# -- scores -------------------------------------------------------------------------------------------------------------------


def score(value: float) -> Score:
    return Score("x", value, Fingerprint({}))


def test_a_resample_of_groups_is_the_gaussian_of_the_rows_repeated() -> None:
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal((k, 3)) + k for k in (1, 2, 3, 1)]
    groups = Groups(iter(clips), 4)
    times = np.array([2, 0, 1, 3])
    moments = Moments()
    moments.add(np.concatenate([clips[i] for i, often in enumerate(times) for _ in range(often)]))
    for covariance in ("unbiased", "biased"):
        wanted, found = moments.gaussian(covariance), groups.gaussian(times, covariance)
        np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-12)
        np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-12)
        assert found.count == wanted.count


def test_many_samples_share_groups_and_the_whole_stays_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_GROUP_BYTES", 8 * 9 * 5)
    clips = list(np.random.default_rng(1).standard_normal((23, 2, 3)))
    groups = Groups(iter(clips), 23)
    assert len(groups) == 5 and sorted(groups.sizes) == [4, 4, 5, 5, 5]
    moments = Moments()
    moments.add(np.concatenate(clips))
    found, wanted = groups.gaussian(np.ones(5, int), "unbiased"), moments.gaussian()
    np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-12)


def test_the_interval_of_a_mean_is_the_books() -> None:
    x = np.random.default_rng(3).standard_normal(400)
    low, high = bootstrap(lambda times: float(times @ x / times.sum()), 400, resamples=2000)
    half = 1.96 * x.std() / 20
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)
    assert bootstrap(lambda times: float(times @ x), 400, resamples=20) == bootstrap(
        lambda times: float(times @ x), 400, resamples=20
    )
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap(lambda times: 0.0, 1)


def test_the_interval_of_a_frechet_distance_holds_it_and_narrows_with_samples() -> None:
    rng = np.random.default_rng(4)
    real = Moments()
    real.add(rng.standard_normal((4000, 4)))
    widths = []
    for count in (40, 640):
        rows = rng.standard_normal((count, 1, 4)) + 0.5
        groups = Groups(iter(rows), count)
        value = frechet_distance(real.gaussian(), groups.gaussian(np.ones(count, int), "unbiased"))
        found = benchmark.frechet_scored(
            score(value), real.gaussian(), groups, covariance="unbiased", resamples=60
        )
        assert found.interval is not None and found.interval.low < value < found.interval.high
        assert found.curve[-1] == (count, pytest.approx(value)) and found.samples == count
        widths.append(found.interval.high - found.interval.low)
    assert widths[1] < widths[0] / 2


def test_classes_are_told_apart_by_what_was_asked() -> None:
    logits = np.full((4, 3), -5.0)
    logits[np.arange(4), [0, 0, 1, 2]] = 5
    found = benchmark.inception_scored(
        score(2.5), logits, ["x", "y", "y", "z"], ["x", "y", "z"], resamples=50
    )
    assert found.classes == {"x": 1.0, "y": 0.5, "z": 1.0}
    assert found.interval is not None and found.interval.low <= 2.5 <= found.interval.high


# -- published scores and plots ---------------------------------------------------------------------------------------------


def test_a_departure_makes_every_row_incomparable_and_an_open_choice_unknown() -> None:
    preset = find_preset("ucf101")
    whole = {(row["system"], row["setting"]): row for row in compare(preset, ["is", "fvd"], [])}
    assert whole["Make-A-Video", "zero-shot"]["comparable"] == "unknown"
    assert whole["TATS-base", "trained on UCF-101, 128 px"]["comparable"] == "no"
    assert {row["comparable"] for row in compare(preset, ["is"], ["6 samples"])} == {"no"}
    assert {row["comparable"] for row in compare(preset.model_copy(update={"open": {}}), ["fvd"], [])} == {
        "yes",
        "no",
    }
    assert all("fvd" in row["scores"] for row in compare(preset, ["fvd"], []))
    assert {preset.table for preset in presets().values() if preset.table} == set(TABLES)


@pytest.mark.parametrize(
    ("name", "scores"), [("film", {"motion": 54.0}), ("vdm", {"quality": 84.38, "faithfulness": 78.13})]
)
def test_what_people_said_stands_beside_and_is_never_called_comparable(
    name: str, scores: dict[str, float]
) -> None:
    rows = compare(find_preset(name), ["clipsim"], [])
    assert scores in [row["scores"] for row in rows]
    assert all(row["comparable"] == "no" and "mav eval human" in row["why"][0] for row in rows)


def test_the_finetuned_row_has_a_protocol() -> None:
    rows = {row["system"]: row for row in compare(find_preset("ucf101-finetuned"), ["is", "fvd"], [])}
    assert rows["Make-A-Video"]["scores"] == {"is": 82.55, "fvd": 81.25}
    assert rows["Make-A-Video"]["comparable"] == "unknown" and "CogVideo (English)" not in rows
    assert any(why.startswith("finetuning: ") for why in rows["Make-A-Video"]["why"])


def test_the_real_videos_of_ucf101_are_those_of_the_first_training_split(ucf: Path) -> None:
    write_video(ucf / "videos" / "v_DogAa_99.mkv", np.zeros((16, 16, 16, 3), np.uint8), fps=25, codec="ffv1")
    preset, folder = find_preset("ucf101"), open_folder(ucf / "videos")
    assert "9,537" in preset.open["real"]
    with pytest.raises(InputError, match=r"lacks 189 of the 201 videos of `trainlist01.txt`"):
        real_videos(preset, folder, ucf, allow_small=False)
    found, few = real_videos(preset, folder, ucf, allow_small=True)
    assert len(folder) == 13 and len(found) == 12 and not any("_99" in path.name for path in found.files)
    assert few == "12 real videos, the protocol measures 201"
    names = (ucf / "trainlist01.txt").read_text().split("\n")[:12]
    (ucf / "trainlist01.txt").write_text("\n".join(names))
    assert real_videos(preset, folder, ucf, allow_small=False)[1] is None


def test_plots_are_svg_that_says_its_numbers() -> None:
    text = curve_svg(
        [(10, 500.0), (100, 420.0), (1000, 400.0)],
        title="FVD <x>",
        interval=(390, 410),
        others={"MAV": 367.23},
    )
    words = "".join(ET.fromstring(text).itertext())
    assert "FVD <x>" in words and "1,000" in words and "MAV 367.23" in words
    for values in ([(1, 0.0)], [(5, 3.0), (6, 3.0)], [(2, -1e-9), (4, 1e-9)]):
        ET.fromstring(curve_svg(values, title="flat"))
    bars = ET.fromstring(bars_svg({"b": 0.2, "a & c": 0.9}, title="by class"))
    rows = [element.text for element in bars.iter("{http://www.w3.org/2000/svg}text")]
    assert rows == ["by class", "a & c", "0.9", "b", "0.2"]
