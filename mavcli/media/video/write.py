"""Videos out: encoded whole, checked, and then given their name, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mavcli.errors import DiskError, InputError, UsageError
from mavcli.files import disk_error, refuse_existing, temporary_path, whole_path
from mavcli.media.frames import Frames, check_size, frames_sha256
from mavcli.media.video.colour import ToYuv420, reformatted
from mavcli.media.video.read import read_metadata
from mavcli.media.video.sound import Sound, join
from mavcli.media.video.source import Source, words
from mavcli.media.video.times import exact_rate

Codec = Literal["h264", "ffv1"]


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


def write_video(path: str | os.PathLike[str], frames: Iterable[Frames], *, fps: Fraction | float,
                codec: Codec = "h264", crf: int = 16,
                metadata: dict[str, str] | Callable[[Written], dict[str, str]] | None = None,
                sound: Sound | None = None, threads: int = 1, overwrite: bool = False) -> Written:  # fmt: skip
    """Encode uint8 (h, w, 3) frames at a constant rate; the file appears whole, checked, or not at all.

    `h264`: High profile, yuv420p limited range, bt709, faststart, in .mp4, .mov or .mkv. `ffv1`: lossless RGB in .mkv.
    Odd sides are made even by repeating the edge (H.264 only). `frames` are taken one by one as they come. `metadata` keys
    are lower case; a function makes them of what was written, such as its hash. `sound` is copied beside the picture. The
    bytes depend on `threads`, the frames' hash does not. Raises UsageError for what cannot be encoded, DiskError (exists, no space,
    no permission), InputError for no frames.
    """
    target = Path(path)
    rate = exact_rate(fps)
    container_format = _container_format(target, codec, crf)
    later = sound is not None or callable(metadata)
    tags = {} if callable(metadata) else _checked_tags(metadata or {})
    with whole_path(target, overwrite=overwrite) as temporary, _disk_errors(target):
        # Matroska rounds times to milliseconds and keeps one of a frame's two: the first writing is in MP4 where it can be.
        between = "mp4" if later and codec == "h264" else container_format
        bare = temporary_path(target) if later else temporary
        try:
            count, size, padded, digest = _encode(
                bare, str(target), frames, rate, codec, crf, {} if later else tags, threads, between
            )
            written = Written(target, count, size[0], size[1], rate, padded, digest)
            if later:
                tags = _checked_tags(metadata(written)) if callable(metadata) else tags
                join(bare, temporary, container_format=container_format, tags=tags, sound=sound)
        finally:
            if later:
                bare.unlink(missing_ok=True)
        _verify(temporary, target, count, tags)
    return written


def write_gif(path: str | os.PathLike[str], frames: Iterable[Frames], *, fps: Fraction | float,
              overwrite: bool = False) -> Written:  # fmt: skip
    """A looping GIF with one palette made for the clip. GIF times are in 1/100 s, so `rate` comes back rounded to that.

    Errors as `write_video`.
    """
    target = Path(path)
    if target.suffix.lower() != ".gif":
        raise UsageError(f"`{target.name}` does not end in `.gif`")
    ticks = max(2, round(100 / exact_rate(fps)))  # browsers slow frames shorter than 2 ticks down to 10
    refuse_existing(target, overwrite)
    pictures = np.stack(list(frames)) if not isinstance(frames, np.ndarray) else frames
    if len(pictures) == 0:
        raise InputError(f"no frames to write to `{target}`")
    with whole_path(target, overwrite=overwrite) as temporary, _disk_errors(target):
        _encode_gif(temporary, pictures, ticks)
        _verify(temporary, target, len(pictures), {})
    height, width = pictures.shape[1:3]
    return Written(
        target, len(pictures), width, height, Fraction(100, ticks), (0, 0), frames_sha256(pictures)
    )


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
    to_yuv: ToYuv420 | None = None
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
                if codec == "h264":
                    to_yuv = ToYuv420(shape[1] + right, shape[0] + bottom, 1 / rate)
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
            if to_yuv is not None:
                picture = to_yuv(picture)
            else:
                picture = reformatted(reformatter, picture, format="bgr0")
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
        stream.codec_context.color_range, stream.codec_context.colorspace = 1, 1  # limited, bt709
    else:
        stream = container.add_stream("ffv1", rate=rate, options={"level": "3", "slicecrc": "1"})
        stream.pix_fmt = "bgr0"
        stream.codec_context.color_range, stream.codec_context.colorspace = 2, 0  # full, RGB
    stream.codec_context.color_primaries = stream.codec_context.color_trc = 1  # bt709
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


def _verify(temporary: Path, target: Path, count: int, tags: dict[str, str]) -> None:
    """Read the finished file back: a full disk and a careless muxer both lose data without an error."""
    found = len(Source(temporary).packet_times())
    if found != count:
        raise DiskError(
            f"`{target}` came out with {found} of {count} frames", hint="free some space on the disk"
        )
    stored = read_metadata(temporary)
    lost = [key for key, value in tags.items() if stored.get(key) != value]
    if lost:
        raise DiskError(f"`{target}` lost its metadata {', '.join(f'`{key}`' for key in lost)} on writing")


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """What FFmpeg says of a disk is an error of writing `target`."""
    try:
        yield
    except av.error.FFmpegError as error:
        cause = (
            error if isinstance(error, OSError) else OSError(getattr(error, "errno", 0) or 0, words(error))
        )
        raise disk_error(target, cause) from error
