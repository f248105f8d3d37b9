"""Where a video cuts, and whether anything moves in it: FFmpeg's scene detector on small pictures, in colour.

A cut is a frame at which FFmpeg's `scdet` says that the picture changed by more than `CUT` per cent of the range, and
by that much more than between the frames before; dissolves are not found.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from mavcli.errors import InputError
from mavcli.media.video.colour import AREA, reformatted

CUT = 10
"""`scdet`'s own threshold, in per cent of the range."""
STILL = 6
"""A scene is still when no grey value of its small pictures goes farther than this from its first, of 255."""
_SIDE = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Scenes:
    """Is shown the frames of a video in order; then `cuts` and `static` hold."""

    def __init__(self) -> None:
        self.cuts: list[int] = []
        """Indices of the frames that begin a new scene; never 0."""
        self.static = True
        """Whether no scene has any movement: a still image as a video, a slide show, black."""
        self._count = 0
        self._first: NDArray[np.int16] | None = None
        self._reformatter = VideoReformatter()
        self._graph = av.filter.Graph()
        source = self._graph.add_buffer(
            width=_SIDE, height=_SIDE, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 1000)
        )
        # sc_pass: only the frames at which a scene begins come out again
        detector, sink = self._graph.add("scdet", f"threshold={CUT}:sc_pass=1"), self._graph.add("buffersink")
        source.link_to(detector)
        detector.link_to(sink)
        self._graph.configure()

    def see(self, frame: VideoFrame) -> None:
        """The next frame. Raises InputError when its pixels cannot be converted."""
        try:
            small = reformatted(
                self._reformatter, frame, width=_SIDE, height=_SIDE, format="rgb24", interpolation=AREA
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(f"holds {frame.format.name} pixels that cannot be converted") from error
        small.pts, small.time_base = self._count, Fraction(1, 1000)
        grey = (small.to_ndarray() @ _LUMA).astype(np.int16)
        self._graph.push(small)
        try:
            self._graph.pull()
        except av.error.BlockingIOError:
            pass  # nothing came out: the scene goes on
        else:
            self.cuts.append(self._count)
            self._first = None
        if self._first is None:
            self._first = grey
        elif self.static:
            self.static = int(np.abs(grey - self._first).max()) < STILL
        self._count += 1
