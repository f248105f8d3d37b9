"""Folders as a source of training samples, with files set aside for the held-out loss."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from mavcli.data.folders import FEWEST_FILES, FolderSource, set_aside
from mavcli.data.loader import open_source
from mavcli.errors import InputError
from mavcli.media.image import write_png
from mavcli.media.video import write_video
from mavcli.recipe.schema import Data


def level(picture: np.ndarray) -> int:
    return int(picture.mean().round())


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """60 pictures, number i of grey level 4 i, with captions."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(60):
        write_png(root / f"{i}.png", np.full((8, 8, 3), 4 * i, np.uint8))
        (root / f"{i}.txt").write_text(f"grey {4 * i}")
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """26 videos of 6 frames at 6 fps, number i of grey level 8 i, and one too short for four frames."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(26):
        frames = np.full((6, 16, 16, 3), 8 * i, np.uint8)
        write_video(root / f"{i:02}.mkv", frames, fps=6, codec="ffv1")
    write_video(root / "short.mkv", np.full((2, 16, 16, 3), 250, np.uint8), fps=6, codec="ffv1")
    (root / "broken.mp4").write_bytes(b"no video")
    (root / "captions.csv").write_text("\0 not to be read")
    return root


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def digests(files: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@pytest.mark.parametrize("kind", ["image", "pairs"])
def test_held_out_pictures_are_never_drawn_in_training(kind, photos):
    source = FolderSource(str(photos), kind)
    trained = {level(source.image(rng, 8)) for rng in rngs(1500)}
    kept = {level(source.held_out().image(rng, 8)) for rng in rngs(200)}
    assert kept and not kept & trained and trained | kept == {4 * i for i in range(60)}
    assert f"used 60 of 60 {'images' if kind == 'image' else 'pairs'}" in source.describe()
    assert source.describe().endswith(f", {len(kept)} held out")


def test_captions_belong_to_their_pictures(photos):
    source = FolderSource(str(photos), "pairs")
    for part in (source, source.held_out()):
        for rng in rngs(20):
            picture, caption = part.pair(rng, 8)
            assert caption == f"grey {level(picture)}"


def test_held_out_videos_are_never_drawn_in_training(videos):
    source = FolderSource(str(videos), "video")
    parts = [source, source.held_out()]
    drawn = [
        {level(part.clip(rng, frames=4, fps=5.0, size=16).frames) for rng in rngs(300)} for part in parts
    ]
    assert drawn[1] and not drawn[0] & drawn[1]
    assert drawn[0] | drawn[1] == {8 * i for i in range(26)}
    stills = [{level(part.image(rng, 16)) for rng in rngs(300)} for part in parts]
    assert not stills[0] & stills[1]
    assert f"used 27 of 28 clips (1 rejected: mav data check {videos})" in source.describe()


def test_the_rate_moves_to_what_a_file_allows_and_short_files_are_drawn_again_and_both_are_counted(videos):
    source = FolderSource(str(videos), "video")
    quiet = source.describe()
    clips = [source.clip(rng, frames=4, fps=fps, size=16) for fps in (1.0, 5.0, 30.0) for rng in rngs(40)]
    rates = [clip.fps for clip in clips]
    # 3 steps in the file's 5/6 s at the least, the file's own 6 fps at the most (Matroska counts in milliseconds)
    wanted = [3.6] * 40 + [5.0] * 40 + [6.0] * 40
    np.testing.assert_allclose(rates, wanted, rtol=0.003)
    assert all(clip.frames.shape == (4, 16, 16, 3) for clip in clips)
    assert source.describe() == quiet, "drawn here, counted where the batches arrive"
    for clip in clips:
        source.count(clip.redrawn)
    assert "frame rate moved to what the file allows: 80 x" in source.describe()
    assert "drawn again for a file too short for any rate" in source.describe()


def test_the_split_is_by_content_and_not_by_name(photos, tmp_path):
    files = sorted(photos.glob("*.png"))
    aside = {files[i].read_bytes() for i in set_aside(digests(files))}
    for i, path in enumerate(reversed(files)):
        shutil.copy(path, tmp_path / f"renamed{i}.png")
    copies = sorted(tmp_path.glob("*.png"))
    assert {copies[i].read_bytes() for i in set_aside(digests(copies))} == aside
    for i in range(60, 90):  # more files move none of the old ones
        write_png(tmp_path / f"{i}.png", np.full((8, 9, 3), i, np.uint8))
    more = sorted(tmp_path.glob("*.png"))
    assert {more[i].read_bytes() for i in set_aside(digests(more))} >= aside


def test_copies_of_one_picture_are_on_the_same_side(photos, tmp_path):
    for path in photos.glob("*.png"):
        for copy in "ab":
            shutil.copy(path, tmp_path / f"{copy}{path.name}")
    files = sorted(tmp_path.glob("*.png"))
    aside = set_aside(digests(files))
    sides = (
        {files[i].read_bytes() for i in aside},
        {f.read_bytes() for i, f in enumerate(files) if i not in aside},
    )
    assert aside and not sides[0] & sides[1]


def test_a_small_folder_sets_nothing_aside_and_says_so(photos, tmp_path):
    for i in range(FEWEST_FILES - 1):
        shutil.copy(photos / f"{i}.png", tmp_path)
    source = FolderSource(str(tmp_path), "image")
    assert "held-out loss is on training files, fewer than 20" in source.describe()
    seen = [{level(part.image(rng, 8)) for rng in rngs(300)} for part in (source, source.held_out())]
    assert seen[0] == seen[1] == {4 * i for i in range(FEWEST_FILES - 1)}
    shutil.copy(photos / "40.png", tmp_path)
    assert len(set_aside(digests(sorted(tmp_path.glob("*.png"))))) >= 1, "never an empty side"


def test_drawing_is_a_function_of_the_generator(videos):
    one, two = (FolderSource(str(videos), "video") for _ in "ab")
    two.clip(np.random.default_rng(9), frames=2, fps=3.0, size=16)
    a, b = (s.clip(np.random.default_rng(4), frames=4, fps=4.0, size=16) for s in (one, two))
    assert np.array_equal(a.frames, b.frames) and a.fps == b.fps


def test_stages_of_pictures_take_captioned_ones_where_there_are_no_others(photos, tmp_path):
    source = open_source(Data(pairs=photos.name), "image", stage="decoder", base=photos.parent)
    assert source.image(np.random.default_rng(0), 8).shape == (8, 8, 3)
    with pytest.raises(InputError):
        open_source(Data(video=str(tmp_path / "none")), "video", stage="interp", base=tmp_path)


def test_a_stage_of_video_takes_its_stills_from_the_pictures(photos, videos):
    data = Data(pairs=str(photos), video=str(videos))
    options = {"stage": "decoder_t", "base": photos.parent}
    mixed, alone = (open_source(data, "video", stills=stills, **options) for stills in (True, False))
    for part in (mixed, mixed.held_out()):
        pictures = FolderSource(str(photos), "pairs")
        pictures = pictures if part is mixed else pictures.held_out()
        a, b = (s.image(np.random.default_rng(5), 8) for s in (part, pictures))
        assert np.array_equal(a, b)
    frames = [s.clip(np.random.default_rng(4), frames=4, fps=4.0, size=16).frames for s in (mixed, alone)]
    assert np.array_equal(*frames)
    assert "; stills: " in mixed.describe() and "; stills: " not in alone.describe()
