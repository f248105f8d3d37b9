"""One benchmark from its prompts to its scores: samples are generated once, kept, and measured (Make-A-Video, section 4.1).

A sample is a lossless video under its number, with the run's facts beside it: a run that is killed goes on with the next
sample, ranks make every n-th batch, and whoever has the folder can measure it again. What departs from the protocol
is put into words before anything is made, and stands beside every score.

n samples, k frames of one, d features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mavcli.engine.cascade import Cascade
from mavcli.engine.output import Target, claim, finished_run, run_key, write_result
from mavcli.engine.randomness import Draw
from mavcli.engine.windows import key_windows
from mavcli.errors import UsageError, counted
from mavcli.evaluation.clips import Folder, FrameChoice
from mavcli.evaluation.features import FeatureNetwork
from mavcli.evaluation.fingerprint import Fingerprint
from mavcli.evaluation.frechet import Covariance, Gaussian, frechet_distance
from mavcli.evaluation.intervals import RESAMPLES, Interval, bootstrap
from mavcli.evaluation.networks import ClipFeatures
from mavcli.evaluation.plots import bars_svg, curve_svg
from mavcli.evaluation.protocol import ClipShape, Metric, Preset, Prompt, Sentences, choose
from mavcli.evaluation.scores import Measurement, Score, clipsim, fid, fvd, gaussian, inception
from mavcli.evaluation.shards import Shard
from mavcli.evaluation.tables import compare
from mavcli.files import make_folder, together, write_text
from mavcli.media.frames import resize, to_uint8
from mavcli.models.clip import words_of
from mavcli.recipe.schema import Output, Recipe
from mavcli.report import Report

_LOSSLESS = Output(codec="ffv1", sheet=False)
_GROUP_BYTES = 1 << 29
"""Memory for the moments of groups of samples, from which Fréchet distances are resampled: 512 MiB."""
_CURVE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Plan:
    """What will be made, and in what it is not the protocol."""

    preset: Preset
    prompts: tuple[Prompt, ...]
    size: int
    """Pixels a side of the samples."""
    sentences: str | None
    departures: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return len(self.prompts) == self.preset.samples


@dataclass(frozen=True)
class Scored:
    """One score of `samples` samples, its 95 % bootstrap interval, what it is of fewer samples, and of each class."""

    score: Score
    samples: int
    interval: Interval | None
    curve: tuple[tuple[int, float], ...]
    classes: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.score.as_dict(),
            "samples": self.samples,
            "interval": self.interval and self.interval._asdict(),
            "curve": [{"samples": count, "value": value} for count, value in self.curve],
            "classes": dict(self.classes),
        }


# -- what is made -----------------------------------------------------------------------------------------------------------


def plan_benchmark(
    preset: Preset,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    *,
    random_pieces: Sequence[str] = (),
    samples: int | None = None,
    allow_small: bool = False,
    sentences: Sentences | None = None,
) -> Plan:
    """Which samples, how large, and every departure from the protocol.

    Raises UsageError where fewer samples are asked for than the protocol has and `allow_small` is not given, or where the
    recipe makes too few frames.
    """
    wanted = len(prompts) if samples is None else samples
    departures = []
    if wanted < preset.samples:
        if not allow_small:
            raise UsageError(
                f"preset `{preset.name}` asks for {preset.samples:,} samples, not {wanted:,}",
                hint="--allow-small measures fewer, and says so in the score",
            )
        departures.append(f"{wanted:,} samples, the protocol asks for {preset.samples:,}")
    chosen = tuple(choose(prompts, wanted))
    if recipe.cascade.decoder.frames < preset.clip.keys:
        raise UsageError(
            f"recipe `{recipe.name}` makes {recipe.cascade.decoder.frames} key frames, preset `{preset.name}` takes "
            f"{preset.clip.keys}"
        )
    if (preset.clip.skip or 1) >= recipe.cascade.interp.window:
        raise UsageError(
            f"↑F of recipe `{recipe.name}` sees {recipe.cascade.interp.window} frames at once, preset `{preset.name}` has key "
            f"frames {preset.clip.skip} apart"
        )
    size = min(preset.clip.size, max(_sizes(recipe)))
    if size < preset.clip.size:
        departures.append(f"{size} px, the protocol asks for {preset.clip.size} px")
    if random_pieces:
        departures.append(f"random weights in {', '.join(random_pieces)}")
    if sentences and sentences != preset.prompts.sentences:
        departures.append(f"the sentences of `{sentences}`, the preset's are `{preset.prompts.sentences}`")
    if strange := _unknown_words(recipe, chosen):
        departures.append(
            f"{strange:,} of {len(chosen):,} prompts hold words that the family `{recipe.name}` never saw"
        )
    return Plan(preset, chosen, size, sentences or preset.prompts.sentences, tuple(departures))


def _sizes(recipe: Recipe) -> list[int]:
    """Pixels a side after D^t, SR_l and SR_h."""
    cascade = recipe.cascade
    large = [part.size for part in (cascade.sr_l, cascade.sr_h) if part.kind != "none"]
    return [cascade.decoder.network.image_size, *large]


def _unknown_words(recipe: Recipe, prompts: Sequence[Prompt]) -> int:
    vocabulary = recipe.cascade.clip.network.vocabulary
    if vocabulary is None:
        return 0
    known = set(vocabulary)
    return sum(not known.issuperset(words_of(prompt.text)) for prompt in prompts)


def needed_pieces(recipe: Recipe, clip: ClipShape) -> tuple[str, ...]:
    """The networks that make such clips: super-resolution beyond their size is left out, and ↑F where they are key frames."""
    base, *large = _sizes(recipe)
    size = clip.size
    pieces = ["clip", "prior", "decoder_t", *(["interp"] if clip.skip else [])]
    names = [name for name in ("sr_l", "sr_h") if getattr(recipe.cascade, name).kind != "none"]
    reached = base
    for name, side in zip(names, large, strict=True):
        if reached < size:
            pieces.append(name)
            reached = side
    return tuple(pieces)


def make_clips(
    cascade: Cascade, prompts: Sequence[Prompt], clip: ClipShape, *, size: int, seed: int
) -> Tensor:
    """The prompts (b) through P, D^t, ↑F where the clip has more than key frames, and as much super-resolution as `size` needs:
    (b, f, 3, size, size) in [-1, 1]. A larger result is averaged down.
    """
    draws = [Draw(seed, prompt.sample) for prompt in prompts]
    embedding = cascade.image_embedding([prompt.text for prompt in prompts], draws)
    told = clip.fps / (clip.skip or 1)
    video = cascade.decode(embedding, draws, fps=told * cascade.skip)[:, : clip.keys]
    if clip.skip:
        video = cascade.interpolate(video, draws, skip=clip.skip, fps=clip.fps)[:, : clip.frames]
    pieces = needed_pieces(cascade.recipe, clip.model_copy(update={"size": size}))
    if "sr_l" in pieces:
        video = cascade.sr_l(video, draws, fps=clip.fps)
    if "sr_h" in pieces:
        video = cascade.sr_h(video, draws)
    return video if video.shape[-1] <= size else resize(video, size, kernel="area")


def sample_folder(plan: Plan, out: Path) -> Folder:
    """The files of the plan's samples: these, and no others that an earlier run may have left."""
    root = out / "samples"
    files = tuple(root / f"{prompt.sample:06d}.mkv" for prompt in plan.prompts)
    return Folder(root, files, "videos", len(files), tuple(range(len(files))))


def generate_samples(
    cascade: Cascade,
    plan: Plan,
    out: Path,
    *,
    run: Mapping[str, Any],
    shard: Shard,
    report: Report,
    batch: int = 1,
    force: bool = False,
) -> int:
    """Make what is not there yet, this rank's batches of it, and wait for the other ranks; how many were made here.

    `run` is what every sample's sidecar tells of the run. Raises DiskError where another run's samples are in the way and
    `force` is not given.
    """
    folder = sample_folder(plan, out)
    jobs = [
        (prompt, Target(path, None), {**run, **_facts(plan, prompt)})
        for prompt, path in zip(plan.prompts, folder.files, strict=True)
    ]
    mine = [jobs[i : i + batch] for i in range(shard.rank * batch, len(jobs), shard.size * batch)]
    waiting = []
    for some in mine:
        left = [(prompt, target, facts) for prompt, target, facts in some if not _is_there(target, facts)]
        for _, target, told in left:
            claim(target, force=force, key=run_key(told))
        if left:
            waiting.append(left)
    report.plan(len(waiting) * _cost(cascade, plan, batch))
    made = 0
    for some in waiting:
        prompts = [prompt for prompt, _, _ in some]
        clips = make_clips(cascade, prompts, plan.preset.clip, size=plan.size, seed=plan.preset.seed)
        for (_, target, facts), clip in zip(some, clips, strict=True):
            told = {**facts, "run_key": run_key(facts)}
            write_result(
                target, to_uint8(clip), fps=plan.preset.clip.fps, run=told, output=_LOSSLESS, force=force
            )
            made += 1
    shard.gather([])
    return made


def _facts(plan: Plan, prompt: Prompt) -> dict[str, Any]:
    shape = plan.preset.clip.model_dump(mode="json", exclude_none=True)
    return {
        "kind": "eval",
        "prompt": prompt.text,
        "label": prompt.label,
        "options": {**shape, "size": plan.size},
        "seed": plan.preset.seed,
        "sample": prompt.sample,
    }


def _is_there(target: Target, facts: Mapping[str, Any]) -> bool:
    return finished_run(target, run_key(facts)) is not None


def _cost(cascade: Cascade, plan: Plan, batch: int) -> float:
    clip = plan.preset.clip.model_copy(update={"size": plan.size})
    frames, pieces = clip.frames, needed_pieces(cascade.recipe, clip)
    cost = cascade.cost_of_prior(batch) + cascade.cost_of_decoder(batch)
    if clip.skip and clip.skip > 1:
        windows = key_windows(clip.keys, skip=clip.skip, length=cascade.window)
        cost += cascade.cost_of_windows(len(windows) * batch)
    for piece in ("sr_l", "sr_h"):
        if piece in pieces and getattr(cascade.parts, piece).kind == "network":
            cost += cascade.cost_of_super(piece, frames) * batch
    return cost


# -- scores -----------------------------------------------------------------------------------------------------------------


def rehearse_metric(
    metric: Metric, network: FeatureNetwork, plan: Plan, *, real: Folder | None, how: Measurement
) -> None:
    """Measure what is there before the samples are: the `real` clips of a Fréchet distance, or else a black one.

    Raises WeightsError for weights of another network, InputError for clips that cannot be used.
    """
    how = _as_fixed(metric, plan, how)
    if metric.metric in ("fvd", "fid") and real is not None:
        how.measure(real, network)
    else:
        black = np.zeros((how.choice.count or 1, plan.size, plan.size, 3), np.uint8)
        network.features(network.prepare(black).to(how.shard.device))


def score_metric(
    metric: Metric,
    network: FeatureNetwork,
    plan: Plan,
    out: Path,
    *,
    real: Folder | None,
    how: Measurement,
    resamples: int = RESAMPLES,
    labels: Sequence[str] = (),
) -> Scored:
    """One metric of the samples in `out`, as the preset fixes it. Fréchet distances need the `real` clips.

    `how` gives all but the choice of frames. `labels` are the benchmark's classes in the order of the classifier's. Raises
    InputError for samples or clips that cannot be used.
    """
    generated = sample_folder(plan, out)
    how = _as_fixed(metric, plan, how)
    if metric.metric in ("fvd", "fid"):
        assert real is not None  # the command asks for it before anything is made
        covariance = metric.covariance or "unbiased"
        score = (fvd if metric.metric == "fvd" else fid)(real, generated, network, how, covariance=covariance)
        truth = gaussian(how.measure(real, network), covariance)
        found = how.measure(generated, network)
        return frechet_scored(
            score, truth, Groups(found.clips(), len(found)), covariance=covariance, resamples=resamples
        )
    if metric.metric == "is":
        splits, seed = min(metric.splits or 1, len(generated)), metric.shuffle_seed
        score = inception(generated, network, how, splits=splits, shuffle_seed=seed)
        logits = np.concatenate(list(how.measure(generated, network).clips()))
        asked = [prompt.label for prompt in plan.prompts]
        return inception_scored(score, logits, asked, labels, resamples=resamples)
    assert metric.metric == "clipsim" and isinstance(network, ClipFeatures)
    score, values = clipsim(generated, [prompt.text for prompt in plan.prompts], network, how)
    return clipsim_scored(score, values, [prompt.label for prompt in plan.prompts], resamples=resamples)


def _as_fixed(metric: Metric, plan: Plan, how: Measurement) -> Measurement:
    return replace(how, choice=FrameChoice(count=metric.frames or plan.preset.clip.frames, fps=metric.fps))


class Groups:
    """Mean and scatter of groups of samples: what a Fréchet distance of any part or resample of them needs.

    As many groups as `_GROUP_BYTES` holds, at most one a sample; samples go round them in turn, so that the first half of
    the groups is a mixture of all.
    """

    def __init__(self, clips: Iterable[NDArray[np.floating]], count: int) -> None:
        """clips: `count` arrays (k, d)."""
        self.sizes: list[int] = []
        self._rows: NDArray[np.float64] = np.empty(0)
        self._means: NDArray[np.float64] = np.empty((0, 0))
        self._scatters: NDArray[np.float64] = np.empty((0, 0, 0))
        groups = 0
        for index, clip in enumerate(clips):
            if index == 0:
                width = clip.shape[1]
                groups = max(2, min(count, _GROUP_BYTES // (8 * width * width)))
                self.sizes, self._rows = [0] * groups, np.zeros(groups)
                self._means, self._scatters = np.zeros((groups, width)), np.zeros((groups, width, width))
            self._add(index % groups, np.asarray(clip, np.float64))

    def __len__(self) -> int:
        return len(self.sizes)

    def _add(self, group: int, rows: NDArray[np.float64]) -> None:
        mean = rows.mean(axis=0)
        centred, shift = rows - mean, mean - self._means[group]
        total = self._rows[group] + len(rows)
        self._scatters[group] += centred.T @ centred
        self._scatters[group] += np.outer(shift, shift) * (self._rows[group] * len(rows) / total)
        self._means[group] += shift * (len(rows) / total)
        self._rows[group] = total
        self.sizes[group] += 1

    def gaussian(self, times: NDArray[np.integer], covariance: Covariance) -> Gaussian:
        """The Gaussian of all rows when group i is taken `times[i]` times."""
        weights = times * self._rows
        count = int(weights.sum())
        mean = weights @ self._means / count
        apart = self._means - mean
        scatter = np.tensordot(times, self._scatters, 1) + (apart * weights[:, None]).T @ apart
        return Gaussian(mean, scatter / (count - 1 if covariance == "unbiased" else count), count)


def frechet_scored(
    score: Score, real: Gaussian, generated: Groups, *, covariance: Covariance, resamples: int, seed: int = 0
) -> Scored:
    """A Fréchet distance with its interval over resamples of the generated side; the real side is the protocol's."""

    def distance(times: NDArray[np.integer]) -> float:
        return frechet_distance(real, generated.gaussian(times, covariance))

    groups = len(generated)
    curve = {}
    for part in _parts(groups):
        first = (np.arange(groups) < part).astype(int)
        if part > 1:
            curve[sum(generated.sizes[:part])] = distance(first)
    # Two eigendecompositions of d x d for each.
    interval = bootstrap(distance, groups, resamples=min(resamples, 100), seed=seed)
    return Scored(score, sum(generated.sizes), interval, tuple(curve.items()))


def inception_scored(
    score: Score,
    logits: NDArray[np.floating],
    asked: Sequence[str | None],
    labels: Sequence[str],
    *,
    resamples: int,
    seed: int = 0,
) -> Scored:
    """An inception score of logits (n, c); with `labels`, also the share of each class that is recognised as asked.

    Resamples are scored without splits: what splitting costs the score it costs each of them.
    """
    count = len(logits)
    log_p = logits.astype(np.float64)
    log_p -= log_p.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    certainty = (p * log_p).sum(axis=1)

    def whole(times: NDArray[np.integer]) -> float:
        share = times / times.sum()
        mean = share @ p
        return float(
            np.exp(share @ certainty - (mean * np.log(np.maximum(mean, np.finfo(float).tiny))).sum())
        )

    order = np.random.default_rng(seed).permutation(count)  # prompts come class by class
    curve = []
    for part in _parts(count):
        first = np.zeros(count, int)
        first[order[:part]] = 1
        curve.append((part, whole(first)))
    interval = None
    if count > 1:
        low, high = bootstrap(whole, count, resamples=resamples, seed=seed)
        shift = score.value - curve[-1][1]
        interval = Interval(low + shift, high + shift)
    classes = {}
    if labels:
        right = [label == labels[i] for label, i in zip(asked, logits.argmax(axis=1), strict=True)]
        classes = _by_class(right, asked)
    return Scored(score, count, interval, tuple(curve), classes)


def clipsim_scored(
    score: Score,
    similarities: NDArray[np.floating],
    asked: Sequence[str | None],
    *,
    resamples: int,
    seed: int = 0,
) -> Scored:
    """A mean of similarities (n,), with its interval and the mean of each class."""
    count = len(similarities)

    def mean(times: NDArray[np.integer]) -> float:
        return float(times @ similarities / times.sum())

    order = np.random.default_rng(seed).permutation(count)
    curve = tuple((part, float(similarities[order[:part]].mean())) for part in _parts(count))
    interval = bootstrap(mean, count, resamples=resamples, seed=seed) if count > 1 else None
    return Scored(score, count, interval, curve, _by_class(similarities.tolist(), asked))


def _by_class(values: Sequence[float], asked: Sequence[str | None]) -> dict[str, float]:
    kept: dict[str, list[float]] = {}
    for value, label in zip(values, asked, strict=True):
        if label is not None:
            kept.setdefault(label, []).append(value)
    return {label: float(np.mean(some)) for label, some in kept.items()}


def _parts(count: int) -> list[int]:
    """How many of `count` the points of the curve have."""
    return sorted({max(1, round(share * count)) for share in _CURVE})


# -- what is told ------------------------------------------------------------------------------------------------------------


def report_of(
    plan: Plan, scored: Sequence[tuple[Metric, Scored]], *, run: Mapping[str, Any], captions: Path | None
) -> dict[str, Any]:
    """Everything that was decided and measured, ready for JSON."""
    scores = {metric.metric: found.as_dict() for metric, found in scored}
    departures = list(plan.departures)
    for metric, found in scored:
        facts = found.score.fingerprint.fields.get("network", {})
        if facts.get("weights_as_published") is False:
            departures.append(
                f"{metric.metric} with other weights than those published as {facts['weights']}"
            )
        if found.score.left_out:
            departures.append(
                f"{metric.metric} without {counted(len(found.score.left_out), 'unusable video')}"
            )
    texts = "\n".join(f"{prompt.sample} {prompt.text}" for prompt in plan.prompts)
    return {
        "preset": plan.preset.model_dump(mode="json"),
        "complete": plan.complete,
        "departures": departures,
        "samples": len(plan.prompts),
        "size": plan.size,
        "sentences": plan.sentences,
        "captions": captions.name if captions else None,
        "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
        "run": {
            **{key: run[key] for key in ("weights", "random_weights", "versions", "device", "dtype")},
            "recipe": {key: run["recipe"][key] for key in ("name", "sha256")},
        },
        "scores": scores,
        "published": compare(plan.preset, list(scores), departures),
    }


def write_report(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """`scores.json`, `scores.md`, and a plot or two a metric; later runs replace them. Raises DiskError."""
    texts = {"scores.json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"}
    plots = []
    for name, found in report["scores"].items():
        points = [(point["samples"], point["value"]) for point in found["curve"]]
        others = {
            f"{row['system']}, {row['setting']}": row["scores"][name]
            for row in report["published"]
            if name in row["scores"] and row["comparable"] != "no"
        }
        interval = found["interval"] and (found["interval"]["low"], found["interval"]["high"])
        title = f"{name.upper()}, {report['preset']['name']}, {report['run']['recipe']['name']}"
        if report["departures"]:
            title += ": not the protocol"
        plots.append(f"{name}.svg")
        texts[plots[-1]] = curve_svg(points, title=title, interval=interval, others=others)
        if found["classes"]:
            what = "share recognised as asked" if name == "is" else name.upper()
            plots.append(f"{name}-classes.svg")
            texts[plots[-1]] = bars_svg(found["classes"], title=f"{what}, by class")
    texts["scores.md"] = _markdown(report, plots)
    paths = [folder / name for name in texts]
    make_folder(folder)
    with together():
        for path, text in zip(paths, texts.values(), strict=True):
            write_text(path, text, overwrite=True)
    return paths


def _markdown(report: Mapping[str, Any], plots: Sequence[str]) -> str:
    preset = report["preset"]
    lines = [
        f"# {preset['title']}",
        "",
        f"recipe `{report['run']['recipe']['name']}`, {report['samples']:,} samples",
        "",
    ]
    if report["departures"]:
        lines += ["**Not the protocol:** " + "; ".join(report["departures"]), ""]
    lines += ["| metric | score | 95 % | samples |", "| --- | --- | --- | --- |"]
    for name, found in report["scores"].items():
        ends = found["interval"]
        interval = f"{ends['low']:.4g} to {ends['high']:.4g}" if ends else ""
        lines.append(f"| {name} | {found['value']:.5g} | {interval} | {found['samples']:,} |")
    if report["published"]:
        names = list(report["scores"])
        lines += ["", "| published | setting | " + " | ".join(names) + " | comparable | note |"]
        lines.append("| --- | --- |" + " --- |" * (len(names) + 2))
        for row in report["published"]:
            cells = [f"{row['scores'][name]:g}" if name in row["scores"] else "" for name in names]
            why = "; ".join(row["why"])
            lines.append(
                f"| {row['system']} | {row['setting']} | {' | '.join(cells)} | {row['comparable']}"
                f"{': ' + why if why else ''} | {row['doubt'] or ''} |"
            )
    if preset["open"]:
        lines += ["", "What the paper leaves open and this preset decides:", ""]
        lines += [f"- {name}: {text}" for name, text in preset["open"].items()]
    lines += ["", *(f"![{name}]({name})" for name in plots)]
    for name, found in report["scores"].items():
        lines += ["", f"## {name}", "", Fingerprint(found["fingerprint"]).as_markdown()]
    return "\n".join(lines) + "\n"
