"""The pairs of a study: which video of one folder is compared with which of the other.

They belong together by the first of these rules that gives a pair:

1. name: their paths below the folders are the same but for the suffix;
2. clip: they are interpolations of the same clip, by its name: what `mav interpolate` says of its input, else the file's own
   name without what the tools add to it (`-x4-0` of mav, `_4X_60fps` of RIFE), in lower case, signs as `-`;
3. prompt: they were made from the same one, in the order of their names.

A folder of frames counts as a video (`mavcli.evaluation.frame_folders`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from mavcli.engine.output import slug
from mavcli.errors import InputError, UsageError
from mavcli.evaluation.captions import prompts_of
from mavcli.evaluation.clips import Folder
from mavcli.evaluation.described import Described, run_of, videos_below
from mavcli.evaluation.frame_folders import FILM_FRAMES, FILM_VIDEO, frame_folders, frames_of, video_name
from mavcli.evaluation.playable import broken_of
from mavcli.media.video import probe

_ADDED = re.compile(r"(_\d+X(_\d+fps)?|-x\d+-\d+)$", re.ASCII)
"""What RIFE's `inference_video.py` and `mav interpolate` put behind the name of their input."""


class Pair(NamedTuple):
    """What two systems made of one prompt, or of one clip."""

    name: str
    prompt: str | None
    a: Path
    b: Path
    fps: Fraction | None = None
    """Frames a second at which a folder of frames is shown; None where both are videos."""

    @property
    def rate(self) -> Fraction:
        assert self.fps is not None  # `find_pairs` gives one to every pair with a folder of frames
        return self.fps

    @property
    def frame_folders(self) -> list[Path]:
        return [path for path in (self.a, self.b) if path.is_dir()]


def find_pairs(
    a: Path, b: Path, *, prompts: Path | None = None, fps: Fraction | None = None
) -> tuple[list[Pair], list[str]]:
    """The pairs of two folders; and, in words, what has no partner or is left out.

    `prompts` is a text file with a line for each pair in the order of the names, or CSV or JSONL with a `file` (of `a`) and a
    `prompt` a row. A folder of frames is shown at `fps`, else for as long as its partner. Raises InputError.
    """
    notes: list[str] = []
    sides = [_side(folder, notes) for folder in (a, b)]
    keyed = [_by_name(videos, folder) for videos, folder in zip(sides, (a, b), strict=True)]
    if not keyed[0].keys() & keyed[1].keys():
        keyed = _by_clip(sides, (a, b))
    if not keyed[0].keys() & keyed[1].keys():
        keyed = [_by_prompt(videos) for videos in sides]
    names = sorted(keyed[0].keys() & keyed[1].keys())
    if not names:
        raise InputError(
            f"no video of `{a}` belongs to one of `{b}`: neither names nor prompts agree",
            hint="give the two videos of a prompt the same file name",
        )
    notes += [
        f"`{video.path}` has no partner in `{other}`"
        for side, others, other in ((keyed[0], keyed[1], b), (keyed[1], keyed[0], a))
        for name, video in sorted(side.items())
        if name not in others
    ]
    pairs = [
        Pair(name, keyed[0][name].prompt or keyed[1][name].prompt, keyed[0][name].path, keyed[1][name].path)
        for name in names
    ]
    for pair in pairs:
        both = keyed[0][pair.name].prompt, keyed[1][pair.name].prompt
        if prompts is None and None not in both and both[0] != both[1]:
            raise InputError(
                f"`{pair.a}` was made from `{both[0]}`, `{pair.b}` from `{both[1]}`",
                hint="--prompts FILE says what both should show",
            )
    if prompts is not None:
        pairs = _with_prompts(pairs, a, prompts)
    broken = broken_of(path for pair in pairs for path in (pair.a, pair.b) if not path.is_dir())
    lines = [f"`{path}` {why}: its pair is left out" for path, why in broken.items()]
    pairs = [pair for pair in pairs if not {pair.a, pair.b} & broken.keys()]
    if not pairs:
        raise InputError(f"every pair has a video that cannot be read: {lines[0]}")
    runs = {video.path: video.run for side in sides for video in side}
    return [_with_rate(pair, fps, runs) for pair in pairs], [*lines, *notes]


def interpolations(root: Path) -> Callable[[str], Path | None]:
    """Finds what a folder holds of a clip, by the path of the clip below its own folder, without suffix.

    What only the clip's own name tells, two in the folder may not share: raises InputError when it is asked for.
    """
    videos = _side(root, [])
    by_name = _by_name(videos, root)
    by_clip: dict[str, list[Path]] = {}
    for video in videos:
        by_clip.setdefault(_clip(video), []).append(video.path)

    def find(name: str) -> Path | None:
        if name in by_name:
            return by_name[name].path
        found = by_clip.get(slug(Path(name).name), [])
        if len(found) > 1:
            raise InputError(
                f"`{found[0]}` and `{found[1]}` may both be of the clip `{name}`",
                hint="give the frames of a clip the clip's own path",
            )
        return found[0] if found else None

    return find


def _side(root: Path, notes: list[str]) -> list[Described]:
    """The videos and the folders of frames below a folder, by name."""
    files = videos_below(root, faults=notes)
    folders = frame_folders(root, videos=files)
    if not files and not folders:
        raise InputError(f"`{root}` holds no video, and no folder of numbered frames")
    by_film = {folder.parent for folder in folders if folder.name == FILM_FRAMES}
    files = [path for path in files if path.stem != FILM_VIDEO or path.parent not in by_film]
    videos = [Described(path, video_name(path, root), *run_of(path)) for path in files]
    notes += [video.fault for video in videos if video.fault]
    videos += [Described(folder, video_name(folder, root), {}) for folder in folders]
    return sorted(videos, key=lambda video: (video.name, video.path))


def _by_name(videos: Sequence[Described], folder: Path) -> dict[str, Described]:
    keyed: dict[str, Described] = {}
    for video in videos:
        if (known := keyed.setdefault(video.name, video)) is not video:
            raise InputError(
                f"`{folder}` holds two videos named `{video.name}`: `{known.path}` and `{video.path}`",
                hint="keep one of them",
            )
    return keyed


def _by_clip(sides: Sequence[Sequence[Described]], folders: tuple[Path, Path]) -> list[dict[str, Described]]:
    """Raises InputError where one side has two interpolations of a clip that the other side has as well."""
    clips = [{_clip(video) for video in side} for side in sides]
    shared = clips[0] & clips[1]
    keyed: list[dict[str, Described]] = [{}, {}]
    for side, found, folder in zip(sides, keyed, folders, strict=True):
        for video in side:
            name = _clip(video) if _clip(video) in shared else f"{video.name}\0"  # has no partner
            if (known := found.setdefault(name, video)) is not video:
                raise InputError(
                    f"`{known.path}` and `{video.path}` in `{folder}` are both of the clip `{name}`",
                    hint="keep one of them, or give each pair one name",
                )
    return keyed


def _clip(video: Described) -> str:
    """The name of the clip that a video is an interpolation of."""
    inputs = video.run.get("inputs")
    if video.run.get("kind") == "interpolate" and isinstance(inputs, list) and len(inputs) == 1:
        given = inputs[0].get("path") if isinstance(inputs[0], dict) else None
        if isinstance(given, str) and given:
            return slug(Path(given).stem)
    return slug(_ADDED.sub("", video.name.rpartition("/")[2]))


def _by_prompt(videos: Sequence[Described]) -> dict[str, Described]:
    seen: Counter[str] = Counter()
    keyed = {}
    for video in videos:
        if video.prompt:
            seen[video.prompt] += 1
            keyed[f"{video.prompt} ({seen[video.prompt]})"] = video
    return keyed


def _with_prompts(pairs: list[Pair], a: Path, file: Path) -> list[Pair]:
    """The pairs with the prompts of a file, which names the videos of the first folder."""
    files = tuple(pair.a for pair in pairs)
    texts = prompts_of(Folder(a, files, "videos", len(files), tuple(range(len(files)))), file)
    return [pair._replace(prompt=text) for pair, text in zip(pairs, texts, strict=True)]


def _with_rate(pair: Pair, fps: Fraction | None, runs: Mapping[Path, Mapping[str, Any]]) -> Pair:
    """The pair with a rate for its folder of frames: from the first frame to the last it lasts as long as its partner.

    The last frames of `mav interpolate`, which only hold the clip's last one, do not count.
    """
    folders = pair.frame_folders
    if not folders or fps is not None:
        return pair._replace(fps=fps if folders else None)
    if len(folders) == 2:
        raise UsageError(
            f"nothing says how fast `{pair.a}` and `{pair.b}` are shown, both are folders of frames",
            hint="--fps 24",
        )
    partner = pair.b if folders[0] == pair.a else pair.a
    video, frames = probe(partner), len(frames_of(folders[0]))
    steps = video.frames - _factor(runs[partner])
    if frames == video.frames or steps < 1:
        return pair._replace(fps=video.rate)
    return pair._replace(fps=(video.rate * (frames - 1) / steps).limit_denominator(100_000))


def _factor(run: Mapping[str, Any]) -> int:
    """How many frames `mav interpolate` made of each one of a clip; 1 for other videos."""
    options = run.get("options")
    factor = options.get("factor") if run.get("kind") == "interpolate" and isinstance(options, dict) else 1
    return factor if isinstance(factor, int) and factor > 0 else 1
