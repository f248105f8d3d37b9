"""Which frames go through a network together. Plain arithmetic on frame numbers; no tensors.

↑F was trained on windows of 16 frames, SR_l^t on clips of 16: longer videos are cut so that the networks always see the
length they know, and so that the cuts do not show.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Frames `start` to `start + length`, of which those from `first` to `last` (excluded) are taken from it."""

    start: int
    length: int
    first: int
    last: int

    @property
    def stop(self) -> int:
        return self.start + self.length


def key_windows(keys: int, *, skip: int, length: int) -> list[Window]:
    """Windows that fill the gaps between `keys` frames which stand `skip` apart: each starts on a key frame.

    Neighbours share one key frame: 16 keys, 5 apart, make five windows of 16 and 76 frames. The last window is moved
    back so that it is full; where that is impossible it reaches beyond the last key, and what is beyond is not taken.
    """
    if keys < 2 or not 1 <= skip < length:
        raise ValueError(f"{keys} key frames, {skip} apart, for windows of {length}")
    return gap_windows(range(0, (keys - 1) * skip + 1, skip), length=length)


def gap_windows(known: Sequence[int], *, length: int) -> list[Window]:
    """Windows that fill the gaps between frames whose ascending numbers are `known`, the first of them 0; as `key_windows`.

    No gap may be wider than a window sees: ValueError.
    """
    total = known[-1] + 1
    latest = min((frame for frame in known if frame >= total - length), default=0)
    windows: list[Window] = []
    done = 0
    while done < total:
        start = min(max(0, done - 1), latest)
        last = known[bisect_right(known, start + length - 1) - 1] + 1
        if last <= done:
            raise ValueError(f"no known frame among the {length} from {start} on")
        windows.append(Window(start, length, done, last))
        done = last
    return windows


def gap_starts(known: Sequence[int], *, length: int) -> list[int]:
    """Known frames with which the windows of `gap_windows` begin: what CLIP says of these, the windows are told."""
    return list(dict.fromkeys(window.start for window in gap_windows(known, length=length)))


def halo_windows(total: int, *, length: int, halo: int | None = None) -> list[Window]:
    """Windows of `length` frames over `total`; a frame is taken where it has neighbours on both sides.

    `halo` frames on each side, a fifth of a window, are only seen, not taken. With fewer frames than `length` there is one window.
    """
    if total <= length:
        return [Window(0, total, 0, total)]
    halo = length // 5 if halo is None else halo
    windows: list[Window] = []
    done = 0
    while done < total:
        start = min(max(0, done - halo), total - length)
        last = total if start + length == total else start + length - halo
        windows.append(Window(start, length, done, last))
        done = last
    return windows


def sliding_windows(known: int, new: int, *, length: int) -> list[tuple[int, int]]:
    """(known, new) frames of each window that extends a clip of `known` frames by `new`: half of a window is known."""
    windows: list[tuple[int, int]] = []
    while new > 0:
        given = min(known, length // 2)
        made = min(new, length - given)
        windows.append((given, made))
        known, new = known + made, new - made
    return windows
