"""The rendered world and folders in one stage: shares, counts, and the samples of recipes that mix nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mavcli.data import world
from mavcli.data.loader import open_source
from mavcli.errors import Interrupted, RecipeError
from mavcli.media.image import write_png
from mavcli.media.video import write_video
from mavcli.recipe.load import LoadedRecipe
from mavcli.training.batches import Batches, stage_source
from mavcli.training.previews import seen
from mavcli.training.stages import STAGES
from mavcli.training.start import check_stage


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """`pictures` with captions, `more` pictures and `video`: flat colours that the world never draws whole."""
    root = tmp_path_factory.mktemp("files")
    for name in ("pictures", "more", "video"):
        (root / name).mkdir()
    for i in range(24):
        write_png(root / "pictures" / f"{i}.png", np.full((64, 64, 3), i, np.uint8))
        (root / "pictures" / f"{i}.txt").write_text(f"a dog on {i}")
        write_png(root / "more" / f"{i}.png", np.full((64, 64, 3), 100 + i, np.uint8))
    for i in range(3):
        frames = np.repeat(np.arange(12, dtype=np.uint8) + 40 * i, 64 * 64 * 3).reshape(12, 64, 64, 3)
        write_video(root / "video" / f"{i}.mkv", frames, fps=8, codec="ffv1")
    return root


def mixed(files: Path, world: float = 0.5) -> list[str]:
    lists = {"image": f"[{{folder: {files}/pictures, weight: 3}}, {{folder: {files}/more}}]"}
    lists |= {"video": f"{files}/video"}
    return [f"train.data.world={world}", *(f"train.data.{kind}={named}" for kind, named in lists.items())]


def digest(loaded: LoadedRecipe, stage: str, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a stage's batches are drawn as: a rendered scene by what it shows, so that no rasteriser has a say in it."""
    found = hashlib.sha256()

    def rendered(scene: world.Scene, moment: float, size: int) -> np.ndarray:
        found.update(f"{scene} {moment:.9g} {size}".encode())
        return np.zeros((size, size, 3), np.uint8)

    def filmed(scene: world.Scene, *, fps: float, frames: int, size: int, start: float) -> np.ndarray:
        found.update(f"{scene} {fps:.9g} {frames} {size} {start:.9g}".encode())
        return np.zeros((frames, size, size, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(world, "render", rendered)
        patch.setattr(world, "render_clip", filmed)
        for held_out in (False, True):
            batches = Batches(
                stage_source(STAGES[stage], loaded), STAGES[stage], loaded.recipe, held_out=held_out
            )
            for step in steps:
                batch = batches[step]
                found.update(batch.pixels.numpy().tobytes() + repr(batch.captions).encode())
                for told in (batch.fps, batch.known):
                    found.update(b"" if told is None else np.round(told.double().numpy(), 6).tobytes())
    return found.hexdigest()[:16]


# Of commit 33aec47, which knew no mixes. Three of the files' are newer: CLIP's pairs have four held out of 24 where one was, and a clip of
# 8 fps is no longer told to be at 8.008 (the frames are the same, compared pixel by pixel).
BEFORE = {
    "world": {"clip": "1d7c98af10df328d", "sr_h": "b532c8caf0647eab", "decoder_t": "35b8295069131b59", "interp": "b41ede052b420d08"},
    "files": {"clip": "b7472c1ac1340e1e", "sr_h": "9a1eabcbf0163fb5", "decoder_t": "ab18744575e20a11", "interp": "f40eee6c931dc070"},
}  # fmt: skip


@pytest.mark.parametrize("data", ["world", "files"])
@pytest.mark.parametrize("stage", ["clip", "sr_h", "decoder_t", "interp"])
def test_a_recipe_that_mixes_nothing_draws_what_it_drew_before_there_were_mixes(
    data, stage, files, tiny, tmp_path, monkeypatch
):
    sets = ["train.stages.decoder_t.still_clips=0.5", "train.defaults.steps=9"]
    sets += ["train.stages.interp.masks.frame_skips=[2, 3, 5, 7]"]  # the default of that commit
    if data == "files":
        sets += ["train.data.world=false", f"train.data.pairs={files}/pictures"]
        sets += [f"train.data.video={files}/video"]
    else:
        sets += ["train.data.world_actions={driving: 4}"]
    loaded = tiny(tmp_path, *sets)
    assert digest(loaded, stage, (0, 1, 2, 3, 7), monkeypatch) == BEFORE[data][stage]


def test_which_source_a_sample_is_of_is_decided_by_seed_step_and_index_alone(files, tiny, tmp_path):
    recipe = tiny(tmp_path, *mixed(files), "train.defaults.batch_size=4", "train.defaults.steps=6").recipe
    stage = STAGES["decoder_t"]  # clips, and stills in every third batch
    source = stage_source(stage, tiny(tmp_path, *mixed(files)))
    alone = [Batches(source, stage, recipe)[step] for step in range(6)]
    assert {len(batch.sources) for batch in alone} == {4, 16}
    loader = DataLoader(
        Batches(source, stage, recipe),
        sampler=range(6),
        batch_size=None,
        num_workers=2,
        generator=torch.Generator(),
    )
    for one, two in zip(alone, loader, strict=True):
        assert one.sources == two.sources and torch.equal(one.pixels, two.pixels)
    shares = [Batches(source, stage, recipe, rank=rank, processes=2) for rank in (0, 1)]
    for step in (5, 0):
        halves = [share[step] for share in shares]
        assert halves[0].sources + halves[1].sources == alone[step].sources
        assert torch.equal(torch.cat([half.pixels for half in halves]), alone[step].pixels)
    assert alone[0].rows(1, 3).sources == alone[0].sources[1:3]


def test_each_source_gives_its_share_of_the_samples_and_they_are_what_they_are_called(files, tiny, tmp_path):
    loaded = tiny(tmp_path, *mixed(files, world=0.6), "train.defaults.batch_size=120")
    source = stage_source(STAGES["sr_h"], loaded)
    assert source.names == ("world", "pictures", "more")
    for held_out in (False, True):
        batch = Batches(source, STAGES["sr_h"], loaded.recipe, held_out=held_out)[0]
        counts = Counter(batch.sources)
        for name, share in {"world": 0.6, "pictures": 0.3, "more": 0.1}.items():
            assert abs(counts[name] / 120 - share) < 3.5 * (share * (1 - share) / 120) ** 0.5
        for name, pixels in zip(batch.sources, batch.pixels[:, 0].numpy(), strict=True):
            flat = pixels.min() == pixels.max()
            low, high = {"pictures": (0, 23), "more": (100, 123)}.get(name, (-1, -1))
            assert (flat and low <= pixels.max() <= high) if name != "world" else not flat
    sides: list[set[int]] = []
    for held_out in (False, True):
        batches = Batches(source, STAGES["sr_h"], loaded.recipe, held_out=held_out)
        drawn = [
            (n, int(p.max()))
            for b in (batches[0], batches[1])
            for n, p in zip(b.sources, b.pixels, strict=True)
        ]
        sides.append({grey for name, grey in drawn if name == "pictures"})
    trained, kept = sides
    assert kept and not trained & kept, "each folder of a mix keeps its held-out files"


def test_a_stage_for_whose_data_no_folder_is_named_has_the_world_alone(files, tiny, tmp_path):
    loaded = tiny(tmp_path, "train.data.world=0.3", f"train.data.image={files}/pictures")
    assert stage_source(STAGES["clip"], loaded).names == ("world",)
    assert stage_source(STAGES["interp"], loaded).names == ("world",), "it sees no stills"
    assert stage_source(STAGES["decoder_t"], loaded).names == ("world", "pictures")
    batches = Batches(stage_source(STAGES["decoder_t"], loaded), STAGES["decoder_t"], loaded.recipe)
    found = [set(batches[step].sources) for step in range(3)]
    assert found[0] == found[1] == {"world"} and found[2] == {"world", "pictures"}, "clips, clips, stills"


def test_without_pictures_the_stills_of_a_mix_are_its_own_frames(files, tiny, tmp_path):
    loaded = tiny(tmp_path, "train.data.world=0.5", f"train.data.video={files}/video")
    batch = Batches(stage_source(STAGES["decoder_t"], loaded), STAGES["decoder_t"], loaded.recipe)[2]
    assert batch.pixels.shape[1] == 1 and set(batch.sources) == {"world", "video"}


def test_folders_that_end_alike_are_counted_apart(files, tiny, tmp_path):
    (tmp_path / "pictures").symlink_to(files / "more", target_is_directory=True)
    names = f"[{{folder: {files}/pictures}}, {{folder: {tmp_path}/pictures}}]"
    source = stage_source(
        STAGES["sr_h"], tiny(tmp_path, "train.data.world=false", f"train.data.image={names}")
    )
    assert source.names == (f"{files}/pictures", f"{tmp_path}/pictures")


def test_a_share_of_the_world_without_any_folder_is_refused(tiny, tmp_path):
    loaded = tiny(tmp_path, "train.data.world=0.6")
    with pytest.raises(RecipeError, match=r"`train.data.world` is 0.6, and the recipe names no folder") as no:
        open_source(loaded.recipe.train.data, "video", stage="interp", base=tmp_path)
    assert "train.data.video=FOLDER" in no.value.hint
    told = "train.stages.interp.told_by=caption"
    with pytest.raises(RecipeError, match="`train.stages.interp.told_by` is `caption`"):
        check_stage(STAGES["interp"], tiny(tmp_path, told, "train.data.world=0.6").recipe, 1)


def test_a_preview_names_the_source_of_each_sample(files, tiny, tmp_path):
    loaded = tiny(tmp_path, *mixed(files), "train.defaults.batch_size=6")
    shown = seen(loaded, STAGES["sr_h"], step=1, samples=6)
    drawn = Batches(stage_source(STAGES["sr_h"], loaded), STAGES["sr_h"], loaded.recipe)[1].sources
    assert len(set(drawn)) > 1
    for line, name in zip(shown.lines, drawn, strict=True):
        assert f", from {name}, low-res" in line
    alone = seen(tiny(tmp_path), STAGES["sr_h"], step=1, samples=1)
    assert " from " not in alone.lines[0]


def test_a_stopped_training_on_a_mix_goes_on_bit_for_bit_and_counts_its_sources(
    files, train, heard, tmp_path
):
    sets = [*mixed(files), "train.defaults.steps=4", "train.defaults.batch_size=6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    report = heard()
    train("sr_h", whole, *sets, report=report)
    with pytest.raises(Interrupted):
        train("sr_h", parts, *sets, report=heard({2: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    train("sr_h", parts, *sets)
    weights = [(out / "weights" / "sr_h.safetensors").read_bytes() for out in (whole, parts)]
    assert weights[0][-4096:] == weights[1][-4096:] and len(weights[0]) == len(weights[1])
    logs = [
        [json.loads(line) for line in (out / "sr_h" / "metrics.jsonl").read_text().splitlines()]
        for out in (whole, parts)
    ]
    counts = [[line["sources"] for line in log if "sources" in line] for log in logs]
    assert counts[0] == counts[1] and len(counts[0]) == 4
    assert all(set(count) == {"world", "pictures", "more"} for count in counts[0])
    total = {name: sum(count[name] for count in counts[0]) for name in counts[0][0]}
    assert sum(total.values()) == 24
    said = next(m for m in report.messages if m.startswith("samples drawn in this run: "))
    assert {name: int(n) for name, n in re.findall(r"(\w+) (\d+) \(", said)} == total
    data = next(m for m in report.messages if m.startswith("data: "))
    assert re.match(r"data: 50.0% world: .*; 37.5% pictures: used 24 of 24 .*; 12.5% more: ", data)
