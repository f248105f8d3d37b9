"""Sound beside a picture: its packets are copied as they are, moved in time with the picture, and never coded again."""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from mavcli.errors import InputError
from mavcli.media.video.source import FAULTS, opened

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""The containers that results have, by their suffix, and what FFmpeg calls them."""


@dataclass(frozen=True)
class Sound:
    """The sound of a file, as it stands under a picture."""

    path: str
    stream: int
    codec: str
    origin: float = 0.0
    """Seconds, by the file's own clock, at which its picture begins."""
    shift: float = 0.0
    """Seconds of the new picture at which that moment is shown."""
    end: float | None = None
    """Seconds of the new picture from which on there is none; None keeps all of it."""

    def moved(self, *, shift: float, end: float | None = None) -> Sound:
        """The same sound under a picture that has `shift` seconds before it, kept until `end`."""
        return replace(self, shift=shift, end=end)

    def fits(self, suffix: str) -> bool:
        """Whether a file with that suffix can hold it: its header is written in memory, to see."""
        try:
            with opened(self.path) as source:
                stream = source.streams[self.stream]
                assert isinstance(stream, AudioStream)
                with av.open(io.BytesIO(), "w", format=FORMATS[suffix.lower()]) as container:
                    container.add_stream_from_template(stream, opaque=True)
                    container.start_encoding()
        except (*FAULTS, KeyError):
            return False
        return True

    def container(self) -> str | None:
        """The suffix of a file that can hold it, or None."""
        return next((suffix for suffix in FORMATS if self.fits(suffix)), None)


def find_sound(path: str | os.PathLike[str], *, origin: float) -> Sound | None:
    """The best sound of a video file whose picture begins at `origin` seconds of its clock; None where there is none."""
    with suppress(InputError), opened(path) as container:  # what FFmpeg does not open is an animated picture
        best = container.streams.best("audio")
        if isinstance(best, AudioStream):
            context = best.codec_context
            return Sound(os.fspath(path), best.index, context.name if context else "unknown", origin)
    return None


def join(picture: Path, target: Path, *, container_format: str, tags: dict[str, str], sound: Sound | None) -> None:  # fmt: skip
    """Put a video without sound, its tags and its sound into one file; no frame and no packet is changed.

    Raises what PyAV raises for a disk. Sound that is damaged ends where it is damaged.
    """
    options = {"movflags": "use_metadata_tags+faststart"} if container_format in ("mp4", "mov") else {}
    with ExitStack() as stack:
        bare = stack.enter_context(av.open(str(picture)))
        out = stack.enter_context(av.open(str(target), "w", format=container_format, options=options))
        out.metadata.update(tags)
        parts = [_copied(bare, out)]
        if sound is not None:
            heard = stack.enter_context(opened(sound.path))
            parts.append(_moved(heard, out, sound, negative=container_format != "matroska"))
        for _, _, packet in heapq.merge(*parts):
            out.mux_one(packet)


def _copied(bare: InputContainer, out: OutputContainer) -> Iterator[tuple[float, int, Packet]]:
    video = bare.streams.video[0]
    stream = out.add_stream_from_template(video)
    stream.time_base = video.time_base

    def packets() -> Iterator[tuple[float, int, Packet]]:
        for number, packet in enumerate(bare.demux(video)):
            if packet.size:
                packet.stream = stream
                yield float((packet.dts or 0) * packet.time_base), 2 * number, packet

    return packets()


def _moved(
    heard: InputContainer, out: OutputContainer, sound: Sound, *, negative: bool
) -> Iterator[tuple[float, int, Packet]]:
    source = heard.streams[sound.stream]
    assert isinstance(source, AudioStream)
    stream = out.add_stream_from_template(source, opaque=True)

    def packets() -> Iterator[tuple[float, int, Packet]]:
        last: int | None = None
        demuxed = heard.demux(source)
        number = 0
        while True:
            try:
                packet = next(demuxed)
            except (StopIteration, *FAULTS):
                return
            if packet.pts is None or packet.dts is None:
                continue
            tick = packet.time_base
            move = round(Fraction(sound.shift - sound.origin) / tick)
            begins = float((packet.pts + move) * tick)
            # A coder's run-up lies before the picture; an edit list hides it, where nothing else comes before.
            run_up = packet.is_discard and negative and sound.shift == 0
            if begins < sound.shift - float((packet.duration or 0) * tick) / 2 and not run_up:
                continue
            if sound.end is not None and begins >= sound.end:
                return
            dts = packet.dts + move
            if last is not None and dts <= last:
                continue
            last = dts
            packet.pts, packet.dts = packet.pts + move, dts
            packet.stream = stream
            number += 1
            yield float(dts * tick), 2 * number + 1, packet

    return packets()
