"""`mav eval fvd | fid | is | clipsim | motion | published`: scores of folders of videos."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mavcli.cli.console import Console, cache_dir, table
from mavcli.cli.options import ForceOption, JsonOption, QuietOption
from mavcli.errors import MavError, UsageError, WeightsError

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
StrideOption = Annotated[int, typer.Option("--stride", min=1, metavar="N", help="Take every Nth frame.")]
FpsOption = Annotated[
    float | None, typer.Option("--fps", metavar="N", help="Take N frames a second, by their timestamps.")
]
StartOption = Annotated[
    Literal["first", "centre"], typer.Option("--start", help="Where in a video its frames are taken.")
]
CountOption = Annotated[
    int | None,
    typer.Option(
        "--count", min=2, metavar="N", help="Measure exactly N videos of each folder, drawn by --seed."
    ),
]
DrawOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Which videos --count draws.")]
BatchOption = Annotated[
    int, typer.Option("--batch", min=1, metavar="N", help="Videos between two writes to the disk.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, metavar="N", help="Videos that are decoded at once.")
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

# What each code of the literature does: BatchNorm's eps, how frames become square, the covariance.
_PORTS: dict[str, tuple[float, Literal["squash", "crop"], Literal["unbiased", "biased"]]] = {
    "tensorflow": (1e-3, "squash", "unbiased"),
    "stylegan-v": (1e-3, "crop", "unbiased"),
    "videogpt": (1e-5, "crop", "unbiased"),
    "cd-fvd": (1e-5, "squash", "biased"),
}


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
        typer.Option("--eps", metavar="X", help="BatchNorm's eps; by default that of the weights' own code."),
    ] = None,
    resize: Annotated[
        Literal["squash", "crop"] | None,
        typer.Option("--resize", help="How frames become 224 x 224: both sides, or the shorter and a cut."),
    ] = None,
    covariance: CovarianceOption = None,
    layer: Annotated[
        Literal["logits", "avgpool"], typer.Option("--layer", help="400 logits, or 1,024 pooled features.")
    ] = "logits",
    frames: FramesOption = "16",
    stride: StrideOption = 1,
    fps: FpsOption = None,
    start: StartOption = "first",
    count: CountOption = None,
    seed: DrawOption = 0,
    batch: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    skip_unusable: SkipOption = False,
    out: ScoreOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The Fréchet Video Distance between two folders of videos, with I3D of Kinetics-400.

    Features are kept by content: started again, it goes on where it stopped. `torchrun --nproc-per-node N -m mavcli eval
    fvd ...` shares the work among N processes.
    """
    choice = _frames(frames, stride=stride, fps=fps, start=start)
    from mavcli.evaluation.i3d import FEWEST_FRAMES

    if choice.count is not None and choice.count < FEWEST_FRAMES:
        raise UsageError(f"clips of {choice.count} frames, I3D needs at least {FEWEST_FRAMES}")
    default = _PORTS[port or "tensorflow"]
    # Without a port eps goes by the file.
    of_port = default if port else (None, *default[1:])
    with _session(device, out, force=force, json=json, quiet=quiet) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.networks import I3DFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice, batch=batch, workers=workers, skip_unusable=skip_unusable)
        a, b = session.folder(real, count=count, seed=seed), session.folder(generated, count=count, seed=seed)
        network = I3DFeatures(
            find_weights("i3d", weights),
            eps=eps if eps is not None else of_port[0],
            squaring=resize or of_port[1],
            layer=layer,
            device=session.shard.device,
        )
        session.tell(scores.fvd(a, b, network, how, covariance=covariance or of_port[2]))


def fid(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="A folder of real videos, or of pictures, any nesting.")
    ],
    generated: GeneratedArgument,
    weights: WeightsOption = None,
    resize: Annotated[
        Literal["pytorch-fid", "torch-fidelity", "clean-fid"],
        typer.Option("--resize", help="Whose way to 299 x 299 pixels; the codes differ."),
    ] = "pytorch-fid",
    covariance: CovarianceOption = None,
    frames: FramesOption = "16",
    stride: StrideOption = 1,
    fps: FpsOption = None,
    start: StartOption = "first",
    count: CountOption = None,
    seed: DrawOption = 0,
    batch: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    skip_unusable: SkipOption = False,
    out: ScoreOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The Fréchet Inception Distance between the frames of two folders, with TensorFlow's Inception of 2015.

    Needs `pip install 'mavcli[eval]'`. Features are kept by content: started again, it goes on where it stopped.
    """
    choice = _frames(frames, stride=stride, fps=fps, start=start)
    with _session(device, out, force=force, json=json, quiet=quiet) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.networks import InceptionFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice, batch=batch, workers=workers, skip_unusable=skip_unusable)
        a = session.folder(real, count=count, seed=seed, pictures=True)
        b = session.folder(generated, count=count, seed=seed, pictures=True)
        network = InceptionFeatures(
            find_weights("inception", weights), resizing=resize, device=session.shard.device
        )
        session.tell(scores.fid(a, b, network, how, covariance=covariance or "unbiased"))


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
        int, typer.Option("--splits", min=1, metavar="N", help="Equal parts whose scores are averaged.")
    ] = 10,
    shuffle_seed: Annotated[
        int | None,
        typer.Option("--shuffle-seed", min=0, metavar="N", help="Permute first; torch-fidelity's is 2020."),
    ] = None,
    frames: FramesOption = "16",
    stride: StrideOption = 1,
    fps: FpsOption = None,
    start: StartOption = "first",
    count: CountOption = None,
    seed: DrawOption = 0,
    batch: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    skip_unusable: SkipOption = False,
    out: ScoreOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The Inception Score of a folder of videos: with C3D as for UCF-101 (TGANv2), or with Inception over frames."""
    choice = _frames(frames, stride=stride, fps=fps, start=start)
    if network == "c3d" and choice.count != 16:
        raise UsageError(f"clips of {frames} frames, C3D reads 16", hint="--frames 16")
    with _session(device, out, force=force, json=json, quiet=quiet) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.networks import C3DLogits, InceptionFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice, batch=batch, workers=workers, skip_unusable=skip_unusable)
        folder = session.folder(generated, count=count, seed=seed, pictures=network == "inception")
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


def clipsim(
    generated: GeneratedArgument,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="One prompt a line in the order of the videos' names, or a .csv or .jsonl with `video` and `prompt`; "
            "by default what the videos' own runs say.",
        ),
    ] = None,
    network: Annotated[
        str, typer.Option("--network", metavar="NAME", help="ViT-B/32, ViT-L/14, or a name of open_clip's.")
    ] = "ViT-B/32",
    weights: WeightsOption = None,
    frames: FramesOption = "all",
    stride: StrideOption = 1,
    fps: FpsOption = None,
    start: StartOption = "first",
    count: CountOption = None,
    seed: DrawOption = 0,
    batch: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    skip_unusable: SkipOption = False,
    out: ScoreOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """CLIPSIM: how near the frames of each video are to its prompt in CLIP's space, mean over frames, then over videos."""
    choice = _frames(frames, stride=stride, fps=fps, start=start)
    with _session(device, out, force=force, json=json, quiet=quiet) as session:
        from mavcli.evaluation import scores
        from mavcli.evaluation.captions import prompts_of
        from mavcli.evaluation.networks import ClipFeatures
        from mavcli.evaluation.weight_files import find_weights

        how = session.measurement(choice, batch=batch, workers=workers, skip_unusable=skip_unusable)
        folder = session.folder(generated, count=count, seed=seed)
        texts = prompts_of(folder, prompts)
        judge = ClipFeatures(network, find_weights(network, weights), device=session.shard.device)
        session.tell(scores.clipsim(folder, texts, judge, how)[0])


def motion(
    generated: GeneratedArgument,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="DIR", help="Videos to compare with, such as real ones."),
    ] = None,
    frames: FramesOption = "16",
    stride: StrideOption = 1,
    fps: FpsOption = None,
    start: StartOption = "first",
    count: CountOption = None,
    seed: DrawOption = 0,
    batch: BatchOption = 8,
    workers: WorkersOption = 2,
    skip_unusable: SkipOption = False,
    out: ScoreOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """How videos move and flicker, from differences of frames alone; no network and no optical flow.

    motion: mean absolute difference of neighbouring frames, black to white is 100 %. coherence: how much a frame's deviation
    from the clip's mean is that of the frame before. flicker: second differences over first ones, 0 even, 1.73 noise.
    brightness: change of the mean brightness from frame to frame.
    """
    choice = _frames(frames, stride=stride, fps=fps, start=start)
    if choice.count is not None and choice.count < 3:
        raise UsageError(f"clips of {choice.count} frames, motion needs at least 3")
    with _session("cpu", out, force=force, json=json, quiet=quiet) as session:
        from mavcli.evaluation import scores

        how = session.measurement(choice, batch=batch, workers=workers, skip_unusable=skip_unusable)
        folder = session.folder(generated, count=count, seed=seed)
        other = session.folder(reference, count=count, seed=seed) if reference else None
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
    with _session(device, None, force=False, json=json, quiet=quiet) as session:
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

    def __init__(self, console: Console, shard: Shard, out: Path | None, *, force: bool) -> None:
        from mavcli.engine.output import claim_files

        self.console, self.shard, self._force = console, shard, force
        self._out = out.with_suffix("") if out and out.suffix in (".json", ".md") else out
        if self._out is not None and not self._out.name:
            raise UsageError(f"-o {out} names no file", hint="-o NAME writes NAME.json and NAME.md")
        claim_files(self._files(), force=force)

    def measurement(
        self, choice: FrameChoice, *, batch: int, workers: int, skip_unusable: bool
    ) -> Measurement:
        from mavcli.evaluation.scores import Measurement

        return Measurement(
            choice,
            cache_dir() / "features",
            self.console,
            shard=self.shard,
            batch=batch,
            workers=workers,
            skip_unusable=skip_unusable,
        )

    def folder(self, path: Path, *, count: int | None, seed: int, pictures: bool = False) -> Folder:
        from mavcli.evaluation.clips import open_folder

        return open_folder(path, limit=count, seed=seed, pictures=pictures)

    def tell(self, score: Score | MotionScore) -> None:
        """The score on stdout, and in its files; the leading rank's business."""
        from mavcli.engine.output import write_text

        self.console.close()
        if not self.shard.leads:
            return
        network = score.fingerprint.fields["network"]
        if network.get("weights_as_published") is False:
            self.console.warning(f"`{network['weights']}` is not the file that is published under this name")
        for path, text in zip(self._files(), self._texts(score), strict=False):
            write_text(path, text, force=self._force)
        for line in _lines(score.as_dict()):
            self.console.result(line)
        self.console.result_object(score.as_dict())

    def _files(self) -> list[Path]:
        if self._out is None:
            return []
        return [self._out.with_name(f"{self._out.name}{suffix}") for suffix in (".json", ".md")]

    def _texts(self, score: Score | MotionScore) -> tuple[str, str]:
        import json

        return json.dumps(score.as_dict(), indent=1, ensure_ascii=False) + "\n", score.as_markdown()


@contextmanager
def _session(device: str, out: Path | None, *, force: bool, json: bool, quiet: bool) -> Iterator[_Session]:
    """Open the ranks and the console; a rank that does not lead is silent, and ends as the leading one does."""
    from mavcli.evaluation.shards import open_shard

    with open_shard(device) as shard, Console(quiet=quiet or not shard.leads, json=json) as console:
        try:
            yield _Session(console, shard, out, force=force)
        except MavError as error:
            if shard.leads:
                raise
            raise SystemExit(error.exit_code) from error


def _frames(count: str, *, stride: int, fps: float | None, start: Literal["first", "centre"]) -> FrameChoice:
    from mavcli.evaluation.clips import FrameChoice

    if count != "all" and not count.isdecimal():
        raise UsageError(f"--frames {count}, wanted a number or `all`")
    return FrameChoice(None if count == "all" else int(count), stride, fps, start)


def _lines(told: Mapping[str, Any]) -> list[str]:
    """What a reader of the terminal sees: the number, then what it is of."""
    print_ = told["fingerprint"]
    if told["metric"] == "motion":
        lines = _motion_lines(told)
    else:
        spread = "" if told["std"] is None else f" ± {told['std']:.4g}"
        lines = [f"{told['metric']} {told['value']:.6g}{spread}"]
    for side in ("real", "generated", "reference"):
        if side in print_:
            facts = print_[side]
            sizes = ", ".join(f"{n} of {size}" for size, n in list(facts["sizes"].items())[:3])
            left = f", {facts['left_out']} left out" if facts["left_out"] else ""
            lines.append(
                f"  {side}: {facts['measured']} {facts['kind']}, {facts['rows']} rows ({sizes}){left}"
            )
    network, frames = print_["network"], print_["frames"]
    choices = [
        network["name"],
        network.get("weights", ""),
        network.get("resize", ""),
        print_.get("covariance", ""),
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
