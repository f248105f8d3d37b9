"""`mav eval fvd | fid | is | clipsim | motion | published`: scores of folders of videos."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mavcli.cli.console import Console, cache_dir, table
from mavcli.cli.options import ForceOption, JsonOption, QuietOption, finite, with_options
from mavcli.cli.ranks import open_ranks
from mavcli.errors import UsageError, WeightsError, counted
from mavcli.files import file_sha256, is_sealed, sealed, sweep, together, write_text

if TYPE_CHECKING:
    from mavcli.evaluation.clips import Folder, FrameChoice
    from mavcli.evaluation.published import Row
    from mavcli.evaluation.scores import Measurement, MotionScore, Score
    from mavcli.evaluation.shards import Shard

RealArgument = Annotated[Path, typer.Argument(metavar="REAL", help="A folder of real videos, any nesting.")]
GeneratedArgument = Annotated[
    Path, typer.Argument(metavar="GENERATED", help="A folder of generated videos, such as a run's outputs.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="The network's published weights; nothing is downloaded."),
]
FramesOption = Annotated[
    str, typer.Option("--frames", metavar="N|all", help="Frames that are taken of each video.")
]
StrideOption = Annotated[
    int, typer.Option("--stride", min=1, max=10**6, metavar="N", help="Take every Nth frame.")
]
FpsOption = Annotated[
    float | None,
    typer.Option(
        "--fps",
        callback=finite,
        min=0.01,
        max=1000,
        metavar="N",
        help="Take N frames a second, by their timestamps.",
    ),
]
StartOption = Annotated[
    Literal["first", "centre"], typer.Option("--start", help="Where in a video its frames are taken.")
]
CountOption = Annotated[
    int | None,
    typer.Option(
        "--count",
        min=2,
        max=10**7,
        metavar="N",
        help="Measure exactly N videos of each folder, drawn by --seed.",
    ),
]
DrawOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, metavar="N", help="Which videos --count draws.")
]
BatchOption = Annotated[
    int, typer.Option("--batch", min=1, max=4096, metavar="N", help="Videos between two writes to the disk.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, max=1024, metavar="N", help="Videos that are decoded at once.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where the network runs.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-unusable", help="Leave out damaged and short videos; the score counts them.")
]
CovarianceOption = Annotated[
    Literal["unbiased", "biased"] | None,
    typer.Option("--covariance", help="Divide by N - 1 (most codes), or by N."),
]
ScoreOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="NAME", help="Write the score as NAME.json and NAME.md too."),
]


@dataclass(frozen=True)
class Measuring:
    """The options of every metric: which frames of which videos are measured, how, and where the score goes."""

    frames: FramesOption = "16"
    stride: StrideOption = 1
    fps: FpsOption = None
    start: StartOption = "first"
    count: CountOption = None
    seed: DrawOption = 0
    batch: BatchOption = 8
    workers: WorkersOption = 2
    skip_unusable: SkipOption = False
    out: ScoreOption = None
    force: ForceOption = False
    json: JsonOption = False
    quiet: QuietOption = False

    def choice(self, *, fewest: int = 1, reader: str = "") -> FrameChoice:
        """Which frames. Raises UsageError for a number that is none, or fewer than the `reader` needs."""
        from mavcli.evaluation.clips import FrameChoice

        if self.frames != "all" and not self.frames.isdecimal():
            raise UsageError(f"--frames {self.frames}, wanted a number or `all`")
        count = None if self.frames == "all" else int(self.frames)
        if count is not None and count < fewest:
            raise UsageError(f"clips of {counted(count, 'frame')}, {reader} needs at least {fewest}")
        return FrameChoice(count, self.stride, self.fps, self.start)


@dataclass(frozen=True)
class NetworkMeasuring(Measuring):
    """The options of a metric whose network can run on a GPU."""

    device: DeviceOption = "auto"


# What each code of the literature does: BatchNorm's eps, how frames become square, the covariance.
_PORTS: dict[str, tuple[float, Literal["squash", "crop"], Literal["unbiased", "biased"]]] = {
    "tensorflow": (1e-3, "squash", "unbiased"),
    "stylegan-v": (1e-3, "crop", "unbiased"),
    "videogpt": (1e-5, "crop", "unbiased"),
    "cd-fvd": (1e-5, "squash", "biased"),
}


@with_options(NetworkMeasuring)
def fvd(
    real: RealArgument,
    generated: GeneratedArgument,
    weights: WeightsOption = None,
    port: Annotated[
        Literal["tensorflow", "stylegan-v", "videogpt", "cd-fvd"] | None,
        typer.Option("--port", help="Do as the code of that name in every choice below."),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(
            "--eps",
            callback=finite,
            min=0,
            max=1,
            metavar="X",
            help="BatchNorm's eps; by default that of the weights' own code.",
        ),
    ] = None,
    resize: Annotated[
        Literal["squash", "crop"] | None,
        typer.Option("--resize", help="How frames become 224 x 224: both sides, or the shorter and a cut."),
    ] = None,
    covariance: CovarianceOption = None,
    layer: Annotated[
        Literal["logits", "avgpool"], typer.Option("--layer", help="400 logits, or 1,024 pooled features.")
    ] = "logits",
    *,
    chosen: NetworkMeasuring,
) -> None:
    """The Fréchet Video Distance between two folders of videos, with I3D of Kinetics-400.

    Features are kept by content: started again, it goes on where it stopped. `torchrun --nproc-per-node N -m mavcli eval
    fvd ...` shares the work among N processes.
    """
    from mavcli.evaluation.i3d import FEWEST_FRAMES

    choice = chosen.choice(fewest=FEWEST_FRAMES, reader="I3D")
    default = _PORTS[port or "tensorflow"]
    # Without a port eps goes by the file.
    of_port = default if port else (None, *default[1:])
    with _session(chosen, chosen.device) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.networks import I3DFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice)
        a, b = session.folder(real), session.folder(generated)
        network = I3DFeatures(
            find_weights("i3d", weights),
            eps=eps if eps is not None else of_port[0],
            squaring=resize or of_port[1],
            layer=layer,
            device=session.shard.device,
        )
        session.tell(scores.fvd(a, b, network, how, covariance=covariance or of_port[2]))


@with_options(NetworkMeasuring)
def fid(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="A folder of real videos, or of pictures, any nesting.")
    ],
    generated: GeneratedArgument,
    weights: WeightsOption = None,
    resize: Annotated[
        Literal["pytorch-fid", "torch-fidelity", "torchmetrics", "clean-fid"],
        typer.Option("--resize", help="Whose way to 299 x 299 pixels; the codes differ."),
    ] = "pytorch-fid",
    covariance: CovarianceOption = None,
    *,
    chosen: NetworkMeasuring,
) -> None:
    """The Fréchet Inception Distance between the frames of two folders, with TensorFlow's Inception of 2015.

    Needs `pip install 'mavcli[eval]'`. Features are kept by content: started again, it goes on where it stopped.
    """
    choice = chosen.choice()
    with _session(chosen, chosen.device) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.networks import InceptionFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice)
        a = session.folder(real, pictures=True)
        b = session.folder(generated, pictures=True)
        network = InceptionFeatures(
            find_weights("inception", weights), resizing=resize, device=session.shard.device
        )
        session.tell(scores.fid(a, b, network, how, covariance=covariance or "unbiased"))


@with_options(NetworkMeasuring)
def inception(
    generated: GeneratedArgument,
    network: Annotated[
        Literal["c3d", "inception"],
        typer.Option("--network", help="C3D of UCF-101 over clips, or Inception over frames."),
    ] = "c3d",
    weights: WeightsOption = None,
    mean: Annotated[
        Path | None, typer.Option("--mean", metavar="FILE", help="C3D's mean clip, `mean2.npz`.")
    ] = None,
    splits: Annotated[
        int,
        typer.Option(
            "--splits", min=1, max=10**6, metavar="N", help="Equal parts whose scores are averaged."
        ),
    ] = 10,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(
            "--shuffle-seed",
            min=0,
            max=2**32 - 1,
            metavar="N",
            help="Permute first; torch-fidelity's is 2020.",
        ),
    ] = None,
    *,
    chosen: NetworkMeasuring,
) -> None:
    """The Inception Score of a folder of videos: with C3D as for UCF-101 (TGANv2), or with Inception over frames."""
    choice = chosen.choice()
    if network == "c3d" and choice.count != 16:
        raise UsageError(f"clips of {chosen.frames} frames, C3D reads 16", hint="--frames 16")
    with _session(chosen, chosen.device) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.networks import C3DLogits, InceptionFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice)
        folder = session.folder(generated, pictures=network == "inception")
        place = session.shard.device
        judge: C3DLogits | InceptionFeatures
        if network == "c3d":
            judge = C3DLogits(
                find_weights("c3d", weights), find_weights("c3d mean", mean, option="--mean"), device=place
            )
        else:
            judge = InceptionFeatures(
                find_weights("inception", weights),
                resizing="torch-fidelity",
                layer="logits_unbiased",
                device=place,
            )
        session.tell(scores.inception(folder, judge, how, splits=splits, shuffle_seed=shuffle_seed))


@with_options(NetworkMeasuring, frames="all")
def clipsim(
    generated: GeneratedArgument,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="One prompt a line in the order of the videos' names, or a table with `video` and `prompt`; "
            "by default what the videos' own runs say.",
        ),
    ] = None,
    network: Annotated[
        str, typer.Option("--network", metavar="NAME", help="ViT-B/32, ViT-L/14, or a name of open_clip's.")
    ] = "ViT-B/32",
    weights: WeightsOption = None,
    *,
    chosen: NetworkMeasuring,
) -> None:
    """CLIPSIM: how near the frames of each video are to its prompt in CLIP's space, mean over frames, then over videos."""
    choice = chosen.choice()
    with _session(chosen, chosen.device) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.captions import prompts_of
        from mavcli.evaluation.networks import ClipFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice)
        folder = session.folder(generated)
        texts = prompts_of(folder, prompts)
        judge = ClipFeatures(network, find_weights(network, weights), device=session.shard.device)
        session.tell(scores.clipsim(folder, texts, judge, how)[0])


@with_options(Measuring)
def motion(
    generated: GeneratedArgument,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="DIR", help="Videos to compare with, such as real ones."),
    ] = None,
    *,
    chosen: Measuring,
) -> None:
    """How videos move and flicker, from differences of frames alone; no network and no optical flow.

    motion: mean absolute difference of neighbouring frames, black to white is 100 %. coherence: how much a frame's deviation
    from the clip's mean is that of the frame before. flicker: second differences over first ones, 0 even, 1.73 noise.
    brightness: change of the mean brightness from frame to frame.
    """
    choice = chosen.choice(fewest=3, reader="motion")
    with _session(chosen, "cpu") as session:
        from mavcli.evaluation import scores

        how = session.measurement(choice)
        folder = session.folder(generated)
        other = session.folder(reference) if reference else None
        session.tell(scores.motion(folder, how, reference=other))


def published(
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Recompute values that other repositories and papers state, and say how far off they are.

    Scores of features and logits that their sources print need no network. With I3D's weights those of clips that anyone
    can make follow: minutes on a GPU, half an hour on a processor. The rest is listed with the command that scores it.
    """
    with _session(Measuring(json=json, quiet=quiet), device) as session:
        from mavcli.evaluation import published as stated
        from mavcli.evaluation.weight_files import find_weights, lying_weights

        path = find_weights("i3d", weights) if weights else lying_weights("i3d")
        rows = stated.of_printed_numbers()
        if path is None:
            rows += stated.without_weights()
        else:
            rows += stated.check(path, device=session.shard.device, report=session.console)
        rows += stated.of_videos()
        session.console.close()
        for line in _published_lines(rows):
            session.console.result(line)
        told = {"weights": path and str(path), "values": [row.as_dict() for row in rows]}
        session.console.result_object(told)
        off = [row.name for row in rows if row.met is False]
        if off:
            raise WeightsError(
                f"{path} does not give {len(off)} of the stated values, the first is `{off[0]}`: it is another file, or "
                "its code computes otherwise"
            )


class _Session:
    """One command: its console, its place among the ranks, where its score goes."""

    def __init__(self, console: Console, shard: Shard, chosen: Measuring) -> None:
        from mavcli.engine.output import claim_files

        self.console, self.shard, self._chosen = console, shard, chosen
        out = chosen.out
        self._out = out.with_suffix("") if out and out.suffix in (".json", ".md") else out
        if self._out is not None and not self._out.name:
            raise UsageError(f"-o {out} names no file", hint="-o NAME writes NAME.json and NAME.md")
        for folder in {path.parent for path in self._files() if path.parent.is_dir()}:
            sweep(folder)
        self._left = self._left_before()
        claim_files([] if self._left else self._files(), force=chosen.force)

    def measurement(self, choice: FrameChoice) -> Measurement:
        from mavcli.evaluation.scores import Measurement

        return Measurement(
            choice,
            cache_dir() / "features",
            self.console,
            shard=self.shard,
            batch=self._chosen.batch,
            workers=self._chosen.workers,
            skip_unusable=self._chosen.skip_unusable,
        )

    def folder(self, path: Path, *, pictures: bool = False) -> Folder:
        from mavcli.evaluation.clips import open_folder

        return open_folder(path, limit=self._chosen.count, seed=self._chosen.seed, pictures=pictures)

    def tell(self, score: Score | MotionScore) -> None:
        """The score on stdout, and in its files; the leading rank's business."""
        self.console.close()
        if not self.shard.leads:
            return
        network = score.fingerprint.fields["network"]
        if network.get("weights_as_published") is False:
            self.console.warning(f"`{network['weights']}` is not the file that is published under this name")
        if self._files():
            self._write(self._files(), self._texts(score))
        for line in _lines(score.as_dict()):
            self.console.result(line)
        self.console.result_object(score.as_dict())

    def _write(self, places: Sequence[Path], texts: Sequence[str]) -> None:
        """Both files as one commit; the same score that is there already stays."""
        (data, page), (told, shown) = places, texts
        if self._left and data.read_text(encoding="utf-8") == told:
            self.console.message(f"{data} is there already, the same score")
            return
        with together():
            write_text(data, told, overwrite=self._chosen.force)
            digest = hashlib.sha256(told.encode()).hexdigest()
            link = f"<!-- {data.name} beside it has the SHA-256 {digest} -->"
            write_text(page, sealed(f"{shown}\n{link}", comment="<!-- {} -->"), overwrite=self._chosen.force)

    def _left_before(self) -> bool:
        """Whether an earlier score lies there as it was written; the same command again may have it already."""
        if self._chosen.force or not self._files():
            return False
        data, page = self._files()
        try:
            return is_sealed(page) and file_sha256(data) in page.read_text(encoding="utf-8")
        except OSError:
            return False

    def _files(self) -> list[Path]:
        if self._out is None:
            return []
        return [self._out.with_name(f"{self._out.name}{suffix}") for suffix in (".json", ".md")]

    def _texts(self, score: Score | MotionScore) -> tuple[str, str]:
        import json

        return json.dumps(score.as_dict(), indent=1, ensure_ascii=False) + "\n", score.as_markdown()


@contextmanager
def _session(chosen: Measuring, device: str) -> Iterator[_Session]:
    """One command of this process, among the ranks that there are."""
    with open_ranks(device, quiet=chosen.quiet, json=chosen.json) as (shard, console):
        yield _Session(console, shard, chosen)


def _lines(told: Mapping[str, Any]) -> list[str]:
    """What a reader of the terminal sees: the number, then what it is of."""
    printed = told["fingerprint"]
    if told["metric"] == "motion":
        lines = _motion_lines(told)
    else:
        spread = "" if told["std"] is None else f" ± {told['std']:.4g}"
        lines = [f"{told['metric']} {told['value']:.6g}{spread}"]
    for side in ("real", "generated", "reference"):
        if side in printed:
            facts = printed[side]
            sizes = ", ".join(f"{n} of {size}" for size, n in list(facts["sizes"].items())[:3])
            left = f", {facts['left_out']} left out" if facts["left_out"] else ""
            files = counted(facts["measured"], facts["kind"].removesuffix("s"))
            lines.append(f"  {side}: {files}, {counted(facts['rows'], 'row')} ({sizes}){left}")
    network, frames = printed["network"], printed["frames"]
    choices = [
        network["name"],
        network.get("weights", ""),
        network.get("resize", ""),
        printed.get("covariance", ""),
    ]
    lines.append("  " + "; ".join(part for part in choices if part))
    rate = f"{frames['fps']:g} a second" if frames["fps"] else f"every {frames['stride']}"
    lines.append(f"  frames: {frames['count'] or 'all'}, {rate}, from the {frames['start']}")
    lines.append(f"  fingerprint {told['fingerprint_sha256'][:16]}; --json shows all of it")
    return lines


def _motion_lines(told: Mapping[str, Any]) -> list[str]:
    heads = ["figure", "mean", "std", "median"]
    if told["reference"]:
        heads += ["reference", "more than it", "distance"]
    rows = []
    for name, value in told["figures"].items():
        row = [name, f"{value['mean']:.4g}", f"{value['std']:.3g}", f"{value['median']:.4g}"]
        if told["reference"]:
            pair = told["beside"][name]
            row += [
                f"{told['reference'][name]['mean']:.4g}",
                f"{100 * pair['above']:.0f} %",
                f"{pair['distance']:.2f}",
            ]
        rows.append(tuple(row))
    return table(rows, heads=tuple(heads))


def _published_lines(rows: Sequence[Row]) -> list[str]:
    """The values that were recomputed, then those that wait for a file or for videos."""
    done = [
        (row.name, f"{row.stated:.6g}", f"{row.found:.6g}", f"{100 * row.off:.2g} %", row.verdict, row.source)
        for row in rows
        if row.found is not None and row.off is not None
    ]
    lines = table(done, heads=("recomputed", "stated", "found", "off", "", "source"))
    waiting = [row for row in rows if row.found is None]
    for command, some in itertools.groupby(waiting, key=lambda row: row.command):
        listed = [(f"  {row.name}", f"{row.stated:.6g}", row.source) for row in some]
        lines += ["", f"not recomputed; with the files at hand: {command}", *table(listed)]
    return lines
