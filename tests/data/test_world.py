"""The rendered world: what is held out, that it is deterministic, that it moves smoothly, and the files it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mavcli.data import world
from mavcli.errors import InputError


def test_sizes_of_the_world() -> None:
    assert (len(world.ACTORS), len(world.ACTIONS), len(world.PLACES)) == (12, 8, 4)
    assert len(set(world.ACTORS)) == 12
    assert {"dog", "cat", "penguin"} <= set(world.ACTORS) - world.STILL_ONLY_ACTORS
    assert len(world.HELD_OUT_PAIRS) == 10
    assert len(world.STILL_ONLY_ACTORS) == 2


def test_held_out_pairs_are_made_of_known_parts() -> None:
    shown = [
        (actor, action)
        for actor in world.ACTORS
        for action in world.ACTIONS
        if (actor, action) not in world.HELD_OUT_PAIRS
    ]
    for actor, action in world.HELD_OUT_PAIRS:
        assert sum(pair[0] == actor for pair in shown) >= 6
        assert sum(pair[1] == action for pair in shown) >= 6
    assert {action for _, action in world.HELD_OUT_PAIRS} == set(world.ACTIONS)


def test_training_never_shows_what_is_held_out() -> None:
    for index in range(2000):
        still = world.scene_for(0, index)
        clip = world.scene_for(0, index, video=True)
        assert (still.actor, still.action) not in world.HELD_OUT_PAIRS
        assert (clip.actor, clip.action) not in world.HELD_OUT_PAIRS
        assert clip.actor not in world.STILL_ONLY_ACTORS
        novel = world.scene_for(0, index, split="held_out")
        assert (novel.actor, novel.action) in world.HELD_OUT_PAIRS


def test_every_combination_is_drawn() -> None:
    seen = {(s.actor, s.action) for s in (world.scene_for(1, i) for i in range(3000))}
    assert len(seen) == 86
    assert len({world.scene_for(1, i, split="all").place for i in range(100)}) == 4


def test_fixed_parts_and_impossible_requests() -> None:
    scene = world.scene_for(0, 0, actor="dog", action="surfing", place="snow")
    assert (scene.actor, scene.action, scene.place) == ("dog", "surfing", "snow")
    for wrong in (
        {"actor": "dog", "action": "skating"},
        {"actor": "lion", "video": True},
        {"actor": "unicorn"},
        {"place": "desert"},
    ):
        with pytest.raises(ValueError):
            world.scene_for(0, 0, **wrong)


def test_scene_is_a_pure_function_of_seed_and_index() -> None:
    assert world.scene_for(3, 7) == world.scene_for(3, 7)
    assert world.scene_for(3, 7) != world.scene_for(3, 8)
    assert world.scene_for(3, 7) != world.scene_for(4, 7)
    scene = world.scene_for(3, 7)
    np.testing.assert_array_equal(world.render(scene, 1.0, 64), world.render(scene, 1.0, 64))


def test_clip_is_its_frames() -> None:
    scene = world.scene_for(0, 1)
    clip = world.render_clip(scene, fps=8, frames=3, size=32, start=0.5)
    assert clip.shape == (3, 32, 32, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip[2], world.render(scene, 0.75, 32))


@pytest.mark.parametrize("action", world.ACTIONS)
def test_same_picture_at_every_size(action: str) -> None:
    for index in range(4):
        scene = world.scene_for(5, index, action=action)
        small = world.render(scene, 1.3, 64).astype(float)
        large = Image.fromarray(world.render(scene, 1.3, 256)).resize((64, 64), Image.Resampling.BOX)
        assert np.abs(small - np.asarray(large, dtype=float)).mean() < 6.0


@pytest.mark.parametrize("action", world.ACTIONS)
def test_motion_is_visible_and_never_jumps(action: str) -> None:
    """In steps of 1/240 s everything moves little; a wrap-around or a teleport would change as much as ever."""
    for index in range(2):
        scene = world.scene_for(6, index, split="all", action=action)
        clip = world.render_clip(scene, fps=240, frames=800, size=32).astype(float)
        assert np.abs(np.diff(clip, axis=0)).mean(axis=(1, 2, 3)).max() < 6.0
        for fps in (5, 24):
            few = world.render_clip(scene, fps=fps, frames=16, size=64).astype(float)
            assert np.abs(few - few[0]).mean(axis=(1, 2, 3)).max() > 6.0


def test_actor_stands_out_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the actor out changes a tenth of the picture or so a lot, in every place: none vanishes in the dark."""
    scenes = [
        world.scene_for(0, 0, split="all", actor=actor, action="falling", place=place)
        for actor in world.ACTORS
        for place in world.PLACES
    ]
    present = [world.render(scene, 0.0, 64).astype(int) for scene in scenes]
    monkeypatch.setattr(world, "_actor", lambda *args, **kwargs: None)
    for scene, picture in zip(scenes, present, strict=True):
        changed = np.abs(picture - world.render(scene, 0.0, 64)).max(axis=2)
        assert (changed > 40).mean() > 0.09, (scene.actor, scene.place, (changed > 40).mean())


def test_captions_use_the_vocabulary_and_name_what_is_shown() -> None:
    assert len(world.VOCABULARY) < 200
    assert set(world.SYNONYMS) <= set(world.VOCABULARY)
    placed = 0
    texts = set()
    for index in range(3000):
        scene = world.scene_for(2, index, split="all")
        text = world.caption(scene, world.generator(2, index, 1))
        words = text.replace(",", "").split()
        assert text == text.lower() and set(words) <= set(world.VOCABULARY)
        named = {world.SYNONYMS[word] for word in words if word in world.SYNONYMS}
        assert {scene.actor, scene.action} <= named <= {scene.actor, scene.action, scene.place}
        placed += scene.place in named
        texts.add(text)
    assert 0.5 < placed / 3000 < 0.85
    assert len(texts) > 1500


def test_prompt() -> None:
    assert world.prompt("dog", "surfing", "beach") == "a dog surfing at the beach"
    assert world.prompt("elephant", "flying") == "an elephant flying"


def test_write_folder(tmp_path: Path) -> None:
    target = tmp_path / "pocket"
    target.mkdir()  # an empty folder is welcome
    ticks: list[tuple[int, int]] = []
    counts = world.write_folder(
        target, images=5, clips=2, size=32, seed=1, progress=lambda done, total: ticks.append((done, total))
    )
    assert ticks == [(k, 7) for k in range(1, 8)]
    assert [p.name for p in tmp_path.iterdir()] == ["pocket"]
    rows = list(csv.DictReader((target / "captions.csv").open(encoding="utf-8")))
    assert [row["file"] for row in rows] == [f"images/{k:05d}.png" for k in range(5)]
    assert all(row["caption"] for row in rows)
    with Image.open(target / rows[0]["file"]) as image:
        assert image.size == (32, 32)
    facts = json.loads((target / "world.json").read_text(encoding="utf-8"))
    assert set(facts["files"]) == {row["file"] for row in rows} | {"video/00000.mp4", "video/00001.mp4"}
    total = 0
    for path in sorted((target / "video").iterdir()):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert 16 <= len(frames) <= 96 and frames[0].shape == (32, 32, 3)
        total += len(frames)
    assert counts["images"] == 5 and counts["clips"] == 2 and counts["frames"] == total


def test_write_folder_is_reproducible(tmp_path: Path) -> None:
    # At 64 pixels: x264 codes the same 32-pixel frames differently from one call to the next.
    for name in ("one", "two"):
        world.write_folder(tmp_path / name, images=2, clips=1, size=64, seed=4)
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_write_folder_refuses_and_leaves_nothing_behind(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty"):
        world.write_folder(full, images=1, clips=0, size=32, seed=0)
    with pytest.raises(InputError, match="is a file"):
        world.write_folder(full / "mine.txt", images=1, clips=0, size=32, seed=0)
    with pytest.raises(InputError, match="size 33"):
        world.write_folder(tmp_path / "odd", images=1, clips=0, size=33, seed=0)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.write_folder(tmp_path / "half", images=1, clips=0, size=32, seed=0, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert (full / "mine.txt").read_text() == "keep"
