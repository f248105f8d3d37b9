"""Videos as frames and their times: whole, in part, or only what there is.

f frames, h w pixels; a frame is uint8 `h w 3` as a player shows it: rotated, square pixels, RGB, transparency on white.
Times are seconds from the first frame, taken from the file's timestamps and never from its nominal frame rate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from mavcli.errors import InputError
from mavcli.media import animation
from mavcli.media.frames import Frames
from mavcli.media.video.source import Media, Source, opened
from mavcli.media.video.times import SAME_TIME, held, rate_of

MAX_CLIP_BYTES = 2 << 30
"""What `read_clip` keeps in memory at most: 2 GiB of RGB, 12 minutes of 64 x 64 at 240 fps or 11 s of 1080p."""


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` found. Sizes are as shown: after rotation and with square pixels."""

    path: str
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    """Degrees clockwise that the file asks a player to turn its frames."""
    rate: Fraction
    """Frames per second by the timestamps."""
    vfr: bool
    """True when the frames are not evenly spaced; `rate` is then the median's."""
    frames: int
    """Packets that should each give a frame; only decoding makes it exact (`len(read_clip(path).frames)`)."""
    duration: float
    """Seconds from the first frame to the end of the last."""
    start: float
    """Timestamp of the first frame in the file, seconds."""
    warnings: tuple[str, ...] = ()

    @property
    def fps(self) -> float:
        return float(self.rate)


@dataclass(frozen=True)
class Clip:
    """A decoded video: frames uint8 (f, h, w, 3), f >= 1, and when each is shown."""

    path: str
    frames: Frames
    times: NDArray[np.float64]
    """(f,) seconds from the first frame of the file, strictly increasing."""
    rate: Fraction
    """Frames per second by the timestamps; for a single frame what the header says, or 1."""
    vfr: bool
    start: float
    """Timestamp of the file's first frame, seconds; `times + start` are the file's own."""
    warnings: tuple[str, ...] = ()
    """What was wrong or approximated, in words, for the command line to say aloud."""
    hold: float = 0.0
    """Seconds that the last frame is shown, as the file says; 0 where it does not."""

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def duration(self) -> float:
        """Seconds, to the end of the last frame."""
        return float(self.times[-1] - self.times[0]) + held(self.hold, self.rate)


@dataclass(frozen=True)
class Survey:
    """What decoding every frame of a video told: exact, whatever its header promises. Sizes are as shown."""

    times: NDArray[np.float64]
    """(f,) seconds from the first frame, strictly increasing."""
    rate: Fraction
    """Frames per second by the timestamps."""
    vfr: bool
    start: float
    """Timestamp of the first frame in the file, seconds."""
    keyframes: NDArray[np.intp]
    """Indices of the frames that decode without those before."""
    seekable: bool
    """Whether a timestamp names one frame: false where the clock starts again or stamps are missing."""
    width: int
    height: int
    container: str
    codec: str
    warnings: tuple[str, ...] = ()
    hold: float = 0.0
    """Seconds that the last frame is shown, as the file says; 0 where it does not."""

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def duration(self) -> float:
        """Seconds, to the end of the last frame."""
        return float(self.times[-1]) + held(self.hold, self.rate)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video by decoding one frame and reading the timestamps of the packets. Raises InputError."""
    source = Source(path)
    first: VideoFrame | None = None
    for _, frame in source.decode():
        first = frame
        break
    if first is None:
        raise source.nothing()
    picture = source.picture(first)
    times = source.packet_times()
    rate, vfr = rate_of(times, source.tick, source.header_rates)
    span = float(times[-1] - times[0]) if len(times) else 0.0
    return VideoInfo(
        path=source.name,
        container=source.container_name,
        codec=source.codec,
        pixel_format=first.format.name,
        width=picture.shape[1],
        height=picture.shape[0],
        coded_width=first.width,
        coded_height=first.height,
        rotation=-first.rotation % 360,
        rate=rate,
        vfr=vfr,
        frames=max(len(times), 1),
        duration=span + held(source.hold, rate),
        start=source.start,
        warnings=tuple(source.warnings),
    )


def read_video(path: Media, *, start: float = 0.0, max_frames: int | None = None,
               stream: int | None = None, warnings: list[str] | None = None) -> Iterator[tuple[float, Frames]]:  # fmt: skip
    """Decode frame by frame: (seconds from the first frame of the file, uint8 (h, w, 3)).

    `start` skips what is shown earlier, `stream` picks a stream of the file by its index (default: the best video
    stream). All frames have the size of the first: where a stream changes its size, later frames are scaled until
    they cover the first one's and cut to it. A damaged stream ends early. Both add a line to `warnings`.
    Raises InputError when there is no frame at all.
    """
    source = Source(path, stream=stream)
    count = 0
    for time, frame in source.decode(start=start):
        yield time, source.picture(frame)
        count += 1
        if count == max_frames:
            break
    if warnings is not None:
        warnings.extend(source.warnings)
    if count == 0:
        raise source.nothing(start)


def read_clip(path: str | os.PathLike[str], *, start: float = 0.0, max_frames: int | None = None,
              stream: int | None = None, max_bytes: int = MAX_CLIP_BYTES) -> Clip:  # fmt: skip
    """Decode a whole video, or `max_frames` of it from `start` seconds on, into memory.

    What a damaged or truncated file still holds is returned, with `warnings`. Raises InputError when that is nothing,
    or when the frames need more than `max_bytes`.
    """
    source = Source(path, stream=stream)
    frames: Frames = np.empty((0, 0, 0, 3), np.uint8)
    times: list[float] = []
    room = 0
    for time, frame in source.decode(start=start):
        if not times:
            assert source.shape is not None  # a frame came
            room = max_bytes // (source.shape[0] * source.shape[1] * 3)
            expected = min(room, max_frames or room, max(16, source.expected + 1))
            frames = np.empty((expected, *source.shape, 3), np.uint8)
        if len(times) == room:
            raise InputError(
                f"`{source.name}` holds more than {len(times)} frames of {frames.shape[2]} x {frames.shape[1]} px, "
                f"wanted at most {max_bytes / 2**30:.1f} GiB of frames",
                hint="trim or shrink it, such as `ffmpeg -t 5 -i in.mp4 -vf scale=-2:256 out.mp4`",
            )
        if len(times) == len(frames):  # in place: a list of frames would need twice the memory when joined
            frames.resize((min(room, len(frames) * 3 // 2 + 16), *frames.shape[1:]), refcheck=False)
        source.picture(frame, frames[len(times)])
        times.append(time)
        if len(times) == max_frames:
            break
    if not times:
        raise source.nothing(start)
    stamps = np.array(times)
    rate, vfr = rate_of(stamps, source.tick, source.header_rates)
    frames.resize((len(times), *frames.shape[1:]), refcheck=False)
    return Clip(
        path=source.name,
        frames=frames,
        times=stamps,
        rate=rate,
        vfr=vfr,
        start=source.start,
        warnings=tuple(source.warnings),
        hold=source.hold,
    )


def survey(media: Media, *, visit: Callable[[VideoFrame], None] | None = None,
           show: Callable[[Frames], None] | None = None, max_frames: int | None = None) -> Survey:  # fmt: skip
    """Decode every frame once and say what there is; no picture is converted, unless it is shown to `show`.

    `visit` is called with each frame as it comes, then `show` with its picture, uint8 (h, w, 3). Raises InputError when nothing
    decodes, and when the video holds more than `max_frames`.
    """
    source = Source(media)
    times: list[float] = []
    keyframes: list[int] = []
    for time, frame in source.decode():
        if len(times) == max_frames:
            raise InputError(
                f"`{source.name}` holds more than {max_frames} frames, wanted at most that many",
                hint="cut it into shorter files: `ffmpeg -i in.mp4 -c copy -f segment -segment_time 600 out%03d.mp4`",
            )
        if frame.key_frame:
            keyframes.append(len(times))
        times.append(time)
        if visit is not None:
            visit(frame)
        if show is not None:
            show(source.picture(frame))
    if not times:
        raise source.nothing()
    stamps = np.array(times)
    rate, vfr = rate_of(stamps, source.tick, source.header_rates)
    assert source.shape is not None  # a frame came
    return Survey(
        times=stamps,
        rate=rate,
        vfr=vfr,
        start=source.start,
        keyframes=np.array(keyframes, np.intp),
        seekable=source.seekable,
        width=source.shape[1],
        height=source.shape[0],
        container=source.container_name,
        codec=source.codec,
        warnings=tuple(source.warnings),
        hold=source.hold,
    )


def frames_at(media: Media, times: Sequence[float] | NDArray[np.float64], *, start: float = 0.0,
              keyframe: float = 0.0, transform: Callable[[Frames], Frames] | None = None) -> Frames:  # fmt: skip
    """The frames shown at ascending `times`, seconds that `survey` found: uint8 (len(times), h, w, 3).

    `keyframe` is where decoding may begin: the time of a keyframe at or before the first of them, in a video whose
    survey says `seekable`; `start` is the survey's. Zero decodes from the beginning. `transform` shrinks each picture
    before it is kept. Raises InputError when the file has no frame at such a time any more.
    """
    wanted = np.asarray(times, np.float64)
    if wanted.ndim != 1 or len(wanted) == 0 or bool((np.diff(wanted) < 0).any()):
        raise ValueError("`times` must be a non-empty ascending list of seconds")
    # an index may name a keyframe that its container cannot seek to: then the beginning is as good
    for seek in (keyframe, 0.0) if keyframe > 0 else (0.0,):
        source = Source(media)
        out: list[Frames] = []
        for time, frame in source.decode_from(seek, start if seek else None):
            while len(out) < len(wanted) and abs(time - wanted[len(out)]) <= SAME_TIME:
                picture = source.picture(frame)
                out.append(transform(picture) if transform else picture)
            if len(out) == len(wanted):
                return np.stack(out)
            if time > wanted[len(out)] + SAME_TIME:
                break
    raise InputError(
        f"`{source.name}` shows no frame at {wanted[len(out)]:.4f} s, where it had one when it was read first",
        hint="leave the files alone while a training reads them",
    )


def is_video(path: str | os.PathLike[str]) -> bool:
    """True when the content (not the name) is a video with a picture stream; of GIFs, those with several frames."""
    try:
        source = Source(path)
        frames = source.decode()
        if next(frames, None) is None:
            return False
        return source.container_name != "gif" or next(frames, None) is not None  # one frame is a picture
    except InputError:
        return False


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The container's tags with lower-case keys (Matroska stores upper case). Raises InputError."""
    if animation.moving_picture(path):
        return {}
    with opened(path) as container:
        try:
            return {key.lower(): value for key, value in container.metadata.items()}
        except UnicodeDecodeError as error:
            raise InputError(f"`{os.fspath(path)}` holds tags that are no UTF-8 text") from error
