"""Batches out of files: the same with any number of workers and processes, counts included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mavcli.data.clips import Redrawn
from mavcli.data.folders import FolderSource
from mavcli.media.video import write_video
from mavcli.training.batches import Batches
from mavcli.training.previews import seen
from mavcli.training.stages import STAGES


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three videos of 12 frames at 8 fps, and one with too few frames for four."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(3):
        frames = rng.integers(0, 40, (12, 24, 24, 3), np.uint8) + np.uint8(60 * i)
        write_video(root / f"{i}.mkv", frames, fps=8, codec="ffv1")
    write_video(root / "short.mkv", np.zeros((2, 24, 24, 3), np.uint8), fps=8, codec="ffv1")
    return root


def test_workers_and_processes_change_neither_samples_nor_counts(videos, tiny, tmp_path):
    recipe = tiny(tmp_path, "train.defaults.steps=8", "train.defaults.batch_size=4").recipe
    source = FolderSource(str(videos), "video")
    alone = [Batches(source, STAGES["interp"], recipe)[step] for step in range(8)]
    counted = sum((batch.redrawn for batch in alone), Redrawn())
    assert counted.rate > 0 and counted.clip > 0
    batches = Batches(source, STAGES["interp"], recipe)
    loader = DataLoader(
        batches, sampler=range(8), batch_size=None, num_workers=2, generator=torch.Generator()
    )
    for one, two in zip(alone, loader, strict=True):
        assert torch.equal(one.pixels, two.pixels) and one.redrawn == two.redrawn
    shares = [Batches(source, STAGES["interp"], recipe, rank=rank, processes=2) for rank in (0, 1)]
    for step in (0, 5):
        halves = [share[step] for share in shares]
        assert torch.equal(torch.cat([half.pixels for half in halves]), alone[step].pixels)
        assert halves[0].redrawn + halves[1].redrawn == alone[step].redrawn


def test_the_counts_of_workers_reach_the_last_line(videos, family, train, heard, tmp_path):
    said = []
    sets = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder")]
    sets += [f"train.data.video={videos}", "train.data.world=false", "train.stages.decoder_t.image_batch=0"]
    report = heard()
    train("decoder_t", tmp_path, *sets, "train.defaults.steps=4", report=report)
    said = [line for line in report.messages if line.startswith("data: used 4 of 4 clips")]
    assert len(said) == 2 and "frame rate moved to what the file allows: " in said[1]


def test_a_preview_shows_the_pixels_and_the_low_res_input_of_the_step(tiny, tmp_path, videos):
    loaded = tiny(tmp_path, f"train.data.video={videos}", "train.data.world=false")
    shown = seen(loaded, STAGES["sr_lt"], step=1, samples=1)
    batch = Batches(FolderSource(str(videos), "video"), STAGES["sr_lt"], loaded.recipe)[1]
    assert f"{float(batch.fps[0]):.2f} fps" in shown.lines[0]
    # the first cell, of a sheet whose frames are enlarged without smoothing
    cell = 96
    scale = cell // batch.pixels.shape[2]
    first = shown.sheet[4 : 4 + cell, 4 : 4 + cell][scale // 2 :: scale, scale // 2 :: scale]
    assert np.array_equal(first, batch.pixels[0, 0].numpy())


def test_pictures_beside_clips_are_drawn_anew_and_shared_out(videos, tiny, tmp_path):
    sets = [
        "train.defaults.batch_size=4",
        "train.stages.decoder_t.image_batch=0",
        "train.stages.decoder_t.still_clips=0",
    ]
    source = FolderSource(str(videos), "video")
    plain = Batches(source, STAGES["decoder_t"], tiny(tmp_path, *sets).recipe)[1]
    recipe = tiny(tmp_path, *sets, "train.stages.decoder_t.pictures_beside=3").recipe
    whole = Batches(source, STAGES["decoder_t"], recipe)[1]
    assert plain.beside is None and torch.equal(plain.pixels, whole.pixels), "the clips are what they were"
    assert whole.beside.pixels.shape[:2] == (12, 1) and whole.beside.first == 4
    assert len({picture.numpy().tobytes() for picture in whole.beside.pixels}) > 6
    halves = [Batches(source, STAGES["decoder_t"], recipe, rank=rank, processes=2)[1] for rank in (0, 1)]
    assert torch.equal(torch.cat([half.beside.pixels for half in halves]), whole.beside.pixels)
    assert [half.beside.first for half in halves] == [4, 10]
