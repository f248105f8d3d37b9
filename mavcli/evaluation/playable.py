"""Which videos every browser plays, and copies in H.264 of the others, for galleries and studies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from av.video.stream import VideoStream

from mavcli.errors import InputError, counted
from mavcli.files import file_sha256, reading, writing
from mavcli.media.frames import Frames
from mavcli.media.video import find_sound, probe, read_video, write_video
from mavcli.media.video.source import opened
from mavcli.report import Report

COPIES = "h264-copies"
"""Name of the folder of copies; what lies in one is no video of its own."""

CRF = 12
"""Visually lossless: a copy must not look worse than what it is compared with."""
_PLAYED = {
    "mov": {"h264": {"yuv420p", "yuvj420p"}, "av1": {"yuv420p", "yuv420p10le"}, "vp9": {"yuv420p"}},
    "webm": {
        "vp8": {"yuv420p", "yuva420p"},
        "vp9": {"yuv420p", "yuva420p"},
        "av1": {"yuv420p", "yuv420p10le"},
    },
}
"""Container -> codec -> formats of pixels that Chrome, Firefox and Safari all play."""
_SHOWN = 5


def why_unplayed(path: Path) -> str | None:
    """Why not every browser plays a video, from its header, in words that go on after its name; None where all do."""
    try:
        with opened(path) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream):
                return "has no video stream"
            context = stream.codec_context
            if context is None:
                return "holds a video codec that is not known here"
            codec, pixels = context.name, context.pix_fmt or "unknown"
            kind = "webm" if path.suffix.lower() == ".webm" else container.format.name.split(",")[0]
            where = container.format.long_name or container.format.name
            if pixels in _PLAYED.get(kind, {}).get(codec, ()):
                return None
            name = context.codec.long_name or codec
            return f"holds {name} ({codec}, {pixels}) in {where}"
    except InputError as error:
        return _without(path, error)


def unplayed_of(paths: Iterable[Path]) -> dict[Path, str]:
    """The files that not every browser plays, and why."""
    found = {path: why_unplayed(path) for path in paths}
    return {path: why for path, why in found.items() if why is not None}


def told(unplayed: Mapping[Path, str]) -> list[str]:
    """A line for each of the first files, and how many more there are."""
    return shortened([f"`{path}` {why}" for path, why in unplayed.items()])


def shortened(lines: Sequence[str], *, tail: str = "and {:,} more") -> list[str]:
    """The first lines, and how many more there are."""
    return [*lines[:_SHOWN], *([tail.format(len(lines) - _SHOWN)] if len(lines) > _SHOWN else [])]


def broken_of(paths: Iterable[Path]) -> dict[Path, str]:
    """The files of which not one frame can be decoded, and why, in words that go on after the name."""
    broken = {}
    for path in paths:
        try:
            probe(path)
        except InputError as error:
            broken[path] = _without(path, error)
    return broken


def _without(path: Path, error: InputError) -> str:
    """What is said of a file, without its name."""
    return " ".join(error.message.replace(f"`{path}`", "").lstrip(" :").split())


def refuse_unplayed(unplayed: Mapping[Path, str], *, of: int, hint: str) -> None:
    """Raise an InputError that names the files that not every browser plays, where there are any."""
    if unplayed:
        head = f"{len(unplayed):,} of {counted(of, 'video')} not every browser plays:"
        raise InputError("\n".join([head, *told(unplayed)]), hint=hint)


def h264_copy(path: Path, folder: Path) -> tuple[Path, str | None]:
    """A copy that every browser plays, in `folder`, named by the file's content and made once; and what it lacks, in words.

    Frames are kept one to one; uneven ones are held until the next is due at the median rate. Raises InputError, DiskError.
    """
    with reading(path):
        target = folder / f"{path.stem}-{file_sha256(path)[:16]}.mp4"
    video = probe(path)
    sound = find_sound(path, origin=video.start)
    fits = sound is None or sound.fits(target.suffix)
    note = None if fits else f"`{path}` has sound that MP4 cannot hold: its copy is silent"
    if not target.is_file():
        with writing(target):
            folder.mkdir(parents=True, exist_ok=True)
        frames = _evenly(path, float(video.rate), video.duration)
        write_video(target, frames, fps=video.rate, crf=CRF, sound=sound if fits else None)
    return target, note


def h264_copies(
    paths: Iterable[Path], folder: Path, *, report: Report, skip_broken: bool = False
) -> dict[Path, Path]:
    """File -> its copy. What is lost on the way is told to `report`.

    With `skip_broken` a file that cannot be read is told of and has no copy; else an InputError is raised. Raises DiskError.
    """
    paths = list(paths)
    copies = {}
    if paths:
        report.stage(f"copying to H.264 in {folder}", len(paths))
    for path in paths:
        note = None
        try:
            copies[path], note = h264_copy(path, folder)
        except InputError as error:
            if not skip_broken:
                raise
            report.warning(f"`{path}` {_without(path, error)}, left out")
        report.advance(1)
        if note is not None:
            report.warning(note)
    return copies


def _evenly(path: Path, rate: float, duration: float) -> Iterator[Frames]:
    """The frames at a constant rate: each is shown until the next one is due."""
    due, held = 0, None
    for time, picture in read_video(path):
        while held is not None and due / rate < time - 0.5 / rate:
            yield held
            due += 1
        held = picture
    assert held is not None  # `read_video` gives a frame or raises
    yield held
    for _ in range(due + 1, round(duration * rate)):
        yield held
