"""Still images in and out (Pillow), and what a file is by its first bytes. Untrusted files end in an InputError."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from mavcli import stopping
from mavcli.errors import InputError, MavError, NotReadError, OutOfMemoryError
from mavcli.files import whole_file
from mavcli.media.frames import MAX_PIXELS, Frames, check_size
from mavcli.media.passing import not_read, refuse_passing

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded; the rest of Pillow's formats (PDF, EPS, FITS, ...) is attack surface that nobody needs here."""

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
_IMAGES = {"a GIF", "a WEBP image", "an animated WebP", *(name for _, name in _IMAGE_HEADS)}
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
)


def read_image(source: str | os.PathLike[str] | bytes, *, background: tuple[int, int, int] = WHITE) -> Frames:
    """Decode one still image, a path or the bytes of a file, to uint8 (h, w, 3).

    EXIF rotation is applied, transparency composited on `background`, 16-bit scaled to 8, CMYK and palettes become
    RGB, of an animation the first frame is taken. At most 64 MP. Anything else is one InputError.
    """
    name, data = ("image", source) if isinstance(source, bytes) else (os.fspath(source), _read(source))
    found = describe_head(data[:512])
    if found and found not in _IMAGES:
        raise InputError(f"`{name}` is {found}, wanted an image ({', '.join(FORMATS)})", hint=hint_for(found))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF tags nobody needs to hear
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _ready()
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_size(name, *image.size)
                image.load()
                return _to_rgb(image, background)
    except MavError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever comes: SyntaxError, struct.error
        raise _unreadable(name, error) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) after EXIF rotation, from the header alone; the InputErrors of `read_image` that need no decoding."""
    name = os.fspath(path)
    found = describe(path)
    if found and found not in _IMAGES:
        raise InputError(f"`{name}` is {found}, wanted an image ({', '.join(FORMATS)})", hint=hint_for(found))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF tags nobody needs to hear
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _ready()
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                # Pillow decodes a whole PNG to look for EXIF behind the pixels, where nobody puts it
                known = image.format != "PNG" or "exif" in image.info
                turned = known and image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
    except MavError:
        raise
    except Exception as error:  # as in read_image
        raise _unreadable(name, error) from error
    check_size(name, width, height)
    return (width, height) if turned else (height, width)


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


def is_image(path: str | os.PathLike[str]) -> bool:
    """True when the content (not the name) is an image that `read_image` knows; of a GIF or WebP, also an animation."""
    try:
        image_size(path)
    except InputError:
        return False
    return True


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
    if head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        return "an AVIF or HEIC image"
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
    """True when the first bytes are those of a still image or of an animated WebP, which FFmpeg cannot decode; not of a GIF."""
    found = describe(source)
    return found != "a GIF" and found in _IMAGES


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
        "a video file": "save one of its frames as a PNG first",
        "an AVIF or HEIC image": "convert it to PNG or JPEG first",
        "an animated WebP": "convert it to MP4 or GIF first",
    }.get(found)


def _ready() -> None:
    """Load Pillow's decoders; what it cannot load, for want of file handles, it leaves out in silence."""
    if not Image.OPEN.keys() >= set(FORMATS):
        Image.init()
    missing = [name for name in FORMATS if name not in Image.OPEN]
    if missing:
        raise NotReadError(f"Pillow could not load its decoder of {missing[0]} images this time")


def _unreadable(name: str, error: Exception) -> InputError:
    """What is wrong with the bytes; raises OutOfMemoryError or NotReadError where they are not to blame."""
    stopping.check()
    refuse_passing(name, error)
    if isinstance(error, MemoryError):
        raise OutOfMemoryError(f"out of memory while reading `{name}`") from error
    if isinstance(error, OSError) and error.errno:  # Pillow's own have no number
        not_read(name, error)
    if isinstance(error, ImportError):
        raise NotReadError(f"cannot read `{name}`: {error}") from error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return InputError(
            f"`{name}` unpacks to more than {MAX_PIXELS // 10**6} MP", hint="scale it down first"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        return InputError(f"`{name}` is not an image that can be read, wanted {', '.join(FORMATS)}")
    return InputError(f"`{name}` is a damaged image: {_one_line(error)}", hint="download or export it again")


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Frames:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        grey = np.asarray(image).astype(np.float64)
        # mode I comes from 16-bit files; 65535 / 255 = 257
        grey = np.clip(np.rint(grey / 257.0), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise InputError("floating-point images have no agreed range, wanted 8 or 16 bits a channel")
    if image.has_transparency_data:
        layer = Image.new("RGBA", image.size, (*background, 255))
        return np.array(Image.alpha_composite(layer, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))


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
