"""A picture begins to move: it is the first frame, and its detail goes along as far as what moves is still itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from mavcli.engine.cascade import Cascade
from mavcli.engine.compose import kept_part, network_view, without_bars
from mavcli.engine.detail import Shown, View, carried, levelled, trail
from mavcli.engine.randomness import Draw
from mavcli.engine.uses.film import Film, picture, seen_by_clip, tensor
from mavcli.media.frames import Fit, Frames, to_float, to_uint8


def first_keys(cascade: Cascade, image: Frames, draw: Draw, *, fps: float, fit: Fit) -> Tensor:
    """↑F with the picture (h, w, 3) as frame 0: key frames (1, 16, 3, s, s) of a video at `fps`."""
    small = to_float(network_view(image[None], cascade.size, fit))
    return cascade.animate(small, [draw], fps=fps, seen=seen_by_clip(cascade, [(0, image)], fit=fit))


def animate(
    cascade: Cascade, image: Frames, keys: Tensor, draw: Draw, *, fps: float, frames: int, fit: Fit
) -> Film:
    """The video that begins with the picture (h, w, 3), fitted to the cascade's size, and goes on with `keys`."""
    seen = seen_by_clip(cascade, [(0, image)], fit=fit)
    small = cascade.fill_up(keys, [draw], fps=fps, frames=frames, seen=seen)
    large = to_uint8(cascade.enlarge(small, [draw], fps=fps)[0])
    first = network_view(image[None], large.shape[1], fit)[0]

    def shown() -> Iterator[Shown]:
        view, shape = View(*first.shape[:2]), View(*kept_part(image, fit).shape[:2])
        yield Shown(_cut(first, image, fit), fixed=True)
        for one, hold in zip(large[1:], trail(small[0], view=shape), strict=True):
            moved = picture(carried(tensor(one), [(tensor(first), hold)], view=view))
            yield Shown(_cut(moved, image, fit))

    return Film(levelled(shown()), frames, fps)


def _cut(frame: Frames, image: Frames, fit: Fit) -> Frames:
    """Without the bars of a padded picture."""
    return np.ascontiguousarray(without_bars(frame[None], *image.shape[:2])[0]) if fit == "pad" else frame
