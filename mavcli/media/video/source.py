"""One video file being read: what is demuxed and decoded, what is missing, and how its frames become pictures."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from mavcli import stopping
from mavcli.errors import InputError, MavError, counted
from mavcli.media import animation
from mavcli.media import image as still
from mavcli.media.frames import Frames, check_size, fit
from mavcli.media.passing import refuse_passing
from mavcli.media.video.colour import Rgb
from mavcli.media.video.times import Clock, Stamps, as_browsers

Media = str | os.PathLike[str] | bytes
"""A video: its path, or the bytes of the file (a member of an archive)."""

# What is demuxed. Left out: playlists and image sequences, which make FFmpeg open other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,gif,apng,ogg,m4v,h264,hevc,ivf,obu,"
    "mjpeg,yuv4mpegpipe,nut,mxf,dv,rm,wtv,mp3,wav,aac,flac,amr,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
_PACKETS_WITHOUT_FRAME = 5000  # then the stream is taken for undecodable
_DEMUXER_FAULTS = 20  # and with so many one after the other its container
_RAW = ("h264", "hevc", "m4v", "mpegvideo", "obu")
"""Streams without a container: no stamps, and a rate that FFmpeg makes up unless the stream tells it."""
_CUT_ANYWHERE = (*_RAW, "mpegts", "mpeg")
"""These may begin in the middle, with packets that nothing can decode; that is no damage."""
_NUMBERED = ("avi", "mxf", "mxf_d10", "mxf_opatom")
"""Containers that may number the packets of a stream with B-frames and say nowhere when each is shown."""
_PROMISES_DURATION = ("matroska,webm", "flv", "asf")
_SKIPPED = 512
"""Bytes between two Matroska packets that are more than a cluster's head and an index: a demuxer passed over damage."""
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
        self.start = 0.0
        self.seekable = True
        self.tick = 0.0
        self.hold = 0.0
        """Seconds that the last frame that came is shown, as the file says; 0 where it does not."""
        self.header_rates: list[Fraction] = []
        self.expected = 0
        """About how many frames there are, by the header; 0 where it does not say."""
        self._step = 0.04
        """Seconds from one frame to the next, by the header."""
        self.codec = self.container_name = ""
        self.shape: tuple[int, int] | None = None  # height, width of the first frame as shown
        self._animated = animation.moving_picture(media)
        self._stamps: Stamps = "delays" if self._animated else "pts"
        self._sar: Fraction | None = None  # None for square pixels
        self._crop = (0, 0, 0, 0)
        self._rgb = Rgb()
        self._side_data = _SideData()
        self._losses = _Losses()
        self._notes: list[str] = []
        self._fault: BaseException | None = None

    @property
    def warnings(self) -> list[str]:
        """What was wrong or approximated so far, in words."""
        return [*self._notes, *self._rgb.notes, *self._losses.told()]

    def decode(self, *, start: float = 0.0) -> Iterator[tuple[float, VideoFrame]]:
        """(seconds from the first frame, frame) of every frame at or after `start`."""
        frames = None
        if start > 1.0:  # decoding a second is cheaper than two more openings
            for _ in self._decode():
                break  # learns the origin
            if self._may_seek():
                frames = self._landed(start, start) or self._landed(start, max(0.0, start - 5.0))
        for time, frame in frames or self._decode():
            if time >= start - 1e-6:
                yield time, frame

    def decode_from(self, keyframe: float, origin: float | None) -> Iterator[tuple[float, VideoFrame]]:
        """All frames from a keyframe's time on, where the file's first timestamp (`origin`) is known: one opening less."""
        return self._decode(seek=keyframe, origin=origin)

    def picture(self, frame: VideoFrame, out: Frames | None = None) -> Frames:
        """One frame as a player shows it: uint8 (h, w, 3) of the first frame's size, written to `out` where that is given."""
        matrix = self._measure(frame)
        left, right, top, bottom = self._crop
        cropped = any(self._crop)
        width, height = (frame.width, frame.height) if cropped else self._square(frame)
        asis = not cropped and matrix is None and (height, width) == self.shape
        try:
            picture = self._rgb(frame, width, height, out if asis else None)
        except FAULTS as error:
            refuse_passing(self.name, error)
            raise InputError(
                f"`{self.name}` holds {frame.format.name} pixels of a colour space that cannot be converted to RGB"
            ) from error
        if cropped:
            picture = picture[top : frame.height - bottom, left : frame.width - right]
            size = self._square(frame)
            if size != (picture.shape[1], picture.shape[0]):
                stretched = Image.fromarray(np.ascontiguousarray(picture)).resize(
                    size, Image.Resampling.BICUBIC
                )
                picture = np.asarray(stretched)
        if asis:
            return picture
        picture = _turned(picture, matrix)
        if self.shape is not None and picture.shape[:2] != self.shape:
            self._note(
                Damage(
                    f"the picture changes from {self.shape[1]} x {self.shape[0]} to {picture.shape[1]} x "
                    f"{picture.shape[0]} px in the stream; later frames are scaled and cut to the first size"
                )
            )
            picture = fit(picture, self.shape, rule="crop")
        if out is None:
            return np.ascontiguousarray(picture)
        out[...] = picture
        return out

    def packet_times(self) -> NDArray[np.float64]:
        """Ascending seconds of the packets that give a frame each, without decoding."""
        times: list[float] = []
        try:
            for time in self._animation_times() if self._animated else self._stamped_times():
                times.append(time)
        except FAULTS as error:
            refuse_passing(self.name, error, path=path_of(self.media))  # else the frames up to here count
        found = np.unique(np.array(times))
        return found - found[0] if len(found) else found

    def _animation_times(self) -> Iterator[float]:
        clock = Clock(None, self._step, self._stamps)
        for frame in animation.frames_of(self.name, self.media):
            yield clock(frame, self.tick)
            self.hold = clock.hold

    def _stamped_times(self) -> Iterator[float]:
        offset = last = step = 0.0
        count = 0
        with opened(self.media) as container:
            stream = self._pick(container)
            for packet in container.demux(stream):
                stamp = packet.dts if self._stamps == "dts" else packet.pts
                if packet.is_discard or not packet.size or (stamp is None and self._stamps != "none"):
                    continue
                hold = (packet.duration or 0) * self.tick
                if self._stamps == "none":
                    time = count * self._step
                elif self._stamps == "delays":
                    time = last
                    hold = as_browsers(hold)
                    last += hold
                else:
                    assert stamp is not None
                    decoded = (packet.dts if packet.dts is not None else stamp) * self.tick + offset
                    if count and decoded < last:  # the clock starts again
                        offset += last + step - decoded
                        decoded = last + step
                    step = decoded - last if count else step
                    last = decoded
                    time = stamp * self.tick + offset
                count += 1
                self.hold = hold
                yield time

    def nothing(self, start: float = 0.0) -> InputError:
        """The error for a file that gave no frame at all."""
        if start > 0 and self.shape is not None:
            return InputError(f"`{self.name}` ends before {start:g} s, wanted a frame there")
        why = f": {words(self._fault)}" if self._fault else ""
        if self._losses.left_out:
            why = f": {counted(self._losses.left_out, 'damaged frame')} and no other"
        return InputError(
            f"`{self.name}` holds no frame that can be decoded ({self.codec or 'unknown codec'}){why}, "
            f"wanted at least one",
            hint="download or export it again; encrypted and truncated files cannot be read",
        )

    def _may_seek(self) -> bool:
        # a program stream is sought by its bytes, and what comes first then has no stamp or another's
        return self._stamps in ("pts", "dts") and self.container_name != "mpeg"

    def _landed(self, start: float, seek: float) -> Iterator[tuple[float, VideoFrame]] | None:
        """The frames from a keyframe at or before `start` on; None where this container's index overshoots."""
        frames = self._decode(seek=seek, origin=self.start)
        first = next(frames, None)
        if first is None or first[0] > start + 1e-6:
            return None
        return chain([first], frames)

    def _decode(self, *, seek: float | None = None, origin: float | None = None) -> Iterator[tuple[float, VideoFrame]]:  # fmt: skip
        """(seconds from the first frame, frame): all of them, or after a seek those from a keyframe on."""
        self._losses = losses = _Losses()
        clock: Clock | None = None
        landed = origin is None
        count = 0
        for frame in self._frames(None if origin is None else origin + (seek or 0.0), losses):
            if not landed and not frame.key_frame:
                continue  # what is shown before the keyframe lacks the frames it is made from
            landed = True
            if frame.is_corrupt:
                losses.leave_out()
                continue
            clock = clock or Clock(origin, self._step, self._stamps)
            time = clock(frame, self.tick)
            count += 1
            self.hold = clock.hold
            losses.shown(time, self._step)
            if count == 1:
                self._measure(frame)
                if origin is None:
                    self.start = clock.origin or 0.0
            yield time, frame
        losses.ended(whole=origin is None)
        if clock is None:
            return
        faulty = clock.restarts or clock.replaced or clock.missing or losses.any
        self.seekable = self._may_seek() and not faulty
        if clock.restarts:
            self._note(f"timestamps start again {clock.restarts} times; the parts are joined")
        if clock.replaced:
            self._note(f"{clock.replaced} of {count} timestamps are out of order and were replaced")

    def _frames(self, seek: float | None, losses: _Losses) -> Iterator[VideoFrame]:
        """Every frame that decodes, in the order of display; what fails is counted."""
        if self._animated:
            self.codec = self.container_name = self._animated
            try:
                yield from animation.frames_of(self.name, self.media)
            except MavError:
                raise
            except Exception as error:  # decoders of damaged pictures raise whatever comes
                stopping.check()
                refuse_passing(self.name, error, path=path_of(self.media))
                self._fault = error
                losses.failed(error)
            return
        with opened(self.media) as container:
            stream = self._pick(container)
            decoder = _alpha_decoder(stream) or stream.codec_context
            if seek is not None:
                with suppress(*FAULTS):  # the caller sees the first frame's time
                    container.seek(round(seek / self.tick), stream=stream, backward=True)
            idle = 0
            for packet in self._packets(container, stream, losses):
                idle += 1
                try:
                    frames = decoder.decode(packet)
                except FAULTS as error:
                    refuse_passing(self.name, error, path=path_of(self.media))
                    self._fault = error
                    if losses.begun or self.container_name not in _CUT_ANYWHERE:
                        losses.failed(error)
                    frames = []
                if frames:
                    idle = 0
                    yield from frames
                elif idle > _PACKETS_WITHOUT_FRAME:
                    break
            if self.container_name != "avi":  # its header counts the frames that were dropped while recording
                losses.promised = _promised(stream, losses.discarded)
            if self.container_name in _PROMISES_DURATION and container.duration:
                losses.duration = container.duration / av.time_base - max(0.0, self.start)

    def _packets(self, container: InputContainer, stream: VideoStream, losses: _Losses) -> Iterator[Packet[Any] | None]:  # fmt: skip
        """The packets of the stream, and None at the end, which flushes a decoder."""
        every = self.container_name in _PROMISES_DURATION
        faults = end = 0
        while faults < _DEMUXER_FAULTS:
            try:
                for packet in container.demux() if every else container.demux(stream):
                    faults = 0
                    if not packet.size:  # a flush of PyAV's
                        continue
                    if every:
                        self._account(packet, end, losses)
                        end = (packet.pos or 0) + packet.size if packet.pos else 0
                        if packet.stream_index != stream.index:
                            continue
                    losses.discarded += packet.is_discard
                    yield packet
                break
            except FAULTS as error:
                refuse_passing(self.name, error, path=path_of(self.media))
                self._fault = error
                losses.failed(error)
                faults += 1
        yield None

    def _account(self, packet: Packet[Any], end: int, losses: _Losses) -> None:
        """Note where the packets of a container end, and where bytes between two of them were passed over."""
        if self.container_name == "matroska,webm" and end and packet.pos and packet.pos - end > _SKIPPED:
            losses.skipped_bytes = True
        if packet.pts is not None and packet.time_base:
            reached = float((packet.pts + (packet.duration or 0)) * packet.time_base) - max(0.0, self.start)
            losses.reached = max(losses.reached, reached)

    def _pick(self, container: InputContainer) -> VideoStream:
        self.container_name = container.format.name
        stream = _chosen(container, self.index, self.name)
        if not self.codec:  # opened for the first time
            self._crop = _container_crop(container, stream)
        self.index = stream.index
        context = stream.codec_context
        if context is None:
            raise InputError(f"`{self.name}` holds a video codec that is not known here")
        self.codec = context.name
        self._rgb.tags = int(context.color_primaries), int(context.color_trc)
        if context.width and context.height:
            check_size(self.name, context.width, context.height)
        context.options = {"max_pixels": str(2 * 64_000_000)}  # the header is not the last word on the size
        stream.thread_type = "NONE"
        context.thread_count = 1
        self.tick = float(stream.time_base or Fraction(1, 1000))
        rates = [stream.average_rate, stream.base_rate, stream.guessed_rate]
        if self.container_name in _RAW:
            self._stamps = "none"
            rates.insert(0, context.framerate)
        elif self.container_name == "gif":
            self._stamps = "delays"
        elif self.container_name in _NUMBERED and context.has_b_frames and self._stamps == "pts":
            self._stamps = "dts" if _numbered(self.media, stream.index) else "pts"
        self.header_rates = [Fraction(rate) for rate in rates if rate and 0 < rate <= 10_000]
        if self.header_rates:
            self._step = float(1 / self.header_rates[0])
        self.expected = stream.frames or round((container.duration or 0) / av.time_base / self._step)
        sar = Fraction(stream.sample_aspect_ratio or 1)
        if not Fraction(1, 10) <= sar <= 10:
            self._note(f"pixels are said to be {float(sar):g} times as wide as high; taken as square")
            sar = Fraction(1)
        self._sar = None if sar == 1 else sar
        return stream

    def _measure(self, frame: VideoFrame) -> _Matrix | None:
        """The turn of a frame; the first one decides the size of all, and what there is to say about them."""
        matrix = self._side_data.display_matrix(frame)
        check_size(self.name, frame.width, frame.height)
        width, height = self._square(frame)
        if self.shape is None or self._sar is not None:
            check_size(self.name, width, height)
        if self.shape is None:
            self.shape = (width, height) if _swaps(matrix) else (height, width)
            if frame.interlaced_frame:
                self._note("the video is interlaced; both fields are shown at once")
            self._rgb.look(frame)
        return matrix

    def _square(self, frame: VideoFrame) -> tuple[int, int]:
        """(width, height) of the part that is shown, with square pixels: the height stays."""
        left, right, top, bottom = self._crop
        if left + right >= frame.width or top + bottom >= frame.height:
            left = right = top = bottom = 0
            self._crop = (0, 0, 0, 0)
        width, height = frame.width - left - right, frame.height - top - bottom
        return (width if self._sar is None else max(1, round(width * self._sar))), height

    def _note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)


class _Losses:
    """What a video lacks: packets that do not decode, frames that come out damaged, and what its container promises beyond."""

    def __init__(self) -> None:
        self.discarded = self.left_out = 0
        self.promised: int | None = None
        """Frames that the container lists, without those that it discards."""
        self.duration = self.reached = 0.0
        """Seconds that the container promises, and the end of its last packet of any stream."""
        self.skipped_bytes = False
        self.begun = False
        self._failures = self._skipped = self._count = 0
        self._last = self._step = 0.0
        self._first = ""
        self._whole = False

    @property
    def any(self) -> bool:
        """Whether something between the first and the last frame is missing."""
        return bool(self._failures or self.left_out or self._skipped)

    def failed(self, error: BaseException) -> None:
        """A packet that gives nothing."""
        self._failures += 1
        place = (
            f"after {counted(self._count, 'frame')} ({self._last:.2f} s)"
            if self.begun
            else "at the beginning"
        )
        self._first = self._first or f"damaged data {place}: {words(error)}"

    def leave_out(self) -> None:
        """A frame that the decoder marks as damaged."""
        self.left_out += 1
        self._first = self._first or f"damaged data {self._place()}"

    def shown(self, time: float, step: float) -> None:
        """A whole frame; `step` is the header's time from one to the next."""
        gap = time - self._last
        usual = max(step, self._step)
        if self.skipped_bytes and self.begun and gap > 1.5 * usual:
            self.skipped_bytes = False
            self._skipped += round(gap / usual) - 1
            self._first = (
                self._first or f"damaged data after {counted(self._count, 'frame')} ({self._last:.2f} s)"
            )
        self._step = gap if self.begun and gap < 1.5 * usual else usual
        self._last = time
        self._count += 1
        self.begun = True

    def ended(self, *, whole: bool) -> None:
        """All frames came; `whole` when they began with the first."""
        self._whole = whole

    def told(self) -> list[Damage]:
        """One line when anything is missing."""
        cut = self.duration - self.reached
        after = 0
        if self._count > 1 and cut > max(0.5, 3 * self._step):
            after = max(0, round((self.duration - self._last) / self._step) - 1)
        missing = 0
        if self._whole and self.promised is not None:
            missing = self.promised - self._count
        elif self._whole:
            missing = self._failures + self.left_out + self._skipped + after
        if missing <= 0:
            return [Damage(self._first)] if self._first else []
        of = self.promised or self._count + missing
        what = self._first
        if not what and not after:
            return [Damage(f"{self._count:,} of the {of:,} frames that the header lists decode")]
        what = what or f"the file ends at {self.reached:.2f} s of the {self.duration:.2f} s that it promises"
        return [Damage(f"{what}; {missing:,} of {of:,} frames {'is' if missing == 1 else 'are'} missing")]

    def _place(self) -> str:
        if not self.begun:
            return "at the beginning"
        return f"after {counted(self._count, 'frame')} ({self._last:.2f} s)"


_Matrix = tuple[int, int, int, int]


class _SideData:
    """Asks frames for the one kind of side data that is needed, whatever others they carry."""

    def __init__(self) -> None:
        self._rotation: int | None = None
        self._matrix: _Matrix | None = None

    def display_matrix(self, frame: VideoFrame) -> _Matrix | None:
        """(a, b, c, d) of x' = a x + c y, y' = b x + d y; None without one. Looked up anew where the rotation changes."""
        if frame.rotation != self._rotation:
            self._rotation = frame.rotation
            try:
                data: Any = frame.side_data.get("DISPLAYMATRIX")
            except ValueError:  # PyAV has no name for the type of another entry, and then shows none
                data = _with_named_side_data(frame).side_data.get("DISPLAYMATRIX")
            matrix = np.frombuffer(data, np.int32) if data is not None else np.empty(0, np.int32)
            self._matrix = tuple(int(matrix[i]) for i in (0, 1, 3, 4)) if matrix.size >= 9 else None  # type: ignore[assignment]
        return self._matrix


def _with_named_side_data(frame: VideoFrame) -> VideoFrame:
    """The same picture without the side data whose type PyAV does not know."""
    graph = av.filter.Graph()
    node = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    named = {kind.value for kind in SideDataType}
    for unnamed in set(range(64)) - named:
        deletion = graph.add("sidedata", f"mode=delete:type={unnamed}")
        node.link_to(deletion)
        node = deletion
    sink = graph.add("buffersink")
    node.link_to(sink)
    graph.configure()
    graph.push(frame)
    out = graph.pull()
    assert isinstance(out, VideoFrame)
    return out


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
            head_hint = "use `mav animate` to make a video of it"
        raise InputError(f"`{name}` is {found}, wanted a video", hint=head_hint)
    try:
        # an absolute path cannot be taken for a URL
        container = av.open(
            io.BytesIO(media) if isinstance(media, bytes) else os.path.abspath(name),
            "r",
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        )
    except FAULTS as error:
        refuse_passing(name, error, path=path_of(media))
        raise InputError(
            f"`{name}` is not a video that can be read: {words(error)}",
            hint="download or export it again; a recording cut off before its end has no index",
        ) from error
    with container:
        yield container


def _chosen(container: InputContainer, index: int | None, name: str) -> VideoStream:
    """The stream of that index, or the best one; a cover picture is none."""
    streams = list(container.streams.video)
    if index is not None:
        found = [stream for stream in streams if stream.index == index]
        if not found:
            raise InputError(f"`{name}` has no video stream {index}")
        return found[0]
    moving = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not moving:
        kinds = sorted({str(stream.type) for stream in container.streams if stream not in streams})
        kinds += ["a cover picture"] if streams else []
        raise InputError(
            f"`{name}` has no video stream, only {' and '.join(kinds) or 'nothing'}, wanted a video"
        )
    best = container.streams.best("video")
    return best if best in moving else moving[0]


def _numbered(media: Media, index: int) -> bool:
    """Whether the stamps of a stream with B-frames only count its packets, as they do in AVI and in many MXF files."""
    with opened(media) as container, suppress(*FAULTS):
        packets = islice(container.demux(container.streams[index]), 64)
        shifts = {p.pts - p.dts for p in packets if p.pts is not None and p.dts is not None}
        return len(shifts) <= 1
    return False


def _promised(stream: VideoStream, discarded: int) -> int | None:
    """Frames that the container lists, or None where it lists none; `discarded` are those that its edit list cuts off."""
    entries = getattr(stream, "index_entries", None)  # since PyAV 17
    listed = len(entries) if entries is not None and stream.container.format.name.startswith("mov,") else 0
    return (listed or stream.frames) - discarded if listed or stream.frames else None


_LOG_LEVEL = threading.Lock()
_CROPPING = re.compile(r"frame cropping: (\d+)/(\d+)/(\d+)/(\d+)", re.IGNORECASE)


def _container_crop(container: InputContainer, stream: VideoStream) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) pixels that `clap` or PixelCrop cuts off.

    Only FFmpeg's description of a file has them: decoders do not apply them, and PyAV has no name for them.
    """
    if not container.format.name.startswith(("mov,", "matroska")):
        return 0, 0, 0, 0
    with _LOG_LEVEL:  # the description is a message of FFmpeg's, at a level that is off
        level = av.logging.get_level()
        try:
            av.logging.set_level(av.logging.INFO)
            text: str = container.dumps_format()  # type: ignore[attr-defined]
        except FAULTS:
            return 0, 0, 0, 0
        finally:
            av.logging.set_level(level)
    for part in re.split(r"^  Stream #", text, flags=re.MULTILINE)[1:]:
        if re.match(rf"0:{stream.index}\D", part) and (found := _CROPPING.search(part)):
            left, right, top, bottom = map(int, found.groups())
            return left, right, top, bottom
    return 0, 0, 0, 0


def _alpha_decoder(stream: VideoStream) -> Any:
    """FFmpeg's own VP8 and VP9 decoders drop transparency; libvpx's keep it."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    return av.CodecContext.create(name, "r")


def _swaps(matrix: _Matrix | None) -> bool:
    return matrix is not None and abs(matrix[1]) + abs(matrix[2]) > abs(matrix[0]) + abs(matrix[3])


def _turned(picture: Frames, matrix: _Matrix | None) -> Frames:
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
