"""One static page of a folder's videos, with the prompt and the seed of each."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mavcli.errors import DiskError
from mavcli.evaluation.described import Described
from mavcli.evaluation.human_server import asset
from mavcli.files import write_text, writing

_MARK = '<meta name="generator" content="mav gallery">'


def gallery_page(videos: Sequence[Described], *, page: Path, title: str) -> str:
    """The page as HTML; it names the videos relative to the folder of `page`."""
    # `<` would end the script in the middle of a prompt.
    told = json.dumps([_told(video, page.parent) for video in videos]).replace("<", "\\u003c")
    parts = {
        "@TITLE@": html.escape(title),
        "@CSS@": asset("gallery.css").decode(),
        "@JS@": asset("gallery.js").decode(),
        "@VIDEOS@": told,
    }
    text = asset("gallery.html").decode()
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


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
    place = _relative(video.path, folder)
    frames, fps = _number(run.get("frames")), _number(run.get("fps"))
    recipe = run.get("recipe")
    random = run.get("random_weights")
    return {
        "src": quote(place),
        "src_shown": place,
        "name": video.name,
        "prompt": video.prompt,
        "seed": _number(run.get("seed")),
        "sample": _number(run.get("sample")),
        "kind": run.get("kind") if isinstance(run.get("kind"), str) else None,
        "recipe": recipe.get("name") if isinstance(recipe, dict) else None,
        "width": _number(run.get("width")),
        "height": _number(run.get("height")),
        "frames": frames,
        "fps": fps,
        "seconds": round(frames / fps, 2) if frames and fps else None,
        "random": ", ".join(map(str, random)) if isinstance(random, list) and random else None,
        "changed": video.path.stat().st_mtime,
    }


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _number(value: Any) -> float | int | None:
    """What a sidecar says as a number; rates stand there as fractions (`24000/1001`)."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return value
    try:
        rate = float(Fraction(str(value)))
    except (ValueError, ZeroDivisionError):
        return None
    return int(rate) if rate.is_integer() else round(rate, 3)
