"""Between a source's picture and the square that the networks see, and back, without distortion.

`crop`: the centre square, as wide as the source's shorter side. `pad`: the whole picture with bars; the bars are cut off
the result.
"""

from __future__ import annotations

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


def square_part(frame: Frames, size: tuple[int, int]) -> Frames:
    """The cascade's square (s, s, 3) at `size` (height, width) of the source: as large as its longer side, the bars cut off."""
    height, width = size
    longest = max(height, width)
    square = fit(frame, longest, kernel="lanczos")
    top, left = (longest - height) // 2, (longest - width) // 2
    return square[top : top + height, left : left + width]
