"""What pocket does with camera pictures: super-resolution, in-betweening and animation on held-out photographs and clips.

    python benchmarks/footage.py DATA [--weights NAME|DIR ...] [--rows sr,interp,animate,eval,size]

DATA has `pictures/` and `footage/`, each with a `MANIFEST.json` whose entries say `file` and `split`; those of `held_out` are
measured, and no training may have seen them. Several `--weights` stand side by side: the shipped family's name, or folders with
`STAGE.safetensors`, for whose missing stages the first one's serve. Everything goes through the cascade as `mav` runs it.

The rows:

- sr, pictures and rendered: 64 -> 128 -> 256 pixels, PSNR (RGB, dB) over bicubic enlargement of the same 64 pixels (antialiased
  bilinear averages of the original, on 8 bits). Beside it each network alone, from true averages of 64 and of 128 pixels. The
  rendered pictures are drawn with a seed of their own. Of clips (16 frames) the same, and the PSNR of the changes from frame to frame:
  what flickers loses there.
- interp: of a held-out clip at 64 pixels every K-th frame is known and ↑F draws the others; PSNR of those (all pixels of the clip
  together) over that of linear blending.
- animate: the colour distance of the last frame from the first (half the L1 distance of 8 x 8 x 8 RGB histograms at 64 pixels, 0 ... 1) of
  76 frames that a held-out picture becomes; beside it that of held-out clips of the same length.
- eval: the shares right of `mav eval pocket`, all seeds together, with Wilson's intervals.
- size: megabytes of all files of the family.

A row is the median over samples with a 95 % bootstrap interval, the samples of one source video drawn together. Without an
interval where there are fewer than two sources.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mavcli.data import world
from mavcli.data.degrade import downsample
from mavcli.data.loader import batch_generator
from mavcli.engine.backend import open_backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import Piece, find_family
from mavcli.engine.randomness import Draw
from mavcli.evaluation.interpolation import blended, compare, psnr
from mavcli.evaluation.intervals import median, wilson
from mavcli.media.frames import fit, to_float, to_uint8
from mavcli.media.image import read_image
from mavcli.media.video import read_video
from mavcli.recipe.load import load_recipe
from mavcli.recipe.resolve import probe_machine, resolve
from mavcli.recipe.schema import Weights
from mavcli.weights.locate import stage_path
from mavcli.weights.provenance import weight_files

SKIPS = (2, 3, 5, 8)
FRAMES = 76
FPS = 24.0


@dataclass
class Row:
    """A figure of each weights: its samples, and the source of each."""

    name: str
    digits: int = 2
    columns: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def samples(self, column: str, values: Sequence[float], groups: Sequence[str]) -> None:
        """The median of `values` and its interval, whole groups being drawn together."""
        found = np.array(values, float)
        middle = median(values, groups)
        self.values[column] = {
            "median": middle.value,
            "samples": len(found),
            "each": [round(v, 4) for v in values],
        }
        text = f"{middle.value:.{self.digits}f}"
        if middle.low is not None:
            self.values[column] |= {"low": middle.low, "high": middle.high}
            text += f" [{middle.low:.{self.digits}f}, {middle.high:.{self.digits}f}]"
        self.columns[column] = f"{text}, {int((found > 0).sum())} of {len(found)} above 0"


def on_grid(x: Tensor) -> Tensor:
    """(n, 3, h, w) rounded to 8 bits, as every stage of the cascade gives and takes it."""
    return to_float(to_uint8(x))


def shrink(x: Tensor, size: int) -> Tensor:
    """(n, 3, h, w) -> (n, 3, size, size), as super-resolution is trained."""
    return on_grid(downsample(x[:, None], size)[:, 0])


def held_out(folder: Path, count: int) -> list[dict[str, Any]]:
    """`count` of the manifest's held-out entries, evenly spread over it."""
    entries = [e for e in json.loads((folder / "MANIFEST.json").read_text()) if e["split"] == "held_out"]
    if not entries:
        sys.exit(f"{folder}/MANIFEST.json has no entry whose split is held_out")
    chosen = np.linspace(0, len(entries) - 1, min(count, len(entries))).round().astype(int)
    return [entries[i] for i in chosen]


class Under:
    """One column of the table: a family's weights, and the cascade that runs them."""

    def __init__(self, weights: str, first: str, dtype: str) -> None:
        self.name = weights if "/" not in weights else "/".join(Path(weights).parts[-2:])
        sets = [f"hardware.dtype={dtype}"]
        if Path(weights).is_dir():
            own = Path(weights).resolve()
            sets += [f"weights.dir={first}"] if first != weights else []
            stages = [
                s for s in Weights.model_fields if s != "dir" and weight_files(own / f"{s}.safetensors")
            ]
            if not stages:
                sys.exit(f"{weights} holds no STAGE.safetensors")
            sets += [f"weights.{stage}={own / stage}.safetensors" for stage in stages]
            if "interp" in stages and "decoder_t" not in stages:
                sets.append(f"weights.decoder_t={own / 'interp'}.safetensors")
        self.sets = sets
        self.recipe = load_recipe("pocket", sets=sets).recipe
        self.backend = open_backend(resolve(self.recipe, machine=probe_machine()))
        self.backend.apply()

    def cascade(self, *pieces: Piece) -> Cascade:
        return Cascade(self.recipe, find_family(self.recipe, pieces), self.backend)

    def megabytes(self) -> float:
        roles = ("clip", "prior", "interp", "sr_lt", "sr_h")
        return sum(f.stat().st_size for r in roles for f in weight_files(stage_path(self.recipe, r))) / 1e6


def super_resolution(
    columns: Sequence[Under], pictures: Tensor, groups: Sequence[str], what: str
) -> list[Row]:
    """`pictures` (n, 3, 256, 256), from 64 pixels by the chain, and each network alone."""
    whole = Row(f"SR 64 -> 256, {what}, dB over bicubic")
    low = Row(f"  SR_l^t alone, 64 -> 128, {what}, dB over bicubic")
    high = Row(f"  SR_h alone, 128 -> 256, {what}, dB over bicubic")
    small, middle = shrink(pictures, 64), shrink(pictures, 128)
    for column in columns:
        cascade = column.cascade("sr_l", "sr_h")
        gains: dict[str, list[float]] = {"whole": [], "low": [], "high": []}
        for i in range(len(pictures)):
            draw = [Draw(1000 + i)]
            made_low = cascade.sr_l(small[i][None, None], draw, fps=FPS)
            made = cascade.sr_h(made_low, draw)
            alone = cascade.sr_h(middle[i][None, None], draw)
            for name, true, given, drawn in (
                ("low", middle[i], small[i], made_low),
                ("whole", pictures[i], small[i], made),
                ("high", pictures[i], middle[i], alone),
            ):
                plain = F.interpolate(given[None], true.shape[-2:], mode="bicubic", align_corners=False)
                gains[name].append(psnr(drawn[0, 0], true) - psnr(on_grid(plain)[0], true))
        for row, name in ((whole, "whole"), (low, "low"), (high, "high")):
            row.samples(column.name, gains[name], groups)
    return [whole, low, high]


def super_resolution_of_clips(
    columns: Sequence[Under], clips: Sequence[tuple[str, Tensor, float]], frames: int = 16
) -> list[Row]:
    """`clips` at 256 pixels, their first `frames` frames from 64 pixels."""
    whole = Row("SR 64 -> 256, held-out clips, dB over bicubic")
    change = Row("  their changes from frame to frame, dB over bicubic")
    for column in columns:
        cascade, gains, moved = column.cascade("sr_l", "sr_h"), [], []
        for i, (_, clip, fps) in enumerate(clips):
            true = clip[:frames]
            small = shrink(true, 64)
            made = cascade.enlarge(small[None], [Draw(2000 + i)], fps=fps)[0]
            plain = on_grid(F.interpolate(small, true.shape[-2:], mode="bicubic", align_corners=False))
            gains.append(psnr(made, true) - psnr(plain, true))
            moved.append(psnr(made.diff(dim=0), true.diff(dim=0)) - psnr(plain.diff(dim=0), true.diff(dim=0)))
        sources = [source for source, _, _ in clips]
        whole.samples(column.name, gains, sources)
        change.samples(column.name, moved, sources)
    return [whole, change]


def in_between(
    columns: Sequence[Under], clips: Sequence[tuple[str, Tensor, float]], longest: int
) -> list[Row]:
    """`clips`: source, frames (f, 3, 64, 64) and rate of each."""
    rows = []
    for skip in SKIPS:
        row = Row(
            f"↑F, every {skip}{'rd' if skip == 3 else 'nd' if skip == 2 else 'th'} frame kept, dB over blending"
        )
        for column in columns:
            cascade, gains, groups = column.cascade("interp", "clip"), [], []
            for i, (source, frames, fps) in enumerate(clips):
                count = (min(len(frames), longest) - 1) // skip * skip + 1
                true = frames[:count]
                made = cascade.interpolate(true[None, ::skip], [Draw(i)], skip=skip, fps=fps)[0]
                ours, plain = compare(made, true, skip), compare(blended(true, skip), true, skip)
                gains.append(ours.psnr - plain.psnr)
                groups.append(source)
            row.samples(column.name, gains, groups)
        rows.append(row)
    return rows


def colour_distance(a: Tensor, b: Tensor) -> float:
    """Half the L1 distance of the 8 x 8 x 8 RGB histograms of two pictures (3, h, w) in [-1, 1]."""

    def histogram(x: Tensor) -> Tensor:
        bins = ((x + 1) * 4).long().clamp(0, 7)
        return torch.bincount((bins[0] * 64 + bins[1] * 8 + bins[2]).flatten(), minlength=512) / x[0].numel()

    return float((histogram(a) - histogram(b)).abs().sum()) / 2


def animation(
    columns: Sequence[Under], pictures: Tensor, clips: Sequence[tuple[str, Tensor, float]], base_only: bool
) -> list[Row]:
    """The last frame's colours against the first's; with `base_only` before super-resolution."""
    row, real = Row("animate, colour distance of frame 76 from frame 1"), Row("  the same, real clips")
    found = []
    for source, frames, fps in clips:
        last = round((FRAMES - 1) / FPS * fps)
        if last < len(frames):
            found.append((source, colour_distance(frames[0], frames[last])))
    for column in columns:
        cascade, distances = column.cascade("interp", "clip", "sr_l", "sr_h"), []
        for i, picture in enumerate(pictures):
            draw = [Draw(i)]
            keys = cascade.animate(shrink(picture[None], cascade.size), draw, fps=FPS)
            video = cascade.fill_up(keys, draw, fps=FPS, frames=FRAMES)
            ends = video[0, [0, -1]]
            if not base_only:
                large = cascade.enlarge(video, draw, fps=FPS)[0, [0, -1]]
                ends = shrink(large, cascade.size)
            distances.append(colour_distance(ends[0], ends[1]))
        row.samples(column.name, distances, [str(i) for i in range(len(distances))])
        if found:
            real.samples(column.name, [d for _, d in found], [s for s, _ in found])
    return [row, real]


def evaluation(columns: Sequence[Under], seen: int, held: int, seeds: Sequence[int]) -> list[Row]:
    """`mav eval pocket` with each column's weights."""
    from mavcli.cli.app import run

    rows: dict[str, Row] = {}
    for column in columns:
        right: dict[str, list[int]] = {}
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                words = [
                    "eval",
                    "pocket",
                    "--prompts",
                    str(seen),
                    "--held-out",
                    str(held),
                    "--seed",
                    str(seed),
                ]
                words += ["-o", folder, "-q", *(w for each in column.sets for w in ("--set", each))]
                if run(words):
                    sys.exit("mav eval pocket failed")
                report = json.loads((Path(folder) / "report.json").read_text())
            for group, told in report["groups"].items():
                for aspect, score in told["shares"].items():
                    count = right.setdefault(f"{group}, {aspect}", [0, 0])
                    count[0] += score["right"]
                    count[1] += score["total"]
        for name, (good, total) in right.items():
            row = rows.setdefault(name, Row(f"eval pocket, {name}, %"))
            low, high = (100 * x for x in wilson(good, total))
            row.columns[column.name] = f"{100 * good / total:.1f} [{low:.1f}, {high:.1f}], {good} of {total}"
            row.values[column.name] = {"right": good, "total": total, "low": low, "high": high}
    return list(rows.values())


def read_clips(folder: Path, count: int, size: int) -> list[tuple[str, Tensor, float]]:
    """(source video, frames (f, 3, size, size), frames a second) of held-out clips, their centre squares."""
    found = []
    for entry in held_out(folder, count):
        frames = np.stack([fit(p, size, rule="crop") for _, p in read_video(folder / entry["file"])])
        top, _, bottom = str(entry["fps"]).partition("/")
        found.append((f"{entry['repo']}/{entry['path']}", to_float(frames), float(top) / float(bottom or 1)))
    return found


def read_pictures(folder: Path, count: int) -> Tensor:
    """(n, 3, 256, 256): the centre squares of held-out photographs."""
    squares = [fit(read_image(folder / e["file"]), 256, rule="crop") for e in held_out(folder, count)]
    return to_float(np.stack(squares))


def render_pictures(count: int) -> Tensor:
    """(n, 3, 256, 256) out of the rendered world."""
    found = []
    for i in range(count):
        rng = batch_generator(2026, stage="footage benchmark", step=0, index=i)
        found.append(world.render(world.draw_scene(rng), float(rng.uniform(0, 4)), 256))
    return to_float(np.stack(found))


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {row.name} | {' | '.join(row.columns.get(c, '-') for c in columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with `pictures/` and `footage/`")
    parser.add_argument("--weights", action="append", help="a family's name or a folder; repeatable [pocket]")
    parser.add_argument("--rows", default="sr,interp,animate,eval,size", help="which rows, comma between")
    parser.add_argument("--pictures", type=int, default=47, help="photographs for super-resolution")
    parser.add_argument("--rendered", type=int, default=48, help="rendered pictures for super-resolution")
    parser.add_argument("--clips", type=int, default=16, help="clips, for ↑F and super-resolution")
    parser.add_argument("--frames", type=int, default=61, help="frames of a clip at most, for ↑F")
    parser.add_argument("--animate", type=int, default=20, help="photographs that are animated")
    parser.add_argument("--base", action="store_true", help="animate: before super-resolution")
    parser.add_argument("--prompts", type=int, default=375, help="of seen pairs, for `mav eval pocket`")
    parser.add_argument("--held-out", type=int, default=125, help="of held-out pairs")
    parser.add_argument("--seeds", default="0,1", help="of `mav eval pocket`")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--json", type=Path, help="write every sample's figure here")
    given = parser.parse_args()

    names = given.weights or ["pocket"]
    columns = [Under(name, names[0], given.dtype) for name in names]
    wanted, rows = set(given.rows.split(",")), []
    makers: dict[str, Callable[[], list[Row]]] = {
        "sr": lambda: [
            *super_resolution(columns, p := read_pictures(given.data / "pictures", given.pictures),
                              [str(i) for i in range(len(p))], "held-out pictures"),
            *super_resolution(columns, q := render_pictures(given.rendered),
                              [str(i) for i in range(len(q))], "rendered pictures"),
            *super_resolution_of_clips(columns, read_clips(given.data / "footage", given.clips, 256)),
        ],
        "interp": lambda: in_between(columns, read_clips(given.data / "footage", given.clips, 64), given.frames),
        "animate": lambda: animation(columns, read_pictures(given.data / "pictures", given.animate),
                                     read_clips(given.data / "footage", given.clips, 64), given.base),
        "eval": lambda: evaluation(columns, given.prompts, given.held_out, [int(s) for s in given.seeds.split(",")]),
        "size": lambda: [_sizes(columns)],
    }  # fmt: skip
    if unknown := wanted - makers.keys():
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    for name, make in makers.items():
        if name in wanted:
            rows += make()
            print(f"{name} is measured", file=sys.stderr)
    print_table(rows, [column.name for column in columns])
    if given.json:
        given.json.write_text(json.dumps({row.name.strip(): row.values for row in rows}, indent=1) + "\n")


def _sizes(columns: Sequence[Under]) -> Row:
    row = Row("weights, MB")
    for column in columns:
        row.values[column.name] = column.megabytes()
        row.columns[column.name] = f"{column.megabytes():.1f}"
    return row


if __name__ == "__main__":
    main()
