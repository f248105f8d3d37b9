"""↑F against the frames that were there: every K-th of a clip is kept, the others are predicted and compared (section 3.3).

Beside it stands what needs no network, linear blending of the kept frames, and what other codes made of the same frames. All
are compared at the pixels that ↑F draws. PSNR and SSIM are of the predicted frames alone; the PSNR of changes is of the
differences from frame to frame, where what flickers or stands still loses.

f frames, s pixels a side; frames are (f, 3, s, s) in [-1, 1], on the grid of 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mavcli.data.clips import VideoFolder
from mavcli.errors import InputError
from mavcli.evaluation.frame_folders import frames_of
from mavcli.evaluation.intervals import Median, median
from mavcli.evaluation.pairs import interpolations
from mavcli.media.frames import fit, to_float, to_uint8
from mavcli.media.image import read_image
from mavcli.media.video import read_video

FACTORS = tuple(range(2, 13))
METRICS = {"psnr": "PSNR, dB", "ssim": "SSIM", "changes": "PSNR of changes, dB"}


class Figures(NamedTuple):
    """How near predicted frames are to the true ones."""

    psnr: float
    """dB, of all pixels of the predicted frames together."""
    ssim: float
    """Mean of the predicted frames' (Wang et al. 2004)."""
    changes: float
    """dB, of the differences from each frame to the next, of all frames."""


@dataclass(frozen=True)
class Clip:
    """The longest scene of a video, or its beginning."""

    name: str
    """Its path below the folder, without suffix."""
    number: int
    """Its file in the folder."""
    sha256: str
    first: int
    count: int
    fps: float

    def span(self, skip: int) -> int:
        """Frames from the first to the last that is kept when `skip` lie between a kept one and the next."""
        return (self.count - 1) // skip * skip + 1


def clips_of(folder: VideoFolder, *, longest: int, count: int | None = None) -> list[Clip]:
    """At most `longest` frames of the longest scene of each video; of `count` videos, spread evenly over the folder."""
    chosen = np.arange(len(folder))
    if count is not None:
        if count > len(folder):
            raise InputError(
                f"`{folder.root}` has {len(folder)} usable clips, {count} are wanted",
                hint=f"--count {len(folder)}",
            )
        chosen = np.linspace(0, len(folder) - 1, count).round().astype(int)
    found = []
    for number in chosen.tolist():
        source = folder.sources[number]
        edges = [0, *source.cuts, len(source.times)]
        begin, end = max(pairwise(edges), key=lambda scene: scene[1] - scene[0])
        name = Path(source.name).with_suffix("").as_posix()
        found.append(Clip(name, number, source.sha256, begin, min(end - begin, longest), source.fps))
    return found


def true_frames(folder: VideoFolder, clip: Clip, *, size: int) -> Tensor:
    """The frames of a clip, their centre squares (f, 3, size, size). Raises InputError."""
    index = range(clip.first, clip.first + clip.count)
    return to_float(folder.frames_of(clip.number, index, size=size))


def blended(true: Tensor, skip: int) -> Tensor:
    """What linear blending makes of every `skip`-th frame of `true`, whose last frame is one of them."""
    place = torch.arange(len(true))
    before = place // skip * skip
    after = (before + skip).clamp(max=len(true) - 1)
    share = (place % skip)[:, None, None, None] / skip
    return to_float(to_uint8(torch.lerp(true[before], true[after], share)))


def predicted(length: int, skip: int) -> Tensor:
    """(f,) bool: the frames that are not kept."""
    return torch.arange(length) % skip != 0


def compare(made: Tensor, true: Tensor, skip: int) -> Figures:
    """How near `made` is to `true`, both (f, 3, s, s), where every `skip`-th frame was kept."""
    unknown = predicted(len(true), skip)
    return Figures(
        psnr(made[unknown], true[unknown]),
        ssim(made[unknown], true[unknown]),
        psnr(made.diff(dim=0), true.diff(dim=0)),
    )


def psnr(a: Tensor, b: Tensor) -> float:
    """dB between frames of values in [-1, 1]; the error of all pixels together, 126 where there is none."""
    error = float((a.double() - b.double()).square().mean())
    return 10 * float(np.log10(4 / max(error, 1e-12)))


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of frames (n, 3, s, s) in [-1, 1]: Gaussian windows of 11 pixels and deviation 1.5, wholly inside
    the picture, each channel for itself (Wang et al. 2004, section III.C). Pictures below 11 pixels have smaller windows."""
    reach = min(11, (min(a.shape[-2:]) - 1) // 2 * 2 + 1)
    line = torch.exp(-((torch.arange(reach, dtype=torch.float64) - reach // 2) ** 2) / (2 * 1.5**2))
    line /= line.sum()
    x, y = ((t.double().flatten(0, 1)[:, None] + 1) / 2 for t in (a, b))

    def mean(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t, line[None, None, :, None]), line[None, None, None, :])

    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (xx + yy + c2))).mean())


# -- predictions of others ------------------------------------------------------------------------------------------------------


class Predictions:
    """What another code made: `root`/xK holds a video, or a folder of numbered frames, for each clip, kept frames included.

    Names are matched as `mav eval human` does: by path, or by the clip's own name without what FILM, RIFE and mav add to it.
    """

    def __init__(self, name: str, root: Path, factors: Sequence[int]) -> None:
        """Raises InputError where there is no folder for any of `factors`."""
        self.name, self.root = name, root
        places = {skip: root / f"x{skip}" for skip in factors}
        self._found = {skip: interpolations(place) for skip, place in places.items() if place.is_dir()}
        if not self._found:
            raise InputError(
                f"`{root}` holds no folder `x{factors[0]}`, wanted a folder for each factor",
                hint="--kept DIR writes the frames that are kept, so that another code can fill in between them",
            )

    def find(self, clip: Clip, skip: int) -> Path | None:
        """The prediction of a clip; None where there is none."""
        found = self._found.get(skip)
        return None if found is None else found(clip.name)

    def frames(self, clip: Clip, skip: int, *, size: int) -> Tensor | None:
        """The predicted frames (f, 3, size, size) of a clip's `span`; None where there is no prediction. Raises InputError."""
        path, wanted = self.find(clip, skip), clip.span(skip)
        if path is None:
            return None
        if path.is_dir():
            pictures = (read_image(file) for file in frames_of(path)[:wanted])
        else:
            pictures = (picture for _, picture in read_video(path, max_frames=wanted))
        frames = [fit(picture, size, rule="crop") for picture in pictures]
        if len(frames) < wanted:
            raise InputError(
                f"`{path}` has {len(frames)} frames, `{clip.name}` with every {skip}th of its {clip.count} kept has {wanted}",
                hint="the kept frames are counted too, first and last",
            )
        return to_float(np.stack(frames))


# -- the table ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The figures of one clip, one factor and one system."""

    clip: str
    factor: int
    system: str
    figures: Figures

    def as_dict(self) -> dict[str, Any]:
        return {"clip": self.clip, "factor": self.factor, "system": self.system, **self.figures._asdict()}


@dataclass(frozen=True)
class Row:
    """Of one factor and one system: medians over clips, and over blending those of each clip's difference."""

    factor: int
    system: str
    clips: int
    medians: dict[str, Median]
    gains: dict[str, Median]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(measured: Sequence[Measured], *, baseline: str = "blending") -> list[Row]:
    """A row for each factor and system, in the order in which they come; clips are the samples of the intervals."""
    by = {(m.factor, m.system, m.clip): m.figures for m in measured}
    rows = []
    for factor, system in dict.fromkeys((m.factor, m.system) for m in measured):
        own = {clip: figures for (k, s, clip), figures in by.items() if (k, s) == (factor, system)}
        pairs = [(f, by[factor, baseline, clip]) for clip, f in own.items() if (factor, baseline, clip) in by]
        rows.append(
            Row(
                factor,
                system,
                len(own),
                {name: median([getattr(f, name) for f in own.values()]) for name in METRICS},
                {name: median([getattr(f, name) - getattr(b, name) for f, b in pairs]) for name in METRICS}
                if system != baseline and pairs
                else {},
            )
        )
    return rows
