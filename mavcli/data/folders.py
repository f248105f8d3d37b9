"""Training samples from the user's own files: a folder of pictures, of captioned pictures, or of videos.

Some files are set aside for the held-out loss. Which ones is decided by what is in them, so copying, renaming or adding
files moves none between the two sides, and copies of one picture are on the same side.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mavcli.data.clips import LeaveOut, Redrawn, VideoFolder
from mavcli.data.index import Progress
from mavcli.data.loader import DrawnClip, redrawn_words
from mavcli.data.pairs import ImageFolder, PairFolder
from mavcli.report import Report, Silent

HELD_OUT_SHARE = 0.05
FEWEST_FILES = 20
"""A folder with fewer files sets none aside: it needs them all."""
FEWEST_PAIRS = 8
"""So many pairs are set aside at least, where they are no more than a fifth: CLIP's loss compares them with each other."""

_ID = 16
"""Hex digits of a file's SHA-256 by which a training knows it again, wherever it lies and whatever its name."""

Folder = ImageFolder | PairFolder | VideoFolder


@dataclass(frozen=True)
class OtherFiles:
    """What a folder holds beside what a training began with, in numbers of files."""

    kind: str
    before: int
    now: int
    gone: int
    new: int

    def __str__(self) -> str:
        noun = {"video": "clips", "pairs": "pairs"}.get(self.kind, "pictures")
        return f"{self.now} {noun} for {self.before} ({self.gone} gone, {self.new} new)"


class FolderSource:
    """A `Source` over the files of one folder; `kind` is image, pairs or video. Captions of videos are never read.

    A clip whose file does not allow the drawn frame rate is taken at the nearest rate that it allows; a file that is too
    short for any rate is drawn again. `describe` counts both. Raises InputError when the folder has nothing usable.
    """

    repeats = True

    def __init__(self, root: str, kind: str, *, name: str | None = None, leave_out: Sequence[LeaveOut] = (), keep_bytes: int = 20 << 30,
                 compared: bool = False, report: Report | None = None) -> None:  # fmt: skip
        """`root` is all that `mavcli.data.places.find_media` knows; `keep_bytes` bounds what of it is kept on disk;
        samples are counted under `name`, the folder's own unless it is given. Samples that are `compared` with each other, as
        CLIP's pairs are, have at least `FEWEST_PAIRS` held out."""
        self.kind, self._compared = kind, compared
        progress = _telling(report or Silent(), root)
        if kind == "video":
            self._whole: Folder = VideoFolder(
                root, leave_out=leave_out, keep_bytes=keep_bytes, progress=progress
            )
            ids = [source.sha256[:_ID] for source in self._whole.sources]
        elif kind == "pairs":
            self._whole = PairFolder(root, keep_bytes=keep_bytes, progress=progress)
            ids = [pair.picture.sha256[:_ID] + _brief_digest(pair.caption) for pair in self._whole.pairs]
        else:
            self._whole = ImageFolder(root, keep_bytes=keep_bytes, progress=progress)
            ids = [picture.sha256[:_ID] for picture in self._whole.pictures]
        if self._whole.note is not None and report is not None:
            report.warning(self._whole.note)
        self.names = (name or root.rstrip("/").rsplit("/", 1)[-1],)
        self._used = self._whole.used
        self._redrawn = Redrawn()
        self._lay(ids, list(range(len(ids))))

    def _lay(self, order: list[str], files: Sequence[int | None]) -> None:
        """Draw from `files` of the whole folder, which are called `order`, but for those that are set aside."""
        self.order, self._files = order, files
        aside = set_aside(order, fewest=FEWEST_PAIRS if self._compared else 1)
        self._split = bool(aside)
        self._folder = self._whole.only(file for i, file in enumerate(files) if i not in aside)
        self._aside = self._whole.only(files[i] for i in sorted(aside)) if aside else self._folder

    @property
    def readable(self) -> int:
        """How many of the files in `order` are there."""
        return sum(file is not None for file in self._files)

    def rates(self, frames: int) -> list[tuple[float, float]]:
        """Of each video: (lowest, highest) frames per second at which it gives `frames` frames."""
        folder = self._whole
        if not isinstance(folder, VideoFolder):
            return []
        return [folder.bounds(i, frames=frames) for i in range(len(folder))]

    def keep_order(self, order: Sequence[str]) -> OtherFiles | None:
        """Draw as a training does that began with the files `order`: what is gone leaves a gap, what is new comes last.

        So a file that is gone changes no draw but its own. Where less than half is left, all is laid anew. Returns what is
        another than it was, None where nothing is.
        """
        here: dict[str, list[int]] = {}
        for i, name in enumerate(self.order):
            here.setdefault(name, []).append(i)
        files: list[int | None] = [here[name].pop(0) if here.get(name) else None for name in order]
        new = sorted(i for rest in here.values() for i in rest)
        gone = files.count(None)
        if not gone and not new and files == list(range(len(files))):
            return None
        own = self.order
        if 2 * gone <= len(files):
            self._lay([*order, *(own[i] for i in new)], [*files, *new])
        return OtherFiles(self.kind, len(order), len(own), gone, len(new)) if gone or new else None

    def folders(self) -> tuple[FolderSource, ...]:
        return (self,)

    def held_out(self) -> FolderSource:
        """The files that training never draws from; all of them when the folder is too small to set any aside."""
        other = copy.copy(self)
        other._folder, other._aside, other._redrawn = self._aside, self._folder, Redrawn()
        return other

    def of(self, rng: np.random.Generator, *, still: bool = False) -> FolderSource:
        """Itself."""
        return self

    def image(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """(s, s, 3) uint8: a picture, without its caption, or one frame of a video."""
        if isinstance(self._folder, VideoFolder):
            return self._folder.draw_fitting(rng, frames=1, fps=1.0, size=size).frames[0]
        if isinstance(self._folder, PairFolder):
            return self._folder.draw(rng, size=size)[0]
        return self._folder.draw(rng, size=size)

    def pair(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
        """A picture (s, s, 3) uint8 and its caption."""
        assert isinstance(self._folder, PairFolder)  # `open_source` opens what the stage needs
        return self._folder.draw(rng, size=size)

    def clip(
        self, rng: np.random.Generator, *, frames: int, fps: float, size: int, look: int | None = None
    ) -> DrawnClip:
        """(f, s, s, 3) uint8 at the rate that was used."""
        folder = self._folder
        assert isinstance(folder, VideoFolder)
        draw = folder.draw_fitting(rng, frames=frames, fps=fps, size=size, look=look)
        if look is None:
            return DrawnClip(draw.frames, draw.fps, draw.redrawn)

        def shown(frame: int) -> np.ndarray:
            return folder.frame_of(draw.clip, draw.index[frame], size=look)

        return DrawnClip(draw.frames, draw.fps, draw.redrawn, draw.seen, shown)

    def count(self, redrawn: Redrawn) -> None:
        """Add up what the clips of a batch say of how they were drawn; other processes may have drawn them."""
        self._redrawn += redrawn

    def describe(self) -> str:
        """`used 412 of 431 clips (...), 20 held out`, and what was drawn again in the batches counted so far."""
        line = self._used
        if self._split:
            line += f", {len(self._aside)} held out"
        else:
            line += f"; the held-out loss is on training files, fewer than {FEWEST_FILES} different ones set none aside"
        return line + redrawn_words(self._redrawn)


def set_aside(digests: Iterable[str], *, fewest: int = 1) -> set[int]:
    """Indices of the files (by SHA-256) that fall in the held-out share; none of a small folder.

    At least `fewest` different ones, or a fifth where that is less.
    """
    shares = [int(digest[:16], 16) / 2**64 for digest in digests]
    different = sorted(set(shares))
    if len(different) < FEWEST_FILES:
        return set()
    edge = max(HELD_OUT_SHARE, different[min(fewest, len(different) // 5) - 1])
    return {i for i, share in enumerate(shares) if share <= edge}


def _brief_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _telling(report: Report, root: str) -> Progress:
    """Progress of the reading as a stage of the report, said only when there is something to read."""
    last = -1

    def tell(done: int, of: int) -> None:
        nonlocal last
        if done == of and last < 0:
            return
        if last < 0:
            report.stage(f"reading {root}", of)
            last = 0
        report.advance(done - last)
        last = done

    return tell
