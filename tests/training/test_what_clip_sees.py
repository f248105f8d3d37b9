"""CLIP is shown the whole first frame at the size that CLIP reads, not what D draws of it (unCLIP 2.1; Make-A-Video 3.2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mavcli.data.clips import VideoFolder
from mavcli.data.folders import FolderSource
from mavcli.data.loader import WorldSource
from mavcli.media.frames import fit
from mavcli.media.image import write_png
from mavcli.media.video import write_video
from mavcli.models.clip import MEAN, STD, ClipReader
from mavcli.training.batches import Batches
from mavcli.training.previews import seen
from mavcli.training.stages import STAGES

SIDE, LOOK = 96, 224
"""Pixels a side of the source's frames, and of what CLIP reads."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four clips of noise that pans: each frame is known by its pixels."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(4):
        wide = np.random.default_rng(i).integers(0, 255, (SIDE, SIDE + 40, 3), np.uint8)
        frames = np.stack([wide[:, 2 * f : 2 * f + SIDE] for f in range(16)])
        write_video(root / f"{i}.mkv", frames, fps=8, codec="ffv1")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        write_png(root / f"{i}.png", np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    return root


def frames_of(folder: VideoFolder) -> np.ndarray:
    return np.stack([folder.frames_of(clip, range(16), size=SIDE) for clip in range(len(folder))])


@pytest.mark.parametrize("cache_bytes", [512 << 20, 0], ids=["kept in memory", "decoded each time"])
def test_a_drawn_clip_brings_its_first_frame_at_another_size_out_of_the_source(videos, cache_bytes):
    folder = VideoFolder(videos, cache_bytes=cache_bytes)
    plain = VideoFolder(videos, cache_bytes=cache_bytes)
    everything = frames_of(plain)
    for seed in range(6):
        draw = folder.draw_fitting(np.random.default_rng(seed), frames=4, fps=4.0, size=32, look=LOOK)
        without = plain.draw_fitting(np.random.default_rng(seed), frames=4, fps=4.0, size=32)
        assert np.array_equal(draw.frames, without.frames) and without.seen is None
        first = everything[draw.clip][round(draw.start * 8 + 1e-9)]
        assert np.array_equal(fit(first, 32), draw.frames[0])
        assert np.array_equal(fit(first, LOOK), draw.seen)


@pytest.mark.parametrize("stage", ["decoder", "decoder_t", "interp"])
@pytest.mark.parametrize("data", ["files", "world"])
def test_batches_carry_what_clip_reads_only_where_that_is_not_the_networks_size(
    stage, data, videos, pictures, tiny, tmp_path
):
    sets = [
        "train.defaults.batch_size=3",
        f"train.stages.{stage}.still_clips=0.4",
        f"train.stages.{stage}.image_batch=0",
    ]
    own = tiny(tmp_path, *sets).recipe
    other = tiny(tmp_path, *sets, f"cascade.clip.network.image_size={LOOK}").recipe
    kind = STAGES[stage].data
    source = (
        WorldSource() if data == "world" else FolderSource(str(videos if kind == "video" else pictures), kind)
    )
    for step in range(3):
        plain = Batches(source, STAGES[stage], own)[step]
        batch = Batches(source, STAGES[stage], other)[step]
        assert plain.seen is None and torch.equal(plain.pixels, batch.pixels), "not a bit of the rest changes"
        assert batch.seen is not None and batch.seen.shape == (3, LOOK, LOOK, 3)
        for small, large in zip(plain.pictures.numpy(), batch.seen.numpy(), strict=True):
            alike = np.corrcoef(fit(large, small.shape[0]).ravel(), small.ravel())[0, 1]
            assert alike > 0.85, "the same picture, drawn or fitted at each size by itself"
        assert torch.equal(batch.rows(1, 3).seen, batch.seen[1:3])


@pytest.mark.parametrize("data", ["files", "world"])
@pytest.mark.parametrize("look", [None, LOOK], ids=["D's size", "CLIP's size"])
def test_where_the_first_frame_is_hidden_clip_is_shown_the_first_known_one_as_at_sampling(
    look, data, videos, tiny, tmp_path
):
    """`extrapolate --direction backward` has no other frame than the known ones to tell ↑F of."""
    tasks = ["interpolate", "endpoints", "forward", "animate", "generate"]
    sets = [f"train.stages.interp.masks.{task}=0" for task in tasks] + ["train.stages.interp.image_batch=0"]
    sets += ["train.stages.interp.masks.backward=1", "train.defaults.batch_size=6"]
    recipe = tiny(tmp_path, *sets, *([f"cascade.clip.network.image_size={look}"] if look else [])).recipe
    large = tiny(tmp_path, *sets, f"cascade.decoder.network.image_size={look or 16}").recipe
    source = WorldSource() if data == "world" else FolderSource(str(videos), "video")
    batch, frames = (
        Batches(source, STAGES["interp"], recipe)[0],
        Batches(source, STAGES["interp"], large)[0].pixels,
    )
    firsts = batch.known.int().argmax(1).tolist()
    assert set(firsts) == {1, 2, 3}
    for row, first in enumerate(firsts):
        assert torch.equal(batch.pictures[row], frames[row, first])
        assert not torch.equal(batch.pictures[row], frames[row, 0])


def test_sharded_batches_and_stills_carry_it_too(videos, tiny, tmp_path):
    recipe = tiny(tmp_path, "train.defaults.batch_size=2", f"cascade.clip.network.image_size={LOOK}",
                  "train.stages.interp.image_batch=0.9").recipe  # fmt: skip
    whole = Batches(FolderSource(str(videos), "video"), STAGES["interp"], recipe)[1]
    assert whole.pixels.shape[1] == 1 and whole.seen.shape[0] == len(whole.pixels)
    halves = [
        Batches(FolderSource(str(videos), "video"), STAGES["interp"], recipe, rank=r, processes=2)[1]
        for r in (0, 1)
    ]
    assert torch.equal(torch.cat([half.seen for half in halves]), whole.seen)


@pytest.mark.parametrize("stage", ["decoder_t", "interp"])
def test_a_training_hands_clip_the_sources_own_pixels(stage, videos, family, train, tmp_path, monkeypatch):
    """Asserted on what the tower is handed: 224 pixels of a frame of the source, never D's enlarged."""
    handed: list[torch.Tensor] = []
    original = ClipReader.encode_image

    def recorded(self, x):
        handed.append(x.detach().cpu())
        return original(self, x)

    monkeypatch.setattr(ClipReader, "encode_image", recorded)
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    # a tower for 224 pixels: a ResNet pools what it sees to a grid that its last layer has positions for
    train("clip", tmp_path / "own", f"cascade.clip.network.image_size={LOOK}", "train.defaults.steps=1",
          "train.stages.clip.batch_size=2")  # fmt: skip
    handed.clear()
    parent = "decoder" if stage == "decoder_t" else "decoder_t"
    train(
        stage, tmp_path, f"weights.clip={tmp_path}/own/weights/clip.safetensors",
        f"weights.{parent}={family}/weights/{parent}.safetensors", f"cascade.clip.network.image_size={LOOK}",
        "train.data.world=false", f"train.data.video={videos}", "train.defaults.steps=2",
        f"train.stages.{stage}.image_batch=0", f"train.stages.{stage}.still_clips=0",
    )  # fmt: skip
    everything = frames_of(VideoFolder(videos)).reshape(-1, SIDE, SIDE, 3)
    known = {fit(frame, LOOK).tobytes() for frame in everything}
    assert handed and all(x.shape[-2:] == (LOOK, LOOK) for x in handed)
    for x in torch.cat(handed):
        pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        assert pixels.tobytes() in known


def test_preview_shows_what_clip_is_shown(videos, tiny, tmp_path):
    sets = ["train.data.world=false", f"train.data.video={videos}", "train.stages.interp.image_batch=0"]
    plain = seen(tiny(tmp_path, *sets), STAGES["interp"], samples=2)
    shown = seen(
        tiny(tmp_path, *sets, f"cascade.clip.network.image_size={LOOK}"), STAGES["interp"], samples=2
    )
    assert all(line.endswith("CLIP is shown 224 x 224 px of its first frame") for line in shown.lines)
    assert shown.sheet.shape[0] >= plain.sheet.shape[0] + LOOK
    assert np.array_equal(shown.sheet[: plain.sheet.shape[0], : plain.sheet.shape[1]], plain.sheet)
    assert not any("CLIP" in line for line in plain.lines)


def test_the_tower_reads_its_own_size_untouched(tiny, tmp_path):
    """Nothing is resized on the way, and the normalisation is CLIP's."""
    from mavcli.engine.assemble import build_network

    clip = build_network(
        tiny(tmp_path).recipe.cascade.clip.network.model_copy(update={"image_size": LOOK})
    ).eval()
    handed = {}
    clip.towers.visual.register_forward_pre_hook(lambda _, x: handed.__setitem__("x", x[0]))
    x = torch.rand(1, 3, LOOK, LOOK, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        clip.encode_image(x)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(handed["x"], ((x + 1) / 2 - mean) / std)


def test_decoder_t_on_an_imported_karlo_hands_clip_224_pixels_of_the_source(videos, tmp_path, monkeypatch):
    """Karlo's release, tiny, with a CLIP that reads 224 pixels as the published one does, through the commands."""
    import tiny_karlo

    from mavcli.cli.app import run
    from mavcli.recipe.load import load_recipe

    large = tiny_karlo.CLIP.model_copy(update={"image_size": LOOK, "vision_patch_size": 56})
    monkeypatch.setattr(tiny_karlo, "CLIP", large)
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    release, out = tiny_karlo.write_karlo(tmp_path / "release"), tmp_path / "family"
    assert run(["weights", "import", str(release), "--as", "karlo", "--out", str(out), "-q"]) == 0
    recipe = load_recipe(out / "recipe.yaml").recipe
    assert recipe.cascade.clip.network.image_size == LOOK and recipe.cascade.decoder.network.image_size == 16
    handed: list[torch.Tensor] = []
    original = ClipReader.encode_image

    def recorded(self, x):
        handed.append(x.detach().cpu())
        return original(self, x)

    monkeypatch.setattr(ClipReader, "encode_image", recorded)
    sets = [f"train.data.video={videos}", f"train.out={tmp_path}/run", "train.stages.decoder_t.steps=2",
            "train.stages.decoder_t.batch_size=2", "train.stages.decoder_t.frames=4", "hardware.backend=cpu",
            "hardware.dtype=float32", "train.stages.decoder_t.image_batch=0"]  # fmt: skip
    command = ["train-stage", "decoder_t", str(out / "recipe.yaml"), "-q"]
    assert run([*command, *(part for one in sets for part in ("--set", one))]) == 0
    everything = frames_of(VideoFolder(videos)).reshape(-1, SIDE, SIDE, 3)
    known = {fit(frame, LOOK).tobytes() for frame in everything}
    shown = torch.cat(handed)
    assert shown.shape[-2:] == (LOOK, LOOK)
    for x in shown:
        pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        assert pixels.tobytes() in known
