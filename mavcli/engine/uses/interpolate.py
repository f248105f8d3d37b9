"""↑F between the frames of a clip, or between pictures: what is known stays where it is in time, the rest is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import prod

import numpy as np
import torch

from mavcli.engine.cascade import Cascade, Seen
from mavcli.engine.compose import kept_part, network_view, result_size, square_part
from mavcli.engine.detail import Between, Shown, View, between, carried, levelled
from mavcli.engine.randomness import Draw
from mavcli.engine.uses.film import Enlarged, Film, Footage, cost_of_enlarged, picture, seen_by_clip, tensor
from mavcli.engine.windows import gap_starts, gap_windows, key_windows
from mavcli.media.frames import Fit, Frames, to_float, to_uint8

_BLOCK = 240
"""Frames that ↑F fills before they are put away as uint8."""


@dataclass(frozen=True)
class Timeline:
    """Which frame of the result is which: known ones by their number in the source, held ones, and those to be drawn."""

    count: int
    known: tuple[int, ...]
    """Ascending places of the known frames in the result."""
    source: tuple[int, ...]
    """Which frame of the source each of them is."""
    scenes: tuple[int, ...] = (0,)
    """Places at which a scene begins, 0 first: nothing is drawn across them."""
    held: tuple[tuple[int, int], ...] = field(default=())
    """(place, end): stretches in which the known frame at `place` stands still until before `end`."""

    @property
    def stretches(self) -> list[tuple[int, ...]]:
        """Places of known frames between which everything is drawn: one tuple for each stretch without a cut or a hold."""
        out: list[list[int]] = []
        resting = {place: end - 1 for place, end in self.held}
        for place in self.known:
            if not out or place in self.scenes:
                out.append([])
            out[-1].append(place)
            if resting.get(place, place) > place:
                out.append([resting[place]])
        return [tuple(places) for places in out]

    @property
    def drawn(self) -> int:
        """Frames that ↑F draws."""
        return sum(places[-1] - places[0] + 1 - len(places) for places in self.stretches)


def timeline(footage: Footage, *, factor: int, window: int) -> Timeline:
    """A clip at `factor` times its rate, as long as it is.

    The frame before a cut, and the last, stand until what follows; so does one before a gap that is wider than a window of ↑F,
    until the gap is as wide as one.
    """
    places, count = footage.places(factor)
    numbers = [i for i in range(len(footage)) if places[i] >= 0]
    known = [int(places[i]) for i in numbers]
    cuts = sorted(
        {next((p for p, i in zip(known, numbers, strict=True) if i >= cut), -1) for cut in footage.cuts}
        - {-1}
    )
    held = []
    for place, following in pairwise([*known, count]):
        end = following if following in cuts or following == count else following - (window - 1) + 1
        if end > place + 1:
            held.append((place, end))
    return Timeline(count, tuple(known), tuple(numbers), (0, *cuts), tuple(held))


def between_frames(
    cascade: Cascade,
    footage: Footage,
    views: Frames,
    line: Timeline,
    draw: Draw,
    *,
    rate: Fraction,
    fit: Fit,
    keep_source: bool = False,
) -> Film:
    """A clip with drawn frames between its own; `views` (f, s, s, 3) are its frames as the networks see them."""
    video = np.zeros((line.count, *views.shape[1:]), np.uint8)
    video[list(line.known)] = views[list(line.source)]
    for place, end in line.held:
        video[place + 1 : end] = video[place]
    seen = _seen(cascade, footage, line, fit)
    with cascade.piecewise():
        for part in _parts(line):
            _fill(cascade, video, part, draw, float(rate), seen)
    wanted = set(line.source)
    own = (kept_part(frame, fit) for i, frame in enumerate(footage.pictures()) if i in wanted)
    frames = _shown(cascade, video, line, own, draw, size=result_size(*footage.size, fit), rate=float(rate), keep=keep_source)  # fmt: skip
    return Film(frames, line.count, rate, footage.sound)


def between_pictures(
    cascade: Cascade,
    pictures: Frames,
    draw: Draw,
    *,
    skips: Sequence[int],
    rate: Fraction,
    fit: Fit,
    keep_source: bool = False,
) -> Film:
    """Pictures (k, h, w, 3) joined by motion: one pass of ↑F for each of `skips`, the first between the pictures themselves."""
    apart, done = prod(skips), 1
    small = to_float(network_view(pictures, cascade.size, fit))[None]
    looked = seen_by_clip(cascade, enumerate(pictures), fit=fit)
    for skip in skips:
        seen = {place * done: embedding for place, embedding in looked.items()}
        done *= skip
        small = cascade.interpolate(small, [draw], skip=skip, fps=float(rate) * done / apart, seen=seen)
    line = pictures_line(len(pictures), apart)
    own = (kept_part(one, fit) for one in pictures)
    height, width = pictures.shape[1:3]
    size = result_size(height, width, fit)
    frames = _shown(cascade, to_uint8(small[0]), line, own, draw, size=size, rate=float(rate), keep=keep_source)  # fmt: skip
    return Film(frames, line.count, rate)


def pictures_line(pictures: int, apart: int) -> Timeline:
    """The timeline of so many pictures, `apart` frames from each to the next."""
    total = (pictures - 1) * apart + 1
    return Timeline(total, tuple(range(0, total, apart)), tuple(range(pictures)))


def cost_of_clip(cascade: Cascade, line: Timeline) -> float:
    """What `between_frames` costs on the bar of `cascade`."""
    windows = sum(
        len(gap_windows([p - part[0] for p in part], length=cascade.window)) for part in _parts(line)
    )
    return cascade.cost_of_windows(windows) + cost_of_enlarged(cascade, line.scenes, line.count)


def cost_of_pictures(cascade: Cascade, pictures: int, skips: Sequence[int]) -> float:
    """What `between_pictures` costs on the bar of `cascade`."""
    keys, windows = pictures, 0
    for skip in skips:
        windows += len(key_windows(keys, skip=skip, length=cascade.window)) if skip > 1 else 0
        keys = (keys - 1) * skip + 1
    return cascade.cost_of_windows(windows) + cost_of_enlarged(cascade, (0,), keys)


def _parts(line: Timeline) -> list[tuple[int, ...]]:
    """Places of known frames between which ↑F draws, in pieces that are filled one after the other."""
    return [part for places in line.stretches for part in _blocks(places) if part[-1] - part[0] >= len(part)]


def _seen(cascade: Cascade, footage: Footage, line: Timeline, fit: Fit) -> Seen:
    """What CLIP says of the clip's own frames that windows of ↑F begin with, by their place in the result.

    A frame that stands until `end` is the same picture at `end` - 1, where the next window begins.
    """
    if cascade.look == cascade.size:
        return {}
    starts = {
        part[0] + start
        for part in _parts(line)
        for start in gap_starts([place - part[0] for place in part], length=cascade.window)
    }
    shown = dict(zip(line.known, line.source, strict=True))
    shown |= {end - 1: shown[place] for place, end in line.held}
    wanted: dict[int, list[int]] = {}
    for place in sorted(starts):
        wanted.setdefault(shown[place], []).append(place)
    seen: dict[int, torch.Tensor] = {}
    for number, frame in enumerate(footage.pictures()):
        if number in wanted:
            (embedding,) = seen_by_clip(cascade, [(0, frame)], fit=fit).values()
            seen |= dict.fromkeys(wanted[number], embedding)
        if number >= max(wanted, default=0):
            break
    return seen


def _blocks(places: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The places in pieces of about `_BLOCK` frames, each beginning with the last one of the piece before."""
    part: list[int] = []
    for place in places:
        part.append(place)
        if place - part[0] >= _BLOCK:
            yield tuple(part)
            part = [place]
    if len(part) > 1:
        yield tuple(part)


def _fill(cascade: Cascade, video: Frames, places: Sequence[int], draw: Draw, fps: float, seen: Seen) -> None:
    """↑F: draw what is not at `places`, from the first of them to the last, into `video`."""
    begin, end = places[0], places[-1] + 1
    known = [place - begin for place in places]
    own = {place - begin: seen[place] for place in range(begin, end) if place in seen}
    clip = to_float(video[begin:end])[None]
    filled = cascade.fill_gaps(clip, known, [draw], fps=fps, first=begin, seen=own)
    video[begin:end] = to_uint8(filled[0])


def _shown(
    cascade: Cascade,
    video: Frames,
    line: Timeline,
    own: Iterator[Frames],
    draw: Draw,
    *,
    size: tuple[int, int],
    rate: float,
    keep: bool,
) -> Iterator[Frames]:
    """The frames of the result, from what the networks drew (f, s, s, 3) and the source's `own` pictures.

    With `keep` the source's own stand as they are among the cascade's; otherwise all frames have one sharpness.
    """
    large = Enlarged(cascade, video, [draw], fps=rate, scenes=line.scenes)
    frames = _composed(iter(large), video, line, own, View(*size), keep)
    if keep:
        return (one.frame for one in frames for _ in range(one.times))
    gaps = [after - before for before, after in pairwise(line.known)]
    return levelled(frames, period=int(np.median(gaps)) if gaps else 1)


def _composed(
    large: Iterator[Frames], video: Frames, line: Timeline, own: Iterator[Frames], view: View, keep: bool
) -> Iterator[Shown]:
    known, resting = dict.fromkeys(line.known), dict(line.held)
    following = dict(pairwise(line.known))
    here: Frames | None = None
    ahead: Frames | None = None
    left = right = -1
    found: Between | None = None
    last_seen: torch.Tensor | None = None
    for place in range(line.count):
        square = next(large)
        if not (place in known or left <= place < right):
            continue  # the frame before it stands
        drawn = square_part(square, (view.height, view.width))
        cut = place in line.scenes
        if place in known:
            here, ahead = (next(own) if ahead is None else ahead), None
            start, end = _drawn_after(place, following, resting)
            known_after = following.get(place)
            seen = [last_seen] if last_seen is not None and not cut else []
            found, last_seen = None, None
            if start < end and known_after is not None and not keep:
                ends = torch.cat([tensor(video[place]), tensor(video[known_after])])
                found = between(ends, to_float(video[start:end]))
                last_seen = found.last
                if place not in resting:
                    seen.append(found.first)
            left, right = start, end
            shown = here if keep or not seen else _given_up(here, drawn, seen, view)
            yield Shown(shown, cut=cut, times=resting.get(place, place + 1) - place)
        else:
            if ahead is None:
                ahead = next(own)
            if keep or found is None or here is None:
                yield Shown(drawn)
                continue
            i = place - left
            sources = [(tensor(here), found.before[i]), (tensor(ahead), found.after[i])]
            yield Shown(picture(carried(tensor(drawn), sources, view=view)))


def _drawn_after(place: int, following: dict[int, int], resting: dict[int, int]) -> tuple[int, int]:
    """Where the frames that are drawn after the known one at `place` begin and end."""
    begin = resting.get(place, place + 1)
    return begin, following.get(place, begin)


def _given_up(own: Frames, drawn: Frames, seen: Sequence[torch.Tensor], view: View) -> Frames:
    """A known frame as its neighbours can be: the source's own pixels where they show them too, else the cascade's."""
    share = view.map(torch.stack(list(seen)).amin(0)).clamp(0, 1)
    one = tensor(drawn)
    return picture(one + share * (tensor(own) - one))
