"""One static page of a folder's videos, with the prompt and the seed of each."""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mavcli.errors import DiskError
from mavcli.evaluation.described import Described
from mavcli.evaluation.human_server import asset
from mavcli.files import write_text, writing

_RATE = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?(/[0-9]{1,12})?", re.ASCII)
_MARK = '<meta name="generator" content="mav gallery">'


def gallery_page(videos: Sequence[Described], *, page: Path, title: str) -> str:
    """The page as HTML; it names the videos relative to the folder of `page`."""
    # `<` would end the script in the middle of a prompt.
    told = json.dumps([_told(video, page.parent) for video in videos], allow_nan=False).replace(
        "<", "\\u003c"
    )
    parts = {
        "@TITLE@": html.escape(title),
        "@CSS@": asset("gallery.css").decode(),
        "@JS@": asset("gallery.js").decode(),
        "@VIDEOS@": told,
    }
    # In one pass: what stands for a part may also stand in a title.
    return re.sub("|".join(parts), lambda found: parts[found[0]], asset("gallery.html").decode())


def write_gallery(page: Path, videos: Sequence[Described], *, title: str, force: bool = False) -> None:
    """Write the page; an older one of mav's own is replaced. Raises DiskError."""
    with writing(page):
        if page.is_file() and not force and _MARK not in page.read_text(encoding="utf-8", errors="replace"):
            raise DiskError(
                f"`{page}` exists and is no gallery", hint="--force overwrites it, -o chooses another name"
            )
    write_text(page, gallery_page(videos, page=page, title=title), overwrite=True)


def _told(video: Described, folder: Path) -> dict[str, Any]:
    run = video.run
    place = os.fsencode(os.path.relpath(video.path.resolve(), folder.resolve()))
    frames, fps = _number(run.get("frames")), _number(run.get("fps"))
    recipe = run.get("recipe")
    random = run.get("random_weights")
    return {
        "src": quote(place),
        "src_shown": _shown(place),
        "name": _shown(os.fsencode(video.name)),
        "prompt": video.prompt,
        "seed": _number(run.get("seed")),
        "sample": _number(run.get("sample")),
        "kind": _text(run.get("kind")),
        "recipe": _text(recipe.get("name")) if isinstance(recipe, dict) else None,
        "width": _number(run.get("width")),
        "height": _number(run.get("height")),
        "frames": frames,
        "fps": fps,
        "seconds": _length(frames, fps),
        "random": ", ".join(filter(None, map(_text, random))) or None if isinstance(random, list) else None,
        "changed": _changed(video.path),
    }


def _shown(path: bytes) -> str:
    """A path as text; what is no UTF-8 has the sign for that."""
    return path.decode("utf-8", "replace")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _length(frames: Any, fps: Any) -> float | None:
    """Seconds."""
    if not isinstance(frames, int | float) or not isinstance(fps, int | float) or frames <= 0 or fps <= 0:
        return None
    seconds = frames / fps
    return round(seconds, 2) if seconds < 1e9 else None


def _number(value: Any) -> float | int | str | None:
    """What a sidecar says as a number; rates stand there as fractions (`24000/1001`).

    None for what is no number that a video may have; whole numbers that JavaScript would round are given as text.
    """
    if isinstance(value, str):
        if not _RATE.fullmatch(value):
            return None
        above, _, below = value.partition("/")
        if not float(below or 1):
            return None
        value = float(above) / float(below or 1)
        value = int(value) if value.is_integer() else round(value, 3)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) >= 1 << 53:
        return str(value) if abs(value) < 1 << 128 else None
    return value if math.isfinite(value) else None
