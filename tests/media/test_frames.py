"""Value ranges, sizes, hashes and contact sheets."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from mavcli.errors import DivergedError
from mavcli.media import frames as F


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_every_uint8_value_survives_the_way_to_float_and_back():
    pictures = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    x = F.to_float(pictures)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert np.array_equal(F.to_uint8(x), pictures)
    assert np.array_equal(F.to_uint8(F.to_float(torch.from_numpy(pictures))), pictures)


def test_floats_are_rounded_to_the_nearest_value_and_clamped():
    x = (
        torch.tensor([-2.0, (127.4 / 127.5) - 1, (127.6 / 127.5) - 1, 2.0])
        .reshape(1, 1, 2, 2)
        .expand(1, 3, 2, 2)
    )
    assert F.to_uint8(x)[0, ..., 0].ravel().tolist() == [0, 127, 128, 255]


def test_conversion_leaves_its_input_as_it_was():
    x = torch.rand(2, 3, 4, 4)
    before = x.clone()
    F.to_uint8(x)
    assert torch.equal(x, before)


def test_a_frame_that_is_not_finite_is_refused_by_number():
    x = torch.zeros(3, 3, 2, 2)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(DivergedError, match="frame 1 of 3"):
        F.to_uint8(x)


@pytest.mark.parametrize("bad", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)])
def test_arrays_of_another_layout_are_refused(bad):
    with pytest.raises(ValueError, match="f h w 3"):
        F.to_float(bad)


def disc(height: int, width: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    inside = (x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 <= radius**2
    return np.repeat((inside * 255).astype(np.uint8)[None, ..., None], 3, axis=3)


@pytest.mark.parametrize("rule", ["crop", "pad"])
@pytest.mark.parametrize(("height", "width"), [(96, 200), (200, 96), (97, 131)])
@pytest.mark.parametrize("size", [48, (40, 64)])
def test_a_circle_stays_a_circle_and_stays_in_the_middle(rule, height, width, size):
    out = F.fit(disc(height, width, 30), size, rule=rule)[0, ..., 0].astype(float) / 255
    assert out.shape == ((size, size) if isinstance(size, int) else size)
    spread_y = np.sqrt((out.sum(1) * (np.arange(out.shape[0]) - (out.shape[0] - 1) / 2) ** 2).sum())
    spread_x = np.sqrt((out.sum(0) * (np.arange(out.shape[1]) - (out.shape[1] - 1) / 2) ** 2).sum())
    centre_y = (out.sum(1) * np.arange(out.shape[0])).sum() / out.sum()
    assert spread_y == pytest.approx(spread_x, rel=0.03)
    assert centre_y == pytest.approx((out.shape[0] - 1) / 2, abs=0.6)


def test_pad_keeps_the_whole_picture_and_crop_fills_the_target():
    white = np.full((1, 20, 40, 3), 255, np.uint8)
    assert F.fit(white, 40, rule="crop").min() == 255
    padded = F.fit(white, 40, rule="pad", fill=(7, 7, 7))[0, ..., 0]
    assert (padded[10:30] == 255).all() and (padded[:10] == 7).all() and (padded[30:] == 7).all()


def test_a_picture_of_the_right_size_is_not_touched():
    pictures = noise(2, 32, 32, 3)
    assert np.array_equal(F.fit(pictures, 32), pictures)


def test_shrinking_is_antialiased():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(F.fit(stripes, 16)[0, 4:-4, 4:-4].astype(int) - 128).max() <= 8


@pytest.mark.parametrize("kernel", ["area", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(24, 20), (7, 9)])
def test_resize_of_floats_has_the_taps_of_pillow(kernel, size):
    picture = noise(16, 14, 3)
    channel = Image.fromarray(picture[..., 0].astype(np.float32))
    wanted = np.asarray(channel.resize((size[1], size[0]), F._PIL_KERNELS[kernel]))
    got = F.resize(torch.from_numpy(picture[..., 0].astype(np.float64)), size, kernel=kernel)
    assert np.abs(got.numpy() - wanted).max() < 1e-2


def test_the_hash_is_that_of_the_raw_bytes_in_order():
    pictures = noise(3, 4, 5, 3)
    assert F.frames_sha256(pictures) == hashlib.sha256(pictures.tobytes()).hexdigest()
    assert F.frames_sha256(iter(pictures)) == F.frames_sha256(pictures)
    assert F.frames_sha256(pictures[::-1]) != F.frames_sha256(pictures)


def test_a_contact_sheet_shows_every_frame_with_its_time_below():
    shades = np.stack([np.full((24, 32, 3), 10 * i + 40, np.uint8) for i in range(11)])
    sheet = F.contact_sheet(shades, columns=4, fps=8.0)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    cell_h, step_x, step_y = 72, 100, 92
    for i in range(11):
        x, y = 4 + (i % 4) * step_x, 4 + (i // 4) * step_y
        assert (sheet[y : y + cell_h, x : x + 96] == 10 * i + 40).all()
        assert sheet[y + cell_h : y + cell_h + 16, x : x + 96].max() > 150  # the label
    assert not np.array_equal(sheet[76:92, 4:100], sheet[76:92, 104:200])
