"""Folders of numbered pictures as videos: what FILM (`interpolated_frames/frame_000.png`) and RIFE (`0000000.png`) write.

A folder of frames holds pictures whose names end in numbers, all alike before the number, and no video. FILM puts
`interpolated_frames/` and `interpolated.mp4` beside the pictures that it was given: both bear the name of the folder that
they lie in, and the frames, which lost nothing, are taken.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from mavcli.data.places import IMAGES, walk
from mavcli.errors import InputError
from mavcli.evaluation.playable import COPIES, CRF
from mavcli.files import file_sha256, make_folder, reading
from mavcli.media.frames import Frames
from mavcli.media.image import read_image
from mavcli.media.video import write_video

FILM_FRAMES, FILM_VIDEO = "interpolated_frames", "interpolated"
"""What FILM's `interpolator_cli` calls the frames and, with `--output_video`, the video that it makes of a folder."""

_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>[0-9]{1,12})", re.DOTALL | re.ASCII)


def frame_folders(root: Path, *, videos: Sequence[Path]) -> list[Path]:
    """The folders of frames below `root`; `videos` are the videos below it. `root` itself is none."""
    with_video = {path.parent for path in videos}
    pictures: dict[Path, list[Path]] = {}
    for path in walk(root):
        if path.suffix.lower() in IMAGES and COPIES not in path.relative_to(root).parts:
            pictures.setdefault(path.parent, []).append(path)
    given = {folder.parent for folder in pictures if folder.name == FILM_FRAMES}  # hold what FILM was given
    return [
        folder
        for folder, files in sorted(pictures.items())
        if folder != root
        and folder not in with_video | given
        and len(files) > 1
        and len({match and match["before"] for match in map(_numbered, files)} - {None}) == 1
        and all(map(_numbered, files))
    ]


def frames_of(folder: Path) -> list[Path]:
    """The frames in the order of their numbers. Raises InputError for one that is missing or there twice."""
    numbers: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGES or path.name.startswith("."):
            continue
        match = _numbered(path)
        if match is None:
            raise InputError(f"`{path}` has no number, wanted a folder of numbered frames alone")
        number = int(match["number"])
        if number in numbers:
            raise InputError(f"`{numbers[number]}` and `{path}` are both frame {number}")
        numbers[number] = path
    order = sorted(numbers)
    for one, next_ in itertools.pairwise(order):
        if next_ != one + 1:
            raise InputError(
                f"`{folder}` lacks frame {one + 1}: `{numbers[next_].name}` follows `{numbers[one].name}`"
            )
    return [numbers[number] for number in order]


def video_name(path: Path, root: Path) -> str:
    """The name of a video or of a folder of frames: its path below `root` without a suffix, and without FILM's own part."""
    place = path.relative_to(root)
    place = place if path.is_dir() else place.with_suffix("")
    if place.name in (FILM_FRAMES, FILM_VIDEO) and len(place.parts) > 1:
        place = place.parent
    return place.as_posix()


def frames_digest(folder: Path, fps: Fraction) -> str:
    """What is shown, in few letters: the content of every frame, and the rate. Raises InputError."""
    parts = []
    for path in frames_of(folder):
        with reading(path):
            parts.append(file_sha256(path))
    return f"{fps} " + " ".join(parts)


def frames_copy(folder: Path, fps: Fraction, place: Path) -> Path:
    """An H.264 video of the frames in the folder `place`, in which nothing is seen to be lost; made once.

    Raises InputError, DiskError.
    """
    digest = hashlib.sha256(frames_digest(folder, fps).encode()).hexdigest()[:16]
    target = place / f"frames-{digest}.mp4"
    if not target.is_file():
        make_folder(place)
        write_video(target, _pictures(folder), fps=fps, crf=CRF)
    return target


def _pictures(folder: Path) -> Iterator[Frames]:
    size = None
    for path in frames_of(folder):
        picture = read_image(path)
        if size not in (None, picture.shape):
            raise InputError(
                f"`{path}` is {picture.shape[1]} x {picture.shape[0]} px, the frames before it {size[1]} x {size[0]}"
            )
        size = picture.shape
        yield picture


def _numbered(path: Path) -> re.Match[str] | None:
    return _NUMBERED.fullmatch(path.stem)
