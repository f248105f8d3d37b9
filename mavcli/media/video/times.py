"""Times and rates of frames: seconds from the first one, whatever a file's timestamps do."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from mavcli.errors import UsageError

SAME_TIME = 1e-5
"""Two times of one file, in seconds, that differ by less are the same frame's; the shortest step is a hundred times that."""


def nearest_frames(times: NDArray[np.float64], wanted: NDArray[np.float64], *,
                   step: float | None = None) -> NDArray[np.intp] | None:  # fmt: skip
    """Indices of the frames nearest to `wanted` seconds, or None when one is farther than half a source frame.

    A source frame is `step` seconds, by default the median step of `times`: a gap in a video with uneven frames is no
    place to draw from.
    """
    if len(times) < 2:
        return None
    right = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    index = np.where(wanted - times[right - 1] <= times[right] - wanted, right - 1, right)
    tolerance = (step or float(np.median(np.diff(times)))) / 2 + 1e-6  # 1e-6: containers round timestamps
    if bool((np.abs(times[index] - wanted) > tolerance).any()):
        return None
    return index


def exact_rate(fps: Fraction | float | int) -> Fraction:
    """A frame rate as the fraction it stands for: 23.976 -> 24000/1001, 4.8 -> 24/5. Raises UsageError."""
    if not 0 < fps <= 1000:  # also true for nan
        raise UsageError(f"{float(fps):g} fps, wanted more than 0 and at most 1000")
    return Fraction(fps) if isinstance(fps, int | Fraction) else nearest_fraction(fps)


Stamps = Literal["pts", "dts", "delays", "none"]
"""What tells the time of a frame: its own stamp; where a container numbers packets only, that of decoding; in GIF and its kin
how long each frame is shown; nothing, and then the rate does."""


class Clock:
    """Seconds from the first frame, strictly increasing whatever the timestamps do."""

    def __init__(self, origin: float | None, step: float, stamps: Stamps) -> None:
        self.origin = origin
        self.last = 0.0
        self.hold = 0.0
        """Seconds that the last frame is shown, as the file says; 0 where it does not."""
        self.restarts = self.replaced = self.missing = 0
        self._step = step
        self._stamps = stamps
        self._offset = 0.0
        self._begun = False

    def __call__(self, frame: VideoFrame, tick: float) -> float:
        tick = float(frame.time_base or tick)
        hold = (frame.duration or 0) * tick
        time = self._by_delays() if self._stamps == "delays" else self._by_stamp(frame, tick)
        self.hold = as_browsers(hold) if self._stamps == "delays" else hold
        self._begun = True
        self.last = time
        return time

    def _by_delays(self) -> float:
        self.origin = 0.0
        return self.last + self.hold

    def _by_stamp(self, frame: VideoFrame, tick: float) -> float:
        ticks = frame.dts if self._stamps == "dts" else frame.pts
        if ticks is None or self._stamps == "none":
            if (
                self._stamps != "dts" or not self._begun
            ):  # the last frames of a decoder that is flushed have no dts
                self.missing += 1
            self.origin = 0.0 if self.origin is None else self.origin
            return self.last + self._step if self._begun else 0.0
        stamp = ticks * tick
        self.origin = stamp if self.origin is None else self.origin
        time = stamp - self.origin + self._offset
        if self._begun and time <= self.last:
            if self.last - time > 8 * self._step:  # farther than any reordering
                self._offset += self.last + self._step - time
                self.restarts += 1
            else:
                self.replaced += 1
            time = self.last + self._step
        return time


def as_browsers(delay: float) -> float:
    """Seconds that a browser shows a frame of a GIF, APNG or WebP: those of 1/100 s and less count as 1/10 s."""
    return 0.1 if delay < 0.011 else delay


def held(hold: float, rate: Fraction) -> float:
    """Seconds that the last frame is shown: what the file says where that is plainly longer than a frame, else a frame."""
    return hold if hold > 1.5 / rate else float(1 / rate)


RATE_TOLERANCE = 1.1e-3
"""Rates that differ by less are one rate: 29.97 counts as 30, 23.976 as 24."""


def same_rate(fps: float, other: float) -> bool:
    """Whether two rates differ by no more than those of NTSC and film from the whole numbers that they are called."""
    return abs(fps - other) <= RATE_TOLERANCE * max(fps, other)


def rate_of(times: NDArray[np.float64], tick: float, header: Sequence[Fraction]) -> tuple[Fraction, bool]:
    """(frames per second, uneven). The header's fraction is taken where the timestamps agree with it."""
    if len(times) < 2:
        return (header[0] if header else Fraction(1)), False
    steps = np.diff(times)
    median = float(np.median(steps))
    mean = float(times[-1] - times[0]) / len(steps)
    even = bool(np.abs(steps - mean).max() <= min(1.01 * tick, 0.5 * median) + 1e-6)
    step, tolerance = (mean, 1.5 * tick / len(steps)) if even else (median, tick)
    tolerance = min(tolerance, 0.05 * step) + 1e-9
    # some headers hold a measured average such as 23040000/767849; a plain rate that fits as well is the true one
    plain = sorted(
        {rate for rate in header if rate.denominator <= 1001}, key=lambda rate: rate.denominator, reverse=True
    )
    for rate in (*plain, Fraction(round(1 / step)), nearest_fraction(1 / step)):
        if rate and abs(float(1 / rate) - step) <= tolerance:
            return rate, not even
    return nearest_fraction(1 / step), not even


def nearest_fraction(fps: float) -> Fraction:
    for whole in (24, 30, 48, 60, 120, 240):
        ntsc = Fraction(whole * 1000, 1001)
        if abs(fps - ntsc) < 5e-4:
            return ntsc
    return Fraction(fps).limit_denominator(1001) or Fraction(fps)
