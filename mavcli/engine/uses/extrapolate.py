"""What came before a clip and what comes after it: its own frames as they are, and drawn ones that begin where it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mavcli.engine.cascade import Cascade, Direction
from mavcli.engine.compose import kept_part, network_view, result_size, square_part
from mavcli.engine.detail import Hold, Shown, View, carried, levelled, trail
from mavcli.engine.randomness import Draw
from mavcli.engine.uses.film import (
    Enlarged,
    Film,
    Footage,
    cost_of_enlarged,
    picture,
    read_through,
    seen_by_clip,
    tensor,
)
from mavcli.engine.windows import sliding_windows
from mavcli.media.frames import Fit, Frames, to_float, to_uint8

_TRAIL = 64
"""Frames after which nothing of the clip's own pixels is left."""
_AHEAD = 32
"""Frames within which what comes before a clip may become as sharp as it."""


@dataclass(frozen=True)
class Ends:
    """A clip, read once, of which the frames at both ends are kept."""

    footage: Footage
    head: Frames
    """(n, s, s, 3): its first frames as the networks see them, in time order and no more than ↑F looks at."""
    tail: Frames
    """(n, s, s, 3): its last ones."""
    first: Frames
    """(h, w, 3): the part of the first frame that is in the result."""
    last: Frames
    looks: tuple[Frames, Frames]
    """What CLIP is shown of `head` and of `tail`: (n, s', s', 3) at the size that it reads."""


def read_ends(path: Path, *, size: int, look: int, context: int, fit: Fit) -> Ends:
    """Read a clip for `extrapolate`: its ends are taken within the first and the last scene. Raises InputError.

    `size` is D's and `look` CLIP's, pixels a side.
    """
    ends = _Collected(size, look, context, fit)
    footage = read_through(path, ends.see)
    cuts = footage.cuts
    head = [views for i, views in enumerate(ends.head) if not cuts or i < cuts[0]]
    since = cuts[-1] if cuts else 0
    tail = [views for i, views in ends.tail if i >= since]
    assert ends.first is not None and ends.last is not None  # reading gave a frame
    (heads, head_looks), (tails, tail_looks) = (
        (np.stack([small for small, _ in end]), np.stack([large for _, large in end])) for end in (head, tail)
    )
    return Ends(footage, heads, tails, ends.first, ends.last, (head_looks, tail_looks))


@dataclass
class _Collected:
    size: int
    look: int
    context: int
    fit: Fit
    count: int = 0
    head: list[tuple[Frames, Frames]] = field(default_factory=list)
    tail: deque[tuple[int, tuple[Frames, Frames]]] = field(default_factory=deque)
    first: Frames | None = None
    last: Frames | None = None

    def see(self, frame: Frames) -> None:
        own = kept_part(frame, self.fit)
        self.last = own
        self.first = own.copy() if self.first is None else self.first
        view = network_view(frame[None], self.size, self.fit)[0]
        large = view if self.look == self.size else network_view(frame[None], self.look, self.fit)[0]
        views = (view, large)
        if len(self.head) < self.context:
            self.head.append(views)
        self.tail.append((self.count, views))
        if len(self.tail) > self.context:
            self.tail.popleft()
        self.count += 1


def split(new: int, direction: Direction) -> tuple[int, int]:
    """How many of the new frames come before the clip and how many after it."""
    before = {"forward": 0, "backward": new, "both": new // 2}[direction]
    return before, new - before


def extrapolate(
    cascade: Cascade, ends: Ends, draw: Draw, *, new: int, direction: Direction, fit: Fit
) -> Film:
    """`new` frames at the clip's rate before or after it, or half on each side; its own frames are not changed.

    The new ones come out of the clip's first and last frame: SR_l^t sees the clip's frames at the join, and their pixels go along
    as far as what moves is still itself.
    """
    footage = ends.footage
    rate = float(footage.rate)
    before, after = split(new, direction)
    places, own_count = footage.places()
    size = result_size(*footage.size, fit)
    view = View(*size)
    first = last = None
    if before:
        first = _Side(
            cascade, ends.head, ends.looks[0], ends.first, before, draw, rate, view, begin=before, back=True
        )
    if after:
        last = _Side(
            cascade,
            ends.tail,
            ends.looks[1],
            ends.last,
            after,
            draw,
            rate,
            view,
            begin=before + own_count,
            back=False,
        )

    def own() -> Iterator[Shown]:
        shown: Frames | None = None
        done = 0
        for place, frame in zip(places, footage.pictures(), strict=True):
            if place < 0:
                continue
            while shown is not None and done < place:  # a gap: the frame before it stands
                yield Shown(shown, fixed=True)
                done += 1
            shown = kept_part(frame, fit)
            yield Shown(shown, fixed=True)
            done += 1
        assert shown is not None
        for _ in range(done, own_count):
            yield Shown(shown, fixed=True)

    def frames() -> Iterator[Shown]:
        if first is not None:
            yield from first
        yield from own()
        if last is not None:
            yield from last

    sound = None
    if footage.sound is not None:
        sound = footage.sound.moved(shift=before / rate, end=(before + own_count) / rate)
    return Film(levelled(frames(), ahead=_AHEAD if before else 1), own_count + new, footage.rate, sound)


def cost_of_extrapolation(cascade: Cascade, ends: Ends, *, new: int, direction: Direction) -> float:
    """What `extrapolate` costs on the bar of `cascade`."""
    total = 0.0
    for count, known in zip(split(new, direction), (len(ends.head), len(ends.tail)), strict=True):
        if count:
            total += cascade.cost_of_slides(len(sliding_windows(known, count, length=cascade.window)))
            total += cost_of_enlarged(cascade, (0,), known + count, start=known)
    return total


class _Side:
    """The new frames on one side of a clip, in the order of time.

    `known` (n, s, s, 3) are the clip's frames at the join as the networks see them, `looks` as CLIP does, `source` (h, w, 3) is the
    one that touches it;
    `begin` is the place in the result at which this side begins (forward) or ends (`back`).
    """

    def __init__(self, cascade: Cascade, known: Frames, looks: Frames, source: Frames, count: int, draw: Draw, rate: float,
                 view: View, *, begin: int, back: bool) -> None:  # fmt: skip
        seen = to_float(known)[None]
        direction: Direction = "backward" if back else "forward"
        told = seen_by_clip(cascade, enumerate(looks), fit="crop")  # squares already
        video = cascade.extrapolate(seen, [draw], frames=count, fps=rate, direction=direction, seen=told)
        small = to_uint8(video[0])
        start = 0 if back else len(known)
        # numbers of frames are never negative, and those of both sides differ
        number = 0 if back else begin - len(known)
        self._large = Enlarged(cascade, small[: count + len(known)], [draw], fps=rate, first=max(number, 0), start=start)  # fmt: skip
        out = video[0, : count + 1].flip(0) if back else video[0, len(known) - 1 :]
        holds: list[Hold | None] = list(trail(out[: _TRAIL + 1], view=view))
        holds += [None] * (count - len(holds))
        self._holds = holds[::-1] if back else holds
        self._source, self._view = source, view

    def __iter__(self) -> Iterator[Shown]:
        size = (self._view.height, self._view.width)
        for hold, large in zip(self._holds, self._large, strict=False):
            drawn = square_part(large, size)
            if hold is None:
                yield Shown(drawn)
            else:
                moved = carried(tensor(drawn), [(tensor(self._source), hold)], view=self._view)
                yield Shown(picture(moved))
