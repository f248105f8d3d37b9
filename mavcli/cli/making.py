"""What the commands that make video have in common: recipe and weights first, names next, then the work, item by item."""

from __future__ import annotations

import difflib
import functools
import json as json_module
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mavcli import stopping
from mavcli.cli.console import Console, cache_dir, duration, table
from mavcli.cli.options import finite
from mavcli.errors import InputError, MavError, OutOfMemoryError, UsageError, counted
from mavcli.files import file_sha256, locked, reading, together
from mavcli.report import Report

if TYPE_CHECKING:
    from mavcli.engine.cascade import Cascade
    from mavcli.engine.family import Family, Piece
    from mavcli.engine.output import Target
    from mavcli.engine.uses.film import Film, Footage
    from mavcli.media.frames import Frames
    from mavcli.media.video import Sound
    from mavcli.recipe.load import LoadedRecipe
    from mavcli.recipe.resolve import Resolved
    from mavcli.recipe.schema import Recipe

MAX_FRAMES = 3000
"""Of a result whose frames are held together."""
MAX_STREAMED = 30_000
"""Of a result whose frames go by: 10 minutes at 50 frames a second. The networks' views of them are held, 12 kB each."""

FpsOption = Annotated[
    float | None,
    typer.Option(
        "--fps",
        callback=finite,
        min=0.1,
        max=240,
        metavar="N",
        help="Frames per second, over the recipe's `output.fps`.",
    ),
]
FramesOption = Annotated[
    int | None, typer.Option("--frames", min=1, max=MAX_FRAMES, metavar="N", help="Frames of the result.")
]
SecondsOption = Annotated[
    float | None,
    typer.Option(
        "--seconds",
        callback=finite,
        min=0.001,
        max=30_000,
        metavar="S",
        help="Length of the result, instead of --frames.",
    ),
]
RandomOption = Annotated[
    bool,
    typer.Option(
        "--random-weights", help="Where weights are missing, run on random ones: noise, to try the machinery."
    ),
]

# Words that say nothing about a picture: a prompt of these alone says nothing.
_FILLERS = frozenset(
    {
        "a",
        "among",
        "an",
        "and",
        "are",
        "around",
        "at",
        "by",
        "down",
        "for",
        "from",
        "in",
        "into",
        "is",
        "of",
        "on",
        "or",
        "over",
        "the",
        "through",
        "to",
        "under",
        "up",
        "with",
    }
)


@dataclass(frozen=True)
class Common:
    """The options that every making command has."""

    recipe: str
    sets: Sequence[str]
    backend: str | None
    out: Path | None
    seed: int
    dry_run: bool
    force: bool
    random_weights: bool


@dataclass(frozen=True)
class Item:
    """One result to make. `make(cascade, job)` computes it or begins to; `cost(cascade)` says beforehand how long the bar is."""

    stem: str
    make: Callable[[Cascade, Job], Film]
    cost: Callable[[Cascade], float]
    shape: str
    seed: int
    sample: int = 0
    prompt: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[Path, ...] = ()
    sound: Sound | None = None
    """What is to be heard under it."""
    still: bool = False
    """Whether it is a picture and no video."""
    shows_base: bool = False
    """Whether the key frames are shown before super-resolution, as a sheet of their own."""
    fault: MavError | None = None
    """Why it cannot be made; the others of a batch are."""


@dataclass(frozen=True)
class Picture:
    """A still image that was given: (h, w, 3) uint8."""

    path: Path
    pixels: Frames

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.pixels.shape[:2]
        return height, width

    def describe(self) -> str:
        return f"{self.path.name}: {self.size[1]} x {self.size[0]} px"


class Session:
    """A checked recipe on this machine. Weights are looked for before anything is read or computed."""

    def __init__(self, console: Console, kind: str, common: Common, *, fps: float | None = None) -> None:
        from mavcli.recipe.load import load_recipe
        from mavcli.recipe.resolve import probe_machine, resolve

        self.console, self.kind, self.common = console, kind, common
        overrides = {"output.fps": fps, "hardware.backend": common.backend}
        self.loaded: LoadedRecipe = load_recipe(common.recipe, sets=common.sets, overrides=overrides)
        self.recipe: Recipe = self.loaded.recipe
        self.machine = probe_machine()
        self.resolved: Resolved = resolve(self.recipe, machine=self.machine)
        if self.resolved.backend == "multi-gpu":
            console.message("one clip is made on one device: the first of them is used")
        self.fps = self.recipe.output.fps
        self.family: Family

    def need(self, *pieces: Piece, stills: bool = False, keys_suffice: bool = False) -> None:
        """Check the weights of these pieces, and of super-resolution unless it is left out here; see `find_family`.

        Raises OutOfMemoryError where one of them is larger than this machine's memory; a dry run says it.
        """
        from mavcli.engine.family import find_family
        from mavcli.engine.room import check_parts

        self.family = find_family(
            self.recipe,
            pieces,
            random_weights=self.common.random_weights,
            stills=stills,
            keys_suffice=keys_suffice,
        )
        for text in self.family.warnings:
            self.console.warning(text)
        try:
            check_parts(self.family.parts.values(), machine=self.machine, resolved=self.resolved)
        except OutOfMemoryError as error:
            if not self.common.dry_run:
                raise
            self.console.warning(error.message)

    def run(self, items: Sequence[Item], *, batch: bool = False) -> None:
        """Make every item. In a `batch` the failure of one does not stop the others, and ends in exit code 8."""
        if not batch and items[0].fault is not None:
            raise items[0].fault
        jobs = self._targets(items, batch)
        if self.common.dry_run:
            self._tell_plan(jobs)
            return
        results: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        cascade: Cascade | None = None
        waiting = [job for job in jobs if job.fault is None and job.finished is None]
        for job in waiting:
            self._holds_sound(job)
        if waiting:
            cascade = self._cascade()
            if self.kind != "generate" and self.recipe.cascade.clip.network.vocabulary is not None:
                self.console.warning(
                    f"recipe `{self.recipe.name}` knows nothing but the small world of its training: what it makes of "
                    "another picture is made up from that world"
                )
            self.console.plan(sum(job.item.cost(cascade) for job in waiting))
        for job in jobs:
            try:
                if job.fault is not None:
                    raise job.fault
                if job.finished is not None:
                    told = self._there_already(job, job.finished)
                else:
                    assert cascade is not None
                    with locked(job.target.video, waiting=partial(self._wait_for, job)):
                        told = self._make_alone(job, cascade)
            except MavError as error:
                stopping.check()  # what was being stopped says nothing true of an item
                if not batch:
                    raise
                label = job.item.prompt or job.item.stem
                failed.append({"item": label, "exit_code": error.exit_code, "message": error.message})
                self.console.warning(f"failed: {label}: {error.message}")
                continue
            results.append(_result(job.target, told))
            self.console.result(job.target.video)
        self.console.close()
        self.console.result_object({"results": results, "failed": failed})
        if failed:
            count = len(jobs)
            self.console.warning(
                f"{len(failed)} of {count} failed, the others are done; the same command tries those again alone"
            )
            raise typer.Exit(8)

    def _targets(self, items: Sequence[Item], batch: bool) -> list[Job]:
        """Where each item goes, before anything is computed."""
        from mavcli.engine.output import choose_target, claim, finished_run, run_key

        jobs = []
        for item in items:
            target = choose_target(
                self.common.out,
                self.recipe.output,
                stem=item.stem,
                several=len(items) > 1,
                still=item.still,
                shows_base=item.shows_base,
            )
            run = self._describe(item)
            run["run_key"] = run_key(run)
            fault, finished = item.fault, None
            if fault is None:
                try:
                    # The same run again has its result already, also one that a kill met while its files appeared.
                    if not self.common.force:
                        finished = finished_run(target, run["run_key"])
                    if finished is None and not self.common.dry_run:
                        claim(target, force=self.common.force, key=run["run_key"])
                except MavError as error:
                    if not batch:
                        raise
                    fault = error
            jobs.append(Job(item, target, run, fault, finished))
        return jobs

    def _cascade(self) -> Cascade:
        from mavcli.engine.backend import open_backend
        from mavcli.engine.cascade import Cascade
        from mavcli.engine.work import Work

        backend = open_backend(self.resolved)
        backend.apply()
        self.timed = _Timed(self.console)
        return Cascade(self.recipe, self.family, backend, report=self.timed, work=Work(cache_dir() / "work"))

    def _there_already(self, job: Job, finished: dict[str, Any]) -> dict[str, Any]:
        self.console.message(f"{job.target.video} is there already, made by the same run")
        return finished

    def _wait_for(self, job: Job) -> None:
        self.console.message(f"waiting for another process that makes {job.target.video}")

    def _make_alone(self, job: Job, cascade: Cascade) -> dict[str, Any]:
        """Make an item whose place no other process has now; one may have had it until now."""
        from mavcli.engine.output import claim, finished_run

        key, force = job.run["run_key"], self.common.force
        finished = None if force else finished_run(job.target, key)
        if finished is not None:
            return self._there_already(job, finished)
        claim(job.target, force=force, key=key)
        with together():
            return self._make(job, cascade)

    def _make(self, job: Job, cascade: Cascade) -> dict[str, Any]:
        from mavcli.engine.output import write_result, write_still

        self.timed.restart()
        made = job.item.make(cascade, job)
        run = {**job.run, "timings": self.timed.seconds()}
        if job.item.still:
            picture = next(iter(made.frames))
            shown = write_still(job.target, picture, run=run, force=self.common.force)
            spent = duration(sum(run["timings"].values()))
            self.console.message(f"a picture of {shown.width} x {shown.height} px in {spent}")
            facts = {"width": shown.width, "height": shown.height, "frames_sha256": shown.frames_sha256}
            return {**run, "frames": 1, **facts}

        def passing() -> Iterator[Frames]:
            yield from made.frames
            run["timings"] = self.timed.seconds()  # the last stage works while its frames are written

        written = write_result(
            job.target,
            passing(),
            fps=made.fps,
            count=made.count,
            sound=made.sound if self._holds_sound(job) else None,
            run=run,
            output=self.recipe.output,
            force=self.common.force,
        )
        if written.width % 2 or written.height % 2:
            self.console.message(
                f"{written.width} x {written.height} px: H.264 wants even sides, the edge is repeated once"
            )
        self.console.message(
            f"{written.frames} frames of {written.width} x {written.height} px at {written.fps:.6g} fps, "
            f"{written.frames / written.fps:.2f} s, in {duration(sum(run['timings'].values()))}"
        )
        return {
            **run,
            "frames": written.frames,
            "width": written.width,
            "height": written.height,
            "fps": written.fps,
            "frames_sha256": written.frames_sha256,
        }

    def _holds_sound(self, job: Job) -> bool:
        """Whether the file that an item goes to can hold its sound; if not, this is said with the one that can."""
        sound, suffix = job.item.sound, job.target.video.suffix
        if sound is None or sound.fits(suffix):
            return sound is not None
        other = sound.container()
        self.console.warning(
            f"{Path(sound.path).name}: its sound ({sound.codec}) cannot be kept in a `{suffix}` file, {job.target.video} is "
            "silent" + (f"; `-o {job.target.video.with_suffix(other)}` keeps it" if other else "")
        )
        return False

    @cached_property
    def _described_once(self) -> dict[str, Any]:
        """What all items of a run have in common, once for however many they are."""
        from mavcli.engine.versions import code_sha256, versions

        return {
            "recipe": {
                "name": self.recipe.name,
                "sha256": self.loaded.sha256,
                "resolved": json_module.loads(self.recipe.model_dump_json(exclude={"train"})),
            },
            "weights": {piece: part.describe() for piece, part in self.family.parts.items()},
            "random_weights": list(self.family.random),
            "versions": versions(),
            "code_sha256": code_sha256(),
        }

    def _describe(self, item: Item) -> dict[str, Any]:
        """The `mav_run` of an item, as far as it is known beforehand."""
        return {
            "kind": self.kind,
            "command": ["mav", *sys.argv[1:]],
            "prompt": item.prompt,
            "options": item.options,
            "inputs": [{"path": str(path), "sha256": _file_sha256(path)} for path in item.inputs],
            "seed": item.seed,
            "sample": item.sample,
            **self._described_once,
            "device": self.resolved.device,
            "dtype": self.resolved.dtype,
            "threads": self.resolved.threads,
        }

    def _tell_plan(self, jobs: Sequence[Job]) -> None:
        from mavcli.cli.recipe import describe

        console = self.console
        console.result(f"recipe {self.recipe.name}, from {', '.join(self.loaded.sources)}")
        for line in describe(self.resolved):
            console.result(line)
        rows = [
            (piece, part.role, str(part.path or "RANDOM"), f"step {part.step}" if part.path else "")
            for piece, part in self.family.parts.items()
        ]
        for line in table(rows):
            console.result(line)
        for job in jobs:
            state = (
                f"cannot be made: {job.fault.message}"
                if job.fault
                else "is there already, made by the same run"
                if job.finished
                else "exists, --force would overwrite it"
                if job.target.video.exists() and not self.common.force
                else "would be written"
            )
            console.result(f"{job.target.video}: {job.item.shape}; {state}")
        console.result_object(
            {
                "dry_run": True,
                "recipe": self.recipe.name,
                "backend": self.resolved.backend,
                "dtype": self.resolved.dtype,
                "threads": self.resolved.threads,
                "reasons": self.resolved.reasons,
                "weights": {piece: part.describe() for piece, part in self.family.parts.items()},
                "items": [
                    {"path": str(job.target.video), "shape": job.item.shape, "prompt": job.item.prompt}
                    for job in jobs
                ],
            }
        )


@dataclass(frozen=True)
class Job:
    """An item and where it goes: what tells its run apart, and why it cannot be made or need not be."""

    item: Item
    target: Target
    run: dict[str, Any]
    fault: MavError | None
    finished: dict[str, Any] | None


class _Timed:
    """Hands everything on to the console, and measures how long each stage took."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.restart()

    def restart(self) -> None:
        self._spent: dict[str, float] = {}
        self._name, self._since = "preparation", time.monotonic()

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, up to now."""
        self._close("")
        return {name: round(value, 3) for name, value in self._spent.items()}

    def _close(self, name: str) -> None:
        now = time.monotonic()
        self._spent[self._name] = self._spent.get(self._name, 0.0) + now - self._since
        self._name, self._since = name or self._name, now

    def plan(self, total: float) -> None:
        self._report.plan(total)

    def stage(self, name: str, total: float) -> None:
        self._close(name)
        self._report.stage(name, total)

    def advance(self, amount: float = 1) -> None:
        self._report.advance(amount)

    def skip(self, amount: float) -> None:
        self._report.skip(amount)

    def message(self, text: str) -> None:
        self._report.message(text)

    def warning(self, text: str) -> None:
        self._report.warning(text)


def _result(target: Target, run: dict[str, Any]) -> dict[str, Any]:
    keys = ("prompt", "seed", "sample", "frames", "width", "height", "fps", "frames_sha256", "random_weights")
    files = {"path": target.video, "sidecar": target.sidecar, "sheet": target.sheet}
    return {
        **{name: None if file is None else str(file) for name, file in files.items()},
        **{key: run.get(key) for key in keys},
    }


def _file_sha256(path: Path) -> str:
    with reading(path):
        return file_sha256(path)


def is_picture(path: Path) -> bool:
    """Whether a file is a still image, by its content. Raises InputError."""
    from mavcli.media.image import is_still

    return is_still(path)


def read_picture(path: Path, console: Console) -> Picture:
    """A still picture, and what is odd about it said. Raises InputError."""
    from mavcli.media.image import read_image

    if not is_picture(path):
        raise _no_picture(path)
    notes: list[str] = []
    pixels = read_image(path, notes=notes)
    for text in notes:
        console.warning(f"{path.name} {text}")
    return Picture(path, pixels)


def refuse_long(path: Path, *, factor: int = 1, more: int = 0) -> None:
    """Refuse a video that is none or would become too long, by its header and before it is decoded.

    Raises InputError, UsageError.
    """
    from mavcli.media.image import describe_picture
    from mavcli.media.video import probe

    if is_picture(path):
        raise InputError(
            f"`{path}` is {describe_picture(path)}, wanted a video",
            hint=f"mav animate {shlex.quote(str(path))}",
        )
    check_count(probe(path).frames * factor + more, most=MAX_STREAMED)


def tell_footage(footage: Footage, console: Console) -> None:
    """What a video is, and what was odd about it."""
    height, width = footage.size
    name = footage.path.name
    for text in footage.warnings:
        console.warning(f"{name}: {text}")
    rate = float(footage.rate)
    console.message(f"{name}: {width} x {height} px, {len(footage)} frames at {rate:.6g} fps")
    if footage.cuts:
        shown = ", ".join(f"{footage.times[cut]:.2f} s" for cut in footage.cuts[:6])
        more = ", ..." if len(footage.cuts) > 6 else ""
        noun = "a cut" if len(footage.cuts) == 1 else f"{len(footage.cuts)} cuts"
        console.message(f"{name}: {noun} at {shown}{more}: nothing is drawn from one scene to another")


def _no_picture(path: Path) -> InputError:
    """The error for a file where a still picture is wanted: what it is, and what can be done with it."""
    from mavcli.media.image import describe_picture, hint_for
    from mavcli.media.video import probe

    quoted = shlex.quote(str(path))
    found = describe_picture(path) or "neither a picture nor a video that can be read"
    hint = hint_for(found)
    if " frames of " in found:
        hint = f"`magick {quoted}[0] frame.png` takes its first frame, `mav extrapolate {quoted}` goes on from its last"
    else:
        with suppress(InputError):
            video = probe(path)
            found = f"a video of {counted(video.frames, 'frame')} of {video.width} x {video.height} px ({video.codec})"
            hint = f"`ffmpeg -i {quoted} -frames:v 1 frame.png` takes its first frame, `mav extrapolate {quoted}` goes on from its last"
    return InputError(f"`{path}` is {found}, wanted a still picture", hint=hint)


def check_prompt(recipe: Recipe, prompt: str, console: Console) -> None:
    """Name the words that the family does not know. Raises UsageError when none is left that says anything."""
    from mavcli.models.clip import words_of

    vocabulary = recipe.cascade.clip.network.vocabulary
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint='mav generate "a dog surfing"')
    if vocabulary is None:
        return
    known, content = _meaning(vocabulary)
    words = dict.fromkeys(words_of(prompt))
    unknown = [word for word in words if word not in known]
    meaning = [word for word in words if word in known and word not in _FILLERS]
    told = []
    for word in unknown:
        near = _near(word, vocabulary)
        told.append(f"`{word}`" + (f" (near: {', '.join(near)})" if near else ""))
    knows = f"it knows: {', '.join(content) if len(content) <= 120 else f'{len(content)} words'}"
    elsewhere = "for open prompts take a recipe whose CLIP reads every word: `mav recipe ls`, then --recipe"
    if not meaning:
        what = f"the family `{recipe.name}` knows no word of `{prompt}`"
        raise UsageError(what + (f": {', '.join(told)}" if told else ""), hint=f"{knows}; {elsewhere}")
    if unknown:
        console.warning(f"words that the family `{recipe.name}` never saw are ignored: {', '.join(told)}")
        console.message(f"{knows}; {elsewhere}")


@functools.cache
def _meaning(vocabulary: tuple[str, ...]) -> tuple[frozenset[str], list[str]]:
    """All words, and those that say something, sorted."""
    return frozenset(vocabulary), sorted(word for word in vocabulary if word not in _FILLERS)


@functools.cache
def _near(word: str, vocabulary: tuple[str, ...]) -> list[str]:
    return difflib.get_close_matches(word, vocabulary, n=3, cutoff=0.6)


def wanted_frames(
    frames: int | None,
    seconds: float | None,
    *,
    fps: float,
    natural: int | None = None,
    most: int = MAX_FRAMES,
) -> int:
    """How many frames --frames or --seconds ask for; `natural` where neither is given."""
    if frames is not None and seconds is not None:
        raise UsageError("--frames and --seconds are both given", hint="give one of them")
    if seconds is not None:
        if not 0 < seconds < 1e6:
            raise UsageError(f"--seconds {seconds:g}, wanted more than 0")
        frames = max(1, int(seconds * fps + 0.5))
    count = natural if frames is None else frames
    if count is None:
        raise UsageError("neither --frames nor --seconds is given", hint="give one of them")
    check_count(count, most=most)
    return count


def check_count(count: int, *, most: int = MAX_FRAMES) -> None:
    """UsageError for more frames than one result may have."""
    if count > most:
        raise UsageError(f"{count} frames, one result has at most {most}", hint="make it in pieces")


def natural_frames(recipe: Recipe) -> int:
    """What 16 key frames give: 76."""
    return (recipe.cascade.decoder.frames - 1) * recipe.cascade.interp.frame_skip + 1


def out_size(recipe: Recipe) -> int:
    """Pixels a side of the cascade's frames."""
    parts = (recipe.cascade.sr_l, recipe.cascade.sr_h)
    sizes = [part.size for part in parts if part.kind != "none"]
    return sizes[-1] if sizes else recipe.cascade.decoder.network.image_size


def shape_words(frames: int, height: int, width: int, fps: float) -> str:
    return f"{frames} frames of {width} x {height} px at {fps:.6g} fps, {frames / fps:.2f} s"


def show_base(session: Session, job: Job, base: Any, *, fps: float) -> None:
    """The key frames as a contact sheet, before super-resolution."""
    from mavcli.engine.output import write_base_sheet
    from mavcli.media.frames import to_uint8

    key, force = job.run["run_key"], session.common.force
    place = write_base_sheet(job.target, to_uint8(base[0]), fps=fps, key=key, force=force)
    session.console.message(f"key frames: {place}")
