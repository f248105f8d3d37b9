"""Still images in and out."""

import io
import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from mavcli.errors import DiskError, InputError
from mavcli.media.image import describe, image_size, is_image, read_image, write_png


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height: int = 6, width: int = 10) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 20, y * 30, x + y], -1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(kind):
    assert np.array_equal(read_image(saved(Image.fromarray(gradient()), kind)), gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(gradient()), "PNG", exif=exif)
    turns = {1: gradient(), 2: gradient()[:, ::-1], 3: gradient()[::-1, ::-1], 4: gradient()[::-1],
             5: gradient().transpose(1, 0, 2), 6: np.rot90(gradient(), -1),
             7: gradient()[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(gradient())}  # fmt: skip
    assert np.array_equal(read_image(data), turns[orientation])
    (tmp_path / "a.png").write_bytes(data)
    assert image_size(tmp_path / "a.png") == turns[orientation].shape[:2]


def test_transparency_is_composited_on_the_stated_background():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3] = 255
    rgba[1, 1, 3] = 128
    out = read_image(saved(Image.fromarray(rgba), "PNG"))
    assert out[0, 0].tolist() == [200, 0, 0] and out[1, 0].tolist() == [255, 255, 255]
    assert np.abs(out[1, 1].astype(int) - [227, 127, 127]).max() <= 1
    assert read_image(saved(Image.fromarray(rgba), "PNG"), background=(0, 0, 9))[1, 0].tolist() == [0, 0, 9]


def test_a_palette_with_a_transparent_colour_is_composited():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 90, 80, 70] + [0] * 762)
    image.putpixel((1, 0), 1)
    out = read_image(saved(image, "PNG", transparency=0))
    assert out.tolist() == [[[255, 255, 255], [90, 80, 70]]]


def test_sixteen_bit_grey_is_scaled_not_cut():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert read_image(saved(Image.fromarray(values), "PNG"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_becomes_rgb():
    out = read_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert out.shape == (8, 8, 3) and np.abs(out.astype(int) - [255, 0, 0]).max() < 12


def test_of_an_animation_the_first_frame_is_read():
    first, second = Image.new("RGB", (4, 4), (250, 0, 0)), Image.new("RGB", (4, 4), (0, 250, 0))
    data = saved(first, "GIF", save_all=True, append_images=[second])
    assert read_image(data)[0, 0, 0] > 240


def test_a_truncated_image_is_an_input_error():
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "PNG")
    with pytest.raises(InputError, match="damaged"):
        read_image(data[: len(data) // 2])


def test_an_image_beyond_64_megapixels_is_refused_before_decoding():
    data = saved(Image.new("1", (9000, 8000)), "PNG")
    started = time.perf_counter()
    with pytest.raises(InputError, match="9000 x 8000 px"):
        read_image(data)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"just words\n", "a text file"),
        (b"\0\0\0\x18ftypmp42" + bytes(16), "a video file"),
    ],
)
def test_what_is_no_image_is_named_by_its_content(content, words, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    assert describe(path) == words and not is_image(path)
    with pytest.raises(InputError, match=words) as raised:
        read_image(path)
    assert "photo.png" in raised.value.message and "wanted an image" in raised.value.message


def test_no_pillow_format_outside_the_list_is_decoded():
    with pytest.raises(InputError):
        read_image(saved(Image.fromarray(gradient()), "PPM"))


def test_missing_files_folders_and_pipes_are_input_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in [
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "regular"),
    ]:
        with pytest.raises(InputError, match=words):
            read_image(path)


def test_every_awkward_file_ends_in_a_picture_or_an_input_error(shared_data):
    for folder in ("nasty_made", "nasty_real"):
        for entry in json.loads((shared_data / folder / "EXPECTED.json").read_text()):
            path = shared_data / folder / entry["file"]
            pillow = entry.get("pillow")
            readable = isinstance(pillow, dict) and pillow["size"][0] * pillow["size"][1] < 64e6
            started = time.perf_counter()
            try:
                picture = read_image(path)
            except InputError as error:
                assert entry["file"] in error.message
                # frames that Pillow opens but cannot decode may be refused, whole pictures may not
                assert not readable or entry["outcome"] != "ok" or "bomb" in entry["file"], error.message
            else:
                assert readable, entry["file"]
                assert (
                    picture.shape == (pillow["size"][1], pillow["size"][0], 3) and picture.dtype == np.uint8
                )
            assert time.perf_counter() - started < 10


def test_every_photo_reads_with_the_size_that_its_header_gives(shared_data):
    for path in sorted((shared_data / "photos").iterdir()):
        if path.suffix in (".jpg", ".png"):
            assert read_image(path).shape[:2] == image_size(path)


def test_png_round_trip_keeps_pixels_and_words(tmp_path):
    write_png(tmp_path / "a.png", gradient(), metadata={"mav_recipe": "ü 🎈"})
    assert np.array_equal(read_image(tmp_path / "a.png"), gradient())
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["mav_recipe"] == "ü 🎈"


def test_png_never_overwrites_unasked_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(DiskError, match="exists"):
        write_png(path, gradient())
    with pytest.raises(DiskError):
        write_png(tmp_path / "no" / "a.png", gradient())
    assert path.read_bytes() == b"mine"
    write_png(path, gradient(), overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
