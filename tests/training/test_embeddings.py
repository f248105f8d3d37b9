"""The frozen towers' embeddings are kept by content, and nothing but time depends on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_together

from mavcli.engine.assemble import load_clip
from mavcli.engine.backend import Backend
from mavcli.media.image import write_png
from mavcli.media.video import write_video
from mavcli.models.clip import ClipReader
from mavcli.training.embeddings import Embeddings
from mavcli.training.loop import train_stage
from mavcli.weights.provenance import read_header

WORDS = ["a cat in the city", "a dog on the beach", "a panda in space", "the robot running"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """24 captioned pictures, and 3 clips of 12 frames."""
    root = tmp_path_factory.mktemp("data")
    (root / "pairs").mkdir()
    (root / "video").mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        write_png(root / "pairs" / f"{i:02d}.png", rng.integers(0, 255, (24, 20, 3), np.uint8))
        (root / "pairs" / f"{i:02d}.txt").write_text(WORDS[i % 4])
    for i in range(3):
        write_video(
            root / "video" / f"{i}.mkv", rng.integers(0, 255, (12, 24, 24, 3), np.uint8), fps=8, codec="ffv1"
        )
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def sets(family, data) -> list[str]:
    found = [f"weights.{s}={family}/weights/{s}.safetensors" for s in ("clip", "decoder", "decoder_t")]
    found += ["train.data.world=false", f"train.data.pairs={data}/pairs", f"train.data.video={data}/video"]
    return [*found, "train.defaults.steps=5", "train.stages.decoder_t.image_batch=0"]


def curve(out: Path, stage: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
    return [{k: line[k] for k in ("loss", "step_loss", "norm", "held_out") if k in line} for line in lines]


def counts(report) -> tuple[int, int]:
    """Embeddings that were known and that were made, as the last line says."""
    lines = [m for m in report.messages if m.startswith("embeddings")]
    return tuple(map(int, re.findall(r"\d+", lines[-1])))


@pytest.mark.parametrize("stage", ["prior", "decoder", "decoder_t", "interp"])
def test_a_training_is_the_same_with_and_without_kept_embeddings(stage, sets, train, heard, cache, tmp_path):
    """None kept, kept for the first time, all known, some damaged: the same losses and weights, bit for bit."""
    heards = [heard() for _ in range(4)]
    train(stage, tmp_path / "0", *sets, "train.embeddings_gb=0", report=heards[0])
    assert not cache.exists()
    train(stage, tmp_path / "1", *sets, report=heards[1])
    train(stage, tmp_path / "2", *sets, report=heards[2])
    for path in sorted(cache.rglob("*.rows"))[::2]:
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    train(stage, tmp_path / "3", *sets, report=heards[3])
    none, first, second, damaged = map(counts, heards)
    assert none[0] == 0 and none[1] == sum(first)
    assert first[0] > 0 and first[1] > 0, "pictures come again within a run"
    assert second == (sum(first), 0)
    assert damaged[1] > 0
    one = curve(tmp_path / "0", stage)
    assert len(one) > 5
    for run in ("1", "2", "3"):
        assert curve(tmp_path / run, stage) == one
        a, b = (read_header(tmp_path / r / "weights" / f"{stage}.safetensors") for r in ("0", run))
        assert a.content_sha256 == b.content_sha256


def test_the_rendered_world_never_repeats_and_is_not_kept(sets, train, heard, cache, tmp_path):
    report = heard()
    train("decoder", tmp_path, *sets, "train.data.world=true", report=report)
    assert not cache.exists() and not any("embeddings" in message for message in report.messages)


def test_a_cache_that_cannot_be_written_is_told_once_and_changes_nothing(
    sets, train, heard, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "file"))
    report = heard()
    train("decoder", tmp_path / "1", *sets, report=report)
    assert len([w for w in report.warnings if w.startswith("embeddings: nothing new is kept")]) == 1
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    train("decoder", tmp_path / "2", *sets)
    assert curve(tmp_path / "1", "decoder") == curve(tmp_path / "2", "decoder")


def test_two_processes_use_what_one_has_kept(sets, train, tiny, backend, heard, cache, tmp_path):
    sets = [*sets, "train.defaults.batch_size=4", "train.defaults.optimizer=adamw"]
    train("decoder", tmp_path / "1", *sets)

    def work(group) -> list[str]:
        report = heard()
        train_stage(tiny(tmp_path / "2", *sets), "decoder", backend=backend, report=report, group=group)
        return report.messages

    messages = run_together(2, work)[0]
    assert isinstance(messages, list), messages
    assert any(message.endswith(", 0 were made") for message in messages)
    losses = [
        [line["step_loss"] for line in curve(tmp_path / r, "decoder") if "step_loss" in line] for r in "12"
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def embeddings(family: Path, tiny, backend: Backend, folder: Path, sha256: str = "a") -> Embeddings:
    recipe = tiny(folder).recipe
    clip = load_clip(recipe, family / "weights" / "clip.safetensors")
    return Embeddings(clip, backend, sha256=sha256, folder=folder, limit=10**8)


def test_an_embedding_is_the_towers_own_and_does_not_depend_on_its_neighbours(
    family, tiny, backend, tmp_path
):
    kept = embeddings(family, tiny, backend, tmp_path)
    pixels = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    rows = kept.of_pictures(pixels)
    for i in range(5):
        assert torch.equal(
            embeddings(family, tiny, backend, tmp_path / "b").of_pictures(pixels[i : i + 1])[0], rows[i]
        )
    batch = kept.clip.encode_image(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    torch.testing.assert_close(rows, batch, rtol=1e-5, atol=1e-6)
    assert torch.equal(kept.of_pictures(pixels.flip(0)), rows.flip(0))
    told, text = kept.encode_text(WORDS), kept.clip.encode_text(WORDS)
    torch.testing.assert_close(told.embedding, text.embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(told.states, text.states, rtol=1e-5, atol=1e-5)
    assert torch.equal(told.mask, text.mask) and told.mask.dtype == text.mask.dtype


def test_other_pixels_words_towers_or_arithmetic_are_other_embeddings(
    family, tiny, backend, tmp_path, monkeypatch
):
    pixels = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    first = embeddings(family, tiny, backend, tmp_path)
    first.of_pictures(pixels)
    first.encode_text(["a cat"])
    first.flush()

    def made(kept: Embeddings, picture: torch.Tensor = pixels, text: str = "a cat") -> int:
        kept.of_pictures(picture)
        kept.encode_text([text])
        return kept.counts[1]

    assert made(embeddings(family, tiny, backend, tmp_path)) == 0
    changed = pixels.clone()
    changed[0, 7, 3, 1] = 1
    assert made(embeddings(family, tiny, backend, tmp_path), picture=changed) == 1
    assert made(embeddings(family, tiny, backend, tmp_path), picture=pixels.reshape(1, 8, 32, 3)) == 1
    assert made(embeddings(family, tiny, backend, tmp_path), text="a cat.") == 1
    assert made(embeddings(family, tiny, backend, tmp_path, sha256="b")) == 2
    for other in (Backend(backend.device, torch.bfloat16, 1), Backend(backend.device, torch.float32, 2)):
        assert made(embeddings(family, tiny, other, tmp_path)) == 2


def test_known_embeddings_need_no_tower(family, tiny, backend, tmp_path, monkeypatch):
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    first = embeddings(family, tiny, backend, tmp_path)
    rows, told = first.of_pictures(pixels), first.encode_text(WORDS)
    first.flush()
    second = embeddings(family, tiny, backend, tmp_path)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a tower was asked")

    monkeypatch.setattr(ClipReader, "encode_image", refuse)
    monkeypatch.setattr(ClipReader, "encode_text", refuse)
    assert torch.equal(second.of_pictures(pixels), rows)
    assert torch.equal(second.encode_text(WORDS).states, told.states)
