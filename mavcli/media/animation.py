"""Pictures that move: which files are such, and the frames of APNG, animated WebP and animated AVIF (Pillow).

FFmpeg reads a GIF and has no decoder for an animated WebP; Pillow reads all of them, with disposal, blending and times.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from mavcli.media.frames import check_size

TICK = Fraction(1, 1000)
"""Of the time stamps of `frames_of`, in seconds."""


def moving_picture(source: str | os.PathLike[str] | bytes) -> str:
    """`apng`, `webp` or `avif` for an animation that `frames_of` reads; empty for everything else, also for a GIF."""
    found = _format(_head(source))
    return {"png": "apng"}.get(found, found) if found not in ("", "gif") and _moves(source) else ""


def frames_of(name: str, source: str | os.PathLike[str] | bytes) -> Iterator[VideoFrame]:
    """The frames as RGBA with `pts` and `duration` in ticks of 1 ms. What Pillow raises for damaged files comes through."""
    with _opened(source) as image:
        check_size(name, *image.size)
        time = 0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            frame = VideoFrame.from_ndarray(np.asarray(image.convert("RGBA")), format="rgba")
            frame.pts, frame.time_base = time, TICK
            frame.duration = round(image.info.get("duration", 0))
            time += frame.duration
            yield frame


def _moves(source: str | os.PathLike[str] | bytes) -> bool:
    try:
        with _opened(source) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # as in `image.read_image`: decoders of damaged files raise whatever comes
        return False


def _opened(source: str | os.PathLike[str] | bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return Image.open(file, formats=("GIF", "PNG", "WEBP", "AVIF"))


def _head(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:16]
    try:
        if not os.path.isfile(source):  # a pipe would be waited for
            return b""
        with open(source, "rb") as file:
            return file.read(16)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return b""


def _format(head: bytes) -> str:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return "gif" if head.startswith((b"GIF87a", b"GIF89a")) else ""
