"""Still images in and out (Pillow), and what a file is by its first bytes. Untrusted files end in an InputError."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, TypeVar
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngInfo

from mavcli import stopping
from mavcli.errors import InputError, MavError, NotReadError, OutOfMemoryError
from mavcli.files import whole_file
from mavcli.media.colour import on_background, plain, to_srgb, unconverted
from mavcli.media.frames import MAX_PIXELS, MAX_SIDE, Frames
from mavcli.media.passing import not_read, refuse_passing

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
"""What is decoded, HEIC and HEIF apart (pillow-heif); the rest of Pillow's formats (PDF, EPS, FITS, ...) is attack surface that nobody needs here."""

T = TypeVar("T")

_WANTED = "PNG, JPEG, WebP, AVIF, HEIC, BMP, GIF, TIFF"

MAX_PHOTO = {"JPEG": 256_000_000}
"""Pixels that are read, where the format is decoded at a fraction of its size; of the others `MAX_WHOLE`."""
MAX_WHOLE = 128_000_000
"""Pixels of a picture that can only be decoded whole: 512 MB as RGBA."""

MAX_FILE_BYTES = 1 << 30

WHITE = (255, 255, 255)
"""What shows through transparent pixels, of images and of videos."""

_IMAGE_HEADS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
)
_ANIMATED = {"a GIF", "a PNG image", "a WEBP image", "an animated WebP", "an AVIF image"}
"""What may hold an animation. The frames of the others are pages, thumbnails or depth maps."""
_IMAGES = {*_ANIMATED, "a HEIC image", *(name for _, name in _IMAGE_HEADS)}
_CONVERTED = {"a JPEG XL image", "a JPEG 2000 image", "a Photoshop image", "an OpenEXR image", "a Radiance HDR image",
              "an XML or SVG text", "a PDF document", "a PNM image"}  # fmt: skip
"""Pictures that are not read and that ImageMagick makes a PNG of."""
_FOREIGN_HEADS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an XZ archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"ID3", "an MP3 sound file"),
    (b"#EXTM3U", "a playlist"),
    (b"ffconcat", "a playlist"),
    (b"SQLite format 3", "an SQLite database"),
    (b"8BPS", "a Photoshop image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"P5\n", "a PNM image"),
    (b"P6\n", "a PNM image"),
)
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"}


def read_image(source: str | os.PathLike[str] | bytes, *, background: tuple[int, int, int] = WHITE,
               notes: list[str] | None = None) -> Frames:  # fmt: skip
    """Decode one picture, a path or the bytes of a file, to uint8 (h, w, 3) in sRGB.

    EXIF rotation and ICC profiles are applied, transparency composited on `background`, 16-bit grey scaled to 8, CMYK, Lab
    and palettes become RGB, of an animation the first frame is taken. A picture of more than 64 MP is read at a whole
    fraction of its size, a JPEG without ever being decoded whole. What a user should hear of is added to `notes`, in words
    that go on after the name. Raises InputError for anything else, and beyond `MAX_PHOTO` and `MAX_WHOLE`.
    """
    name, data = ("image", source) if isinstance(source, bytes) else (os.fspath(source), _read(source))
    found = describe_head(data[:512])
    if found and found not in _IMAGES:
        raise InputError(f"`{name}` is {found}, wanted an image ({_WANTED})", hint=hint_for(found))
    told = [] if notes is None else notes
    try:
        with _opened(data) as image:
            width, height = image.size
            _check_photo(name, image)
            found = f"{found or 'an image'} of {width} x {height} px ({image.mode})"
            frames = getattr(image, "n_frames", 1) if animated(image) else 1
            if frames > 1:
                told.append(f"is an animation of {frames} frames, of which the first is taken")
            factor = _fraction(width, height)
            if factor > 1:  # a JPEG is decoded at 1/2, 1/4 or 1/8 at once; other formats do not know this
                image.draft(image.mode, (width // factor, height // factor))
            image.load()
            profile = image.info.get("icc_profile")
            if not profile:
                told.extend(unconverted(image.info.get("nclx_profile") or {}))
            ImageOps.exif_transpose(image, in_place=True)
            picture = plain(image)
        factor = _fraction(*picture.size)
        if factor > 1:
            picture = picture.reduce(factor)
        picture = to_srgb(picture, profile, told)
        if picture.width * picture.height < width * height:
            told.append(f"is {width} x {height} px, read at {picture.width} x {picture.height}")
        return on_background(picture, background)
    except InputError as error:
        if error.message.startswith("holds"):  # a mode without a meaning
            raise InputError(f"`{name}` is {found} and {error.message}", hint=_CONVERT) from error
        raise
    except MavError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever comes: SyntaxError, struct.error
        raise _unreadable(name, found, error) from error


def animated(image: Image.Image) -> bool:
    """Whether an opened file is an animation. A phone's JPEG with a depth map and a TIFF of several pages are none."""
    return image.format in ("GIF", "PNG", "WEBP", "AVIF") and bool(getattr(image, "is_animated", False))


@contextmanager
def _opened(data: bytes | BinaryIO) -> Iterator[Image.Image]:
    """A file by Pillow, with no pixel decoded. Its own bound on sizes is left to `_check_photo`."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    head = file.read(512)
    file.seek(0)
    with catch_warnings():
        simplefilter("ignore")  # of odd EXIF tags nobody needs to hear
        formats: tuple[str, ...] = FORMATS
        if describe_head(head) == "a HEIC image":
            import pillow_heif  # a quarter of a second, which other pictures need not wait for

            pillow_heif.register_heif_opener()
            formats = ("HEIF",)
        _ready(formats)
        opener = jpeg_factory(file) if head.startswith(b"\xff\xd8\xff") else Image.open(file, formats=formats)
        with opener as image:
            yield image


def _check_photo(name: str, image: Image.Image) -> None:
    """Refuse decompression bombs by their headers."""
    width, height = image.size
    most = MAX_PHOTO.get("JPEG" if image.format == "MPO" else image.format or "", MAX_WHOLE)
    if width * height > most:
        raise InputError(
            f"`{name}` is a {image.format} image of {width} x {height} px ({width * height / 1e6:.0f} MP), wanted at "
            f"most {most // 10**6} MP",
            hint="scale it down first, such as `magick in.png -resize 25% out.png`",
        )


def _fraction(width: int, height: int) -> int:
    """By which power of two a picture is made smaller, for `MAX_PIXELS` and `MAX_SIDE` to hold."""
    factor = 1
    while (width // factor) * (height // factor) > MAX_PIXELS or max(width, height) // factor > MAX_SIDE:
        factor *= 2
    return factor


def write_png(path: str | os.PathLike[str], image: Frames, *, overwrite: bool = False,
              metadata: dict[str, str] | None = None) -> None:  # fmt: skip
    """Write uint8 (h, w, 3) as a PNG with optional text chunks, whole or not at all.

    Raises DiskError when the file exists and `overwrite` is false, or cannot be written.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"expected a uint8 picture `h w 3`, got {image.dtype} of shape {image.shape}")
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    with whole_file(path, overwrite=overwrite) as file:
        # Level 4 makes a contact sheet as small as 6 does, in a third of its time.
        Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG", pnginfo=info, compress_level=4)


def describe(source: str | os.PathLike[str] | bytes) -> str | None:
    """What the first bytes say a file is, in words (`a PNG image`, `an HTML page`), or None when they say nothing.

    `source` is a path or the bytes themselves. Raises InputError when there is no such readable file.
    """
    return describe_head(source[:512] if isinstance(source, bytes) else _head(source))


def describe_head(head: bytes) -> str | None:
    """`describe` for bytes already read."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if text.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG text"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "a GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return (
            "an animated WebP"
            if head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 2
            else "a WEBP image"
        )
    if (
        head[4:8] == b"ftyp" and head[8:12] in _AVIF | _HEIC
    ):  # the first of its brands; the others tell `mif1` apart
        brands = {head[i : i + 4] for i in range(8, min(int.from_bytes(head[:4]), len(head)), 4)}
        return "an AVIF image" if brands & _AVIF else "a HEIC image"
    for start, name in (*_IMAGE_HEADS, *_FOREIGN_HEADS):
        if head.startswith(start):
            return name
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") or head.startswith((b"\x1aE\xdf\xa3", b"FLV\x01")):
        return "a video file"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "a video file"
    if not head.strip(b"\t\r\n") or all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head):
        return "a text file"
    return None


def is_still(source: str | os.PathLike[str] | bytes) -> bool:
    """True when the content is a picture and no animation: a GIF, PNG, WebP or AVIF of one frame too, and damaged ones."""
    return describe(source) in _IMAGES and not is_animation(source)


def is_animation(source: str | os.PathLike[str] | bytes) -> bool:
    """True when the content is a GIF, PNG, WebP or AVIF of several frames."""
    return describe(source) in _ANIMATED and _by_header(source, animated, False)


def describe_picture(source: str | os.PathLike[str] | bytes) -> str | None:
    """`describe` with size, mode and frames where the file is a picture: `a GIF of 12 frames of 64 x 48 px (P)`."""
    found = describe(source)

    def told(image: Image.Image) -> str:
        frames = f"{getattr(image, 'n_frames', 1)} frames of " if animated(image) else ""
        return f"{found} of {frames}{image.width} x {image.height} px ({image.mode})"

    return _by_header(source, told, found) if found in _IMAGES else found


def _by_header(source: str | os.PathLike[str] | bytes, ask: Callable[[Image.Image], T], damaged: T) -> T:
    """What `ask` says of an opened picture, `damaged` where it does not open: `read_image` says what is wrong with it."""
    try:
        with (
            nullcontext(io.BytesIO(source)) if isinstance(source, bytes) else open(source, "rb") as file,
            _opened(file) as image,
        ):
            return ask(image)
    except MavError:
        raise
    except Exception as error:  # as in `read_image`
        stopping.check()
        refuse_passing("image" if isinstance(source, bytes) else os.fspath(source), error)
        return damaged


def hint_for(found: str) -> str | None:
    """What helps when a file turned out to be `found`."""
    return {
        "a git-lfs pointer": "git lfs pull",
        "an HTML page": "download it again: the server sent an error page",
        "an empty file": "download or copy it again",
        "a ZIP archive": "unpack it with `unzip` first",
        "a gzip archive": "unpack it with `gunzip` first",
        "a bzip2 archive": "unpack it with `bunzip2` first",
        "an XZ archive": "unpack it with `unxz` first",
        "a Zstandard archive": "unpack it with `zstd -d` first",
        "a video file": "ffmpeg -i in.mp4 -frames:v 1 frame.png",
        "an animated WebP": "convert it to MP4 or GIF first",
        **dict.fromkeys(_CONVERTED, _CONVERT),
    }.get(found)


_CONVERT = "make a PNG of it first, such as `magick in.psd out.png`"


def _ready(formats: tuple[str, ...]) -> None:
    """Load Pillow's decoders; what it cannot load, for want of file handles, it leaves out in silence."""
    if not Image.OPEN.keys() >= set(formats):
        Image.init()
    missing = [name for name in formats if name not in Image.OPEN]
    if missing:
        raise NotReadError(f"Pillow could not load its decoder of {missing[0]} images this time")


def _unreadable(name: str, found: str | None, error: Exception) -> InputError:
    """What is wrong with the bytes; raises OutOfMemoryError or NotReadError where they are not to blame."""
    stopping.check()
    refuse_passing(name, error)
    if isinstance(error, MemoryError):
        raise OutOfMemoryError(f"out of memory while reading `{name}`") from error
    if isinstance(error, OSError) and error.errno:  # Pillow's own have no number
        not_read(name, error)
    if isinstance(error, ImportError):
        raise NotReadError(f"cannot read `{name}`: {error}") from error
    if isinstance(error, Image.DecompressionBombError):
        return InputError(
            f"`{name}` is {found} that unpacks to more than {MAX_WHOLE // 10**6} MP",
            hint="scale it down first, such as `magick in.png -resize 25% out.png`",
        )
    if isinstance(error, Image.UnidentifiedImageError) and not found:
        return InputError(f"`{name}` is not an image that can be read, wanted {_WANTED}")
    return InputError(
        f"`{name}` is a damaged image, {found}: {_one_line(error)}", hint="download or export it again"
    )


def _read(path: str | os.PathLike[str]) -> bytes:
    file = Path(path)
    head = _head(file)
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        found = describe_head(head) or "a file"
        raise InputError(f"`{file}` is {found} of {size / 1e9:.1f} GB, wanted an image below 1 GB")
    try:
        return file.read_bytes()
    except OSError as error:
        not_read(str(file), error)


def _head(path: str | os.PathLike[str]) -> bytes:
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"`{file}` is a folder, wanted a file")
        if not file.exists():
            raise InputError(f"no such file: `{file}`")
        if not file.is_file():  # a FIFO would block for ever
            raise InputError(f"`{file}` is not a regular file")
        with open(file, "rb") as stream:
            return stream.read(512)
    except OSError as error:
        not_read(str(file), error)
    except ValueError as error:  # a NUL in the name
        raise InputError(f"cannot read `{file}`: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
