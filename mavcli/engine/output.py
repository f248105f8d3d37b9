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
from mavcli.files import make_folder, sweep, write_text
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
    named: bool
    """Whether the user gave this name; otherwise it was made from the prompt."""

    @property
    def sidecar(self) -> Path:
        return self.video.with_suffix(".json")

    @property
    def base_sheet(self) -> Path:
        """The key frames, shown before super-resolution."""
        return self.video.with_suffix(".base.png")

    @property
    def files(self) -> list[Path]:
        return [self.video, self.sidecar, *([self.sheet] if self.sheet else [])]


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
    out: Path | None, output: Output, *, stem: str, several: bool = False, still: bool = False
) -> Target:
    """Where a result goes: `out` as a file, `stem` in `out` as a folder, or `stem` in the recipe's folder.

    A name with a suffix is a file. A `still` is a PNG, without a contact sheet. Raises UsageError for a suffix that is no
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
    return Target(video, sheet, named)


def claim(target: Target, *, force: bool) -> None:
    """Make the folder of `target`. DiskError where that is impossible, or a file is there and `force` is not given."""
    claim_files(target.files, force=force)


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
    try:
        run: dict[str, Any] = json.loads(target.sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = (
        isinstance(run, dict) and run.get("run_key") == key and all(file.is_file() for file in target.files)
    )
    return run if whole else None


def slug(text: str, *, limit: int = 60) -> str:
    """A file name's worth of `text`: `A dog, surfing!` -> `a-dog-surfing`."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = "-".join(words)[:limit].strip("-")
    return name or f"video-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def run_key(run: Mapping[str, Any]) -> str:
    """What tells two runs apart: everything that determines the frames, but not the place or the time.

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
    told["cascade"] = run["recipe"]["resolved"]["cascade"]
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
    `sound` is copied beside them. Raises DiskError.
    """
    claim(target, force=force)
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

    written = write_video(
        target.video,
        sheet.watch(frames),
        fps=rate,
        codec=output.codec,
        crf=output.crf,
        metadata=tags,
        sound=sound,
        overwrite=force,
    )
    if target.sheet is not None:
        write_png(target.sheet, sheet.drawn(float(rate)), overwrite=force)
    write_text(
        target.sidecar, json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n", overwrite=force
    )
    return Written(target, written.frames, told["width"], told["height"], float(rate), written.frames_sha256)


def write_still(target: Target, picture: Frames, *, run: Mapping[str, Any], force: bool = False) -> Written:
    """Write a picture (h, w, 3) uint8 as PNG with `run` inside, and the same as a sidecar. Raises DiskError."""
    claim(target, force=force)
    height, width = picture.shape[:2]
    digest = frames_sha256(picture[None])
    told = {
        "mav_run": 1, **run, "frames": 1, "width": width, "height": height, "frames_sha256": digest,
    }  # fmt: skip
    text = json.dumps(told, ensure_ascii=True, default=str)
    write_png(target.video, picture, overwrite=force, metadata={"mav_run": text})
    write_text(
        target.sidecar, json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n", overwrite=force
    )
    return Written(target, 1, width, height, 0.0, digest)


def write_base_sheet(target: Target, frames: Frames, *, fps: float) -> Path:
    """The key frames as a picture, drawn before super-resolution begins; replaces an older one."""
    write_png(target.base_sheet, contact_sheet(frames, fps=fps), overwrite=True)
    return target.base_sheet


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
