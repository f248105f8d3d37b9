"""The pocket world: actor x action x place, rendered as stills with captions and as silent, uncaptioned clips.

Colour emoji stand in front of flat backgrounds and do one of eight things. A still already shows which action it is
(a surfboard on a wave, wings, a car); only time shows how the action moves. Every quantity is a closed-form, smooth
function of the time in seconds, so a scene can be rendered at any time, frame rate and resolution, and nothing ever
wraps round the frame or jumps. A tenth of the actor x action pairs is held out from all training data, and two
actors from all training video: what a model draws for those it must have put together itself.

Lengths are fractions of the frame side, x to the right and y downwards; angles are radians, clockwise on screen.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mavcli.data.atlas import CELL, GLYPHS
from mavcli.errors import InputError
from mavcli.files import whole_folder

Split = Literal["train", "held_out", "all"]
Point = tuple[float, float]
Colour = tuple[int, int, int]

ACTORS: tuple[str, ...] = tuple(GLYPHS)
"""The twelve actors, in the order of the sprite atlas."""

ACTIONS: tuple[str, ...] = (
    "surfing", "flying", "driving", "bouncing", "spinning", "falling", "swimming", "skating",
)  # fmt: skip
"""The eight actions; each has a prop that a still shows and a motion of its own."""

PLACES: tuple[str, ...] = ("beach", "snow", "space", "city")
"""The four places; the city is seen at night."""

HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("dog", "skating"),
        ("cat", "surfing"),
        ("penguin", "flying"),
        ("pig", "flying"),
        ("frog", "driving"),
        ("panda", "falling"),
        ("elephant", "bouncing"),
        ("rabbit", "swimming"),
        ("octopus", "spinning"),
        ("whale", "driving"),
    }
)
"""Pairs (actor, action) that no training still and no training clip shows."""

STILL_ONLY_ACTORS: frozenset[str] = frozenset({"lion", "robot"})
"""Actors that training stills show and training clips never do."""


@dataclass(frozen=True)
class Scene:
    """Everything `render` needs: what is shown, and the numbers of its layout and motion."""

    actor: str
    action: str
    place: str
    x: float
    """Mean horizontal position of the actor, 0.46 to 0.54."""
    y: float
    """Vertical offset from where the action puts the actor, -0.02 to 0.02."""
    scale: float
    """Side of the actor's square sprite cell, 0.52 to 0.61; the actor with its outline fills almost all of it."""
    direction: int
    """+1: moves and looks to the right, -1: to the left."""
    period: float
    """Length of one cycle of the motion relative to the action's usual one, 0.8 to 1.25."""
    phase: float
    """Where in the cycle time 0 lies, radians, 0 to 2 pi."""
    pan: float
    """Speed of the camera, frame sides per second, -0.03 to 0.03."""
    horizon: float
    """Vertical offset of the place's horizon, -0.02 to 0.02."""
    side: float
    """Where the large features of the place stand, -0.05 to 0.05."""
    mirrored: bool
    """Whether the place is seen mirrored."""


# --------------------------------------------------------------------------------------------------------------------
# Drawing scenes at random


@cache
def pairs(split: Split, video: bool) -> tuple[tuple[str, str], ...]:
    """The (actor, action) pairs that `draw_scene` draws from, with `video` for a clip; ValueError for an unknown split."""
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"unknown split {split!r}: expected train, held_out or all")
    found = [(actor, action) for actor in ACTORS for action in ACTIONS]
    if split == "held_out":
        found = [pair for pair in found if pair in HELD_OUT_PAIRS]
    if split == "train":
        found = [pair for pair in found if pair not in HELD_OUT_PAIRS]
        if video:
            found = [pair for pair in found if pair[0] not in STILL_ONLY_ACTORS]
    return tuple(found)


def draw_scene(
    rng: np.random.Generator,
    *,
    split: Split = "train",
    video: bool = False,
    actor: str | None = None,
    action: str | None = None,
    place: str | None = None,
) -> Scene:
    """Draw a scene, uniform over the (actor, action) pairs of the split and over the places.

    split: "train" leaves out HELD_OUT_PAIRS and, with `video`, STILL_ONLY_ACTORS; "held_out" has only HELD_OUT_PAIRS.
    actor, action, place: fix these; a ValueError says that nothing in the split matches.
    """
    open_pairs = [p for p in pairs(split, video) if actor in (None, p[0]) and action in (None, p[1])]
    if not open_pairs:
        raise ValueError(f"no scene of split {split!r} has actor {actor!r} and action {action!r}")
    if place is not None and place not in PLACES:
        raise ValueError(f"unknown place {place!r}: expected one of {', '.join(PLACES)}")
    chosen = open_pairs[int(rng.integers(len(open_pairs)))]
    where = PLACES[int(rng.integers(len(PLACES)))]
    u = rng.random(10)
    return Scene(
        actor=chosen[0],
        action=chosen[1],
        place=place or where,
        x=0.46 + 0.08 * float(u[0]),
        y=-0.02 + 0.04 * float(u[1]),
        scale=0.52 + 0.09 * float(u[2]),
        direction=1 if u[3] < 0.5 else -1,
        period=0.8 * 1.5625 ** float(u[4]),
        phase=2 * math.pi * float(u[5]),
        pan=-0.03 + 0.06 * float(u[6]),
        horizon=-0.02 + 0.04 * float(u[7]),
        side=-0.05 + 0.10 * float(u[8]),
        mirrored=bool(u[9] < 0.5),
    )


def scene_for(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    video: bool = False,
    actor: str | None = None,
    action: str | None = None,
    place: str | None = None,
) -> Scene:
    """Scene number `index` (0 or more) of the stream `seed` (0 or more): a pure function, see `draw_scene`."""
    rng = generator(seed, index)
    return draw_scene(rng, split=split, video=video, actor=actor, action=action, place=place)


def generator(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The random generator of item `index` of the stream `seed`; other `stream`s of the same item are independent."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index, stream))))


# --------------------------------------------------------------------------------------------------------------------
# A canvas in unit coordinates

_SUPERSAMPLE = 2
_CIRCLE = tuple((math.cos(k * math.pi / 18), math.sin(k * math.pi / 18)) for k in range(36))


class _Frame(NamedTuple):
    """A turned coordinate frame: props fixed to an actor are drawn in it."""

    x: float
    y: float
    angle: float = 0.0

    def at(self, u: float, v: float) -> Point:
        """Where the frame's own point (u, v) lies in the picture."""
        c, d = math.cos(self.angle), math.sin(self.angle)
        return self.x + c * u - d * v, self.y + d * u + c * v


class _Canvas:
    """An RGB image that is drawn on in unit coordinates, supersampled; it remembers where actor and camera were put."""

    def __init__(self, size: int) -> None:
        self.frame, self.stretch = _Frame(0.5, 0.5), 1.0
        self.camera = self.lift = 0.0
        self.side = size * _SUPERSAMPLE
        self.image = Image.new("RGB", (self.side, self.side))
        self._draw = ImageDraw.Draw(self.image)

    def poly(self, points: list[Point], fill: Colour) -> None:
        s = self.side
        self._draw.polygon([(x * s - 0.5, y * s - 0.5) for x, y in points], fill=fill)

    def rect(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        s = self.side
        x0, y0, x1, y1 = round(left * s), round(top * s), round(right * s) - 1, round(bottom * s) - 1
        if x1 >= x0 and y1 >= y0 and x1 >= 0 and x0 < s:
            self._draw.rectangle((x0, y0, x1, y1), fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, angle: float = 0.0) -> None:
        s, c, d = self.side, math.cos(angle), math.sin(angle)
        ax, ay, bx, by = c * rx * s, d * rx * s, -d * ry * s, c * ry * s
        ox, oy = x * s - 0.5, y * s - 0.5
        self._draw.polygon([(ox + ax * u + bx * v, oy + ay * u + by * v) for u, v in _CIRCLE], fill=fill)

    def line(self, points: list[Point], width: float, fill: Colour) -> None:
        s = self.side
        pixels = [(x * s - 0.5, y * s - 0.5) for x, y in points]
        self._draw.line(pixels, fill=fill, width=max(1, round(width * s)), joint="curve")

    def sprite(self, actor: str, frame: _Frame, scale: float, mirrored: bool, sx: float, sy: float) -> None:
        """Paste the actor centred in `frame`, its cell `scale` wide, stretched by sx and sy along its own axes."""
        self.frame, self.stretch = frame, sy
        s = self.side
        mip = _mip(actor, scale * s)
        n = mip.width
        reach = scale * s * max(sx, sy) * (0.5 if abs(frame.angle) < 1e-6 else 0.66) + 2
        cx, cy = frame.x * s, frame.y * s
        x0, y0 = max(0, math.floor(cx - reach)), max(0, math.floor(cy - reach))
        x1, y1 = min(s, math.ceil(cx + reach)), min(s, math.ceil(cy + reach))
        if x1 <= x0 or y1 <= y0:
            return
        # The inverse map, from a pixel of the patch to a pixel of the sprite.
        kx, ky = n / (scale * s * sx), n / (scale * s * sy)
        if mirrored:
            kx = -kx
        c, d = math.cos(frame.angle), math.sin(frame.angle)
        a, b = kx * c, kx * d
        e, f = -ky * d, ky * c
        ox, oy = x0 - cx, y0 - cy
        data = (a, b, n / 2 + a * ox + b * oy, e, f, n / 2 + e * ox + f * oy)
        patch = mip.transform(
            (x1 - x0, y1 - y0), Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR
        )
        self.image.paste(patch, (x0, y0), patch)

    def pixels(self) -> np.ndarray:
        """The finished picture, uint8 (size, size, 3)."""
        return np.array(self.image.reduce(_SUPERSAMPLE))


@cache
def _atlas() -> Image.Image:
    with Image.open(Path(__file__).parent / "assets" / "actors.png") as image:
        return image.convert("RGBA")


@cache
def _cell(actor: str) -> Image.Image:
    index = ACTORS.index(actor)
    return _atlas().crop((index * CELL, 0, (index + 1) * CELL, CELL))


def _mip(actor: str, pixels: float) -> Image.Image:
    """The actor resized to about `pixels` a side, in steps of 19 %, so that few copies serve every scale."""
    return _resized(actor, round(2 ** (round(4 * math.log2(max(4.0, pixels))) / 4)))


@lru_cache(maxsize=128)
def _resized(actor: str, side: int) -> Image.Image:
    return _cell(actor).resize((side, side), Image.Resampling.LANCZOS)


@cache
def _feet(actor: str) -> float:
    """How far the actor reaches below the middle of its cell, as a fraction of the cell: 0.3 to 0.5."""
    opaque = np.asarray(_cell(actor).getchannel("A")) > 128
    return (int(np.flatnonzero(opaque.any(axis=1))[-1]) + 1) / CELL - 0.5


# --------------------------------------------------------------------------------------------------------------------
# Places

WHITE: Colour = (255, 255, 255)


class _View(NamedTuple):
    """Where a place is seen from: all lengths are in frame sides."""

    horizon: float
    """How far below its usual line the ground begins."""
    far: float
    """How far the distance has moved to the left."""
    near: float
    """How far the foreground has moved to the left."""
    side: float
    """Shift of the large features to the right."""
    lift: float
    """How far the whole ground lies below its usual line because the camera is high."""


def _repeat(start: float, spacing: float, shift: float, margin: float) -> Iterator[tuple[int, float]]:
    """Index and position of every item of an endless row that lies within `margin` of the frame."""
    first = math.ceil((-margin - start + shift) / spacing)
    last = math.floor((1 + margin - start + shift) / spacing)
    for k in range(first, last + 1):
        yield k, start + k * spacing - shift


def _beach(c: _Canvas, view: _View) -> None:
    h, far, near, side, lift = view
    c.rect(0, 0, 1, 1, (126, 206, 250))
    c.ellipse(0.84 + side - 0.1 * far, 0.14 + 0.3 * lift, 0.09, 0.09, (255, 220, 60))
    sea = 0.56 + h + lift
    c.rect(0, sea, 1, 1, (38, 120, 214))
    c.rect(0, sea + 0.18, 1, 1, (246, 214, 140))
    for k, x in _repeat(0.10 + side, 1.25, near, 0.3):
        lean = 0.05 if k % 2 == 0 else -0.05
        base, top = sea + 0.26, sea - 0.36
        c.poly(
            [(x - 0.03, base), (x + 0.03, base), (x + lean + 0.018, top), (x + lean - 0.018, top)],
            (138, 88, 46),
        )
        for angle in (-2.9, -2.2, -0.9, -0.25, 0.55, 2.6):
            length = 0.11
            c.ellipse(
                x + lean + length * math.cos(angle),
                top + length * math.sin(angle),
                length,
                0.036,
                (30, 150, 62),
                angle,
            )


def _snow(c: _Canvas, view: _View) -> None:
    h, far, near, side, lift = view
    c.rect(0, 0, 1, 1, (176, 212, 238))
    ground = 0.64 + h + lift
    for _, x in _repeat(0.55 + side, 1.1, far, 0.6):
        c.poly([(x - 0.5, ground + 0.05), (x, ground - 0.36), (x + 0.5, ground + 0.05)], (140, 172, 214))
        c.poly([(x - 0.14, ground - 0.245), (x, ground - 0.36), (x + 0.14, ground - 0.245)], WHITE)
    c.rect(0, ground, 1, 1, (244, 248, 253))
    for start, size in ((0.07, 1.0), (0.92, 0.8)):
        for _, x in _repeat(start + side, 1.5, near, 0.2):
            base = ground + 0.10
            c.rect(x - 0.02, base - 0.03, x + 0.02, base + 0.03, (112, 74, 44))
            for width, low, high in ((0.13, 0.0, 0.24), (0.105, 0.13, 0.34), (0.08, 0.26, 0.44)):
                c.poly(
                    [
                        (x - width * size, base - low * size),
                        (x, base - high * size),
                        (x + width * size, base - low * size),
                    ],
                    (22, 104, 66),
                )


_STARS = (
    (0.08, 0.12),
    (0.27, 0.05),
    (0.43, 0.19),
    (0.60, 0.08),
    (0.09, 0.44),
    (0.93, 0.47),
    (0.34, 0.62),
    (0.71, 0.63),
)


def _space(c: _Canvas, view: _View) -> None:
    h, far, near, side, lift = view
    c.rect(0, 0, 1, 1, (14, 10, 38))
    for x0, y in _STARS:
        for _, x in _repeat(x0 + side, 1.2, 0.6 * far, 0.05):
            r, y1 = 0.022, y + 0.4 * lift
            c.poly([(x, y1 - r), (x + 0.3 * r, y1 - 0.3 * r), (x + r, y1), (x + 0.3 * r, y1 + 0.3 * r), (x, y1 + r),
                    (x - 0.3 * r, y1 + 0.3 * r), (x - r, y1), (x - 0.3 * r, y1 - 0.3 * r)], (255, 246, 190))  # fmt: skip
    for _, x in _repeat(0.84 + side, 1.6, far, 0.3):
        y = 0.18 + 0.4 * lift
        c.ellipse(x, y, 0.20, 0.05, (250, 206, 120), -0.35)
        c.ellipse(x, y, 0.115, 0.115, (170, 84, 210))
        c.line([(x - 0.115, y + 0.045), (x, y + 0.03), (x + 0.115, y - 0.045)], 0.022, (250, 206, 120))
    ground = 0.78 + h + lift
    c.rect(0, ground, 1, 1, (142, 142, 158))
    for start, y, r in ((0.14, 0.07, 0.09), (0.56, 0.15, 0.11), (0.92, 0.06, 0.07)):
        for _, x in _repeat(start + side, 1.2, near, 0.2):
            c.ellipse(x, ground + y, r, 0.34 * r, (104, 104, 122))


_BLOCKS = ((0.00, 0.20, 0.50), (0.21, 0.16, 0.34), (0.38, 0.20, 0.42), (0.59, 0.17, 0.30), (0.77, 0.22, 0.56))


def _city(c: _Canvas, view: _View) -> None:
    h, far, near, side, lift = view
    c.rect(0, 0, 1, 1, (22, 30, 88))
    moon = 0.55 + side - 0.1 * far
    c.ellipse(moon, 0.12 + 0.3 * lift, 0.07, 0.07, (255, 240, 190))
    c.ellipse(moon + 0.035, 0.10 + 0.3 * lift, 0.06, 0.06, (22, 30, 88))
    road = 0.80 + h + lift
    for start, width, height in _BLOCKS:
        for _, x in _repeat(start + side, 1.02, far, 0.3):
            c.rect(x, road - height, x + width, road, (62, 64, 124) if height < 0.45 else (84, 70, 132))
            for column in range(2):
                left = x + width * (0.16 + 0.40 * column)
                for row in range(int(height / 0.12)):
                    if (row * 3 + column * 2 + int(start * 50)) % 4:
                        top = road - height + 0.04 + 0.12 * row
                        c.rect(left, top, left + 0.28 * width, top + 0.06, (255, 214, 92))
    c.rect(0, road, 1, 1, (70, 72, 84))
    c.rect(0, road, 1, road + 0.03, (150, 152, 164))
    for _, x in _repeat(0.1 + side, 0.4, near, 0.3):
        c.rect(x, road + 0.10, x + 0.2, road + 0.135, (250, 214, 80))


_DRAW_PLACE: dict[str, Callable[[_Canvas, _View], None]] = {
    "beach": _beach,
    "snow": _snow,
    "space": _space,
    "city": _city,
}


def _draw_place(c: _Canvas, scene: Scene, camera: float, lift: float = 0.0) -> None:
    """Draw the place for a camera `camera` frame sides to the right; `lift` moves its ground down."""
    c.camera, c.lift = camera, lift
    if scene.mirrored:
        # Mirrored places let features stand on either side; the camera's own direction must not change with that.
        camera = -camera
    _DRAW_PLACE[scene.place](c, _View(scene.horizon, 0.4 * camera, camera, scene.side, lift))
    if scene.mirrored:
        c.image.paste(c.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


# --------------------------------------------------------------------------------------------------------------------
# Actions. Each draws place, props and actor for one instant; `t` is seconds.

_INK: Colour = (44, 44, 66)


def _cycle(scene: Scene, t: float, period: float) -> float:
    """Angle of the motion's cycle at time t, for an action whose usual cycle takes `period` seconds."""
    return scene.phase + 2 * math.pi * t / (period * scene.period)


def _stand(scene: Scene) -> float:
    """How far the middle of the actor is above what it stands on."""
    return _feet(scene.actor) * scene.scale


def _actor(c: _Canvas, scene: Scene, frame: _Frame, sx: float = 1.0, sy: float = 1.0) -> None:
    # Noto's animals that are drawn from the side look left.
    c.sprite(scene.actor, frame, scene.scale, scene.direction > 0, sx, sy)


def _surfing(c: _Canvas, scene: Scene, t: float) -> None:
    _draw_place(c, scene, scene.pan * t)
    w = _cycle(scene, t, 1.6)
    d = scene.direction
    k = 2 * math.pi / 0.95
    x = scene.x + 0.07 * math.sin(0.5 * w + scene.phase)

    def crest(u: float) -> float:
        return 0.80 + scene.y + 0.065 * math.sin(k * (u - 0.5) * d + w)

    slope = math.atan(0.065 * k * d * math.cos(k * (x - 0.5) * d + w))
    deck = _Frame(x, crest(x) - 0.02, 0.9 * slope)
    _actor(c, scene, _Frame(*deck.at(0, -0.025 - _stand(scene)), deck.angle))
    c.ellipse(deck.x, deck.y, 0.36, 0.058, _INK, deck.angle)
    c.ellipse(deck.x, deck.y, 0.348, 0.046, (255, 208, 40), deck.angle)
    c.line([deck.at(-0.33, 0), deck.at(0.33, 0)], 0.024, (232, 48, 48))
    top = [(u / 16, crest(u / 16) + 0.03) for u in range(-1, 18)]
    c.poly([*top, (1.1, 1.1), (-0.1, 1.1)], (20, 142, 226))
    c.poly([*[(u, v + 0.10) for u, v in top], (1.1, 1.1), (-0.1, 1.1)], (14, 104, 196))
    c.line(top, 0.035, WHITE)


def _flying(c: _Canvas, scene: Scene, t: float) -> None:
    _draw_place(c, scene, (scene.pan + 0.12 * scene.direction) * t)
    w = _cycle(scene, t, 1.0)
    slow = 0.5 * w + scene.phase
    flap = 0.55 * math.sin(w)
    frame = _Frame(
        scene.x + 0.06 * math.sin(slow),
        0.47 + scene.y + 0.05 * math.cos(slow) - 0.035 * math.cos(w),
        0.1 * math.sin(slow),
    )
    for side in (-1, 1):
        root = frame.at(side * 0.16, 0.0)
        # Four feathers fan out from the shoulder; ink first, so that the wing has one outline.
        feathers = [
            (length, frame.angle + side * (spread - 0.25 - flap))
            for spread, length in ((0.0, 0.17), (0.32, 0.16), (0.64, 0.135), (0.96, 0.105))
        ]
        for rim, colour in ((0.014, (60, 84, 140)), (0.0, WHITE)):
            for length, angle in feathers:
                u, v = side * math.cos(angle), side * math.sin(angle)
                c.ellipse(root[0] + length * u, root[1] + length * v, length + rim, 0.05 + rim, colour, angle)
    _actor(c, scene, frame)


def _driving(c: _Canvas, scene: Scene, t: float) -> None:
    d = scene.direction
    speed = 0.55 / scene.period
    camera = speed * d * t
    _draw_place(c, scene, 0.4 * camera)
    road = 0.84
    c.rect(0, road, 1, 1, (86, 88, 98))
    for _, x in _repeat(scene.phase / 7, 0.42, camera, 0.3):
        c.rect(x, 0.945, x + 0.21, 0.98, WHITE)
    w = _cycle(scene, t, 0.7)
    lift = 0.014 * math.sin(w)
    body = _Frame(scene.x, 0.755 + 0.5 * scene.y + lift, 0.02 * math.cos(w))
    _actor(c, scene, _Frame(*body.at(-0.02 * d, -0.015 - _stand(scene)), body.angle))
    outline = [
        (-0.42, -0.01),
        (-0.40, -0.075),
        (0.20, -0.075),
        (0.26, -0.055),
        (0.40, -0.02),
        (0.43, 0.03),
        (0.43, 0.10),
        (-0.42, 0.10),
    ]
    for grow, colour in ((0.014, _INK), (0.0, (226, 38, 44))):
        c.poly(
            [
                body.at(d * u + grow * (1 if d * u > 0 else -1), v + grow * (1 if v > 0.05 else -1))
                for u, v in outline
            ],
            colour,
        )
    c.poly(
        [body.at(d * u, v) for u, v in ((-0.42, 0.015), (0.43, 0.015), (0.43, 0.045), (-0.42, 0.045))],
        (255, 206, 60),
    )
    wheel_turn = d * 2 * math.pi * t / (0.8 * scene.period) + scene.phase
    for u in (-0.25, 0.26):
        x, y = body.at(d * u, 0.11)
        y -= 0.6 * lift
        c.ellipse(x, y, 0.088, 0.088, (28, 28, 36))
        c.ellipse(x, y, 0.056, 0.056, (222, 226, 232))
        for spoke in range(2):
            angle = wheel_turn + spoke * math.pi / 2
            ux, uy = 0.056 * math.cos(angle), 0.056 * math.sin(angle)
            c.line([(x - ux, y - uy), (x + ux, y + uy)], 0.018, (60, 62, 74))


def _bouncing(c: _Canvas, scene: Scene, t: float) -> None:
    _draw_place(c, scene, scene.pan * t)
    w = 0.5 * _cycle(scene, t, 1.1)
    height = abs(math.sin(w))
    press = math.exp(-((height / 0.22) ** 2))
    mat = 0.85
    dip = 0.05 * press
    for u in (-0.34, 0.34):
        c.line([(scene.x + u, mat), (scene.x + 1.1 * u, 0.99)], 0.035, _INK)
    c.ellipse(scene.x, mat, 0.42, 0.072, (255, 140, 26))
    c.ellipse(scene.x, mat + 0.3 * dip, 0.37, 0.050, (40, 44, 64))
    if dip > 0.004:
        c.ellipse(scene.x, mat + dip, 0.20, 0.045, (40, 44, 64))
    sy = 1 + 0.05 * height - 0.24 * press
    y = mat + 0.02 + dip - _stand(scene) * sy - 0.20 * height
    _actor(c, scene, _Frame(scene.x, y), 1 - 0.02 * height + 0.14 * press, sy)


def _spinning(c: _Canvas, scene: Scene, t: float) -> None:
    _draw_place(c, scene, scene.pan * t)
    d = scene.direction
    w = d * _cycle(scene, t, 2.2)
    frame = _Frame(scene.x, 0.5 + scene.y, w)
    _actor(c, scene, frame)
    radius = 0.385
    for half in (0, 1):
        start = w + half * math.pi
        arc = [start + d * k * 0.15 for k in range(14)]
        tip = arc[-1] + d * 0.30
        for grow, colour in ((0.018, _INK), (0.0, (255, 222, 40))):
            inner, outer = radius - 0.024 - 0.6 * grow, radius + 0.024 + 0.6 * grow
            ring = [(frame.x + outer * math.cos(a), frame.y + outer * math.sin(a)) for a in arc]
            ring += [(frame.x + inner * math.cos(a), frame.y + inner * math.sin(a)) for a in reversed(arc)]
            c.poly(ring, colour)
            wide = 0.072 + 1.5 * grow
            base = arc[-1] - d * grow
            head = tip + d * 2 * grow
            c.poly(
                [
                    (frame.x + (radius + wide) * math.cos(base), frame.y + (radius + wide) * math.sin(base)),
                    (frame.x + radius * math.cos(head), frame.y + radius * math.sin(head)),
                    (frame.x + (radius - wide) * math.cos(base), frame.y + (radius - wide) * math.sin(base)),
                ],
                colour,
            )


def _falling(c: _Canvas, scene: Scene, t: float) -> None:
    # The camera follows: the ground comes up towards a limit while the actor itself sinks a little in the frame.
    _draw_place(c, scene, scene.pan * t, lift=0.24 - 0.30 * (1 - math.exp(-t / 4)))
    rise = 0.8 * t / scene.period
    for x, start in ((0.06, 0.1), (0.17, 0.55), (0.83, 0.3), (0.94, 0.75)):
        for _, y in _repeat(start + scene.phase / 7, 0.62, rise, 0.3):
            c.rect(x - 0.012, y, x + 0.012, y + 0.2, WHITE)
    w = _cycle(scene, t, 1.7)
    swing = 0.20 * math.sin(w)
    top = _Frame(scene.x + 0.03 * math.sin(w + 1.2), 0.20 + scene.y + 0.03 * (1 - math.exp(-t / 3)), -swing)
    body = _Frame(*top.at(0, 0.08 + 0.5 * scene.scale), -1.4 * swing)
    for u in (-0.30, -0.1, 0.1, 0.30):
        c.line([top.at(u, 0.02), body.at(0.3 * u, -0.3 * scene.scale)], 0.016, (236, 120, 40))
    _actor(c, scene, body)

    def dome(width: float, height: float, low: float) -> list[Point]:
        return [
            top.at(-width * math.cos(k * math.pi / 14), low - height * math.sin(k * math.pi / 14))
            for k in range(15)
        ]

    c.poly(dome(0.375, 0.215, 0.034), _INK)
    c.poly(dome(0.36, 0.20, 0.022), (236, 40, 60))
    c.poly(dome(0.22, 0.20, 0.022), WHITE)
    c.poly(dome(0.09, 0.20, 0.022), (236, 40, 60))


def _swimming(c: _Canvas, scene: Scene, t: float) -> None:
    _draw_place(c, scene, scene.pan * t)
    w = _cycle(scene, t, 1.5)
    d = scene.direction
    level = 0.70 + scene.y
    c.rect(0, level - 0.04, 1, 1, (60, 206, 214))
    frame = _Frame(
        scene.x + 0.085 * math.sin(0.5 * w),
        0.79 + scene.y - _stand(scene) + 0.028 * math.sin(w),
        0.13 * math.sin(w + 0.8),
    )
    ring_y = _stand(scene) - 0.075

    def ring(low: int, high: int) -> None:
        for k in range(low, high):
            a, b = k * math.pi / 6, (k + 1) * math.pi / 6
            quad = [(0.37 * math.cos(v), ring_y + 0.115 * math.sin(v)) for v in (a, (a + b) / 2, b)]
            quad += [(0.20 * math.cos(v), ring_y + 0.03 * math.sin(v)) for v in (b, (a + b) / 2, a)]
            c.poly([frame.at(*p) for p in quad], (255, 96, 40) if k % 2 else WHITE)

    ring(6, 12)
    _actor(c, scene, frame)
    ring(0, 6)
    k = 2 * math.pi / 0.4
    top = [(u / 20, level + 0.145 + 0.02 * math.sin(k * u / 20 + d * 1.0 * w)) for u in range(-1, 22)]
    c.poly([*top, (1.1, 1.1), (-0.1, 1.1)], (24, 176, 196))
    c.line(top, 0.026, WHITE)
    c.line([(u, v + 0.09) for u, v in top], 0.02, (140, 232, 236))


def _skating(c: _Canvas, scene: Scene, t: float) -> None:
    w = _cycle(scene, t, 2.4)
    slide = math.sin(w)
    _draw_place(c, scene, scene.pan * t)
    x = 0.5 + 0.5 * (scene.x - 0.5) + 0.15 * slide
    ground = 0.93
    board = _Frame(x, ground - 0.10, 0.0)
    lean = 0.22 * math.cos(w)
    body = _Frame(x + _stand(scene) * math.sin(lean), board.y - _stand(scene) * math.cos(lean), lean)
    _actor(c, scene, body)
    deck = [
        (-0.35, -0.075),
        (-0.27, -0.02),
        (0.27, -0.02),
        (0.35, -0.075),
        (0.375, -0.045),
        (0.29, 0.028),
        (-0.29, 0.028),
        (-0.375, -0.045),
    ]
    c.line([board.at(*p) for p in (*deck, deck[0])], 0.024, _INK)
    c.poly([board.at(*p) for p in deck], (240, 70, 200))
    roll = x / 0.055
    for u in (-0.20, 0.20):
        wx, wy = board.at(u, 0.062)
        c.ellipse(wx, wy, 0.058, 0.058, _INK)
        c.ellipse(wx, wy, 0.040, 0.040, (120, 240, 90))
        c.line([(wx, wy), (wx + 0.04 * math.cos(roll), wy + 0.04 * math.sin(roll))], 0.02, _INK)


_DRAW_ACTION: dict[str, Callable[[_Canvas, Scene, float], None]] = {
    "surfing": _surfing,
    "flying": _flying,
    "driving": _driving,
    "bouncing": _bouncing,
    "spinning": _spinning,
    "falling": _falling,
    "swimming": _swimming,
    "skating": _skating,
}


def render(scene: Scene, time: float, size: int) -> np.ndarray:
    """The scene at `time` seconds (0 to about 6), uint8 RGB (size, size, 3); the same picture at every size."""
    canvas = _Canvas(size)
    _DRAW_ACTION[scene.action](canvas, scene, time)
    return canvas.pixels()


class Pose(NamedTuple):
    """Where actor and camera of a scene are at one instant: lengths in frame sides, the angle in radians."""

    x: float
    y: float
    angle: float
    stretch: float
    """Height of the actor relative to its usual one."""
    camera: float
    """How far the foreground has moved to the left."""
    lift: float
    """How far the ground lies below its usual line."""


def pose(scene: Scene, time: float) -> Pose:
    """What moves in the picture that `render` draws, as numbers: for measuring, never for training a generator."""
    canvas = _Canvas(1)
    _DRAW_ACTION[scene.action](canvas, scene, time)
    return Pose(*canvas.frame, canvas.stretch, canvas.camera, canvas.lift)


def render_clip(scene: Scene, *, fps: float, frames: int, size: int, start: float = 0.0) -> np.ndarray:
    """`frames` pictures, the first at `start` seconds, `fps` a second: uint8 RGB (frames, size, size, 3)."""
    return np.stack([render(scene, start + k / fps, size) for k in range(frames)])


# --------------------------------------------------------------------------------------------------------------------
# Words

_ACTOR_WORDS: dict[str, tuple[str, ...]] = {
    "dog": ("dog", "dog", "puppy"),
    "cat": ("cat", "cat", "kitten"),
    "penguin": ("penguin",),
    "pig": ("pig", "pig", "piglet"),
    "frog": ("frog",),
    "panda": ("panda", "panda", "panda bear"),
    "lion": ("lion",),
    "elephant": ("elephant",),
    "robot": ("robot",),
    "rabbit": ("rabbit", "rabbit", "bunny"),
    "octopus": ("octopus",),
    "whale": ("whale",),
}

_ACTION_PHRASES: dict[str, tuple[str, ...]] = {
    "surfing": ("surfing", "surfing", "surfing on a wave", "riding a wave", "on a surfboard"),
    "flying": ("flying", "flying", "flying with wings", "with wings", "in flight"),
    "driving": ("driving", "driving", "driving a car", "driving a red car", "in a car"),
    "bouncing": (
        "bouncing",
        "bouncing",
        "bouncing on a trampoline",
        "jumping on a trampoline",
        "on a trampoline",
    ),
    "spinning": ("spinning", "spinning", "spinning around", "turning around", "rotating"),
    "falling": ("falling", "falling", "falling with a parachute", "falling down", "with a parachute"),
    "swimming": ("swimming", "swimming", "swimming in the water", "in the water", "with a swimming ring"),
    "skating": ("skating", "skating", "skating on a skateboard", "skateboarding", "on a skateboard"),
}

_PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("at the beach", "at the beach", "on a beach", "at the seaside", "by the sea"),
    "snow": ("in the snow", "in the snow", "on a snowy day", "in the snowy mountains", "in winter"),
    "space": ("in space", "in space", "in outer space", "on the moon", "among the stars"),
    "city": ("in the city", "in the city at night", "in a city", "in town at night", "on a city street"),
}

_BARE_PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("beach", "the sea"),
    "snow": ("snow", "winter"),
    "space": ("space", "the moon"),
    "city": ("city", "city at night"),
}

_OPENINGS = ("a picture of", "a photo of", "an image of")

SYNONYMS: dict[str, str] = {
    "dog": "dog", "puppy": "dog", "cat": "cat", "kitten": "cat", "penguin": "penguin", "pig": "pig",
    "piglet": "pig", "frog": "frog", "panda": "panda", "lion": "lion", "elephant": "elephant", "robot": "robot",
    "rabbit": "rabbit", "bunny": "rabbit", "octopus": "octopus", "whale": "whale",
    "surfing": "surfing", "surfboard": "surfing", "wave": "surfing", "flying": "flying", "wings": "flying",
    "flight": "flying", "driving": "driving", "car": "driving", "bouncing": "bouncing", "jumping": "bouncing",
    "trampoline": "bouncing", "spinning": "spinning", "rotating": "spinning", "turning": "spinning",
    "falling": "falling", "parachute": "falling", "swimming": "swimming", "water": "swimming",
    "skating": "skating", "skateboard": "skating", "skateboarding": "skating",
    "beach": "beach", "seaside": "beach", "sea": "beach", "snow": "snow", "snowy": "snow", "winter": "snow",
    "space": "space", "moon": "space", "stars": "space", "city": "city", "town": "city", "street": "city",
}  # fmt: skip
"""Every caption word that names an actor, an action or a place, and the one it names."""

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "the"}.union(
            *(
                phrase.split()
                for table in (_ACTOR_WORDS, _ACTION_PHRASES, _PLACE_PHRASES, _BARE_PLACES)
                for phrases in table.values()
                for phrase in phrases
            ),
            *(opening.split() for opening in _OPENINGS),
        )
    )
)
"""Every word a caption or `prompt` can contain, sorted."""


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Words for a scene: lower case, 2 to about 16 words of VOCABULARY, no full stop; a third name no place."""

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    actor = pick(_ACTOR_WORDS[scene.actor])
    action = pick(_ACTION_PHRASES[scene.action])
    form = rng.random()
    named = rng.random() < 0.67
    if form < 0.2 and " " not in action and action.endswith("ing"):
        text = _article(f"{action} {actor}")
    elif form < 0.4:
        text = f"{actor} {action}"
        if named and rng.random() < 0.6:
            return f"{text}, {pick(_BARE_PLACES[scene.place])}"
    else:
        text = f"{_article(actor)} {action}"
        if rng.random() < 0.15:
            text = f"{pick(_OPENINGS)} {text}"
    return f"{text} {pick(_PLACE_PHRASES[scene.place])}" if named else text


def prompt(actor: str, action: str, place: str | None = None) -> str:
    """The plainest words for an actor doing an action: "a dog surfing at the beach"."""
    text = f"{_article(actor)} {action}"
    return text if place is None else f"{text} {_PLACE_PHRASES[place][0]}"


# --------------------------------------------------------------------------------------------------------------------
# Ordinary files

_FPS = (5, 8, 10, 12, 15, 24, 30)
_LONGEST = 6.0  # seconds
_FRAMES = (16, 96)
_FIRST_CLIP = 1 << 32

_README = """\
A pocket world for training a small Make-A-Video: captioned pictures, and video without any caption.

images/        {images} PNG pictures, {size} x {size}
captions.csv   one line for each picture: file, caption
video/         {clips} silent H.264 clips of {low} to {high} frames, {fps_low} to {fps_high} frames a second, no captions
world.json     what each file shows; for evaluation only, training must not read it

Ten pairs of actor and action appear in no file, and two actors in no clip: world.json lists them.
The actors are from Noto Color Emoji, SIL Open Font License 1.1.
"""


def write_folder(
    directory: Path,
    *,
    images: int,
    clips: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write training data as ordinary files: `images` captioned PNGs and `clips` uncaptioned MP4s, `size` a side.

    The layout is in the README.txt it writes. All of it is of the training split and depends on nothing but the
    arguments (below 64 pixels x264 may code the same frames a little differently). `progress`, if given, is called
    with the files done and their total after each file.

    The folder appears under its name only once it is complete. A non-empty `directory`, an odd `size` (H.264 needs an
    even one) and a negative count raise InputError. Returns the counts: images, clips, frames, bytes.
    """
    directory = Path(directory).expanduser().resolve()
    if size < 16 or size % 2:
        raise InputError(f"size {size} cannot be encoded: expected an even number of pixels, at least 16")
    if images < 0 or clips < 0:
        raise InputError(f"cannot write {images} images and {clips} clips: expected 0 or more of each")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"`{directory}` is a file", hint="name a folder that does not exist yet")
    if directory.exists() and any(directory.iterdir()):
        raise InputError(
            f"`{directory}` is not empty", hint="name a folder that does not exist yet, or remove it"
        )
    with whole_folder(directory) as partial:
        return _write_files(partial, images, clips, size, seed, progress or (lambda done, total: None))


def _write_files(
    folder: Path, images: int, clips: int, size: int, seed: int, progress: Callable[[int, int], None]
) -> dict[str, int]:
    (folder / "images").mkdir()
    (folder / "video").mkdir()
    shown: dict[str, dict[str, str]] = {}
    total = images + clips
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("file", "caption"))
        for index in range(images):
            scene = scene_for(seed, index)
            rng = generator(seed, index, stream=1)
            name = f"images/{index:05d}.png"
            moment = float(rng.uniform(0, _LONGEST))
            Image.fromarray(render(scene, moment, size)).save(folder / name)
            table.writerow((name, caption(scene, rng)))
            shown[name] = {"actor": scene.actor, "action": scene.action, "place": scene.place}
            progress(index + 1, total)
    frames_written = 0
    for index in range(clips):
        # Clips take their own indices, so that no clip moves a scene that is also a picture.
        scene = scene_for(seed, _FIRST_CLIP + index, video=True)
        rng = generator(seed, _FIRST_CLIP + index, stream=1)
        name = f"video/{index:05d}.mp4"
        fps = _FPS[int(rng.integers(len(_FPS)))]
        frames = int(rng.integers(_FRAMES[0], min(_FRAMES[1], int(_LONGEST * fps)) + 1))
        _write_mp4(folder / name, render_clip(scene, fps=fps, frames=frames, size=size), fps)
        shown[name] = {"actor": scene.actor, "action": scene.action, "place": scene.place}
        frames_written += frames
        progress(images + index + 1, total)
    facts = {
        "seed": seed,
        "actors": ACTORS,
        "actions": ACTIONS,
        "places": PLACES,
        "held_out_pairs": sorted(HELD_OUT_PAIRS),
        "still_only_actors": sorted(STILL_ONLY_ACTORS),
        "files": shown,
    }
    (folder / "world.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    readme = _README.format(
        images=images,
        clips=clips,
        size=size,
        low=_FRAMES[0],
        high=_FRAMES[1],
        fps_low=_FPS[0],
        fps_high=_FPS[-1],
    )
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"images": images, "clips": clips, "frames": frames_written, "bytes": written}


def _write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write uint8 RGB (frames, height, width, 3) as H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # With several threads the stream would depend on the machine's cores.
        stream.options = {"crf": "10", "preset": "medium", "threads": "1"}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
