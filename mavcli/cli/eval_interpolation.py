"""`mav eval interpolation CLIPS`: ↑F against the frames that were there, beside blending and what other codes made."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mavcli.cli.console import Console, table
from mavcli.cli.options import Family, SeedOption, with_options
from mavcli.errors import DiskError, InputError, UsageError, counted
from mavcli.files import append_line, make_folder, together, write_text
from mavcli.report import WithoutMessages

if TYPE_CHECKING:
    from mavcli.data.clips import VideoFolder
    from mavcli.engine.cascade import Cascade
    from mavcli.evaluation.interpolation import Clip, Figures, Measured, Predictions, Row
    from mavcli.evaluation.intervals import Median

OURS, BLENDING = "↑F", "blending"


@with_options(Family)
def interpolation(
    clips: Annotated[Path, typer.Argument(metavar="CLIPS", help="A folder of real videos, any nesting.")],
    factors: Annotated[
        str,
        typer.Option("--factors", metavar="K,K-K", help="Every K-th frame is kept: `2-12`, or `2,4,8`."),
    ] = "2-12",
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME=DIR",
            help="Another code's frames, in DIR/x2, DIR/x3, ...; a column more. Repeatable.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, max=10**6, metavar="N", help="So many clips, spread evenly."),
    ] = None,
    frames: Annotated[
        int,
        typer.Option("--frames", min=3, max=10_000, metavar="N", help="At most so many frames of each clip."),
    ] = 61,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--kept",
            metavar="DIR",
            help="Write the kept frames for another code, DIR/xK/CLIP/0000000.png, then stop.",
        ),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Scores [outputs/eval-interpolation-RECIPE]"),
    ] = None,
    *,
    chosen: Family,
) -> None:
    """Keep every K-th frame of real clips, let ↑F draw the others, and say how near they come to those that were there.

    Of each video the longest scene is taken, its centre square at the pixels that ↑F draws. PSNR and SSIM are of the drawn frames;
    the PSNR of changes is of the differences from frame to frame. Linear blending of the kept frames stands beside it, and what
    other codes made of them. Each score is the median over clips with a 95 % interval. Started again, it goes on where it stopped.
    """
    from mavcli.recipe.load import load_recipe
    from mavcli.recipe.resolve import probe_machine, resolve

    skips = _factors(factors)
    loaded = load_recipe(
        chosen.recipe, sets=chosen.sets or (), overrides={"hardware.backend": chosen.backend}
    )
    window = loaded.recipe.cascade.interp.window
    if skips[-1] >= window:
        raise UsageError(
            f"--factors {factors}: ↑F sees {window} frames at once, at most {window - 1} lie between two that are known",
            hint=f"--factors 2-{min(12, window - 1)}",
        )
    folder = out or Path(loaded.recipe.output.dir) / f"eval-interpolation-{loaded.recipe.name}"
    with Console(quiet=chosen.quiet, json=chosen.json) as console:
        from mavcli.data.clips import VideoFolder
        from mavcli.evaluation import interpolation as measures

        videos = VideoFolder(
            str(clips), leave_out=("static", "duplicate"), min_frames=3, progress=_progress(console, clips)
        )
        for name, why in sorted(videos.rejected.items()):
            console.warning(f"`{name}` {why}: left out")
        found = measures.clips_of(videos, longest=frames, count=count)
        short = [clip for clip in found if clip.count <= skips[-1]]
        for clip in short:
            console.warning(
                f"`{clip.name}` has a scene of {counted(clip.count, 'frame')}, too short for factors from {clip.count} on"
            )
        if kept is not None:
            _write_kept(kept, videos, found, skips, force=chosen.force)
            console.result(kept)
            console.result_object(
                {"kept": str(kept), "factors": skips, "clips": [clip.name for clip in found]}
            )
            return
        others = [_predictions(text, skips) for text in against or ()]
        session = _Session(console, chosen, loaded.recipe, videos, found, skips, others, seed)
        for text in session.family.warnings:
            console.warning(text)
        if (beyond := session.family.untrained_skip(loaded.recipe, *skips)) is not None:
            console.warning(beyond)
        if chosen.dry_run:
            console.result(
                f"{counted(len(found), 'clip')}, factors {', '.join(map(str, skips))}, into {folder}"
            )
            console.result_object(
                {"dry_run": True, "clips": [c.name for c in found], "factors": skips, "out": str(folder)}
            )
            return
        session.measure(resolve(loaded.recipe, machine=probe_machine()), folder)


def _factors(text: str) -> list[int]:
    """`2,4-6` -> [2, 4, 5, 6]. Raises UsageError."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,2})\s*(?:-\s*(\d{1,2})\s*)?", part, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 2 <= low <= high:
            raise UsageError(
                f"--factors {text}, wanted whole numbers from 2 on", hint="--factors 2-12, or --factors 2,4,8"
            )
        found |= set(range(low, high + 1))
    return sorted(found)


def _progress(console: Console, clips: Path) -> Any:
    last = 0

    def tell(done: int, of: int) -> None:
        nonlocal last
        if not last:
            console.stage(f"reading {clips}", of)
        console.advance(done - last)
        last = done

    return tell


def _predictions(text: str, skips: Sequence[int]) -> Predictions:
    from mavcli.evaluation.interpolation import Predictions

    name, equals, place = text.partition("=")
    if not equals or not name.strip() or not place:
        raise UsageError(f"--against {text}, wanted NAME=DIR", hint="--against FILM=film")
    if name.strip() in (OURS, BLENDING):
        raise UsageError(f"--against {text}: `{name.strip()}` is a column already")
    return Predictions(name.strip(), Path(place), skips)


def _write_kept(
    root: Path, videos: VideoFolder, clips: Sequence[Clip], skips: Sequence[int], *, force: bool
) -> None:
    """The kept frames as another code reads them, whole and in their own size, numbered without gaps."""
    from mavcli.media.image import write_png

    for clip in clips:
        for skip in skips:
            if clip.count <= skip:
                continue
            place = root / f"x{skip}" / clip.name
            make_folder(place)
            index = range(clip.first, clip.first + clip.span(skip), skip)
            for number, picture in enumerate(videos.pictures(clip.number, index)):
                write_png(place / f"{number:07d}.png", picture, overwrite=force)


class _Session:
    """One comparison: what is measured, and what of it was measured already."""

    def __init__(
        self,
        console: Console,
        chosen: Family,
        recipe: Any,
        videos: VideoFolder,
        clips: Sequence[Clip],
        skips: Sequence[int],
        others: Sequence[Predictions],
        seed: int,
    ) -> None:
        from mavcli.engine.family import find_family

        self.console, self.chosen, self.recipe = console, chosen, recipe
        self.videos, self.clips, self.skips, self.others, self.seed = videos, clips, skips, others, seed
        self.family = find_family(recipe, ("interp", "clip"), random_weights=chosen.random_weights)
        self.size = recipe.cascade.decoder.network.image_size

    def measure(self, resolved: Any, folder: Path) -> None:
        """Measure what is not known yet, and tell all."""
        from mavcli.engine.backend import open_backend
        from mavcli.engine.cascade import Cascade
        from mavcli.evaluation.interpolation import rows_of

        if folder.exists() and not folder.is_dir():
            raise DiskError(f"`{folder}` is a file, wanted a folder", hint="-o chooses another name")
        jobs = [(clip, skip) for clip in self.clips for skip in self.skips if clip.count > skip]
        if not jobs:
            raise InputError(f"no clip has more than {self.skips[0]} frames in one scene")
        place = open_backend(resolved)
        place.apply()
        cascade = Cascade(self.recipe, self.family, place, report=WithoutMessages(self.console))
        settings = self._settings(place)
        known = self._known(folder, settings)
        make_folder(folder)
        missing = [job for job in jobs if self._key(*job) not in known]
        if known and missing:
            self.console.message(f"{len(jobs) - len(missing)} of {len(jobs)} are measured already")
        self.console.plan(sum(self._cost(cascade, *job) for job in missing))
        with cascade.piecewise():
            for clip, skip in missing:
                figures = self._ours(cascade, clip, skip)
                known[self._key(clip, skip)] = figures
                line = {"settings": settings, "key": self._key(clip, skip), "figures": list(figures)}
                append_line(folder / "measured.jsonl", json_module.dumps(line))
        measured = [m for clip, skip in jobs for m in self._all(clip, skip, known)]
        self.console.close()
        self._tell(rows_of(sorted(measured, key=lambda m: m.factor)), measured, folder, settings, place)

    def _settings(self, place: Any) -> str:
        """A digest of all that decides what ↑F draws of a clip."""
        from mavcli.engine.work import content_key

        return content_key(
            {
                "networks": {piece: part.facts() for piece, part in self.family.parts.items()},
                "interp": self.recipe.cascade.interp.model_dump(mode="json"),
                "schedule": self.recipe.interp_schedule().model_dump(mode="json"),
                "curriculum": self.recipe.stage("interp").fps.model_dump(mode="json"),
                "seed": self.seed,
                "size": self.size,
                "arithmetic": place.facts(),
            }
        )

    def _key(self, clip: Clip, skip: int) -> str:
        return f"{clip.sha256} {clip.first}+{clip.count} x{skip}"

    def _known(self, folder: Path, settings: str) -> dict[str, Figures]:
        """What an earlier run with the same settings measured; another run's scores are refused without --force."""
        from mavcli.evaluation.interpolation import Figures

        known: dict[str, Figures] = {}
        other = False
        file = folder / "measured.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                told = json_module.loads(line)
                figures = Figures(*(float(value) for value in told["figures"]))
                own = told["settings"] == settings
            except (ValueError, KeyError, TypeError):
                continue  # a line that a crash cut short is measured again
            other = other or not own
            if own:
                known[told["key"]] = figures
        if other and not known and not self.chosen.force:
            raise DiskError(
                f"`{folder}` holds scores of other weights, settings or another seed",
                hint="-o chooses another folder, --force writes over them",
            )
        return known

    def _cost(self, cascade: Cascade, clip: Clip, skip: int) -> float:
        from mavcli.engine.windows import key_windows

        keys = clip.span(skip) // skip + 1
        return cascade.cost_of_windows(len(key_windows(keys, skip=skip, length=cascade.window)))

    def _ours(self, cascade: Cascade, clip: Clip, skip: int) -> Figures:
        from mavcli.engine.randomness import Draw
        from mavcli.evaluation.interpolation import compare, true_frames

        true = true_frames(self.videos, clip, size=self.size)[: clip.span(skip)]
        made = cascade.interpolate(true[None, ::skip], [Draw(self.seed)], skip=skip, fps=clip.fps)[0]
        return compare(made, true, skip)

    def _all(self, clip: Clip, skip: int, known: dict[str, Figures]) -> list[Measured]:
        """Every system's figures of a clip."""
        from mavcli.evaluation.interpolation import Measured, blended, compare, true_frames

        true = true_frames(self.videos, clip, size=self.size)[: clip.span(skip)]
        found = [
            Measured(clip.name, skip, BLENDING, compare(blended(true, skip), true, skip)),
            Measured(clip.name, skip, OURS, known[self._key(clip, skip)]),
        ]
        for other in self.others:
            made = other.frames(clip, skip, size=self.size)
            if made is None:
                self.console.warning(
                    f"`{other.root}/x{skip}` has nothing of `{clip.name}`: it counts for the others alone"
                )
                continue
            found.append(Measured(clip.name, skip, other.name, compare(made, true, skip)))
        return found

    def _tell(
        self, rows: Sequence[Row], measured: Sequence[Measured], folder: Path, settings: str, place: Any
    ) -> None:
        told = {
            "recipe": self.recipe.name,
            "size": self.size,
            "seed": self.seed,
            "settings": settings,
            "device": str(place.device),
            "dtype": str(place.dtype).removeprefix("torch."),
            "weights": {piece: part.describe() for piece, part in self.family.parts.items()},
            "clips": [
                {"name": c.name, "first": c.first, "frames": c.count, "fps": c.fps} for c in self.clips
            ],
            "left_out": self.videos.rejected,
            "rows": [row.as_dict() for row in rows],
            "measured": [m.as_dict() for m in measured],
        }
        lines = score_lines(rows, size=self.size)
        with together():
            text = json_module.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            write_text(folder / "scores.json", text, overwrite=True)
            write_text(folder / "scores.txt", "\n".join(lines) + "\n", overwrite=True)
        for line in lines:
            self.console.result(line)
        for name in ("scores.json", "scores.txt"):
            self.console.message(str(folder / name))
        self.console.result_object({**told, "out": str(folder)})


def score_lines(rows: Sequence[Row], *, size: int) -> list[str]:
    """A table for each metric: factors down, systems across, and by how much each is above blending."""
    from mavcli.evaluation.interpolation import METRICS

    systems = list(dict.fromkeys(row.system for row in rows))
    by = {(row.factor, row.system): row for row in rows}
    lines = [f"medians over clips at {size} x {size} px, 95 % intervals; every K-th frame was kept"]
    for metric, title in METRICS.items():
        digits = 4 if metric == "ssim" else 2
        heads = ["K", "clips"]
        for system in systems:
            heads += [system] if system == BLENDING else [system, f"{system} over blending"]
        cells = []
        for factor in dict.fromkeys(row.factor for row in rows):
            line = [str(factor), str(by[factor, BLENDING].clips)]
            for system in systems:
                row = by.get((factor, system))
                line.append("" if row is None else _shown(row.medians[metric], digits))
                if system != BLENDING:
                    gain = None if row is None else row.gains.get(metric)
                    own = (
                        ""
                        if row is None or row.clips == by[factor, BLENDING].clips
                        else f" ({counted(row.clips, 'clip')})"
                    )
                    line.append("" if gain is None else _shown(gain, digits, sign=True) + own)
            cells.append(tuple(line))
        lines += ["", title, *table(cells, heads=tuple(heads))]
    return lines


def _shown(value: Median, digits: int, *, sign: bool = False) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    text = f"{value.value:{form}}"
    return text if value.low is None else f"{text} [{value.low:{form}}, {value.high:{form}}]"
