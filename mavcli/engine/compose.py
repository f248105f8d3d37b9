"""Between a source's picture and the square that the networks see, and back, without distortion.

`crop`: the centre square, as wide as the source's shorter side. `pad`: the whole picture with bars; the bars are cut off
the result. A source's own frames stand in the result as they are, at their own resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

from mavcli.media.frames import Fit, Frames, fit


def kept_part(frames: Frames, rule: Fit) -> Frames:
    """What of the source (..., h, w, 3) is in the result: the centre square or everything; a view, no pixel is changed."""
    if rule == "pad":
        return frames
    height, width = frames.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side, :]


def network_view(frames: Frames, size: int, rule: Fit) -> Frames:
    """The source's frames (f, h, w, 3) as the networks see them: (f, size, size, 3)."""
    return fit(kept_part(frames, rule), size, rule=rule)


def result_size(height: int, width: int, rule: Fit) -> tuple[int, int]:
    """(height, width) of what a source of that size gives."""
    return (height, width) if rule == "pad" else (min(height, width),) * 2


def without_bars(frames: Frames, height: int, width: int) -> Frames:
    """The cascade's squares (f, s, s, 3) of a padded source of `height` x `width`, cut to its shape; sides are even."""
    size = frames.shape[1]
    longest = max(height, width)
    inner = [max(2, 2 * round(side * size / longest / 2)) for side in (height, width)]
    top, left = ((size - side) // 2 for side in inner)
    return frames[:, top : top + inner[0], left : left + inner[1]]


class Composite(Sequence[Frames]):
    """A video of the source's own frames and, between them, the cascade's at the source's resolution.

    `made` (f, s, s, 3) are the cascade's, `own` the source's (already `kept_part`) by their place. Frames are made when
    asked for: a long clip of large pictures is never in memory at once.
    """

    def __init__(self, made: Frames, own: Mapping[int, Frames], *, size: tuple[int, int]) -> None:
        self.made, self.own, self.size = made, own, size

    def __len__(self) -> int:
        return len(self.made)

    @overload
    def __getitem__(self, i: int) -> Frames: ...
    @overload
    def __getitem__(self, i: slice) -> list[Frames]: ...
    def __getitem__(self, i: int | slice) -> Frames | list[Frames]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        place = range(len(self))[i]
        if place in self.own:
            return self.own[place]
        height, width = self.size
        longest = max(height, width)
        square = fit(self.made[place], longest, kernel="lanczos")
        top, left = (longest - height) // 2, (longest - width) // 2
        return square[top : top + height, left : left + width]
