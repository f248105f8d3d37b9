"""One video file being read: what is demuxed and decoded, and how its frames become pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mavcli.errors import InputError
from mavcli.media import image as still
from mavcli.media.frames import Frames, check_size, fit
from mavcli.media.passing import refuse_passing
from mavcli.media.video.times import Clock

Media = str | os.PathLike[str] | bytes
"""A video: its path, or the bytes of the file (a member of an archive)."""

# What is demuxed. Left out: playlists and image sequences, which make FFmpeg open other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,gif,apng,ogg,m4v,h264,hevc,ivf,obu,"
    "mjpeg,yuv4mpegpipe,nut,mxf,dv,rm,wtv,mp3,wav,aac,flac,amr,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
_PACKETS_WITHOUT_FRAME = 5000  # then the stream is taken for undecodable
FAULTS = (
    av.error.FFmpegError,
    UnicodeDecodeError,
    AttributeError,
    MemoryError,
    EOFError,
    OSError,
    ValueError,
)
"""What PyAV was seen to raise for damaged files. Only calls into PyAV stand under it."""


class Damage(str):
    """A warning that frames are missing or are not what they were; every other one says how a whole video is shown."""

    __slots__ = ()


class Source:
    """One video file being read: what is known of it, what went wrong, and how its frames become pictures."""

    def __init__(self, media: Media, *, stream: int | None = None) -> None:
        self.media = media
        self.name = name_of(media)
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
        except FAULTS as error:
            refuse_passing(self.name, error)
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
        why = f": {words(self._fault)}" if self._fault else ""
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
        with opened(self.media) as container:
            stream = self._pick(container)
            decoder = _alpha_decoder(stream) or stream.codec_context
            if origin is not None:
                with suppress(*FAULTS):  # the caller sees the first frame's time
                    container.seek(round((origin + start) / self.tick), stream=stream, backward=True)
            clock = Clock(origin, self._nominal_step())
            count = idle = 0
            packets = container.demux(stream)
            while idle < _PACKETS_WITHOUT_FRAME:
                idle += 1
                try:
                    packet = next(packets)
                    frames = decoder.decode(packet)
                except StopIteration:
                    break
                except FAULTS as error:
                    refuse_passing(self.name, error, path=path_of(self.media))
                    self._fault = error
                    if count:
                        self._warn_once(
                            Damage(f"damaged data after {count} frames ({clock.last:.2f} s): {words(error)}")
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


def name_of(media: Media) -> str:
    return "video" if isinstance(media, bytes) else os.fspath(media)


def path_of(media: Media) -> str | None:
    """The file itself, or None for bytes."""
    return None if isinstance(media, bytes) else os.fspath(media)


@contextmanager
def opened(media: Media) -> Iterator[InputContainer]:
    name = name_of(media)
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
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        )
    except FAULTS as error:
        refuse_passing(name, error, path=path_of(media))
        raise InputError(
            f"`{name}` is not a video that can be read: {words(error)}",
            hint="download or export it again; a recording cut off before its end has no index",
        ) from error
    with container:
        yield container


def packet_times(path: str | os.PathLike[str], index: int | None) -> NDArray[np.float64]:
    """Ascending seconds of the packets that give a frame each, without decoding."""
    stamps: list[float] = []
    offset = last = step = 0.0
    with opened(path) as container:
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
        except FAULTS as error:
            refuse_passing(name_of(path), error, path=path_of(path))  # else the frames up to here count
    times = np.unique(np.array(stamps))
    return times - times[0] if len(times) else times


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


def words(error: BaseException | None) -> str:
    """An FFmpeg error without its number, path and function."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split()).lower()[:200]
