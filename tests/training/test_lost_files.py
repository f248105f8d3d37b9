"""Files that vanish or go bad while a training runs, and a training that goes on with other files."""

from __future__ import annotations

import os
import shutil
import signal
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch

from mavcli.data.folders import FolderSource
from mavcli.errors import InputError, Interrupted, OutOfMemoryError
from mavcli.media.image import write_png
from mavcli.media.video import write_video
from mavcli.training.batches import Batches
from mavcli.training.checkpoint import newest_checkpoint
from mavcli.training.loop import train_stage
from mavcli.training.stages import STAGES

SETS = ["train.data.world=false", "train.stages.sr_h.crop=16", "train.defaults.save_every=100"]
SETS += ["train.defaults.steps=8", "train.defaults.batch_size=4", "train.defaults.optimizer=adamw"]
SETS += [
    "cascade.sr_h.size=32",
    "cascade.sr_h.network.image_size=32",
    "cascade.sr_h.network.model_channels=8",
]
SETS += ["cascade.sr_h.network.channel_mult=[1]"]


def make_pictures(root: Path, count: int = 24) -> Path:
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        write_png(root / f"{i:02d}.png", rng.integers(0, 256, (32, 32, 3), np.uint8))
    FolderSource(str(root), "image")  # read here, so that a report hears of steps alone
    return root


@pytest.fixture
def pictures(tmp_path) -> Path:
    return make_pictures(tmp_path / "pictures")


def lose(root: Path, *names: int) -> None:
    """One is gone, the next is damaged, and so on."""
    for place, name in enumerate(names):
        file = root / f"{name:02d}.png"
        file.write_bytes(file.read_bytes()[:99]) if place % 2 else file.unlink()


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return newest_checkpoint(out / "sr_h")[0].tensors()


def test_a_picture_that_is_lost_is_left_out_told_once_and_at_the_end(pictures, train, heard, tmp_path):
    report = heard({2: lambda: lose(pictures, 3, 4)})
    sets = [*SETS, f"train.data.image={pictures}"]
    assert train("sr_h", tmp_path / "out", *sets, "train.defaults.steps=20", report=report).step == 20
    (warning,) = report.warnings
    assert "is left out: " in warning and ("`03.png`" in warning or "`04.png`" in warning)
    (told,) = [line for line in report.messages if "could not be read" in line]
    assert told.startswith("data: 2 of 24 files could not be read, other samples took their place: ")
    assert "`03.png`: it is gone" in told and "`04.png`: " in told and "damaged image" in told


def test_more_than_the_stated_share_ends_it_when_the_state_is_saved(pictures, train, heard, tmp_path):
    report = heard({3: lambda: lose(pictures, *range(20))})
    sets = [*SETS, f"train.data.image={pictures}", "train.defaults.steps=20"]
    with pytest.raises(InputError, match=r"of 24 files .* `train.data.max_lost` allows 0\.1 of them") as told:
        train("sr_h", tmp_path / "out", *sets, report=report)
    step = newest_checkpoint(tmp_path / "out" / "sr_h")[0].step
    assert step >= 3 and f"the state of step {step} is saved in" in told.value.message
    assert told.value.exit_code == 4 and "run the same command again" in told.value.hint
    assert train("sr_h", tmp_path / "out", *sets).step == 20, "with the files that are left"


def test_all_files_gone_is_one_line_and_the_state_is_saved(pictures, train, heard, tmp_path):
    report = heard({3: lambda: shutil.rmtree(pictures)})
    with pytest.raises(InputError, match="none met a file that can be read.*the state of step 3 is saved"):
        train("sr_h", tmp_path / "out", *SETS, f"train.data.image={pictures}", report=report)


def test_a_training_that_is_stopped_after_files_were_lost_goes_on_bit_for_bit(train, heard, tmp_path):
    """What takes a lost sample's place does not depend on whether the training met it gone, or began without it."""
    stopped_at = {5: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    for name, stops in (("whole", {}), ("parts", stopped_at)):
        root = make_pictures(tmp_path / f"{name}-pictures")
        sets = [*SETS, f"train.data.image={root}", "train.data.max_lost=1"]
        at_step = {2: lambda root=root: lose(root, 1, 2, 3, 7, 8, 13), **stops}
        if not stops:
            train("sr_h", tmp_path / name, *sets, report=heard(at_step))
            continue
        with pytest.raises(Interrupted):
            train("sr_h", tmp_path / name, *sets, report=heard(at_step))
        report = heard()
        train("sr_h", tmp_path / name, *sets, report=report)
        told = "the files are not those that this training began with: 18 pictures for 24 (6 gone, 0 new)"
        assert told in report.warnings
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_new_and_renamed_files_are_told_apart_by_what_is_in_them(pictures, train, heard, tmp_path):
    sets = [*SETS, f"train.data.image={pictures}"]
    with pytest.raises(Interrupted):
        train(
            "sr_h", tmp_path / "out", *sets, report=heard({2: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        )
    (pictures / "00.png").rename(pictures / "renamed.png")
    report = heard()
    assert train("sr_h", tmp_path / "out", *sets, report=report).step == 8
    assert not report.warnings
    write_png(pictures / "more.png", np.zeros((32, 32, 3), np.uint8))
    train("sr_h", tmp_path / "out", *sets, "train.defaults.steps=9", allow=["steps"], report=report)
    assert any("25 pictures for 24 (0 gone, 1 new)" in line for line in report.warnings)


def test_the_order_that_a_training_began_with_decides_its_draws(pictures):
    before = FolderSource(str(pictures), "image")
    order = list(before.order)
    lose(pictures, 5)
    shutil.copy(pictures / "06.png", pictures / "0-first.png")
    after = FolderSource(str(pictures), "image")
    changed = after.keep_order(order)
    assert (changed.before, changed.now, changed.gone, changed.new) == (24, 24, 1, 1)
    assert after.order[:24] == order and len(after.order) == 25
    other = FolderSource(str(pictures), "image")
    assert other.keep_order(["0" * 16] * 60).gone == 60 and other.readable == 24, (
        "too few are left: laid anew"
    )


@pytest.fixture
def videos(tmp_path) -> Path:
    root = tmp_path / "videos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        write_video(root / f"{i}.mkv", rng.integers(0, 256, (12, 24, 24, 3), np.uint8), fps=8, codec="ffv1")
    return root


def test_a_clip_in_memory_counts_as_gone_when_its_file_is(videos, tiny, tmp_path):
    """A process that has it in memory and one that has not must draw alike."""
    recipe = tiny(tmp_path, "train.defaults.batch_size=4").recipe
    warm = Batches(FolderSource(str(videos), "video"), STAGES["interp"], recipe)
    cold = Batches(FolderSource(str(videos), "video"), STAGES["interp"], recipe)
    before = [warm[step] for step in range(4)]
    (videos / "2.mkv").unlink()
    for step in range(4):
        one, other = warm[step], cold[step]
        assert torch.equal(one.pixels, other.pixels) and one.lost == other.lost
        assert torch.equal(one.pixels, before[step].pixels) == (not one.lost)
    assert warm.lost == {"2.mkv": "it is gone"}


def test_a_clip_that_no_longer_decodes_is_drawn_anew(videos, tiny, tmp_path):
    recipe = tiny(tmp_path, "train.defaults.batch_size=4").recipe
    batches = Batches(FolderSource(str(videos), "video"), STAGES["interp"], recipe)
    for name in ("1.mkv", "4.mkv"):
        (videos / name).write_bytes((videos / name).read_bytes()[:2000])
    drawn = [batches[step] for step in range(4)]
    assert set(batches.lost) == {"1.mkv", "4.mkv"}
    assert all(batch.pixels.shape == (4, 4, 16, 16, 3) for batch in drawn)


def test_a_process_that_prepares_batches_and_is_killed_is_a_line_and_exit_5(tiny, backend, heard, tmp_path):
    def kill_one() -> None:
        (worker,) = active_children()
        worker.kill()

    loaded = tiny(tmp_path, *SETS, "train.data.world=true", "train.defaults.steps=2000")
    with pytest.raises(
        OutOfMemoryError, match="a process that prepares batches was ended by SIGKILL"
    ) as told:
        train_stage(loaded, "sr_h", backend=backend, report=heard({3: kill_one}), workers=1)
    assert told.value.exit_code == 5 and "\n" not in told.value.message and "--workers" in told.value.hint
    found, _ = newest_checkpoint(tmp_path / "sr_h")
    assert found.step >= 3 and f"the state of step {found.step} is saved in" in told.value.message


def test_an_error_of_a_process_that_prepares_batches_is_one_line(pictures, tiny, backend, heard, tmp_path):
    loaded = tiny(tmp_path / "out", *SETS, f"train.data.image={pictures}", "train.defaults.steps=20")
    report = heard({3: lambda: shutil.rmtree(pictures)})
    with pytest.raises(InputError, match="none met a file that can be read") as told:
        train_stage(loaded, "sr_h", backend=backend, report=report, workers=1)
    assert "\n" not in told.value.message and "Traceback" not in told.value.message
