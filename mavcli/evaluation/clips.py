"""Which frames of which files are measured: a folder as a list of clips, and one clip as pixels.

Files are taken in the order of their sorted relative paths. A clip is either whole, with as many frames as were asked for,
or a fault that names its file; nothing is padded, repeated or left out without a word.

f frames, h w pixels, uint8 `f h w 3`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mavcli.data.places import IMAGES, walk
from mavcli.errors import InputError, UsageError, counted
from mavcli.files import file_sha256, reading
from mavcli.media.frames import Frames
from mavcli.media.image import describe, hint_for, is_still
from mavcli.media.video import (
    Damage,
    Survey,
    frames_at,
    nearest_frames,
    read_clip,
    read_video,
    same_rate,
    survey,
)

VIDEOS = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".3gp",
        ".ogv",
        ".wmv",
        ".flv",
        ".gif",
    ]
)
_SHOWN = 20


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video: `count` of them (None for all), every `stride`th or `fps` a second, from `start` on."""

    count: int | None = 16
    stride: int = 1
    fps: float | None = None
    start: Literal["first", "centre"] = "first"

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UsageError(f"{self.count} frames, wanted at least 1")
        if self.stride < 1:
            raise UsageError(f"every {self.stride}th frame, wanted at least 1")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UsageError(f"{self.fps:g} fps, wanted more than 0 and at most 1000")
        if self.fps is not None and self.stride != 1:
            raise UsageError("--fps and --stride both choose the frames, give one")
        if self.count is None and self.start != "first":
            raise UsageError("all frames have no centre", hint="--start first, or --frames N")

    def facts(self) -> dict[str, Any]:
        """Everything that decides the frames."""
        return asdict(self)


@dataclass(frozen=True)
class Folder:
    """The clips of one side of a comparison."""

    root: Path
    files: tuple[Path, ...]
    kind: Literal["videos", "pictures"]
    found: int
    """How many there were before `limit`."""
    places: tuple[int, ...]
    """Of each file, its place among those."""

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file's path below the folder."""
        path = self.files[index]
        return str(path.relative_to(self.root)) if path != self.root else path.name


def open_folder(root: Path, *, limit: int | None = None, seed: int = 0, pictures: bool = False) -> Folder:
    """The videos below `root`, however nested, or (with `pictures`, where there is no video) its pictures.

    With `limit` exactly so many are drawn, by `seed` and not by name, so that a folder sorted by class keeps its classes.
    Raises InputError when there are fewer, or none.
    """
    if not root.exists():
        raise InputError(f"`{root}` does not exist, a folder of videos is wanted")
    every = [root] if root.is_file() else walk(root)
    files = [path for path in every if path.suffix.lower() in VIDEOS]
    kind: Literal["videos", "pictures"] = "videos"
    if pictures and all(
        path.suffix.lower() in IMAGES and is_still(path) for path in files
    ):  # a GIF may be either
        files, kind = [path for path in every if path.suffix.lower() in IMAGES], "pictures"
    if not files:
        wanted = "a video or a picture" if pictures else "a video"
        if not every:
            raise InputError(f"`{root}` is empty, a folder of videos is wanted")
        if len(every) == 1:
            what = describe(every[0])
            told = f", it is {what}" if what else ""
            raise InputError(f"`{every[0]}` is not {wanted} by its name{told}", hint=what and hint_for(what))
        raise InputError(f"none of the {len(every)} files in `{root}` is {wanted} by its name")
    found = len(files)
    places = list(range(found))
    if limit is not None:
        if found < limit:
            held = counted(found, kind.removesuffix("s"))
            raise InputError(f"`{root}` holds {held}, {limit} are wanted", hint=f"--count {found}")
        places = sorted(np.random.default_rng(seed).permutation(found)[:limit].tolist())
    return Folder(root, tuple(files[i] for i in places), kind, found, tuple(places))


def read_frames(path: Path, choice: FrameChoice) -> Frames:
    """The chosen frames of a video: uint8 (f, h, w, 3).

    Raises InputError when the file is damaged before its last chosen frame, or too short.
    """
    if choice.fps is not None or choice.start == "centre":
        return _by_time(path, choice)
    if choice.count is None:
        clip = read_clip(path)
        _refuse_damage(path, clip.warnings)  # all frames of a file that breaks off are not all its frames
        return clip.frames[:: choice.stride]
    notes: list[str] = []
    last = (choice.count - 1) * choice.stride + 1
    source = read_video(path, max_frames=last, warnings=notes)
    kept = [picture for _, picture in islice(source, 0, None, choice.stride)]
    if len(kept) < choice.count:
        raise _too_short(path, choice, len(kept), notes)
    _refuse_damage(path, notes)
    return np.stack(kept)


def _by_time(path: Path, choice: FrameChoice) -> Frames:
    """The frames of a choice that needs to know all times first."""
    shown: list[tuple[int, int]] = []
    found = survey(path, visit=lambda frame: shown.append((frame.width, frame.height)))
    if choice.count is None or choice.start == "centre":
        _refuse_damage(path, found.warnings)  # neither the end nor the centre is known of what breaks off
    times = found.times
    if choice.fps is None:
        assert choice.count is not None  # `FrameChoice` refuses the centre of all frames
        span = (choice.count - 1) * choice.stride
        if len(times) <= span:
            raise _too_short(path, choice, -(-len(times) // choice.stride), found.warnings)
        first = (len(times) - 1 - span) // 2
        index = np.arange(first, first + span + 1, choice.stride)
    else:
        index = _at_rate(path, choice, found)
    if any(shown[i] != shown[0] for i in index):
        raise InputError(f"`{path}`: the picture changes its size in the stream")
    return frames_at(path, times[index])


def _at_rate(path: Path, choice: FrameChoice, found: Survey) -> NDArray[np.intp]:
    """The numbers of the frames shown `choice.fps` times a second."""
    times, fps = found.times, choice.fps
    assert fps is not None
    fps = found.fps if same_rate(fps, found.fps) else fps  # 30 from 29.97 takes every frame once
    # The last frame is shown for half a source frame beyond its time, by the rule of the nearest.
    held = int((float(times[-1]) + 0.5 / found.fps) * fps + 1e-6) + 1
    count = held if choice.count is None else choice.count
    if held < count:
        raise _too_short(path, choice, held, found.warnings)
    begin = (float(times[-1]) - (count - 1) / fps) / 2 if choice.start == "centre" else 0.0
    if count == 1:
        return np.array([np.abs(times - max(0.0, begin)).argmin()])
    index = nearest_frames(times, max(0.0, begin) + np.arange(count) / fps)
    if index is None or bool((np.diff(index) == 0).any()):
        raise InputError(
            f"`{path}` shows {found.fps:g} fps, at {fps:g} fps a frame would be missing or shown twice"
        )
    return index


def _refuse_damage(path: Path, notes: Sequence[str]) -> None:
    """Raise an InputError where a note tells of damage."""
    for note in notes:
        if isinstance(note, Damage):
            raise InputError(f"`{path}`: {note}")


def _too_short(path: Path, choice: FrameChoice, held: int, notes: Sequence[str]) -> InputError:
    rate = (
        f" at {choice.fps:g} fps"
        if choice.fps
        else f", one in {choice.stride} taken"
        if choice.stride > 1
        else ""
    )
    why = f" ({notes[0]})" if notes else ""
    return InputError(f"`{path}` has {counted(held, 'frame')}{rate}, {choice.count} are wanted{why}")


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises InputError where it cannot be read."""
    with reading(path):
        return file_sha256(path)


def refuse_faults(faults: Sequence[str], folder: Folder) -> None:
    """Raise one InputError with a line for each unusable file, the first twenty of them, below how many there are."""
    if not faults:
        return
    lines = list(faults[:_SHOWN])
    if len(faults) > _SHOWN:
        lines.append(f"and {len(faults) - _SHOWN:,} more")
    if len(faults) > 1:
        held = counted(len(folder), folder.kind.removesuffix("s"))
        lines.insert(0, f"{len(faults):,} of the {held} in `{folder.root}` cannot be measured:")
    hint = f"mav data check {shlex.quote(str(folder.root))}"
    if len(faults) < len(folder):
        hint = "--skip-unusable measures the rest, and the score says so"
    raise InputError("\n".join(lines), hint=hint)
