"""FVD, FID, IS, CLIPSIM and motion of folders of clips, each with the fingerprint of what was measured.

A score says how many clips it is of, and is of exactly those: an unusable file ends the measurement with its name, or, where
the user allows it, is left out and counted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mavcli.errors import InputError, counted
from mavcli.evaluation.clip_sim import frame_text_cosines
from mavcli.evaluation.clips import Folder, FrameChoice, refuse_faults
from mavcli.evaluation.features import Entry, FeatureNetwork, FeatureStore, Measured, facts_of, measure
from mavcli.evaluation.fingerprint import Fingerprint, package_versions
from mavcli.evaluation.frechet import Covariance, Gaussian, Moments, frechet_distance
from mavcli.evaluation.inception_score import InceptionSums
from mavcli.evaluation.motion import FIGURES, Beside, MotionFigures, Spread, beside, spread_of
from mavcli.evaluation.networks import ClipFeatures
from mavcli.evaluation.shards import Shard
from mavcli.report import Report


@dataclass(frozen=True)
class Score:
    """A number and what it is of. `std` is over splits (IS) or clips (CLIPSIM), None where there is nothing to vary."""

    metric: str
    value: float
    fingerprint: Fingerprint
    std: float | None = None
    left_out: tuple[str, ...] = ()
    """Why clips were left out, a line each."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "metric": self.metric,
            "value": self.value,
            "std": self.std,
            "left_out": list(self.left_out),
            "fingerprint": dict(self.fingerprint.fields),
            "fingerprint_sha256": self.fingerprint.sha256,
        }

    def as_markdown(self) -> str:
        """The score as a heading, then the table of choices."""
        spread = "" if self.std is None else f" ± {self.std:.4g}"
        return f"## {self.metric} {self.value:.6g}{spread}\n\n{self.fingerprint.as_markdown()}\n"


@dataclass(frozen=True)
class Measurement:
    """How folders are measured, whatever the metric."""

    choice: FrameChoice
    cache: Path
    report: Report
    shard: Shard = field(default_factory=Shard)
    batch: int = 8
    workers: int = 2
    skip_unusable: bool = False

    def measure(self, folder: Folder, network: FeatureNetwork) -> Measured:
        """The features of a folder; raises InputError for unusable files unless they may be left out."""
        found = measure(
            folder,
            network,
            self.choice,
            cache=self.cache,
            shard=self.shard,
            report=self.report,
            batch=self.batch,
            workers=self.workers,
        )
        if not self.skip_unusable:
            refuse_faults(found.faults, folder)
        for fault in found.faults:
            self.warn(f"left out: {fault}")
        if len(found) == 0:
            raise InputError(f"`{folder.root}` holds no usable clip: {found.faults[0]}")
        return found

    def warn(self, text: str) -> None:
        """Say what every rank finds once."""
        if self.shard.leads:
            self.report.warning(text)


def fvd(
    real: Folder,
    generated: Folder,
    network: FeatureNetwork,
    how: Measurement,
    *,
    covariance: Covariance = "unbiased",
) -> Score:
    """The Fréchet Video Distance (Unterthiner et al. 2018): one row of features a clip."""
    return _frechet("FVD", real, generated, network, how, covariance=covariance)


def fid(
    real: Folder,
    generated: Folder,
    network: FeatureNetwork,
    how: Measurement,
    *,
    covariance: Covariance = "unbiased",
) -> Score:
    """The Fréchet Inception Distance (Heusel et al. 2017): one row of features a frame."""
    return _frechet("FID", real, generated, network, how, covariance=covariance)


def inception(
    generated: Folder,
    network: FeatureNetwork,
    how: Measurement,
    *,
    splits: int = 1,
    shuffle_seed: int | None = None,
) -> Score:
    """The Inception Score of the logits of `network`."""
    found = how.measure(generated, network)
    if found.rows < splits:
        raise InputError(
            f"`{generated.root}` gives {counted(found.rows, 'row')}, {splits} splits need at least as many",
            hint="--splits 1",
        )
    sums = InceptionSums(found.rows, splits=splits, shuffle_seed=shuffle_seed)
    for block in found.blocks():
        sums.add(block)
    score = sums.score()
    shared = {"splits": splits, "shuffle_seed": shuffle_seed}
    return Score(
        "IS",
        score.mean,
        _fingerprint("IS", network, how, {"generated": (generated, found)}, shared),
        std=score.std if splits > 1 else None,
        left_out=found.faults,
    )


def clipsim(
    generated: Folder, prompts: Sequence[str], network: ClipFeatures, how: Measurement
) -> tuple[Score, NDArray[np.float64]]:
    """The score, and the mean cosine of each clip that was measured. `prompts` has one text for each file of the folder."""
    if len(prompts) != len(generated):
        raise ValueError(f"{len(prompts)} prompts for {len(generated)} clips")
    found = how.measure(generated, network)
    by_name = {generated.name(i): text for i, text in enumerate(prompts)}
    texts = [by_name[name] for name in found.names]
    values = np.array(
        [
            float(frame_text_cosines(torch.from_numpy(rows), text).mean())
            for rows, text in zip(found.clips(), _text_features(texts, network, how), strict=True)
        ]
    )
    shared = {"prompts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest()}
    score = Score(
        "CLIPSIM",
        float(values.mean()),
        _fingerprint("CLIPSIM", network, how, {"generated": (generated, found)}, shared),
        std=float(values.std()),
        left_out=found.faults,
    )
    return score, values


@dataclass(frozen=True)
class MotionScore:
    """The figures of a set of clips, and of a reference set beside them where one is given."""

    figures: Mapping[str, Spread]
    reference: Mapping[str, Spread] | None
    beside: Mapping[str, Beside] | None
    clips: Mapping[str, tuple[float, ...]]
    """File below the folder -> its figures, in the order of `FIGURES`."""
    fingerprint: Fingerprint
    left_out: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "metric": "motion",
            "figures": {name: asdict(value) for name, value in self.figures.items()},
            "reference": self.reference and {name: asdict(value) for name, value in self.reference.items()},
            "beside": self.beside and {name: asdict(value) for name, value in self.beside.items()},
            "clips": {name: dict(zip(FIGURES, row, strict=True)) for name, row in self.clips.items()},
            "left_out": list(self.left_out),
            "fingerprint": dict(self.fingerprint.fields),
            "fingerprint_sha256": self.fingerprint.sha256,
        }

    def as_markdown(self) -> str:
        """A table of figures, then the table of choices."""
        rows = [
            f"| {name} | {value.mean:.4g} | {value.std:.4g} | {value.median:.4g} |"
            for name, value in self.figures.items()
        ]
        head = ["## motion", "", "| figure | mean | std | median |", "| --- | --- | --- | --- |"]
        return "\n".join([*head, *rows, "", self.fingerprint.as_markdown(), ""])


def motion(generated: Folder, how: Measurement, *, reference: Folder | None = None) -> MotionScore:
    """Motion and flicker without optical flow, for each clip and over all, beside those of a reference set."""
    network = MotionFigures()
    sides = {"generated": (generated, how.measure(generated, network))}
    if reference is not None:
        sides["reference"] = (reference, how.measure(reference, network))
    rows = {name: np.concatenate(list(found.clips())) for name, (_, found) in sides.items()}
    spreads = {
        name: {figure: spread_of(row[:, i]) for i, figure in enumerate(FIGURES)} for name, row in rows.items()
    }
    pairs = None
    if reference is not None:
        pairs = {
            figure: beside(rows["generated"][:, i], rows["reference"][:, i])
            for i, figure in enumerate(FIGURES)
        }
    _, found = sides["generated"]
    return MotionScore(
        spreads["generated"],
        spreads.get("reference"),
        pairs,
        {name: tuple(row.tolist()) for name, row in zip(found.names, rows["generated"], strict=True)},
        _fingerprint("motion", network, how, sides, {}),
        tuple(fault for _, side in sides.values() for fault in side.faults),
    )


def gaussian(found: Measured, covariance: Covariance = "unbiased") -> Gaussian:
    """Mean and covariance of measured clips, the same whatever the batches and ranks were."""
    moments = Moments()
    for block in found.blocks():
        moments.add(block)
    return moments.gaussian(covariance)


def _frechet(
    metric: str,
    real: Folder,
    generated: Folder,
    network: FeatureNetwork,
    how: Measurement,
    *,
    covariance: Covariance,
) -> Score:
    sides = {
        "real": (real, how.measure(real, network)),
        "generated": (generated, how.measure(generated, network)),
    }
    gaussians = []
    for folder, found in sides.values():
        if found.rows < 2:
            raise InputError(f"`{folder.root}` gives one sample, a covariance needs at least two")
        gaussians.append(gaussian(found, covariance))
    width = len(gaussians[0].mean)
    fewest = min(g.count for g in gaussians)
    if fewest <= width:
        how.warn(
            f"{fewest} samples for {width} features: the covariance is singular, and the score far above that of more "
            f"samples"
        )
    value = frechet_distance(*gaussians)
    if not math.isfinite(value):
        raise InputError("the features have no finite covariance")
    return Score(
        metric,
        value,
        _fingerprint(metric, network, how, sides, {"covariance": covariance}),
        left_out=tuple(fault for _, found in sides.values() for fault in found.faults),
    )


def _fingerprint(
    metric: str,
    network: FeatureNetwork,
    how: Measurement,
    sides: Mapping[str, tuple[Folder, Measured]],
    shared: Mapping[str, Any],
) -> Fingerprint:
    return Fingerprint(
        {
            "metric": metric,
            "network": dict(network.facts),
            "frames": how.choice.facts(),
            **shared,
            **{name: _side(folder, found) for name, (folder, found) in sides.items()},
            "device": how.shard.device.type,
            "versions": package_versions(),
        }
    )


def _side(folder: Folder, found: Measured) -> dict[str, Any]:
    """What was measured of one folder, and a digest of the files in their order."""
    return {
        "kind": folder.kind,
        "measured": len(found),
        "rows": found.rows,
        "left_out": len(found.faults),
        "in_folder": folder.found,
        "sizes": found.sizes,
        "content_sha256": hashlib.sha256("\n".join(found.digests).encode()).hexdigest(),
    }


def _text_features(texts: Sequence[str], network: ClipFeatures, how: Measurement) -> Iterator[torch.Tensor]:
    """The text tower's features of each text, (d,), kept like those of clips; every rank makes its batches."""
    facts = {**facts_of(network, FrameChoice(count=1), how.shard), "tower": "text"}
    store = FeatureStore(how.cache, facts)
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
    step = 64
    for start in range(how.shard.rank * step, len(texts), how.shard.size * step):
        missing = {
            digests[i]: texts[i]
            for i in range(start, min(start + step, len(texts)))
            if digests[i] not in store
        }
        if missing:
            rows = network.judge.encode_text(list(missing.values())).float().cpu()
            store.put([Entry(key, row[None], "") for key, row in zip(missing, rows, strict=True)])
    how.shard.gather([])
    store.refresh()
    return (torch.from_numpy(rows[0]) for rows in store.rows(digests))
