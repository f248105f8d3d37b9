"""What CLIP is shown when a source is given: its own picture at the size that CLIP reads, and what was drawn only where none is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_family
import torch

from mavcli.cli.app import run
from mavcli.engine.compose import network_view
from mavcli.media.frames import fit
from mavcli.media.image import write_png
from mavcli.media.video import read_video, write_video
from mavcli.models.clip import ClipReader

LOOK, SIDE = 224, 8
"""Pixels a side that CLIP reads, and that D draws."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The tiny family with a CLIP that reads 224 pixels."""
    old = "image_size: 8, vision_layers: 1, vision_width: 64, vision_patch_size: 4"
    assert old in tiny_family.RECIPE
    large = tiny_family.RECIPE.replace(old, old.replace(": 8,", f": {LOOK},").replace("size: 4", "size: 56"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_family, "RECIPE", large)
        return tiny_family.write_family(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten frames of a picture that pans, without a cut."""
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    wide = fit(np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8), 128)
    frames = np.stack([wide[8:104, 2 * f : 2 * f + 96] for f in range(10)])
    return write_video(path, frames, fps=8, codec="ffv1") and path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in "ab":
        noise = np.random.default_rng(ord(name)).integers(0, 255, (9, 12, 3), np.uint8)
        write_png(folder / f"{name}.png", noise.repeat(12, 0).repeat(12, 1))
    return folder


def views(*frames: np.ndarray) -> list[bytes]:
    """What CLIP is to be shown of frames (h, w, 3)."""
    return [network_view(frame[None], LOOK, "crop")[0].tobytes() for frame in frames]


@pytest.fixture
def handed(monkeypatch):
    """Each picture that the image tower is asked about: the bytes of one at 224 pixels, None for one that was drawn."""
    shown: list[bytes | None] = []
    original = ClipReader.encode_image

    def recorded(self, x):
        for picture in x:
            assert picture.shape[-1] in (LOOK, SIDE)
            pixels = ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            shown.append(pixels.tobytes() if len(pixels) == LOOK else None)
        return original(self, x)

    monkeypatch.setattr(ClipReader, "encode_image", recorded)
    return shown


def mav(recipe: Path, folder: Path, *arguments: str) -> None:
    given = [
        *arguments,
        "--recipe",
        str(recipe),
        "-o",
        str(folder / "out.mkv"),
        "-q",
        "--set",
        "output.codec=ffv1",
    ]
    assert run(given) == 0


def frames_of(clip: Path) -> list[np.ndarray]:
    return [frame for _, frame in read_video(clip)]


def test_vary_embeds_every_frame_at_clips_size(recipe, clip, handed, tmp_path):
    mav(recipe, tmp_path, "vary", str(clip), "--frames", "5", "--fit", "crop")
    of_source = [x for x in handed if x is not None]
    assert of_source == views(*frames_of(clip))
    assert handed[: len(of_source)] == of_source, "the rest are windows of ↑F between frames that D^t drew"


def test_animate_shows_clip_the_picture_itself(recipe, photos, handed, tmp_path):
    from mavcli.media.image import read_image

    mav(recipe, tmp_path, "animate", str(photos / "a.png"), "--frames", "40", "--fit", "crop")
    (own,) = views(read_image(photos / "a.png"))
    assert {x for x in handed if x is not None} == {own}
    assert handed[0] == own, "the window that the picture begins"
    assert handed.count(None) == 2, (
        "of 40 frames the windows at 15 and 24 or 30 begin with frames that were drawn"
    )


def test_interpolate_shows_clip_the_clips_own_frames_and_nothing_else(recipe, clip, handed, tmp_path):
    mav(recipe, tmp_path, "interpolate", str(clip), "--factor", "4", "--fit", "crop")
    own = frames_of(clip)
    assert None not in handed and len(handed) >= 3 and set(handed) <= set(views(*own))
    assert handed[0] == views(own[0])[0]


def test_interpolate_of_pictures_shows_clip_these(recipe, photos, handed, tmp_path):
    from mavcli.media.image import read_image

    a, b = (read_image(photos / f"{name}.png") for name in "ab")
    mav(recipe, tmp_path, "interpolate", str(photos / "a.png"), str(photos / "b.png"), "--fit", "crop")
    assert set(handed) - {None} <= set(views(a, b)) and views(a)[0] in handed


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_extrapolate_shows_clip_the_frame_that_the_window_begins_with(
    recipe, clip, handed, tmp_path, direction
):
    mav(
        recipe, tmp_path, "extrapolate", str(clip), "--frames", "8", "--direction", direction, "--fit", "crop"
    )
    own = frames_of(clip)
    at_the_join = own[-8:] if direction == "forward" else own[:8]
    assert None not in handed and set(handed) <= set(views(*at_the_join))


def test_what_clip_saw_is_part_of_the_key_of_kept_work(recipe, tmp_path):
    """The same 64 pixels of two pictures of which CLIP sees more."""
    from mavcli.engine.backend import Backend
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.family import find_family
    from mavcli.engine.randomness import Draw
    from mavcli.engine.work import Work

    loaded = tiny_family.tiny_recipe(recipe)
    family = find_family(loaded, ("clip", "interp"))
    cascade = Cascade(loaded, family, Backend(torch.device("cpu"), torch.float32, 1), work=Work(tmp_path))
    small = torch.zeros(1, 3, SIDE, SIDE)
    one, two = (
        torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(s)), dim=0)
        for s in (0, 1)
    )
    first = cascade.animate(small, [Draw(0)], fps=24, seen={0: one})
    second = cascade.animate(small, [Draw(0)], fps=24, seen={0: two})
    assert not torch.equal(first, second)
    assert torch.equal(first, cascade.animate(small, [Draw(0)], fps=24, seen={0: one}))
