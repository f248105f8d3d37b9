"""Batches for training: a pure function of (seed, stage, step, index), so a resumed run sees what it would have seen.

A `Source` draws one picture, one captioned picture or one clip with a generator; `batch_generator` says which generator
belongs to which sample. Nothing here keeps a position: the only state of the data is the step.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from mavcli.data import world
from mavcli.data.clips import Redrawn
from mavcli.data.places import is_url
from mavcli.errors import RecipeError
from mavcli.recipe.schema import Data, Folder
from mavcli.report import Report


@dataclass(frozen=True)
class DrawnClip:
    """frames (f, s, s, 3) uint8 at `fps` frames a second, which may differ from what was asked for (a short clip)."""

    frames: np.ndarray
    fps: float
    redrawn: Redrawn = field(default=Redrawn())
    """How often it was drawn again; whoever consumes the clip hands it to `Source.count`."""
    seen: np.ndarray | None = None
    """The first frame at the `look` pixels that were asked for: (look, look, 3) uint8."""
    shown: Callable[[int], np.ndarray] | None = None
    """The same of any other frame, by its number in the clip."""


class Files(Protocol):
    """The files of one folder, in the order in which draws number them: `order` names them by content.

    `readable` of them were there when the folder was read.
    """

    order: list[str]

    @property
    def readable(self) -> int: ...

    def rates(self, frames: int) -> Sequence[tuple[float, float]]:
        """(lowest, highest) frames per second at which each of its videos gives `frames` frames; the lowest is above the highest
        where none does. Nothing for pictures."""
        ...

    def keep_order(self, order: Sequence[str]) -> object | None:
        """Draw as a training does that began with the files `order`; what is another than it was, in words, or None."""
        ...


class Source(Protocol):
    """Draws training samples of `size` x `size` pixels; equal generators give equal samples.

    `repeats` says that the same picture comes again, as one of a folder does, so that what is known of it is worth keeping.
    `names` are those of the sources that are mixed; one that is no mix has one.
    """

    repeats: bool

    @property
    def names(self) -> tuple[str, ...]: ...

    def of(self, rng: np.random.Generator, *, still: bool = False) -> Source:
        """The source, no mix, that one sample is drawn from, a still or a clip; one that is no mix leaves `rng` as it is."""
        ...

    def image(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """(s, s, 3) uint8."""
        ...

    def pair(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
        """A picture (s, s, 3) uint8 and its caption."""
        ...

    def clip(
        self, rng: np.random.Generator, *, frames: int, fps: float, size: int, look: int | None = None
    ) -> DrawnClip:
        """A clip without any words, with `look` its first frame at that size too."""
        ...

    def folders(self) -> Sequence[Files]:
        """The folders of files that there is to draw from, in an order that the recipe decides."""
        ...

    def held_out(self) -> Source:
        """The source of samples for the held-out loss, which training never draws."""
        ...

    def count(self, redrawn: Redrawn) -> None:
        """Batches are drawn in other processes: the one that describes is told here what they say of themselves."""
        ...

    def describe(self) -> str:
        """One line for the terminal: what there is to draw from, and how often was drawn again."""
        ...


class WorldSource:
    """The rendered pocket world; held-out pairs never occur, and some actors occur in pictures only.

    actions: how often each action is drawn for clips, actors: how often each actor is drawn for pictures and clips, 1 where
    none is given; a pair of both is drawn as often as the product says. RecipeError for an unknown one or for shares that
    cannot be.
    """

    repeats = False
    names: tuple[str, ...] = ("world",)

    def __init__(
        self, actions: Mapping[str, float] | None = None, actors: Mapping[str, float] | None = None
    ) -> None:
        self._actions = _shares(actions, "world_actions", world.ACTIONS, "action")
        self._actors = _shares(actors, "world_actors", world.ACTORS, "actor")
        self._weights = {video: self._weights_of(video) for video in (False, True)}

    def _weights_of(self, video: bool) -> np.ndarray | None:
        """How likely each of the world's pairs is to be drawn; None where all are alike."""
        actions = self._actions if video else {}
        if not actions and not self._actors:
            return None
        pairs = world.pairs("train", video)
        weights = np.array([self._actors.get(who, 1.0) * actions.get(does, 1.0) for who, does in pairs])
        if not weights.any():
            raise RecipeError(
                "with `train.data.world_actors` and `train.data.world_actions` nothing is left to draw"
                + (" for clips" if video else ""),
                hint=f"{' and '.join(sorted(world.STILL_ONLY_ACTORS))} are in no clip; a share of 0 leaves an actor or action out",
            )
        return weights / weights.sum()

    def of(self, rng: np.random.Generator, *, still: bool = False) -> WorldSource:
        return self

    def image(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return world.render(self._scene(rng), float(rng.uniform(0.0, 4.0)), size)

    def pair(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
        scene = self._scene(rng)
        return world.render(scene, float(rng.uniform(0.0, 4.0)), size), world.caption(scene, rng)

    def clip(
        self, rng: np.random.Generator, *, frames: int, fps: float, size: int, look: int | None = None
    ) -> DrawnClip:
        return self._filmed(self._scene(rng, video=True), rng, frames=frames, fps=fps, size=size, look=look)

    def captioned_clip(
        self, rng: np.random.Generator, *, frames: int, fps: float, size: int, look: int | None = None
    ) -> tuple[DrawnClip, str]:
        """The clip that `clip` gives for an equal generator, which it leaves alike, and its caption."""
        scene = self._scene(rng, video=True)
        clip = self._filmed(scene, rng, frames=frames, fps=fps, size=size, look=look)
        return clip, world.caption(scene, rng.spawn(1)[0])

    def _scene(self, rng: np.random.Generator, *, video: bool = False) -> world.Scene:
        weights, actor, action = self._weights[video], None, None
        if weights is not None:
            actor, action = world.pairs("train", video)[int(rng.choice(len(weights), p=weights))]
        return world.draw_scene(rng, video=video, actor=actor, action=action)

    @staticmethod
    def _filmed(
        scene: world.Scene,
        rng: np.random.Generator,
        *,
        frames: int,
        fps: float,
        size: int,
        look: int | None = None,
    ) -> DrawnClip:
        start = float(rng.uniform(0.0, 1.0))
        clip = world.render_clip(scene, fps=fps, frames=frames, size=size, start=start)
        if look is None:
            return DrawnClip(clip, fps)

        def shown(frame: int) -> np.ndarray:
            return world.render_clip(scene, fps=fps, frames=1, size=look, start=start + frame / fps)[0]

        return DrawnClip(clip, fps, seen=shown(0), shown=shown)

    def folders(self) -> Sequence[Files]:
        return ()

    def held_out(self) -> WorldSource:
        """Itself: a world without end has no files to set aside, held-out samples have generators of their own."""
        return self

    def count(self, redrawn: Redrawn) -> None:
        """Nothing: every rate and length can be rendered."""

    def describe(self) -> str:
        counts = f"{len(world.ACTORS)} actors, {len(world.ACTIONS)} actions, {len(world.PLACES)} places"
        told = [f"the rendered pocket world: {counts}"]
        for shares, where in ((self._actors, ""), (self._actions, "for clips: ")):
            if shares:
                told.append(
                    where + ", ".join(f"{name} {share:g}" for name, share in shares.items()) + ", others 1"
                )
        return "; ".join(told)


def _shares(
    given: Mapping[str, float] | None, field: str, known: tuple[str, ...], kind: str
) -> dict[str, float]:
    """What the recipe's `field` says, checked against the world's own `known` names; `kind` is what one of them is."""
    shares = dict(given or {})
    if unknown := sorted(set(shares) - set(known)):
        raise RecipeError(
            f"`train.data.{field}` names `{unknown[0]}`, which is no {kind} of the world",
            hint=f"its {kind}s are {', '.join(known)}",
        )
    return shares


class WithStills:
    """The clips of one source and the stills of another: what is in pictures only is not forgotten while motion is learnt."""

    def __init__(self, clips: Source, stills: Source) -> None:
        self.clips, self.stills = clips, stills
        self.repeats = clips.repeats and stills.repeats
        self.names = tuple(dict.fromkeys((*clips.names, *stills.names)))

    def of(self, rng: np.random.Generator, *, still: bool = False) -> Source:
        return (self.stills if still else self.clips).of(rng, still=still)

    def image(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return self.stills.image(rng, size)

    def pair(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
        return self.stills.pair(rng, size)

    def clip(
        self, rng: np.random.Generator, *, frames: int, fps: float, size: int, look: int | None = None
    ) -> DrawnClip:
        return self.clips.clip(rng, frames=frames, fps=fps, size=size, look=look)

    def folders(self) -> Sequence[Files]:
        return (*self.clips.folders(), *self.stills.folders())

    def held_out(self) -> WithStills:
        return WithStills(self.clips.held_out(), self.stills.held_out())

    def count(self, redrawn: Redrawn) -> None:
        self.clips.count(redrawn)

    def describe(self) -> str:
        return f"{self.clips.describe()}; stills: {self.stills.describe()}"


class Mix:
    """Several sources, each drawn from as often as its share says: which one, the sample's own generator decides.

    The shares are those of the sources, in their order, relative to each other.
    """

    def __init__(self, sources: Sequence[Source], shares: Sequence[float]) -> None:
        self.sources = tuple(sources)
        self.shares = np.array(shares) / sum(shares)
        self.repeats = all(source.repeats for source in self.sources)
        self.names = tuple(name for source in self.sources for name in source.names)
        self._redrawn = Redrawn()

    def of(self, rng: np.random.Generator, *, still: bool = False) -> Source:
        return self.sources[int(rng.choice(len(self.sources), p=self.shares))]

    def image(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return self.of(rng, still=True).image(rng, size)

    def pair(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
        return self.of(rng, still=True).pair(rng, size)

    def clip(
        self, rng: np.random.Generator, *, frames: int, fps: float, size: int, look: int | None = None
    ) -> DrawnClip:
        return self.of(rng).clip(rng, frames=frames, fps=fps, size=size, look=look)

    def folders(self) -> Sequence[Files]:
        return [folder for source in self.sources for folder in source.folders()]

    def held_out(self) -> Mix:
        """The held-out samples of all, with the same shares."""
        return Mix([source.held_out() for source in self.sources], self.shares.tolist())

    def count(self, redrawn: Redrawn) -> None:
        self._redrawn += redrawn

    def describe(self) -> str:
        parts = zip(self.shares, self.names, self.sources, strict=True)
        line = "; ".join(f"{share:.1%} {name}: {source.describe()}" for share, name, source in parts)
        return line + redrawn_words(self._redrawn)


def redrawn_words(redrawn: Redrawn) -> str:
    """What `describe` says of draws that were not taken as drawn; nothing of none."""
    if redrawn == Redrawn():
        return ""
    return (
        f"; frame rate moved to what the file allows: {redrawn.rate} x"
        f", drawn again for a file too short for any rate: {redrawn.clip} x"
    )


def open_source(
    data: Data, kind: str, *, stage: str, base: Path, stills: bool = False, report: Report | None = None
) -> Source:
    """Where a stage's samples come from; `kind` is image, pairs or video, folders are relative to `base`.

    With `stills`, a source of video has those of the recipe's pictures; where it names none, single frames of the videos.
    A source of several is a Mix of them. What was never read before is decoded now, and `report` hears how far that is.
    Raises RecipeError when the recipe names no such data, InputError when a folder has nothing usable.
    """
    if data.world == 1:
        return WorldSource(data.world_actions, data.world_actors)
    if data.world and not any(data.folders(name) for name in ("image", "pairs", "video")):
        raise RecipeError(
            f"`train.data.world` is {data.world:g}, and the recipe names no folder for the rest",
            hint=f"add `--set train.data.{kind}=FOLDER`, or `--set train.data.world=true` for the rendered world alone",
        )
    folders, how = _folders_of(data, kind)
    if not folders and not data.world:
        raise RecipeError(
            f"stage `{stage}` needs `train.data.{kind}`, the recipe does not name a folder",
            hint=f"add `--set train.data.{kind}=FOLDER`, or `--set train.data.world=true` for the rendered world",
        )

    def mixed(folders: Sequence[Folder], kind: str) -> Source:
        """The world's share of the samples and the folders' rest, by their weights."""
        sources: list[Source] = []
        shares = []
        if data.world:
            sources.append(WorldSource(data.world_actions, data.world_actors))
            shares.append(float(data.world))
        for folder, name in zip(folders, _names(folders), strict=True):
            sources.append(read(folder.folder, kind, name))
            shares.append((1 - data.world) * folder.weight / sum(other.weight for other in folders))
        return sources[0] if len(sources) == 1 else Mix(sources, shares)

    def read(folder: str, kind: str, name: str) -> Source:
        from mavcli.data.folders import FolderSource

        return FolderSource(
            folder if is_url(folder) else str(base / folder),
            kind,
            compared=stage == "clip",
            name=name,
            leave_out=data.leave_out,
            keep_bytes=int(data.keep_gb * 1e9),
            report=report,
        )

    source = mixed(folders, how)
    pictures, how = _folders_of(data, "image")
    return WithStills(source, mixed(pictures, how)) if stills and pictures else source


def _folders_of(data: Data, kind: str) -> tuple[tuple[Folder, ...], str]:
    """The folders for `kind` and how they are read: captioned pictures serve where plain ones are wanted and not named."""
    if kind == "image" and data.image is None and data.pairs is not None:
        return data.folders("pairs"), "pairs"
    return data.folders(kind), kind


def _names(folders: Sequence[Folder]) -> list[str]:
    """How each folder is called where samples are counted: its last part, or all of it where two end alike."""
    short = [folder.folder.rstrip("/").rsplit("/", 1)[-1] for folder in folders]
    return [
        folder.folder if short.count(name) > 1 or name in ("", "world") else name
        for folder, name in zip(folders, short, strict=True)
    ]


def batch_generator(
    seed: int, *, stage: str, step: int, index: int, held_out: bool = False, attempt: int = 0
) -> np.random.Generator:
    """The generator of one sample; held-out samples come from a stream of their own.

    A sample whose file cannot be read is drawn anew, all of it, by the generator of the next attempt: what takes its place is
    a function of (seed, stage, step, index) and of which files are gone, not of when they went.
    """
    key = [seed, zlib.crc32(stage.encode()), int(held_out), step, index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, attempt] if attempt else key)))
