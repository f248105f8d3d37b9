"""Pictures of any of Pillow's modes as sRGB: embedded ICC profiles, CMYK, Lab, palettes, 16-bit grey, transparency."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageCms

from mavcli.errors import InputError
from mavcli.media.frames import Frames

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of an ICC profile -> the mode that it describes."""

_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_TRANSFERS = {16: "PQ", 18: "HLG"}

_UNCHANGED = 2
"""Of 255. A profile that moves no colour farther is sRGB under one of its many names: the pixels stay as they are."""


def plain(image: Image.Image) -> Image.Image:
    """A picture in one of the modes L, LA, RGB, RGBA, CMYK and LAB, 8 bits a channel; one transparent colour becomes alpha.

    Raises InputError for floating point and 32-bit numbers, which have no agreed range.
    """
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _eight_bits(image, clear if isinstance(clear, int) else None)
    if image.mode == "F":
        raise InputError(
            "holds floating-point numbers, which have no agreed range, wanted 8 or 16 bits a channel"
        )
    if isinstance(clear, tuple) and image.mode == "RGB" and max(clear) > 255:  # of a 16-bit PNG, read as 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.has_transparency_data:
        wanted = "LA" if image.mode in ("1", "L", "LA", "La") else "RGBA"
    elif image.mode in ("L", "RGB", "CMYK", "LAB"):
        wanted = image.mode
    else:
        wanted = "L" if image.mode == "1" else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _eight_bits(image: Image.Image, clear: int | None) -> Image.Image:
    """16-bit grey as L, or as LA where one of its values is transparent."""
    values = np.asarray(image)
    if image.mode == "I" and (int(values.min()) < 0 or int(values.max()) > 65535):
        raise InputError(
            "holds 32-bit or signed numbers, which have no agreed range, wanted 8 or 16 bits a channel"
        )
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 65535 / 255 = 257
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """A picture that is `plain` as RGB or RGBA in sRGB. What is wrong with its profile goes to `notes`, in words."""
    if image.mode not in ("LA", "RGBA"):
        return _managed(image, profile, notes)
    if not profile:
        return image.convert("RGBA")
    colours = _managed(image.convert(image.mode[:-1]), profile, notes)
    colours.putalpha(image.getchannel("A"))
    return colours


def unconverted(codes: Mapping[str, int]) -> list[str]:
    """What the colour codes of a HEIC say beyond sRGB, in words: they are shown as they are. Source: ITU-T H.273, tables 2, 3."""
    names = [
        _PRIMARIES.get(codes.get("color_primaries", 0)),
        _TRANSFERS.get(codes.get("transfer_characteristics", 0)),
    ]
    named = " ".join(name for name in names if name)
    return [f"has colours in {named} and no ICC profile, shown as if in sRGB"] if named else []


def _managed(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """L, RGB, CMYK or LAB -> RGB."""
    if image.mode == "LAB":  # Pillow has no other way from it
        return _transformed(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if not profile:
        return image.convert("RGB")
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = described.profile.xcolor_space
        mode = _SPACES.get(space)
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if mode != image.mode:
            notes.append(
                f"has an ICC profile for {space.strip()} and pixels in {image.mode}: the profile is passed over"
            )
            return image.convert("RGB")
        return _transformed(image, described)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        notes.append(f"has a damaged ICC profile, which is passed over ({' '.join(str(error).split())[:80]})")
        return image.convert("RGB")


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    transform = ImageCms.buildTransform(
        profile, _srgb(), image.mode, "RGB", ImageCms.Intent.PERCEPTUAL, ImageCms.Flags.BLACKPOINTCOMPENSATION
    )
    if image.mode in ("L", "RGB"):
        probe = _colours(image.mode)
        before = np.asarray(probe.convert("RGB"), np.int16)
        if (
            np.abs(np.asarray(ImageCms.applyTransform(probe, transform), np.int16) - before).max()
            <= _UNCHANGED
        ):
            return image.convert("RGB")
    found = ImageCms.applyTransform(image, transform)
    assert found is not None  # it is, of a transform in place
    return found


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _colours(mode: str) -> Image.Image:
    """All greys, or 17 levels of each channel with each other."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.rint(np.linspace(0, 255, 17)).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
    return Image.fromarray(np.ascontiguousarray(cube.reshape(17, -1, 3)))


def on_background(image: Image.Image, background: tuple[int, int, int]) -> Frames:
    """RGB or RGBA -> uint8 (h, w, 3), what is transparent shows `background`."""
    if image.mode == "RGBA":
        layer = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(layer, image).convert("RGB")
    return np.array(image)
