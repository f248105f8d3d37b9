"""The source's detail, carried into the frames that the cascade draws beside it, and one sharpness for all of them.

The cascade sees 64 pixels a side. What a source has beyond them is moved to the drawn frames along the optical flow of the small
video, where a drawn frame shows the same thing there; where it shows another, the cascade's drawing stands. A known frame
between drawn ones gives its detail up where they could not take it over: so no frame stands out among its neighbours, and
nothing appears twice. Flow is that of Lucas and Kanade (1981), coarse to fine (Bouguet, 2000), over a pixel's three colours.

`levelled` then bounds how far the sharpness of neighbouring frames differs, whatever the networks made. Sharpness is the
variance of the Laplacian of the luma, as everywhere in this package.

Nothing here is random and nothing is learnt. n pictures, c channels, h w pixels, values in [-1, 1]; a flow (n, 2, h, w) is in
pixels, x before y, a(p) = b(p + u(p)).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mavcli.media.frames import Frames, resize

BOUND = 1.1
"""The most by which neighbouring frames may differ in sharpness; coding at crf 12 adds up to 0.08, and 1.2 is promised."""

_LEVELS = 4
_ROUNDS = 3
_DAMPING = 2e-3
"""Added to the diagonal of the structure tensor: flat places take the motion of what is around them."""
_AGREE = 0.16
"""A mean difference of colours, of a range of 2, at which two pictures agree by exp(-1/2)."""
_DOUBT = 0.1
"""How much agreement a place needs for a flow of its own; below, it takes part in that of its surroundings."""
_BEND = 0.2
"""How much a flow may differ from one pixel to the next, in pixels, before its own word is doubted."""
_FADES = (0.0, 0.5, 0.7, 0.8, 0.87, 0.92)
"""What may be left each frame of a source where the drawn frames show something else: the least that keeps `_STEP`."""
_STEP = 0.82
"""How much of the source is left at least from one frame to the next: of the square of its share, over its contrast and area."""
_GONE = 0.08
"""Less than this of a source is nothing."""
_GAINS = (-0.95, 1.5)
"""The least and the most that is added to a frame of what a small blur takes from it."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


# -- flow ---------------------------------------------------------------------------------------------------------------


def flow(a: Tensor, b: Tensor, *, start: Tensor | None = None, levels: int = _LEVELS) -> Tensor:
    """Where each pixel of a (n, c, h, w) is in b (n, c, h, w): (n, 2, h, w); `start` is a first guess."""
    u = start
    for level in reversed(range(levels)):
        size = (max(4, a.shape[-2] >> level), max(4, a.shape[-1] >> level))
        one, two = (_blurred(F.interpolate(x, size, mode="area")) for x in (a, b))
        u = one.new_zeros(len(a), 2, *size) if u is None else flow_for(u, size)
        u = _refined(one, two, u)
    assert u is not None
    return u


def warp(x: Tensor, u: Tensor, *, mode: str = "bilinear") -> Tensor:
    """x (n, c, h, w) seen along `u` (n, 2, h, w): out(p) = x(p + u(p)), the edge repeated."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, dtype=u.dtype)[:, None] + u[:, 1]
    columns = torch.arange(width, dtype=u.dtype)[None] + u[:, 0]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def flow_for(u: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow (n, 2, h, w) for the same pictures at `size` (height, width)."""
    if u.shape[-2:] == torch.Size(size):
        return u
    scale = torch.tensor([size[1] / u.shape[-1], size[0] / u.shape[-2]])[:, None, None]
    return resize(u, size) * scale


def agreement(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """How far a (n, c, h, w) shows what b shows along `u`, at each pixel: (n, 1, h, w), 0 to 1."""
    error = _blurred((a - warp(b, u)).abs().mean(1, keepdim=True))
    return _blurred(torch.exp(-0.5 * (error / _AGREE).square()))


def _refined(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    for _ in range(_ROUNDS):
        seen = warp(b, u)
        padded = F.pad((a + seen) / 2, (1, 1, 1, 1), mode="replicate")
        gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        gt = a - seen
        sums = [(p * q).sum(1) for p, q in ((gx, gx), (gy, gy), (gx, gy), (gx, gt), (gy, gt))]
        xx, yy, xy, xt, yt = _window(torch.stack(sums, 1)).unbind(1)
        xx, yy = xx + _DAMPING, yy + _DAMPING
        step = torch.stack([yy * xt - xy * yt, xx * yt - xy * xt], 1) / (xx * yy - xy * xy)[:, None]
        u = _blurred(u + step.clamp(-1.5, 1.5))
    return u


def _window(x: Tensor) -> Tensor:
    """Sums under a bell some five pixels wide."""
    return _blurred(_blurred(_blurred(x)))


def _blurred(x: Tensor) -> Tensor:
    """By the binomial [1, 2, 1] / 4 along both axes, the edge repeated."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 16


def _trusted(u: Tensor, agree: Tensor) -> Tensor:
    """The flow where it leads to the same thing without tearing; elsewhere what is around, and no motion far from all that agrees.

    Any picture can be bent into the likeness of another: what a flow bends is no motion of a thing.
    """
    size = u.shape[-2:]
    across, down = F.pad(u.diff(dim=-1), (0, 1)), F.pad(u.diff(dim=-2), (0, 0, 0, 1))
    bend = _window((across.square() + down.square()).sum(1, keepdim=True))
    weight = agree * torch.exp(-0.5 * bend / _BEND**2)
    small = [(weight * u, weight)]
    for _ in range(_LEVELS - 1):  # a pyramid of weighted sums, filled in from its top
        out, weight = (F.avg_pool2d(x, 2, ceil_mode=True) for x in small[-1])
        small.append((out, weight))
    filled = torch.zeros_like(small[-1][0])
    for out, weight in reversed(small):
        filled = F.interpolate(filled, out.shape[-2:], mode="bilinear", align_corners=False)
        filled = (out + _DOUBT * filled) / (weight + _DOUBT)
    assert filled.shape[-2:] == size
    return filled


# -- carrying -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hold:
    """How a drawn frame sees one known frame: flow (1, 2, s, s) to it and how far it is to be seen (1, 1, s, s), 0 to 1."""

    flow: Tensor
    share: Tensor


@dataclass(frozen=True)
class Between:
    """What `between` found of drawn frames between two known ones."""

    before: list[Hold]
    after: list[Hold]
    first: Tensor
    """How far the first known frame is seen in the first drawn one, (1, 1, s, s)."""
    last: Tensor


def between(known: Tensor, made: Tensor) -> Between:
    """How drawn frames `made` (n, 3, s, s) see the two known ones (2, 3, s, s) before and after them."""
    n = len(made)
    ends = known.repeat_interleave(n, dim=0)
    twice = torch.cat([made, made])
    u = flow(twice, ends)
    u = _trusted(u, agreement(twice, ends, u))
    agree = agreement(twice, ends, u)
    # The known frame that shows it better, almost alone: the mean of two that differ would be double.
    weight = agree.pow(4)
    side = weight[:n] / (weight[:n] + weight[n:] + 1e-6)
    share = torch.maximum(agree[:n], agree[n:])
    shares = torch.cat([side * share, (1 - side) * share])
    holds = [Hold(u[i : i + 1], shares[i : i + 1]) for i in range(2 * n)]
    # What is seen in a drawn frame lies in the known one where the flow ends.
    ahead, back = warp(share[:1], -u[:1]), warp(share[-1:], -u[-1:])
    return Between(holds[:n], holds[n:], ahead, back)


def trail(video: Tensor, *, view: View) -> list[Hold]:
    """How each of the drawn frames video[1:] (n, 3, s, s) sees the known one, video[0], from neighbour to neighbour.

    What is lost on the way stays lost. Where all of it is lost at once, it fades, so that no frame is a blow; the rest is gone
    as soon as that may be. Bars beside the picture have a share in nothing: their edges would outweigh all that fades.
    """
    made = video[1:]
    if not len(made):
        return []
    steps = flow(made, video[:-1])
    flows: list[Tensor] = []
    for step in steps.split(1):  # p -> p + step -> on from there
        flows.append(step if not flows else step + warp(flows[-1], step))
    origin = video[:1].expand(len(made), -1, -1, -1)
    u = flow(made, origin, start=torch.cat(flows), levels=1)
    u = _trusted(u, agreement(made, origin, u))
    agree = agreement(made, origin, u)
    holds = []
    left = torch.ones_like(agree[:1])
    # contrast counts for half and area for the other: a plain sky that goes at once would change the colour of the whole
    inside = view.inside(video.shape[-1])
    contrast = inside * (video[:1] - _blurred(video[:1])).square().mean(1, keepdim=True)
    contrast = contrast / contrast.mean().clamp(min=1e-9)
    weight = inside * (1 + contrast)
    for i, step in enumerate(steps.split(1)):
        before = (weight * left.square()).sum() / weight.sum()
        left, contrast = warp(left, step), warp(contrast, step)
        weight = inside * (1 + contrast)
        kept = torch.minimum(left, agree[i : i + 1])
        wanted = _STEP * before * weight.sum()
        fading = (torch.maximum(kept, fade * left) for fade in _FADES)
        left = next((x for x in fading if (weight * x.square()).sum() >= wanted), _FADES[-1] * left)
        holds.append(Hold(u[i : i + 1], ((left - _GONE) / (1 - _GONE)).clamp(min=0)))
    return holds


def carried(drawn: Tensor, sources: Iterable[tuple[Tensor, Hold]], *, view: View) -> Tensor:
    """The cascade's frame (1, 3, h, w) with what of each source (1, 3, h, w) is to be seen in it."""
    out = drawn
    for source, hold in sources:
        if not hold.share.any():
            continue
        u, share = view.flow(hold.flow), view.map(hold.share)
        out = out + share * (warp(source, u, mode="bicubic") - drawn)
    return out.clamp(-1, 1)


@dataclass(frozen=True)
class View:
    """How the networks' square lies over a picture of `height` x `width`: the longer side is the square's."""

    height: int
    width: int

    @property
    def side(self) -> int:
        return max(self.height, self.width)

    def inside(self, size: int) -> Tensor:
        """Which of `size` x `size` pixels of the square show the picture and touch no bar: (size, size), 1 or 0."""
        mask = torch.zeros(size, size)
        rows, columns = (
            size if side == self.side else max(1, side * size // self.side - 2)
            for side in (self.height, self.width)
        )
        top, left = (size - rows) // 2, (size - columns) // 2
        mask[top : top + rows, left : left + columns] = 1
        return mask

    def flow(self, u: Tensor) -> Tensor:
        return self._cut(flow_for(u, (self.side, self.side)))

    def map(self, x: Tensor) -> Tensor:
        """(n, c, s, s) of the square -> (n, c, height, width) of the picture."""
        return self._cut(resize(x, self.side))

    def _cut(self, x: Tensor) -> Tensor:
        top, left = (self.side - self.height) // 2, (self.side - self.width) // 2
        return x[..., top : top + self.height, left : left + self.width]


# -- one sharpness ------------------------------------------------------------------------------------------------------


def sharpness(frame: Frames) -> float:
    """Variance of the Laplacian of the luma of a picture (h, w, 3) uint8; 0 of one below 3 x 3."""
    return _variance(_laplacian(frame @ _LUMA))


class Shown:
    """A frame on its way out: (h, w, 3) uint8. `fixed` is not changed; at a `cut` a new scene begins; it stands for `times` frames."""

    def __init__(self, frame: Frames, *, fixed: bool = False, cut: bool = False, times: int = 1) -> None:
        self.frame, self.fixed, self.cut, self.times = frame, fixed, cut, times

    def _fine(self) -> NDArray[np.float32]:
        """What a small blur takes from the luma: (h, w)."""
        luma = self.frame @ _LUMA
        return np.asarray(luma - _small_blur(luma))

    @cached_property
    def _parts(self) -> tuple[float, float, float]:
        """Variances of the Laplacians of the luma and of `_fine`, and in the middle what they share. Frames wait with no more."""
        one, two = _laplacian(self.frame @ _LUMA), _laplacian(self._fine())
        both = float(np.mean((one - one.mean()) * (two - two.mean()))) if one.size else 0.0
        return _variance(one), both, _variance(two)

    @property
    def sharpness(self) -> float:
        """Never 0: frames without anything in them are as sharp as one another."""
        return self._parts[0] + 1e-3

    @cached_property
    def reach(self) -> tuple[float, float]:
        """The least and the most sharpness that it can be given."""
        if self.fixed:
            return self.sharpness, self.sharpness
        least, most = (self._with(gain) for gain in _GAINS)
        return min(least, self.sharpness), max(most, self.sharpness)

    def _with(self, gain: float) -> float:
        plain, both, square = self._parts
        return plain + 2 * gain * both + gain * gain * square + 1e-3

    def brought(self, target: float) -> tuple[Frames, float]:
        """The frame at about that sharpness, and the sharpness that it has in the end."""
        if self.fixed or abs(math.log(target / self.sharpness)) < 0.01:
            return self.frame, self.sharpness
        plain, both, square = self._parts
        fine = self._fine()
        aim, best, found = target, self.frame, self.sharpness
        for _ in range(3):  # rounding and the ends of the range take a little away
            # plain + 2 gain both + gain^2 square = aim, the root nearer to no change
            root = both * both - square * (plain + 1e-3 - aim)
            gain = (-both + math.sqrt(max(root, 0.0))) / max(square, 1e-9)
            gain = min(max(gain, _GAINS[0]), _GAINS[1])
            frame = np.clip(np.rint(self.frame + gain * fine[..., None]), 0, 255).astype(np.uint8)
            reached = sharpness(frame) + 1e-3
            if abs(math.log(reached / target)) < abs(math.log(found / target)):
                best, found = frame, reached
            if abs(math.log(found / target)) < 0.01:
                break
            aim *= target / reached
        return best, found


def levelled(frames: Iterable[Shown], *, period: int = 1, ahead: int = 4) -> Iterator[Frames]:
    """The frames, each within `BOUND` of the one before in sharpness, wherever the frames that are fixed allow it.

    A rhythm of `period` frames is evened out: each frame goes to the mean of what is around it, where a scene ends to that of the one
    side that there is. So many frames and `ahead` more are held. A frame that stands stays one picture and is one beat.
    """
    waiting: deque[Shown] = deque()
    past: deque[float] = deque(maxlen=max(period - 1, 0))  # natural sharpness of those that went before
    before: float | None = None
    source = iter(frames)
    while True:
        while len(waiting) <= max(period, ahead):
            item = next(source, None)
            if item is None:
                break
            waiting.append(item)
        if not waiting:
            return
        item = waiting.popleft()
        if item.cut:
            past.clear()
            before = None
        scene = [item]
        for other in waiting:
            if other.cut:
                break
            scene.append(other)
        if all(one.fixed for one in scene):
            before, frame = None, item.frame
        else:
            frame, before = item.brought(_target(scene, past, before, period))
            past.append(item.sharpness)
        yield from repeat(frame, item.times)


def _target(scene: list[Shown], past: deque[float], before: float | None, period: int) -> float:
    """What sharpness scene[0] is to have."""
    item = scene[0]
    if item.fixed:
        return item.sharpness
    weight, total = float(period), period * math.log(item.sharpness)
    for distance in range(1, period):
        sides = [past[-distance]] if distance <= len(past) else []
        sides += [scene[distance].sharpness] if distance < len(scene) else []
        if sides:
            share = 2.0 * (period - distance)
            weight, total = weight + share, total + share * sum(map(math.log, sides)) / len(sides)
    wanted = math.exp(total / weight)
    low, high = item.reach
    for distance, other in enumerate(scene[1:], start=1):  # what those to come can follow
        least, most = other.reach
        high = min(high, most * BOUND**distance)
        low = max(low, least / BOUND**distance)
    wanted = min(max(wanted, low), max(high, low))
    return wanted if before is None else min(max(wanted, before / BOUND), before * BOUND)


def _laplacian(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    return luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]


def _small_blur(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    x = torch.from_numpy(np.ascontiguousarray(luma))[None, None]
    return _blurred(_blurred(x))[0, 0].numpy()


def _variance(x: NDArray[np.float32]) -> float:
    return float(x.var(dtype=np.float64)) if x.size else 0.0
