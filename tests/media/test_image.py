"""Still images in and out."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mavcli.errors import DiskError, InputError
from mavcli.media.image import describe, describe_picture, is_still, read_image, write_png


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
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(gradient()), "PNG", exif=exif)
    turns = {1: gradient(), 2: gradient()[:, ::-1], 3: gradient()[::-1, ::-1], 4: gradient()[::-1],
             5: gradient().transpose(1, 0, 2), 6: np.rot90(gradient(), -1),
             7: gradient()[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(gradient())}  # fmt: skip
    assert np.array_equal(read_image(data), turns[orientation])


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


def test_a_decompression_bomb_is_refused_before_decoding():
    head = b"IHDR" + struct.pack(">2I5B", 12000, 11000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    data += b"\0\0\0\x08IDATxxxxxxxxxxxx"
    started = time.process_time()
    with pytest.raises(InputError, match=r"PNG image of 12000 x 11000 px \(132 MP\), wanted at most 128 MP"):
        read_image(data)
    assert time.process_time() - started < 1


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
    assert describe(path) == words and not is_still(path)
    with pytest.raises(InputError, match=words) as raised:
        read_image(path)
    assert "photo.png" in raised.value.message and "wanted an image" in raised.value.message


CASES = Path(__file__).parents[1] / "data" / "cases"
FIELDS = [[[220, 40, 40], [40, 200, 60]], [[50, 60, 210], [240, 240, 240]]]
"""What the four quarters of the cases' pictures show, in sRGB."""


def off(picture: np.ndarray) -> int:
    """The largest difference from `FIELDS`, in the middle of each."""
    h, w = picture.shape[0] // 4, picture.shape[1] // 4
    return int(np.abs(picture[h :: 2 * h, w :: 2 * w][:2, :2].astype(int) - FIELDS).max())


def fields(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.array(FIELDS, np.uint8)).resize((width, height), Image.Resampling.NEAREST)


def p3() -> bytes:
    with Image.open(CASES / "icc_p3.png") as image:
        return image.info["icc_profile"]


def test_the_embedded_profile_counts():
    notes: list[str] = []
    assert off(read_image(CASES / "icc_p3.png", notes=notes)) <= 3 and notes == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "HEIF"])
def test_the_profile_counts_in_every_format_that_has_one(kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    with Image.open(CASES / "icc_p3.png") as image:
        data = saved(image, kind, icc_profile=p3(), quality=95)
    assert off(read_image(data)) <= 12, (
        "colours at half resolution leave that much; unread, the profile leaves 40"
    )


def test_the_profile_counts_under_transparency_and_for_palettes():
    with Image.open(CASES / "icc_p3.png") as image:
        half = image.convert("RGBA")
        half.putalpha(Image.fromarray(np.repeat(np.uint8([[255] * 32 + [0] * 32]), 48, 0)))
        palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    picture = read_image(saved(half, "PNG", icc_profile=p3()))
    assert (
        np.abs(picture[12, 16].astype(int) - FIELDS[0][0]).max() <= 3
        and picture[12, 48].tolist() == [255] * 3
    )
    assert off(read_image(saved(palette, "PNG", icc_profile=p3()))) <= 3


def test_cmyk_and_lab_and_grey_go_through_their_profiles():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    in_lab = ImageCms.profileToProfile(fields(), srgb, lab, outputMode="LAB")
    assert off(read_image(saved(in_lab, "TIFF"))) <= 8, "Lab in 8 bits is that coarse"
    linear = grey_profile(1.0)
    picture = read_image(saved(Image.new("L", (8, 8), 55), "PNG", icc_profile=linear))
    assert abs(int(picture[0, 0, 0]) - 128) <= 2, "55 of 255 in linear light is a middle grey"


def grey_profile(gamma: float) -> bytes:
    """The smallest ICC profile of a grey with a power law."""
    d50 = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    words = b"desc" + bytes(4) + struct.pack(">I", 2) + b"g\0" + bytes(78)
    tags, body, place = b"", b"", 128 + 4 + 12 * 3
    for name, data in ((b"desc", words), (b"wtpt", d50), (b"kTRC", curve)):
        tags += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = place + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", 3) + tags + body


def test_srgb_by_another_name_changes_no_pixel():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(read_image(saved(Image.fromarray(noise), "PNG", icc_profile=profile)), noise)


@pytest.mark.parametrize(
    ("profile", "words"), [(b"not a profile" * 20, "damaged"), (grey_profile(2.2), "for GRAY")]
)
def test_a_profile_that_cannot_be_used_is_said_and_not_fatal(profile, words):
    notes: list[str] = []
    picture = read_image(saved(Image.fromarray(gradient()), "PNG", icc_profile=profile), notes=notes)
    assert np.array_equal(picture, gradient()) and len(notes) == 1 and words in notes[0]


def test_a_value_of_sixteen_bit_grey_can_be_transparent():
    with Image.open(CASES / "g16trns.png") as image:
        clear = np.asarray(image) == image.info["transparency"]
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
    picture = read_image(CASES / "g16trns.png")
    assert clear.any() and (picture[clear] == 255).all()
    assert np.array_equal(picture[~clear][:, 0], grey[~clear])
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    data = saved(Image.fromarray(values), "PNG", transparency=257)
    assert read_image(data)[0, :, 0].tolist() == [0, 255, 128, 255]


def test_numbers_without_an_agreed_range_are_named():
    for values in (np.zeros((4, 4), np.float32), np.full((4, 4), 70_000, np.int32)):
        with pytest.raises(
            InputError, match=r"is a TIFF image of 4 x 4 px \([FI]\) and holds .* no agreed range"
        ) as raised:
            read_image(saved(Image.fromarray(values), "TIFF"))
        assert "magick" in raised.value.hint


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_avif_and_heic_are_read_and_turned_as_they_ask(kind, tmp_path):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(fields(), kind, quality=95, exif=exif.tobytes())
    picture = read_image(data)
    assert picture.shape == (64, 48, 3) and off(np.rot90(picture)) <= 6
    assert describe(data) == ("an AVIF image" if kind == "AVIF" else "a HEIC image") and is_still(data)
    (tmp_path / "photo.jpg").write_bytes(data)  # what phones and browsers call them says little
    assert np.array_equal(read_image(tmp_path / "photo.jpg"), picture)


def test_wide_colours_of_a_heic_without_a_profile_are_named():
    pytest.importorskip("pillow_heif").register_heif_opener()
    notes: list[str] = []
    codes = {
        "color_primaries": 12,
        "transfer_characteristics": 13,
        "matrix_coefficients": 6,
        "full_range_flag": 1,
    }
    read_image(saved(fields(), "HEIF", **codes), notes=notes)
    assert notes == ["has colours in Display P3 and no ICC profile, shown as if in sRGB"]
    notes.clear()
    read_image(saved(fields(), "HEIF"), notes=notes)
    assert notes == []


def test_the_case_of_avif_is_read():
    assert off(read_image(CASES / "x.avif")) <= 6


def test_a_large_jpeg_is_never_decoded_whole(monkeypatch):
    monkeypatch.setattr("mavcli.media.image.MAX_PIXELS", 400)
    monkeypatch.setattr(Image.Image, "reduce", None)  # what is decoded at a quarter needs none
    assert read_image(saved(Image.new("RGB", (60, 40), (150, 20, 90)), "JPEG")).shape == (10, 15, 3)


@pytest.mark.slow
def test_a_photograph_of_108_megapixels_is_read_at_half_its_size_without_being_decoded_whole(tmp_path):
    image = Image.new("RGB", (12000, 9000), (200, 90, 40))
    image.save(tmp_path / "a.jpg", quality=80)
    code = (
        "import resource, sys; from mavcli.media.image import read_image; n = []; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); "
        "a = read_image(sys.argv[1], notes=n); print(*a.shape, *a[9, 9], peak() - before, *n)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.jpg"], capture_output=True, text=True, check=True
    )
    *shape, r, g, b, kilobytes = map(int, done.stdout.split()[:7])
    assert shape == [4500, 6000, 3] and max(abs(r - 200), abs(g - 90), abs(b - 40)) <= 2
    assert done.stdout.split(maxsplit=7)[7].strip() == "is 12000 x 9000 px, read at 6000 x 4500"
    assert kilobytes < 450_000, (
        "324 MB and more where it is decoded whole, beside the copies of what comes out"
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_a_large_picture_of_any_mode_is_read_at_a_fraction(mode, monkeypatch):
    monkeypatch.setattr("mavcli.media.image.MAX_PIXELS", 400)
    source = Image.fromarray(np.full((40, 60), 38550, np.uint16)) if mode == "I;16" else Image.new(mode, (60, 40), {
        "1": 1, "L": 150, "LA": (150, 255), "P": 0, "RGB": (150, 20, 90), "RGBA": (150, 20, 90, 255), "CMYK": (0, 0, 0, 105),
    }[mode])  # fmt: skip
    if mode == "P":
        source.putpalette([150, 20, 90])
    notes: list[str] = []
    picture = read_image(saved(source, "TIFF" if mode == "CMYK" else "PNG"), notes=notes)
    assert picture.shape == (10, 15, 3) and notes == ["is 60 x 40 px, read at 15 x 10"]
    assert (picture[..., 0] == (255 if mode == "1" else 150)).all()


def animation(kind: str, frames: int = 3) -> bytes:
    shown = [Image.new("RGB", (16, 12), (80 * i, 250, 0)) for i in range(frames)]
    return saved(shown[0], kind, save_all=True, append_images=shown[1:], duration=100)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_one_frame_is_a_picture_and_several_are_an_animation(kind):
    assert is_still(animation(kind, 1)) and not is_still(animation(kind))
    notes: list[str] = []
    read_image(animation(kind), notes=notes)
    assert notes == ["is an animation of 3 frames, of which the first is taken"]
    assert "of 3 frames of 16 x 12 px" in describe_picture(animation(kind))


def test_a_gif_of_one_frame_is_a_picture():
    assert is_still(CASES / "still.gif") and off(read_image(CASES / "still.gif")) == 0


def test_pages_of_a_tiff_and_the_second_picture_of_a_phones_jpeg_are_no_animation():
    for kind in ("TIFF", "MPO"):
        notes: list[str] = []
        data = saved(fields(), kind, save_all=True, append_images=[fields()])
        assert is_still(data) and off(read_image(data, notes=notes)) <= 6 and notes == []


@pytest.mark.parametrize(
    ("head", "words"),
    [(b"8BPS\0\1", "a Photoshop image"), (b"\0\0\0\x0cJXL \r\n", "a JPEG XL image"), (b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 image"),
     (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "a damaged image, an AVIF image"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a damaged image, a HEIC image"),
     (b"\x89PNG\r\n\x1a\n", "a damaged image, a PNG image")],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_what_helps(head, words):
    with pytest.raises(InputError, match=f"is {words}") as raised:
        read_image(head + bytes(40))
    assert raised.value.hint


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
            started = time.process_time()
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
            assert time.process_time() - started < 10


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
