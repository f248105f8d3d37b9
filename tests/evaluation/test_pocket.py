"""`mav eval pocket`: its prompts, its counting, and the whole command on a tiny family."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mavcli.cli.app import run
from mavcli.data.world import HELD_OUT_PAIRS
from mavcli.engine.backend import open_backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.randomness import Draw
from mavcli.errors import UsageError
from mavcli.evaluation import classifier
from mavcli.evaluation.classifier import PARTS, load_classifier
from mavcli.evaluation.intervals import wilson
from mavcli.evaluation.pocket import (
    ASPECTS,
    Judges,
    Prompt,
    Reading,
    Share,
    confusion,
    draw_prompts,
    generate,
    motion_controls,
    needed_family,
    read_clip,
    rendered_clip,
    shares,
    trajectories,
)
from mavcli.evaluation.trajectory import load_motion_judge
from mavcli.recipe.load import load_recipe
from mavcli.recipe.resolve import probe_machine, resolve

TINY = """\
extends: pocket
name: tiny
weights: {dir: ./none}
cascade:
  clip:
    network: {embed_dim: 16, vision_width: 8, text_width: 32, text_heads: 2, text_layers: 1}
  prior:
    network: {clip_dim: 16, text_dim: 32, width: 32, layers: 1, num_heads: 2}
    sampler: {steps: 2}
  decoder:
    network: {model_channels: 32, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], clip_dim: 16, context_dim: 16}
    sampler: {steps: 2}
  interp: {sampler: {steps: 1}}
  sr_l: {kind: lanczos, size: 64}
  sr_h: {kind: none}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges(load_classifier(), load_motion_judge())


def test_wilsons_interval_is_the_books() -> None:
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(48, 60) == pytest.approx((0.6822, 0.8817), abs=1e-3)


def test_wilsons_interval_stays_between_nothing_and_all() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_seen_prompts_never_name_a_held_out_pair_and_held_out_ones_always_do() -> None:
    seen = {(p.actor, p.action) for p in draw_prompts(400, group="seen", seed=5)}
    apart = {(p.actor, p.action) for p in draw_prompts(200, group="held-out", seed=5)}
    assert not seen & HELD_OUT_PAIRS and len(seen) > 70
    assert apart == HELD_OUT_PAIRS


def test_prompts_depend_on_the_seed_alone() -> None:
    few, many = draw_prompts(3, group="seen", seed=1), draw_prompts(9, group="seen", seed=1)
    assert many[:3] == few and draw_prompts(9, group="seen", seed=2) != many
    assert len({p.sample for p in many + draw_prompts(9, group="held-out", seed=1)}) == 18


def test_a_rendered_clip_is_read_as_what_it_shows_and_how_it_moves(judges: Judges) -> None:
    for prompt in draw_prompts(2, group="seen", seed=8) + draw_prompts(2, group="held-out", seed=8):
        clip = rendered_clip(prompt, fps=4.8, frames=16, size=64, seed=3)
        reading = read_clip(judges, clip, prompt, fps=4.8, seed=3)
        assert all(reading.right(aspect) for aspect in ASPECTS)
        # The truth beside it is a clip of the same prompt, seed and length: here the very same.
        assert reading.motion == reading.rendered


def test_the_baseline_without_video_draws_every_frame_as_a_picture_of_its_own(tiny: str) -> None:
    # an untrained network says 0, which as x0 would be the same picture always
    recipe = load_recipe(tiny, sets=["cascade.decoder.schedule.prediction=epsilon"]).recipe
    family = needed_family(recipe, scope="base", random_weights=True)
    backend = open_backend(resolve(recipe, machine=probe_machine()))
    cascade = Cascade(recipe, family, backend)
    prompts = draw_prompts(2, group="seen", seed=0)
    clips = generate(cascade, prompts, scope="base", fps=24.0, seed=0, inflated=True)
    assert clips.shape == (2, 16, 3, 64, 64)
    draws = [Draw(0, prompt.sample) for prompt in prompts]
    embedding = cascade.image_embedding([p.text for p in prompts], draws)
    assert torch.equal(clips[:, :1], cascade.decode(embedding, draws, fps=24.0, frames=1))
    assert all(not torch.equal(clips[:, i], clips[:, 0]) for i in range(1, 16))


def test_shares_and_confusion_count_what_was_read(judges: Judges) -> None:
    dog = Prompt("dog", "surfing", "beach", "seen", 0)
    cat = Prompt("cat", "flying", "beach", "seen", 1)
    clip = rendered_clip(dog, fps=4.8, frames=16, size=64, seed=0)
    readings = [read_clip(judges, clip, prompt, fps=4.8, seed=0) for prompt in (dog, cat)]
    found = shares(readings)
    assert found == {
        "actor": Share(1, 2),
        "action": Share(1, 2),
        "place": Share(2, 2),
        "motion": Share(1, 2),
        "all four": Share(1, 2),
    }
    assert motion_controls(readings)["rendered"] == Share(2, 2)
    rows = {(row["action"], row["signal"], row["statistic"]): row for row in trajectories(readings)}
    surf = rows["surfing", "angle", "amplitude"]
    assert surf["generated"] == surf["rendered"] > 0.1 and surf["clips"] == 1
    table = confusion(readings, "actor")
    assert table.sum() == 2 and table[0, 0] == 1 and table[1, 0] == 1


def test_a_wrong_picture_is_read_as_wrong(judges: Judges) -> None:
    frog = Prompt("frog", "spinning", "space", "seen", 2)
    noise = np.random.default_rng(0).random((16, 3, 64, 64), dtype=np.float32) * 2 - 1
    reading: Reading = read_clip(judges, torch.from_numpy(noise), frog, fps=4.8, seed=0)
    assert not all(reading.right(part) for part in PARTS)


def test_the_whole_command_measures_a_tiny_family(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "eval",
        "pocket",
        "-r",
        tiny,
        "--random-weights",
        "--prompts",
        "2",
        "--held-out",
        "1",
        "-o",
        "found",
    ]
    assert run([*arguments, "--json", "-q"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert "RANDOM WEIGHTS" in shown.err
    assert told["scope"] == "base" and told["groups"]["seen"]["shares"]["actor"]["total"] == 2
    assert told["groups"]["held-out"]["shares"]["place"]["total"] == 1
    assert (tmp_path / "found" / "seen-01.png").is_file() and (
        tmp_path / "found" / "held-out-01.png"
    ).is_file()
    written = json.loads((tmp_path / "found" / "report.json").read_text())
    assert written["groups"] == told["groups"]
    assert run(arguments) == 6
    assert "holds a report" in capsys.readouterr().err
    assert run([*arguments, "--force", "--full", "--held-out", "0", "--prompts", "1", "-q"]) == 0
    out = capsys.readouterr().out
    assert "all frames of the whole chain at 24 fps" in out and "seen pairs, 1 prompt\n" in out
    assert not (tmp_path / "found" / "held-out-01.png").exists()


def test_the_control_of_fps_draws_five_rates(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "pocket", "-r", tiny, "--random-weights", "--prompts", "0", "--held-out", "0"]
    assert run([*arguments, "--fps-control", "1", "--json", "-q"]) == 0
    control = json.loads(capsys.readouterr().out)["fps_control"]
    assert control["fps"] == [1, 4, 8, 15, 30] and len(control["generated"]) == 5
    assert control["rho_per_frame_rendered"] < -0.5 and control["rho_per_second_rendered"] > 0.5


def test_missing_weights_are_named_before_anything_is_made(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "pocket", "-r", tiny]) == 3
    shown = capsys.readouterr().err
    assert "decoder_t" in shown and not (tmp_path / "outputs").exists()


def test_no_prompts_is_a_usage_error(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "pocket", "-r", tiny, "--prompts", "0", "--held-out", "0"]) == 2
    assert "no prompts to measure" in capsys.readouterr().err


def test_a_recipe_without_the_words_of_the_world_is_refused() -> None:
    recipe = load_recipe("pocket", sets=["cascade.clip.network.vocabulary=[a, dog, surfing]"]).recipe
    with pytest.raises(UsageError, match="does not know 2[0-9] words of the pocket world"):
        needed_family(recipe, scope="base", random_weights=True)


def test_training_the_judge_never_overwrites_unasked(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"mine")
    assert run(["eval", "pocket", "--train-classifier", str(path)]) == 6
    assert "--force" in capsys.readouterr().err and path.read_bytes() == b"mine"
    assert run(["eval", "pocket", "--train-classifier", "judge.bin"]) == 2


def test_a_dry_run_says_what_would_be_measured(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "pocket", "-r", tiny, "--random-weights", "--dry-run", "--prompts", "4"]) == 0
    assert "4 seen and 20 held-out prompts" in capsys.readouterr().out
    assert not (tmp_path / "outputs").exists()


def test_the_command_trains_a_judge_and_tells_how_good_it_is(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = partial(classifier.train_classifier, steps=2, batch_size=8, pool=16)
    monkeypatch.setattr(classifier, "train_classifier", short)
    assert run(["eval", "pocket", "--train-classifier", "judge.safetensors", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classifier"] == "judge.safetensors" and 0 <= told["held-out"]["actor"] < 0.6
    load_classifier(Path("judge.safetensors"))
