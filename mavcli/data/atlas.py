"""Build the sprite atlas of the rendered world from Noto Color Emoji: `python -m mavcli.data.atlas`.

Run once by a maintainer with Debian's fonts-noto-color-emoji installed; the PNG it writes is committed, so nobody
who uses `mav` needs the font.
"""

from __future__ import annotations

import argparse
from math import cos, pi, sin
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

CELL = 256
"""Side of one square cell of the atlas, pixels. Cells lie in one row, in the order of GLYPHS."""

GLYPHS: dict[str, str] = {
    "dog": "\N{DOG FACE}",
    "cat": "\N{CAT FACE}",
    "penguin": "\N{PENGUIN}",
    "pig": "\N{PIG FACE}",
    "frog": "\N{FROG FACE}",
    "panda": "\N{PANDA FACE}",
    "lion": "\N{LION FACE}",
    "elephant": "\N{ELEPHANT}",
    "robot": "\N{ROBOT FACE}",
    "rabbit": "\N{RABBIT FACE}",
    "octopus": "\N{OCTOPUS}",
    "whale": "\N{SPOUTING WHALE}",
}

PALE = (252, 250, 244)
DARK = (44, 44, 66)
_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_STRIKE = 109  # the only bitmap size in the font
_MARGIN = 14  # leaves room for the two outlines
_PALE_WIDTH = 7
_DARK_WIDTH = 4


def sprite(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, RGBA (CELL, CELL), centred, its longer side filling the cell up to the margin, outlined.

    The outline is pale with a thin dark rim: the pale line shows a black penguin at night, the rim a white rabbit
    on snow.
    """
    raw = Image.new("RGBA", (192, 192), (0, 0, 0, 0))
    ImageDraw.Draw(raw).text((16, 16), glyph, font=font, embedded_color=True)
    raw = raw.crop(raw.getbbox())
    factor = (CELL - 2 * _MARGIN) / max(raw.size)
    raw = raw.resize((round(raw.width * factor), round(raw.height * factor)), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    cell.paste(raw, ((CELL - raw.width) // 2, (CELL - raw.height) // 2))
    alpha = cell.getchannel("A").point(lambda a: 255 if a > 110 else 0)
    out = Image.new("RGBA", (CELL, CELL), (*DARK, 0))
    for colour, radius in ((DARK, _PALE_WIDTH + _DARK_WIDTH), (PALE, _PALE_WIDTH)):
        grown = _dilate(alpha, radius).filter(ImageFilter.GaussianBlur(1.0))
        layer = Image.new("RGBA", (CELL, CELL), (*colour, 0))
        layer.putalpha(grown)
        out = Image.alpha_composite(out, layer)
    return Image.alpha_composite(out, cell)


def _dilate(alpha: Image.Image, radius: int) -> Image.Image:
    """Grow a mask by a disc of `radius` pixels, by stamping it round the circle."""
    grown = alpha
    for ring in range(1, radius + 1):
        for k in range(32):
            dx, dy = round(ring * cos(k * pi / 16)), round(ring * sin(k * pi / 16))
            shifted = Image.new("L", alpha.size, 0)
            shifted.paste(alpha, (dx, dy))
            grown = ImageChops.lighter(grown, shifted)
    return grown


def build(font_path: str = _FONT) -> Image.Image:
    """The whole atlas, RGBA (CELL, CELL * len(GLYPHS)) high by wide."""
    font = ImageFont.truetype(font_path, _STRIKE)
    atlas = Image.new("RGBA", (CELL * len(GLYPHS), CELL), (0, 0, 0, 0))
    for index, glyph in enumerate(GLYPHS.values()):
        atlas.paste(sprite(glyph, font), (index * CELL, 0))
    return atlas


def main() -> None:
    """Write assets/actors.png next to this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", default=_FONT)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "assets" / "actors.png")
    options = parser.parse_args()
    atlas = build(options.font)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # A palette with alpha keeps the file small; 256 colours are plenty for flat emoji.
    atlas.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        options.out, optimize=True
    )


if __name__ == "__main__":
    main()
