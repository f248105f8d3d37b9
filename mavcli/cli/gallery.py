"""`mav gallery DIR`: one static page of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.options import ForceOption, JsonOption, QuietOption
from mavcli.errors import counted


def gallery(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of videos, any nesting.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page [DIR/gallery.html]")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Heading [the folder's name]")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Write one static page of a folder's videos, with the prompt and seed of each.

    Videos play while they are in view; the page has a filter, an order and all that a sidecar says. It needs no server
    and loads nothing from elsewhere.
    """
    with Console(quiet=quiet, json=json) as console:
        from mavcli.evaluation.described import described_videos
        from mavcli.evaluation.gallery import write_gallery

        videos = described_videos(folder)
        page = out or folder / "gallery.html"
        write_gallery(page, videos, title=title or folder.resolve().name, force=force)
        told = sum(video.prompt is not None for video in videos)
        console.message(f"{counted(len(videos), 'video')}, {told} with a prompt")
        console.result(page)
        console.result_object({"page": str(page), "videos": len(videos), "prompts": told})
