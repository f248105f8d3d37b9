"""`mav gallery DIR`: one static page of videos."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mavcli.cli.console import Console
from mavcli.cli.options import ForceOption, JsonOption, QuietOption
from mavcli.errors import InputError, counted


def gallery(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of videos, any nesting.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page [DIR/gallery.html]")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Heading [the folder's name]")
    ] = None,
    convert: Annotated[
        bool,
        typer.Option("--convert", help="Show H.264 copies of the videos that not every browser plays."),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Write one static page of a folder's videos, with the prompt and seed of each.

    Videos play while they are in view; the page has a filter, an order and all that a sidecar says. It needs no server
    and loads nothing from elsewhere. Videos that not every browser plays are named and left out; with --convert their
    copies, in a folder beside the page, are shown.
    """
    with Console(quiet=quiet, json=json) as console:
        from mavcli.evaluation.described import described_videos
        from mavcli.evaluation.gallery import write_gallery
        from mavcli.evaluation.playable import (
            COPIES,
            h264_copies,
            refuse_unplayed,
            shortened,
            told,
            unplayed_of,
        )

        faults: list[str] = []
        videos = described_videos(folder, faults=faults)
        for line in shortened(faults, tail="{:,} more are left out"):
            console.warning(line)
        page = out or folder / "gallery.html"
        unplayed = unplayed_of(video.path for video in videos)
        again = f"mav gallery {shlex.quote(str(folder))} --convert"
        if convert:
            copies = h264_copies(unplayed, page.parent / COPIES, report=console, skip_broken=True)
            videos = [
                replace(video, path=copies.get(video.path, video.path))
                for video in videos
                if video.path not in unplayed or video.path in copies
            ]
            if not videos:
                raise InputError(f"`{folder}` holds no video that can be read")
        elif len(unplayed) == len(videos):
            refuse_unplayed(unplayed, of=len(videos), hint=again)
        elif unplayed:
            for line in told(unplayed):
                console.warning(line)
            console.warning(
                f"{counted(len(unplayed), 'video')} not every browser plays, left out; `{again}` shows copies in H.264"
            )
            videos = [video for video in videos if video.path not in unplayed]
        write_gallery(page, videos, title=title or folder.resolve().name, force=force)
        prompts = sum(video.prompt is not None for video in videos)
        console.message(f"{counted(len(videos), 'video')}, {prompts} with a prompt")
        console.result(page)
        console.result_object(
            {
                "page": str(page),
                "videos": len(videos),
                "prompts": prompts,
                "unplayed": {str(path): why for path, why in unplayed.items()},
                "faults": faults,
            }
        )
