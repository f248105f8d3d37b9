"""CLIP's loss: open_clip's where nothing is a copy, and copies are no negatives."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mavcli.models.clip import TextFeatures
from mavcli.training.distributed import Group
from mavcli.training.losses import clip_loss, has_negatives
from mavcli.training.stage import Batch, pair_keys

CPU = torch.device("cpu")


class Towers:
    """Towers that say what they are told to: picture i has the embedding of its red value, caption `j` row j."""

    def __init__(self, count: int, scale: float = 7.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.image, self.text = torch.randn(2, count, 5, generator=generator)
        self.logit_scale = torch.tensor(scale)

    def encode_image(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.image[((pictures[:, 0, 0, 0] + 1) * 127.5).round().long()]

    def encode_text(self, captions: list[str]) -> TextFeatures:
        rows = self.text[[int(caption) for caption in captions]]
        return TextFeatures(rows, rows, rows > 0)


def batch_of(pictures: list[int], captions: list[int]) -> Batch:
    pixels = torch.tensor(pictures, dtype=torch.uint8)[:, None, None, None, None].expand(-1, 1, 2, 2, 3)
    return Batch(pixels, tuple(map(str, captions)))


def task_of(towers: Towers) -> SimpleNamespace:
    return SimpleNamespace(network=towers, device=CPU, group=Group())


def test_without_copies_it_is_open_clips_loss():
    from open_clip.loss import ClipLoss

    towers = Towers(6)
    losses = clip_loss(task_of(towers), batch_of([*range(6)], [*range(6)]), None)
    image, text = F.normalize(towers.image, dim=-1), F.normalize(towers.text, dim=-1)
    torch.testing.assert_close(losses.mean(), ClipLoss()(image, text, towers.logit_scale))


def test_a_copy_by_picture_or_by_caption_is_no_negative_and_counts_for_others():
    """Row 3 has the picture of row 0, row 4 the caption of row 1: each row by hand, over the rows that are no copies of it."""
    towers = Towers(5)
    pictures, captions = [0, 1, 2, 0, 4], [0, 1, 2, 3, 1]
    losses = clip_loss(task_of(towers), batch_of(pictures, captions), None)
    image = F.normalize(towers.image[pictures], dim=-1).double()
    text = F.normalize(towers.text[captions], dim=-1).double()
    s = 7.0 * image @ text.T
    for row, beside in enumerate([[1, 2, 4], [0, 2, 3], [0, 1, 3, 4], [1, 2, 4], [0, 2, 3]]):
        choice = [row, *beside]
        wanted = (s[row, choice].logsumexp(0) + s[choice, row].logsumexp(0)) / 2 - s[row, row]
        assert float(losses[row]) == pytest.approx(float(wanted), rel=1e-5)


def test_a_row_among_copies_alone_says_nothing_and_teaches_nothing():
    towers = Towers(3)
    towers.image.requires_grad_()
    same = batch_of([0, 0, 0], [0, 1, 2])
    losses = clip_loss(task_of(towers), same, None)
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0] and not towers.image.grad.abs().sum()
    assert has_negatives(task_of(towers), same).tolist() == [False] * 3
    assert has_negatives(task_of(towers), batch_of([0, 0, 1], [0, 1, 1])).tolist() == [True, False, True]


def test_keys_are_equal_for_equal_pictures_and_captions_only():
    keys = pair_keys(batch_of([7, 7, 8], [0, 1, 0]).pixels, ("a bear", "a panda", "a bear"))
    assert (keys[0] == keys[1]).tolist() == [True, False] and (keys[0] == keys[2]).tolist() == [False, True]


def pairs_folder(root, captions: list[str], pictures: int):
    import numpy as np

    from mavcli.media.image import write_png

    root.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,caption"]
    for i, caption in enumerate(captions):
        write_png(
            root / f"{i:02d}.png", np.full((16, 16, 3), rng.integers(256, size=3), np.uint8)
        ) if i < pictures else None
        rows.append(f"{i % pictures:02d}.png,{caption}")
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    return root


WORDS = ["bear", "cat", "dog", "panda", "robot"]
PLACES = ["beach", "city", "space", "photo", "running"]


def test_the_held_out_loss_of_clip_has_negatives_from_twenty_pairs_on(train, heard, tmp_path):
    """One of 20 pairs used to be held out, and its loss was ln(batch) for ever."""
    captions = [f"a {WORDS[i % 5]} in {PLACES[i // 5]}" for i in range(20)]
    root = pairs_folder(tmp_path / "pairs", captions, 20)
    report = heard()
    sets = ["train.data.world=false", f"train.data.pairs={root}"]
    done = train("clip", tmp_path / "out", *sets, report=report)
    assert any("4 held out" in line for line in report.messages)
    assert math.isfinite(done.held_out) and abs(done.held_out - math.log(4)) > 1e-3
    assert not any("means nothing" in line for line in report.warnings)


def test_a_loss_without_any_negatives_is_said_to_mean_nothing(train, heard, tmp_path):
    root = pairs_folder(tmp_path / "pairs", ["a cat"] * 6, 6)
    report = heard()
    sets = ["train.data.world=false", f"train.data.pairs={root}", "train.defaults.steps=2"]
    done = train("clip", tmp_path / "out", *sets, report=report)
    assert math.isnan(done.held_out)
    assert [w for w in report.warnings if w.startswith("the held-out loss means nothing")]
    assert [w for w in report.warnings if w.startswith("nothing is learnt from step 0")]
    text = (tmp_path / "out" / "clip" / "metrics.jsonl").read_text()
    assert '"held_out": null' in text and "NaN" not in text
