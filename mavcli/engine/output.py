"""Results: a video or a picture, the run that made it inside and beside it, and a contact sheet of a video.

Names are settled before anything is computed, so that an existing file stops a run at its start and not at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mavcli.errors import DiskError, UsageError
from mavcli.files import Commit, is_as_described, make_folder, sweep, together, write_text
from mavcli.media.frames import Frames, contact_sheet, fit, frames_sha256
from mavcli.media.image import write_png
from mavcli.media.video import Sound, exact_rate, write_video
from mavcli.media.video import Written as WrittenVideo
from mavcli.recipe.schema import Output

_SHEET_FRAMES = 16


@dataclass(frozen=True)
class Target:
    """The files of one result; `video` is the result itself, a PNG where a picture was asked for."""

    video: Path
    sheet: Path | None
    base_sheet: Path | None = None
    """The key frames, shown before super-resolution."""

    @property
    def sidecar(self) -> Path:
        return self.video.with_suffix(".json")

    @property
    def described(self) -> list[Path]:
        """The files that the sidecar lists: all but itself."""
        return [self.video, *(file for file in (self.sheet, self.base_sheet) if file is not None)]

    @property
    def files(self) -> list[Path]:
        return [*self.described, self.sidecar]


@dataclass(frozen=True)
class Written:
    """A result on the disk."""

    target: Target
    frames: int
    width: int
    height: int
    fps: float
    frames_sha256: str


def choose_target(
    out: Path | None,
    output: Output,
    *,
    stem: str,
    several: bool = False,
    still: bool = False,
    shows_base: bool = False,
) -> Target:
    """Where a result goes: `out` as a file, `stem` in `out` as a folder, or `stem` in the recipe's folder.

    A name with a suffix is a file. A `still` is a PNG, without a contact sheet; `shows_base` adds that of the key frames.
    Raises UsageError for a suffix that is no
    video's (no picture's), or one file for several results.
    Nothing is touched; whether the place can be used is told by `claim`.
    """
    suffix = ".png" if still else ".mkv" if output.codec == "ffv1" else ".mp4"
    allowed = (suffix,) if still or output.codec == "ffv1" else (".mp4", ".mov", ".mkv")
    named = out is not None and not out.is_dir() and out.suffix != "" and not str(out).endswith(os.sep)
    if named:
        assert out is not None
        if out.suffix.lower() not in allowed:
            kind = "a picture" if still else f"codec `{output.codec}`"
            raise UsageError(
                f"`{out.name}` for {kind}, wanted a name that ends in {' or '.join(allowed)}",
                hint="or a folder, for files with names of their own",
            )
        if several:
            raise UsageError(f"`-o {out}` names one file, there are several results", hint="give a folder")
        video = out
    else:
        folder = out if out is not None else Path(output.dir)
        video = folder / f"{stem}{suffix}"
    sheet = video.with_suffix(".sheet.png") if output.sheet and not still else None
    return Target(video, sheet, video.with_suffix(".base.png") if shows_base else None)


def claim(target: Target, *, force: bool, key: str | None = None) -> None:
    """Make the folder of `target`. DiskError where that is impossible, or a file is there and `force` is not given.

    What the run of `key` left there itself, unchanged, is in nobody's way: it lacks a file, and all are made anew.
    """
    parent = target.video.parent
    if parent.is_dir():
        sweep(parent)
    own = [] if key is None or force else _left_by(target, key, target.described)
    claim_files([file for file in target.files if file not in own], force=force)


def claim_files(files: Sequence[Path], *, force: bool) -> None:
    """Make the folder of files that will be written; raises as `claim` does, before anything is computed."""
    for folder in dict.fromkeys(file.parent for file in files):
        make_folder(folder)
        sweep(folder)
        if not os.access(folder, os.W_OK):
            raise DiskError(f"`{folder}` cannot be written to", hint="choose another folder with -o")
    for file in files:
        if file.is_dir():
            raise DiskError(f"`{file}` is a folder, wanted a file name")
        if file.exists() and not force:
            raise DiskError(f"`{file}` exists", hint="--force overwrites it, -o chooses another name")


def finished_run(target: Target, key: str) -> dict[str, Any] | None:
    """The sidecar of `target` when the same run made it and it is still whole, or None."""
    if target.video.parent.is_dir():
        sweep(target.video.parent)  # a commit that a kill cut short is finished first
    run = _sidecar_of(target, key)
    if run is None:
        return None
    listed = run["files"]
    return run if all(is_as_described(file, listed.get(file.name)) for file in target.described) else None


def _sidecar_of(target: Target, key: str) -> dict[str, Any] | None:
    """What `target`'s sidecar says, where the run of `key` wrote it."""
    try:
        run = json.loads(target.sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(run, dict) and run.get("run_key") == key and isinstance(run.get("files"), dict)
    return run if ours else None


def _left_by(target: Target, key: str, files: Sequence[Path]) -> list[Path]:
    """Those of `files` that the run of `key` left, and its sidecar. DiskError where one was changed since."""
    run = _sidecar_of(target, key)
    if run is None:
        return []
    there = [file for file in files if os.path.lexists(file)]
    for file in there:
        if not is_as_described(file, run["files"].get(file.name)):
            raise DiskError(
                f"`{file}` is not as the same run left it: it was changed or damaged since",
                hint="--force makes it anew, -o chooses another name",
            )
    return [*there, target.sidecar]


def slug(text: str, *, limit: int = 60) -> str:
    """A file name's worth of `text`: `A dog, surfing!` -> `a-dog-surfing`."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = "-".join(words)[:limit].strip("-")
    return name or f"video-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def run_key(run: Mapping[str, Any]) -> str:
    """What tells two runs apart: everything that determines the files, but not the place or the time.

    Another version of mav or torch, and another number of threads, make another run: last bits of frames may differ.
    """
    told = {
        name: run.get(name)
        for name in (
            "kind", "prompt", "options", "seed", "sample", "device", "dtype", "versions", "code_sha256",
        )
    }  # fmt: skip
    told["threads"] = run.get("threads") if run.get("device") == "cpu" else None
    told["weights"] = {name: part["sha256"] for name, part in run["weights"].items()}
    told["inputs"] = [entry["sha256"] for entry in run.get("inputs", ())]
    resolved = run["recipe"]["resolved"]
    told["cascade"] = resolved["cascade"]
    told["output"] = {name: value for name, value in resolved.get("output", {}).items() if name != "dir"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def write_result(
    target: Target,
    frames: Frames | Iterable[Frames],
    *,
    fps: Fraction | float,
    run: Mapping[str, Any],
    output: Output,
    count: int | None = None,
    sound: Sound | None = None,
    force: bool = False,
) -> Written:
    """Write the video with `run` inside, the same as a sidecar, and the contact sheet.

    `frames` (f, h, w, 3) uint8, or `count` pictures that are taken one by one as they come and never held together.
    `sound` is copied beside them. The files are one commit, with what is written in the `together()` round it, if there is
    one; the sidecar lists the others with size and SHA-256. Raises DiskError.
    """
    own = _prepare(target, run, force=force)
    rate = exact_rate(fps)
    sheet = _Sheet(len(frames) if isinstance(frames, Sized) else count or 0)
    title = str(run.get("prompt") or run.get("kind") or "mav")
    # Control characters and lone surrogates cannot be stored in a title.
    title = title.encode("utf-8", "replace").decode().replace("\0", " ").strip() or "mav"
    told: dict[str, Any] = {}

    def tags(written: WrittenVideo) -> dict[str, str]:
        right, bottom = written.padded
        facts = {
            "fps": str(rate),
            "frames": written.frames,
            "width": written.width - right,
            "height": written.height - bottom,
            "frames_sha256": written.frames_sha256,
        }
        told.update({"mav_run": 1, **run, **facts})
        return {"mav_run": json.dumps(told, ensure_ascii=True, default=str), "title": title[:200]}

    with together() as commit:
        written = write_video(
            target.video,
            sheet.watch(frames),
            fps=rate,
            codec=output.codec,
            crf=output.crf,
            metadata=tags,
            sound=sound,
            overwrite=target.video in own,
        )
        if target.sheet is not None:
            write_png(target.sheet, sheet.drawn(float(rate)), overwrite=target.sheet in own)
        _write_sidecar(target, told, commit, overwrite=target.sidecar in own)
    return Written(target, written.frames, told["width"], told["height"], float(rate), written.frames_sha256)


def write_still(target: Target, picture: Frames, *, run: Mapping[str, Any], force: bool = False) -> Written:
    """Write a picture (h, w, 3) uint8 as PNG with `run` inside, and the same as a sidecar. Raises DiskError."""
    own = _prepare(target, run, force=force)
    height, width = picture.shape[:2]
    digest = frames_sha256(picture[None])
    told = {
        "mav_run": 1, **run, "frames": 1, "width": width, "height": height, "frames_sha256": digest,
    }  # fmt: skip
    text = json.dumps(told, ensure_ascii=True, default=str)
    with together() as commit:
        overwrite = target.video in own
        write_png(target.video, picture, overwrite=overwrite, metadata={"mav_run": text})
        _write_sidecar(target, told, commit, overwrite=target.sidecar in own)
    return Written(target, 1, width, height, 0.0, digest)


def _prepare(target: Target, run: Mapping[str, Any], *, force: bool) -> list[Path]:
    """As `claim`, but for the sheet of the key frames, which is there already; the files that may be replaced."""
    files = [file for file in target.described if file != target.base_sheet]
    key = run.get("run_key")
    own = [] if key is None or force else _left_by(target, key, files)
    claim_files([file for file in (*files, target.sidecar) if file not in own], force=force)
    return [*files, target.sidecar] if force else own


def _write_sidecar(target: Target, told: Mapping[str, Any], commit: Commit, *, overwrite: bool) -> None:
    """The run beside its files, with the size and SHA-256 of each."""
    listed = {file.name: commit.describe(file) for file in target.described}
    text = json.dumps({**told, "files": listed}, indent=2, ensure_ascii=False, default=str)
    write_text(target.sidecar, text + "\n", overwrite=overwrite)


def write_base_sheet(
    target: Target, frames: Frames, *, fps: float, key: str | None = None, force: bool = False
) -> Path:
    """The key frames as a picture, drawn before super-resolution begins, to be looked at while that runs.

    It is a part of the result: inside `together()` it goes again when the result comes to nothing. Raises DiskError.
    """
    place = target.base_sheet
    if place is None:
        raise ValueError("a result without a sheet of its key frames")
    overwrite = force or (key is not None and place in _left_by(target, key, [place]))
    with together() as commit, commit.shown_early(place, overwrite=overwrite):
        write_png(place, contact_sheet(frames, fps=fps), overwrite=overwrite)
    return place


class _Sheet:
    """Sixteen frames of a video that goes by, small, for its contact sheet."""

    def __init__(self, count: int) -> None:
        self._places = sorted({round(i * (count - 1) / (_SHEET_FRAMES - 1)) for i in range(_SHEET_FRAMES)})
        self._kept: list[Frames] = []

    def watch(self, frames: Iterable[Frames]) -> Iterator[Frames]:
        """The same frames, one after the other."""
        wanted = set(self._places)
        for place, frame in enumerate(frames):
            if place in wanted:
                height, width = frame.shape[:2]
                cell = min(256, max(96, width))  # a contact sheet's own
                small = (max(1, round(height * cell / width)), cell)
                self._kept.append(frame if width <= cell else fit(frame, small, kernel="lanczos"))
            yield frame

    def drawn(self, fps: float) -> Frames:
        """The contact sheet, when all have gone by."""
        return contact_sheet(np.stack(self._kept), labels=[f"{i / fps:.2f} s" for i in self._places])
