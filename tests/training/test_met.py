"""The frame rates that a training really drew stay with its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from forked import run_together

from mavcli.media.video import write_video
from mavcli.training import loop
from mavcli.training.batches import Batches, stage_source
from mavcli.training.loop import train_stage
from mavcli.training.stages import STAGES
from mavcli.weights.provenance import read_header

PLAIN = ["train.defaults.batch_size=2", "train.stages.decoder_t.image_batch=0"]


def parents(family: Path) -> list[str]:
    return [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder", "decoder_t")]


def drawn(loaded, stage: str, steps: int) -> list[float]:
    batches = Batches(stage_source(STAGES[stage], loaded), STAGES[stage], loaded.recipe)
    return [float(fps) for step in range(steps) for fps in batches[step].fps]


def test_the_header_says_which_rates_and_distances_were_drawn_also_after_going_on(
    family, tiny, train, heard, tmp_path
):
    sets = [*parents(family), *PLAIN, "train.defaults.decay=0", "train.seed=5"]
    sets += ["train.stages.interp.fps.start=[1,1]", "train.stages.interp.fps.end=[1,1]"]
    train("interp", tmp_path, *sets, "train.defaults.steps=2")
    train("interp", tmp_path, *sets, "train.defaults.steps=4")
    rates = drawn(tiny(tmp_path, *sets, "train.defaults.steps=4"), "interp", 4)
    met = read_header(tmp_path / "weights" / "interp.safetensors").met
    assert met is not None and met.fps == (round(min(rates), 3), round(max(rates), 3))
    assert met.frame_skips == (2, 3)
    # the first part of a training is not forgotten by the second
    assert not {min(rates), max(rates)} <= set(rates[4:])


def test_still_clips_have_no_rate_and_image_stages_say_nothing(family, train, tmp_path):
    sets = [*parents(family), *PLAIN, "train.stages.decoder_t.still_clips=0.5", "train.defaults.steps=3"]
    train("decoder_t", tmp_path, *sets)
    met = read_header(tmp_path / "weights" / "decoder_t.safetensors").met
    assert met is not None and met.fps[1] <= 30 and met.frame_skips == ()
    assert read_header(family / "weights" / "decoder.safetensors").met is None


def test_a_training_that_goes_on_from_one_that_did_not_say_says_nothing(family, train, tmp_path, monkeypatch):
    """As checkpoints of before did: what was met earlier is not known."""
    sets = [*parents(family), *PLAIN, "train.stages.decoder_t.fps.start=[1,1]"]
    sets += ["train.stages.decoder_t.fps.end=[1,1]", "train.defaults.decay=0"]
    original = loop.save_checkpoint

    def older(folder, tensors, manifest, **others):
        assert manifest.pop("met")["fps"]
        return original(folder, tensors, manifest, **others)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", older)
        train("decoder_t", tmp_path, *sets, "train.defaults.steps=1")
    train("decoder_t", tmp_path, *sets, "train.defaults.steps=2")
    assert read_header(tmp_path / "weights" / "decoder_t.safetensors").met is None


def test_two_processes_say_what_both_drew(family, tiny, backend, heard, tmp_path):
    sets = [*parents(family), *PLAIN, "train.defaults.steps=1", "train.defaults.optimizer=adamw"]

    def work(group) -> None:
        train_stage(tiny(tmp_path, *sets), "decoder_t", backend=backend, report=heard(), group=group)

    for result in run_together(2, work):
        assert not isinstance(result, BaseException), result
    rates = drawn(tiny(tmp_path, *sets), "decoder_t", 1)
    met = read_header(tmp_path / "weights" / "decoder_t.safetensors").met
    assert (
        met is not None
        and met.fps == (round(min(rates), 3), round(max(rates), 3))
        and min(rates) < max(rates)
    )


@pytest.mark.parametrize(("frames", "told"), [(30, True), (90, False)])
def test_the_start_of_decoder_t_says_when_no_clip_gives_the_rate_of_generation(
    frames, told, family, train, heard, tmp_path
):
    """At 24 fps D^t is told 4.8, of which four frames last 0.625 s."""
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 16, 16, 3), np.uint8)
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "one.mkv", pixels, fps=60, codec="ffv1")
    report = heard()
    sets = [*parents(family), *PLAIN, "train.data.world=false", f"train.data.video={tmp_path}/clips"]
    train("decoder_t", tmp_path / "out", *sets, "train.defaults.steps=1", report=report)
    lines = [
        text for text in report.warnings if "generation will tell D^t 4.8 fps, and none of 1 clip" in text
    ]
    assert bool(lines) == told
