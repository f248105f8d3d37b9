"""Training samples from the user's own files: a folder of pictures, of captioned pictures, or of videos.

Some files are set aside for the held-out loss. Which ones is decided by what is in them, so copying, renaming or adding
files moves none between the two sides, and copies of one picture are on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mavcli.data.clips import VideoFolder
from mavcli.data.loader import DrawnClip
from mavcli.data.pairs import ImageFolder, PairFolder

HELD_OUT_SHARE = 0.05
FEWEST_FILES = 20
"""A folder with fewer files sets none aside: it needs them all."""
_HASHED_BYTES = 64 * 1024

Folder = ImageFolder | PairFolder | VideoFolder


class FolderSource:
    """A `Source` over the files of one folder; `kind` is image, pairs or video. Captions of videos are never read.

    A clip whose file does not allow the drawn frame rate is taken at the nearest rate that it allows; a file that is too
    short for any rate is drawn again. `describe` counts both. Raises InputError when the folder has nothing usable.
    """

    def __init__(self, path: Path, kind: str) -> None:
        whole: Folder
        if kind == "video":
            whole = VideoFolder(path)
            files = [source.path for source in whole.sources]
        elif kind == "pairs":
            whole = PairFolder(path)
            files = [pair.path for pair in whole.pairs]
        else:
            whole = ImageFolder(path)
            files = whole.paths
        self._used = whole.used
        aside = set_aside(files)
        self._split = bool(aside)
        self._folder = whole.only(i for i in range(len(files)) if i not in aside)
        self._aside = whole.only(sorted(aside)) if aside else self._folder

    def held_out(self) -> FolderSource:
        """The files that training never draws from; all of them when the folder is too small to set any aside."""
        other = FolderSource.__new__(FolderSource)
        other._used, other._split, other._folder, other._aside = (
            self._used,
            self._split,
            self._aside,
            self._folder,
        )
        return other

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

    def clip(self, rng: np.random.Generator, *, frames: int, fps: float, size: int) -> DrawnClip:
        """(f, s, s, 3) uint8 at the rate that was used."""
        assert isinstance(self._folder, VideoFolder)
        draw = self._folder.draw_fitting(rng, frames=frames, fps=fps, size=size)
        return DrawnClip(draw.frames, draw.fps)

    def describe(self) -> str:
        """`used 412 of 431 clips: ..., 20 of them held out`, and what was drawn again so far."""
        line = self._used
        if self._split:
            line += f"; {len(self._aside)} of them are held out"
        else:
            line += f"; the held-out loss is on training files, fewer than {FEWEST_FILES} different ones set none aside"
        if isinstance(self._folder, VideoFolder) and self._folder.redrawn:
            counts = self._folder.redrawn
            line += f"; {counts['rate']} draws had their frame rate moved to what the file allows"
            line += f", {counts['clip']} fell on a file too short for any rate and were drawn again"
        return line


def set_aside(files: Iterable[Path]) -> set[int]:
    """Indices of the files whose content falls in the held-out share, at least one; none of a small folder."""
    shares = [_share(path) for path in files]
    if len(set(shares)) < FEWEST_FILES:
        return set()
    edge = max(HELD_OUT_SHARE, min(shares))
    return {i for i, share in enumerate(shares) if share <= edge}


def _share(path: Path) -> float:
    """A number in [0, 1) from a file's length and first bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(str(path.stat().st_size).encode() + file.read(_HASHED_BYTES)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
