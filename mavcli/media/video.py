"""Video files in and out (PyAV). Untrusted files end in one InputError; results are written whole or not at all.

f frames, h w pixels; a frame is uint8 `h w 3` as a player shows it: rotated, square pixels, RGB, transparency on white.
Times are seconds from the first frame, taken from the file's timestamps and never from its nominal frame rate.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mavcli.errors import DiskError, InputError, UsageError
from mavcli.media import image as still
from mavcli.media.frames import Frames, check_size, fit, frames_sha256

SAME_TIME = 1e-5
"""Two times of one file, in seconds, that differ by less are the same frame's; the shortest step is a hundred times that."""

MAX_CLIP_BYTES = 2 << 30
"""What `read_clip` keeps in memory at most: 2 GiB of RGB, 12 minutes of 64 x 64 at 240 fps or 11 s of 1080p."""

Codec = Literal["h264", "ffv1"]

Media = str | os.PathLike[str] | bytes
"""A video: its path, or the bytes of the file (a member of an archive)."""

# What is demuxed. Left out: playlists and image sequences, which make FFmpeg open other files.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,gif,apng,ogg,m4v,h264,hevc,ivf,obu,"
    "mjpeg,yuv4mpegpipe,nut,mxf,dv,rm,wtv,mp3,wav,aac,flac,amr,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
_PACKETS_WITHOUT_FRAME = 5000  # then the stream is taken for undecodable
_FAULTS = (
    av.error.FFmpegError,
    UnicodeDecodeError,
    AttributeError,
    MemoryError,
    EOFError,
    OSError,
    ValueError,
)
"""What PyAV was seen to raise for damaged files. Only calls into PyAV stand under it."""


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


class Damage(str):
    """A warning that frames are missing or are not what they were; every other one says how a whole video is shown."""

    __slots__ = ()


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

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def duration(self) -> float:
        """Seconds, to the end of the last frame."""
        return float(self.times[-1] - self.times[0]) + 1 / self.fps


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

    @property
    def fps(self) -> float:
        return float(self.rate)


@dataclass(frozen=True)
class Written:
    """What `write_video` made."""

    path: Path
    frames: int
    width: int
    height: int
    rate: Fraction
    padded: tuple[int, int]
    """Columns on the right and rows at the bottom that repeat the edge, because H.264 wants even sides."""
    frames_sha256: str
    """Of the raw frames before padding and encoding."""

    @property
    def duration(self) -> Fraction:
        return self.frames / self.rate


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video by decoding one frame and reading the timestamps of the packets. Raises InputError."""
    source = _Source(path)
    first: VideoFrame | None = None
    for _, frame in source.decode():
        first = frame
        break
    if first is None:
        raise source.nothing()
    picture = source.picture(first)
    times = _packet_times(path, source.index)
    rate, vfr = _rate(times, source.tick, source.header_rates)
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
        duration=span + float(1 / rate),
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
    source = _Source(path, stream=stream)
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
    source = _Source(path, stream=stream)
    pixels = bytearray()  # grows in place: a list of frames would need twice the memory when joined
    times: list[float] = []
    shape: tuple[int, ...] = ()
    for time, frame in source.decode(start=start):
        picture = source.picture(frame)
        if len(pixels) + picture.nbytes > max_bytes:
            raise InputError(
                f"`{source.name}` holds more than {len(times)} frames of {picture.shape[1]} x {picture.shape[0]} px, "
                f"wanted at most {max_bytes / 2**30:.1f} GiB of frames",
                hint="trim or shrink it, such as `ffmpeg -t 5 -i in.mp4 -vf scale=-2:256 out.mp4`",
            )
        shape = picture.shape
        pixels += picture.data
        times.append(time)
        if len(times) == max_frames:
            break
    else:
        source.compare_count(len(times), start)
    if not times:
        raise source.nothing(start)
    stamps = np.array(times)
    rate, vfr = _rate(stamps, source.tick, source.header_rates)
    return Clip(
        path=source.name,
        frames=np.frombuffer(pixels, np.uint8).reshape(len(times), *shape),
        times=stamps,
        rate=rate,
        vfr=vfr,
        start=source.start,
        warnings=tuple(source.warnings),
    )


def survey(media: Media, *, visit: Callable[[VideoFrame], None] | None = None,
           max_frames: int | None = None) -> Survey:  # fmt: skip
    """Decode every frame once and say what there is; no picture is converted.

    `visit` is called with each frame as it comes. Raises InputError when nothing decodes, and when the video holds
    more than `max_frames`.
    """
    source = _Source(media)
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
    if not times:
        raise source.nothing()
    source.compare_count(len(times), 0.0)
    stamps = np.array(times)
    rate, vfr = _rate(stamps, source.tick, source.header_rates)
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
        source = _Source(media)
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


def is_video(path: str | os.PathLike[str]) -> bool:
    """True when the content (not the name) is a video with a picture stream; of GIFs, those with several frames."""
    try:
        source = _Source(path)
        frames = source.decode()
        if next(frames, None) is None:
            return False
        return source.container_name != "gif" or next(frames, None) is not None
    except InputError:
        return False


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The container's tags with lower-case keys (Matroska stores upper case). Raises InputError."""
    with _opened(path) as container:
        try:
            return {key.lower(): value for key, value in container.metadata.items()}
        except UnicodeDecodeError as error:
            raise InputError(f"`{os.fspath(path)}` holds tags that are no UTF-8 text") from error


def exact_rate(fps: Fraction | float | int) -> Fraction:
    """A frame rate as the fraction it stands for: 23.976 -> 24000/1001, 4.8 -> 24/5. Raises UsageError."""
    if not 0 < fps <= 1000:  # also true for nan
        raise UsageError(f"{float(fps):g} fps, wanted more than 0 and at most 1000")
    return Fraction(fps) if isinstance(fps, int | Fraction) else _fraction(fps)


def write_video(path: str | os.PathLike[str], frames: Iterable[Frames], *, fps: Fraction | float,
                codec: Codec = "h264", crf: int = 16, metadata: dict[str, str] | None = None,
                threads: int = 1, overwrite: bool = False) -> Written:  # fmt: skip
    """Encode uint8 (h, w, 3) frames at a constant rate; the file appears whole, checked, or not at all.

    `h264`: High profile, yuv420p limited range, bt709, faststart, in .mp4, .mov or .mkv. `ffv1`: lossless RGB in .mkv.
    Odd sides are made even by repeating the edge (H.264 only). `metadata` keys are lower case. The bytes depend on
    `threads`, the frames' hash does not. Raises UsageError for what cannot be encoded, DiskError (exists, no space,
    no permission), InputError for no frames.
    """
    target = Path(path)
    rate = exact_rate(fps)
    container_format = _container_format(target, codec, crf)
    tags = _checked_tags(metadata or {})
    still.refuse_existing(target, overwrite)
    temporary = still.temporary_name(target)
    try:
        count, size, padded, digest = _encode(
            temporary, str(target), frames, rate, codec, crf, tags, threads, container_format
        )
        _sync(temporary)
        _verify(temporary, target, count, tags)
        still.move_into_place(temporary, target, overwrite=overwrite)
    except (av.error.FFmpegError, OSError) as error:
        raise still.disk_error(target, _as_oserror(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Written(target, count, size[0], size[1], rate, padded, digest)


def write_gif(path: str | os.PathLike[str], frames: Iterable[Frames], *, fps: Fraction | float,
              overwrite: bool = False) -> Written:  # fmt: skip
    """A looping GIF with one palette made for the clip. GIF times are in 1/100 s, so `rate` comes back rounded to that.

    Errors as `write_video`.
    """
    target = Path(path)
    if target.suffix.lower() != ".gif":
        raise UsageError(f"`{target.name}` does not end in `.gif`")
    ticks = max(2, round(100 / exact_rate(fps)))  # browsers slow frames shorter than 2 ticks down to 10
    still.refuse_existing(target, overwrite)
    pictures = np.stack(list(frames)) if not isinstance(frames, np.ndarray) else frames
    if len(pictures) == 0:
        raise InputError(f"no frames to write to `{target}`")
    temporary = still.temporary_name(target)
    try:
        _encode_gif(temporary, pictures, ticks)
        _sync(temporary)
        _verify(temporary, target, len(pictures), {})
        still.move_into_place(temporary, target, overwrite=overwrite)
    except (av.error.FFmpegError, OSError) as error:
        raise still.disk_error(target, _as_oserror(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    height, width = pictures.shape[1:3]
    return Written(
        target, len(pictures), width, height, Fraction(100, ticks), (0, 0), frames_sha256(pictures)
    )


class _Source:
    """One video file being read: what is known of it, what went wrong, and how its frames become pictures."""

    def __init__(self, media: Media, *, stream: int | None = None) -> None:
        self.media = media
        self.name = _name(media)
        self.index = stream
        self.warnings: list[str] = []
        self.start = 0.0
        self.seekable = True
        self.tick = 0.0
        self.header_rates: list[Fraction] = []
        self.header_frames = 0
        self.codec = self.container_name = ""
        self._sar = Fraction(1)
        self.shape: tuple[int, int] | None = None  # height, width of the first frame as shown
        self._reformatter = VideoReformatter()
        self._fault: BaseException | None = None

    def decode(self, *, start: float = 0.0) -> Iterator[tuple[float, VideoFrame]]:
        """(seconds from the first frame, frame) of every frame at or after `start`."""
        if start > 1.0:  # decoding a second is cheaper than two more openings
            for _ in self._decode(start=0.0, origin=None):
                break  # learns the origin
            first = True
            for time, frame in self._decode(start=start, origin=self.start):
                if first and time > start + 2 * self._nominal_step():
                    break  # the index of this container overshoots: decode from its beginning
                first = False
                yield time, frame
            if not first:
                return
            self.warnings.clear()
        yield from self._decode(start=start, origin=None)

    def decode_from(self, keyframe: float, origin: float | None) -> Iterator[tuple[float, VideoFrame]]:
        """`decode` from a keyframe's time, where the file's first timestamp (`origin`) is known: one opening less."""
        return self._decode(start=keyframe, origin=origin)

    def picture(self, frame: VideoFrame) -> Frames:
        """One frame as a player shows it: uint8 (h, w, 3) of the first frame's size."""
        self._measure(frame)
        width, height = self._square(frame)
        alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
        try:
            pixels = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format="rgba" if alpha else "rgb24",
                interpolation=None
                if (width, height) == (frame.width, frame.height)
                else Interpolation.BICUBIC,
                threads=1,
            ).to_ndarray()
        except _FAULTS as error:
            raise InputError(
                f"`{self.name}` holds {frame.format.name} pixels of a colour space that cannot be converted to RGB"
            ) from error
        picture: Frames = np.asarray(pixels, np.uint8)
        if alpha:
            opacity = picture[..., 3:].astype(np.uint16)
            white = np.array(still.WHITE, np.uint16)
            picture = ((picture[..., :3] * opacity + white * (255 - opacity) + 127) // 255).astype(np.uint8)
        picture = _turned(picture, _display_matrix(frame))
        if self.shape is not None and picture.shape[:2] != self.shape:
            self._warn_once(
                Damage(
                    f"the picture changes from {self.shape[1]} x {self.shape[0]} to {picture.shape[1]} x "
                    f"{picture.shape[0]} px in the stream; later frames are scaled and cut to the first size"
                )
            )
            picture = fit(picture, self.shape, rule="crop")
        return np.ascontiguousarray(picture)

    def nothing(self, start: float = 0.0) -> InputError:
        """The error for a file that gave no frame at all."""
        if start > 0 and self.shape is not None:
            return InputError(f"`{self.name}` ends before {start:g} s, wanted a frame there")
        why = f": {_words(self._fault)}" if self._fault else ""
        return InputError(
            f"`{self.name}` holds no frame that can be decoded ({self.codec or 'unknown codec'}){why}, "
            f"wanted at least one",
            hint="download or export it again; encrypted and truncated files cannot be read",
        )

    def compare_count(self, decoded: int, start: float) -> None:
        """Note it when the header lists more frames than decode: some damage gives no error."""
        if (
            start == 0
            and decoded < self.header_frames
            and not any("damaged data" in line for line in self.warnings)
        ):
            self._warn_once(
                Damage(f"{decoded} of the {self.header_frames} frames that the header lists decode")
            )

    def _decode(self, *, start: float, origin: float | None) -> Iterator[tuple[float, VideoFrame]]:
        with _opened(self.media) as container:
            stream = self._pick(container)
            decoder = _alpha_decoder(stream) or stream.codec_context
            if origin is not None:
                with suppress(*_FAULTS):  # the caller sees the first frame's time
                    container.seek(round((origin + start) / self.tick), stream=stream, backward=True)
            clock = _Clock(origin, self._nominal_step())
            count = idle = 0
            packets = container.demux(stream)
            while idle < _PACKETS_WITHOUT_FRAME:
                idle += 1
                try:
                    packet = next(packets)
                    frames = decoder.decode(packet)
                except StopIteration:
                    break
                except _FAULTS as error:
                    self._fault = error
                    if count:
                        self._warn_once(
                            Damage(f"damaged data after {count} frames ({clock.last:.2f} s): {_words(error)}")
                        )
                        break
                    continue  # streams cut anywhere begin with packets that nothing can decode
                for frame in frames:
                    idle = 0
                    count += 1
                    time = clock(frame, self.tick)
                    if count == 1:
                        self._measure(frame)
                        if origin is None:
                            self.start = clock.origin or 0.0
                    if frame.is_corrupt:
                        self._warn_once(Damage("some frames are damaged and shown as they decode"))
                    if time >= start - 1e-6:
                        yield time, frame
            self.seekable = not (clock.restarts or clock.replaced or clock.missing)
            if clock.restarts:
                self._warn_once(f"timestamps start again {clock.restarts} times; the parts are joined")
            if clock.replaced:
                self._warn_once(f"{clock.replaced} of {count} timestamps are out of order and were replaced")

    def _pick(self, container: InputContainer) -> VideoStream:
        self.container_name = container.format.name
        if self.index is not None:
            streams = [stream for stream in container.streams.video if stream.index == self.index]
            if not streams:
                raise InputError(f"`{self.name}` has no video stream {self.index}")
            stream = streams[0]
        else:
            best = container.streams.best("video")
            if not isinstance(best, VideoStream):
                kinds = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
                raise InputError(
                    f"`{self.name}` has no video stream, only {', '.join(kinds)}, wanted a video"
                )
            stream = best
        self.index = stream.index
        context = stream.codec_context
        if context is None:
            raise InputError(f"`{self.name}` holds a video codec that is not known here")
        self.codec = context.name
        if context.width and context.height:
            check_size(self.name, context.width, context.height)
        context.options = {"max_pixels": str(2 * 64_000_000)}  # the header is not the last word on the size
        stream.thread_type = "NONE"
        context.thread_count = 1
        self.tick = float(stream.time_base or Fraction(1, 1000))
        rates = (stream.average_rate, stream.base_rate, stream.guessed_rate)
        self.header_rates = [Fraction(rate) for rate in rates if rate and 0 < rate <= 10_000]
        self.header_frames = stream.frames
        sar = stream.sample_aspect_ratio
        self._sar = Fraction(sar) if sar else Fraction(1)
        if not Fraction(1, 10) <= self._sar <= 10:
            self._warn_once(
                f"pixels are said to be {float(self._sar):g} times as wide as high; taken as square"
            )
            self._sar = Fraction(1)
        return stream

    def _measure(self, frame: VideoFrame) -> None:
        check_size(self.name, frame.width, frame.height)
        width, height = self._square(frame)
        check_size(self.name, width, height)
        if self.shape is None:
            matrix = _display_matrix(frame)
            self.shape = (width, height) if _swaps(matrix) else (height, width)
            if frame.interlaced_frame:
                self._warn_once("the video is interlaced; both fields are shown at once")
            if frame.color_trc in (16, 18):  # SMPTE 2084 and HLG
                self._warn_once("the video is HDR; its colours are shown without tone mapping")

    def _square(self, frame: VideoFrame) -> tuple[int, int]:
        """(width, height) with square pixels: the height stays."""
        return max(1, round(frame.width * self._sar)), frame.height

    def _nominal_step(self) -> float:
        return float(1 / self.header_rates[0]) if self.header_rates else 0.04

    def _warn_once(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)


class _Clock:
    """Seconds from the first frame, strictly increasing whatever the timestamps do."""

    def __init__(self, origin: float | None, step: float) -> None:
        self.origin = origin
        self.last = 0.0
        self.restarts = self.replaced = self.missing = 0
        self._step = step
        self._offset = 0.0
        self._begun = False

    def __call__(self, frame: VideoFrame, tick: float) -> float:
        stamp = None if frame.pts is None else frame.pts * float(frame.time_base or tick)
        if stamp is None:
            self.missing += 1
            time = self.last + self._step if self._begun else 0.0
            self.origin = 0.0 if self.origin is None else self.origin
        else:
            self.origin = stamp if self.origin is None else self.origin
            time = stamp - self.origin + self._offset
            if self._begun and time <= self.last:
                if self.last - time > 8 * self._step:  # farther than any reordering
                    self._offset += self.last + self._step - time
                    self.restarts += 1
                else:
                    self.replaced += 1
                time = self.last + self._step
        self._begun = True
        self.last = time
        return time


def _name(media: Media) -> str:
    return "video" if isinstance(media, bytes) else os.fspath(media)


@contextmanager
def _opened(media: Media) -> Iterator[InputContainer]:
    name = _name(media)
    found = still.describe(media)
    head_hint = still.hint_for(found) if found else None
    if found and found not in ("a video file", "a GIF"):
        if still.is_still(media):
            head_hint = (
                "use `mav animate` to make a video of it" if found != "an animated WebP" else head_hint
            )
        raise InputError(f"`{name}` is {found}, wanted a video", hint=head_hint)
    try:
        # an absolute path cannot be taken for a URL
        container = av.open(
            io.BytesIO(media) if isinstance(media, bytes) else os.path.abspath(name),
            "r",
            options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
        )
    except _FAULTS as error:
        raise InputError(
            f"`{name}` is not a video that can be read: {_words(error)}",
            hint="download or export it again; a recording cut off before its end has no index",
        ) from error
    with container:
        yield container


def _packet_times(path: str | os.PathLike[str], index: int | None) -> NDArray[np.float64]:
    """Ascending seconds of the packets that give a frame each, without decoding."""
    stamps: list[float] = []
    offset = last = step = 0.0
    with _opened(path) as container:
        stream = container.streams[index] if index is not None else container.streams.video[0]
        tick = float(stream.time_base or Fraction(1, 1000))
        try:
            for packet in container.demux(stream):
                if packet.pts is None or packet.is_discard:
                    continue
                decoded = (packet.dts if packet.dts is not None else packet.pts) * tick + offset
                if stamps and decoded < last:  # the clock starts again
                    offset += last + step - decoded
                    decoded = last + step
                step = decoded - last if stamps else step
                last = decoded
                stamps.append(packet.pts * tick + offset)
        except _FAULTS:
            pass  # the frames up to here count
    times = np.unique(np.array(stamps))
    return times - times[0] if len(times) else times


def _rate(times: NDArray[np.float64], tick: float, header: Sequence[Fraction]) -> tuple[Fraction, bool]:
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
    for rate in (*plain, Fraction(round(1 / step)), _fraction(1 / step)):
        if rate and abs(float(1 / rate) - step) <= tolerance:
            return rate, not even
    return _fraction(1 / step), not even


def _fraction(fps: float) -> Fraction:
    for whole in (24, 30, 48, 60, 120, 240):
        ntsc = Fraction(whole * 1000, 1001)
        if abs(fps - ntsc) < 5e-4:
            return ntsc
    return Fraction(fps).limit_denominator(1001) or Fraction(fps)


def _alpha_decoder(stream: VideoStream) -> Any:
    """FFmpeg's own VP8 and VP9 decoders drop transparency; libvpx's keep it."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    return av.CodecContext.create(name, "r")


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of x' = a x + c y, y' = b x + d y; None without one."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(data, np.int32)
    return (int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])) if matrix.size >= 9 else None


def _swaps(matrix: tuple[int, int, int, int] | None) -> bool:
    return matrix is not None and abs(matrix[1]) + abs(matrix[2]) > abs(matrix[0]) + abs(matrix[3])


def _turned(picture: Frames, matrix: tuple[int, int, int, int] | None) -> Frames:
    """Apply the nearest of the eight right-angled turns and mirrorings."""
    if matrix is None:
        return picture
    a, b, c, d = matrix
    across, down = (c, b) if _swaps(matrix) else (a, d)
    if _swaps(matrix):
        picture = picture.transpose(1, 0, 2)
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _container_format(target: Path, codec: Codec, crf: int) -> str:
    formats = {"h264": {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}, "ffv1": {".mkv": "matroska"}}
    if codec not in formats:
        raise UsageError(f"codec `{codec}`, wanted one of {', '.join(formats)}")
    if target.suffix.lower() not in formats[codec]:
        raise UsageError(
            f"`{target.name}` for codec `{codec}`, wanted a name that ends in {' or '.join(formats[codec])}"
        )
    if codec == "h264" and not 1 <= crf <= 51:
        # x264's lossless mode is outside the High profile, and most players show nothing
        raise UsageError(f"crf {crf}, wanted 1 to 51", hint="use codec `ffv1` for lossless video")
    return formats[codec][target.suffix.lower()]


def _checked_tags(metadata: dict[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not key or key != key.lower() or "=" in key:
            raise ValueError(f"metadata key `{key}` must be lower case, without `=`")
        if "\0" in value or not value:
            raise UsageError(
                f"metadata `{key}` is empty or holds a NUL character, which no container can store"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"metadata `{key}` holds half a surrogate pair, which is no text") from error
    return metadata


def _encode(temporary: Path, target_name: str, frames: Iterable[Frames], rate: Fraction, codec: Codec, crf: int,
            tags: dict[str, str], threads: int, container_format: str) -> tuple[int, tuple[int, int], tuple[int, int], str]:  # fmt: skip
    """-> (frames, (width, height), (padded right, bottom), frames_sha256)."""
    options = {"movflags": "use_metadata_tags+faststart"} if container_format in ("mp4", "mov") else {}
    digest = hashlib.sha256()
    reformatter = VideoReformatter()
    stream: VideoStream | None = None
    container: OutputContainer | None = None
    shape: tuple[int, ...] = ()
    right = bottom = count = 0
    try:
        for frame in frames:
            if stream is None or container is None:
                if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
                    raise ValueError(
                        f"expected uint8 pictures `h w 3`, got {frame.dtype} of shape {frame.shape}"
                    )
                shape = frame.shape
                if codec == "h264":
                    right, bottom = shape[1] % 2, shape[0] % 2
                check_size(target_name, shape[1], shape[0])
                container = av.open(str(temporary), "w", format=container_format, options=options)
                container.metadata.update(tags)
                stream = _output_stream(
                    container, rate, codec, crf, threads, shape[1] + right, shape[0] + bottom
                )
            if frame.shape != shape:
                raise ValueError(f"frame {count} has shape {frame.shape}, the first has {shape}")
            pixels = np.ascontiguousarray(frame)
            digest.update(pixels.data)
            if right or bottom:
                pixels = np.pad(pixels, ((0, bottom), (0, right), (0, 0)), mode="edge")
            picture = VideoFrame.from_ndarray(pixels, format="rgb24")
            if codec == "h264":
                picture = reformatter.reformat(
                    picture,
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                    threads=1,
                )
            else:
                picture = reformatter.reformat(picture, format="bgr0", threads=1)
            picture.pts = count
            picture.duration = 1
            picture.time_base = 1 / rate
            container.mux(stream.encode(picture))
            count += 1
        if stream is None or container is None:
            raise InputError(f"no frames to write to `{target_name}`, wanted at least one")
        container.mux(stream.encode(None))
        container.close()  # writes the index; errors of a full disk come here
    finally:
        if container is not None:
            with suppress(av.error.FFmpegError, OSError):  # a second close of a file that is given up
                container.close()
    return count, (shape[1] + right, shape[0] + bottom), (right, bottom), digest.hexdigest()


def _output_stream(container: OutputContainer, rate: Fraction, codec: Codec, crf: int, threads: int,
                   width: int, height: int) -> VideoStream:  # fmt: skip
    stream: VideoStream
    if codec == "h264":
        options = {"crf": str(crf), "preset": "medium", "profile": "high"}
        # x264's macroblock tree reads memory that it has not written (seen at 48 and 96 px), so bytes would vary
        options["x264-params"] = "mbtree=0"
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = 1  # limited
        context.color_primaries = context.color_trc = context.colorspace = 1  # bt709
    else:
        stream = container.add_stream("ffv1", rate=rate, options={"level": "3", "slicecrc": "1"})
        stream.pix_fmt = "bgr0"
    stream.width, stream.height = width, height
    stream.codec_context.time_base = stream.time_base = 1 / rate
    stream.codec_context.thread_count = threads
    return stream


def _encode_gif(temporary: Path, frames: Frames, ticks: int) -> None:
    height, width = frames.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(ticks, 100)
    )
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    use, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(temporary), "w", format="gif") as container:
        stream = container.add_stream("gif", rate=Fraction(100, ticks))
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        stream.codec_context.time_base = Fraction(1, 100)
        for i, frame in enumerate(frames):
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(ticks, 100)
            graph.push(picture)
        graph.push(None)
        for i in range(len(frames)):
            indexed = graph.pull()
            assert isinstance(indexed, VideoFrame)
            indexed.pts, indexed.time_base, indexed.duration = i * ticks, Fraction(1, 100), ticks
            container.mux(stream.encode(indexed))
        container.mux(stream.encode(None))


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _verify(temporary: Path, target: Path, count: int, tags: dict[str, str]) -> None:
    """Read the finished file back: a full disk and a careless muxer both lose data without an error."""
    found = len(_packet_times(temporary, None))
    if found != count:
        raise DiskError(
            f"`{target}` came out with {found} of {count} frames", hint="free some space on the disk"
        )
    stored = read_metadata(temporary)
    lost = [key for key, value in tags.items() if stored.get(key) != value]
    if lost:
        raise DiskError(f"`{target}` lost its metadata {', '.join(f'`{key}`' for key in lost)} on writing")


def _as_oserror(error: BaseException) -> OSError:
    return error if isinstance(error, OSError) else OSError(getattr(error, "errno", 0) or 0, _words(error))


def _words(error: BaseException | None) -> str:
    """An FFmpeg error without its number, path and function."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split()).lower()[:200]
