"""`mav eval pocket`: whether the pocket family shows what its prompts say, and whether it moves.

Prompts are drawn from the pairs (actor, action) of the training pictures and, apart from them, from the pairs that no
training data shows. Each goes through the whole text-to-video chain; judges that generation never saw read it: one names
actor, action and place in the frames, the other says from the trajectories alone whose motion it is. Intervals are
Wilson's, 95 %.

b samples, f frames, c channels, h w pixels, float32 in [-1, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mavcli.data import world
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import Family, Piece, find_family
from mavcli.engine.randomness import Draw
from mavcli.errors import UsageError
from mavcli.evaluation.classifier import LABELS, PARTS, Classifier, Part, probabilities
from mavcli.evaluation.intervals import wilson
from mavcli.evaluation.motion import Motion, mean_motion, motion_of, rank_correlation, shuffled
from mavcli.evaluation.trajectory import Course, MotionJudge, MotionReading, read_motion
from mavcli.media.frames import to_float, to_uint8
from mavcli.media.image import write_png
from mavcli.recipe.schema import Recipe

Aspect = Part | Literal["motion"]
ASPECTS: tuple[Aspect, ...] = (*PARTS, "motion")
Group = Literal["seen", "held-out"]
Scope = Literal["base", "full"]

FPS_LADDER = (1.0, 4.0, 8.0, 15.0, 30.0)
"""The frame rates that D^t is told in the control of fps."""

_SPLITS: dict[Group, world.Split] = {"seen": "train", "held-out": "held_out"}
_PIECES: dict[Scope, tuple[Piece, ...]] = {
    "base": ("clip", "prior", "decoder_t"),
    "full": ("clip", "prior", "decoder_t", "interp", "sr_l", "sr_h"),
}
# Prompts and rendered clips have streams of their own, the groups have samples of their own.
_STREAM = 0x70726F
_FIRST_SAMPLE: dict[Group, int] = {"seen": 0, "held-out": 1_000_000}
_SAMPLES = 10_000_000  # more than all of them
_SHEET_FRAMES, _SHEET_ROWS = 8, 30
_GREEN, _RED = (120, 220, 120), (255, 120, 110)
# What tells an action's motion from the others': a signal and its statistic. Directions are as the renderer's, so only
# sizes are compared.
_TELLING: dict[str, tuple[tuple[str, str], ...]] = {
    "surfing": (("angle", "amplitude"), ("angle", "frequency")),
    "flying": (("camera", "speed"), ("y", "amplitude")),
    "driving": (("camera", "speed"),),
    "bouncing": (("y", "amplitude"), ("y", "frequency")),
    "spinning": (("angle", "speed"),),
    "falling": (("angle", "amplitude"), ("angle", "frequency"), ("lift", "speed")),
    "swimming": (("angle", "amplitude"), ("angle", "frequency")),
    "skating": (("x", "amplitude"), ("x", "frequency")),
}


@dataclass(frozen=True)
class Prompt:
    """What a clip should show; `sample` is its number in the stream of random draws."""

    actor: str
    action: str
    place: str
    group: Group
    sample: int

    @property
    def text(self) -> str:
        return world.prompt(self.actor, self.action, self.place)


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one clip. `found` is the class of the highest mean probability over the frames,
    `frames_right` the share of frames that, each alone, are read as the prompt says."""

    prompt: Prompt
    found: dict[Part, str]
    confidence: dict[Part, float]
    frames_right: dict[Part, float]
    motion: Motion
    rendered: Motion
    shuffled: Motion
    moves: MotionReading
    rendered_moves: MotionReading
    shuffled_moves: MotionReading

    def right(self, aspect: Aspect) -> bool:
        if aspect == "motion":
            return self.moves.found == self.prompt.action
        return self.found[aspect] == getattr(self.prompt, aspect)


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with the 95 % interval of Wilson."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"right": self.right, "total": self.total, "share": self.value, "low": low, "high": high}


@dataclass(frozen=True)
class FpsControl:
    """Mean motion of the generated and of rendered clips at each frame rate of FPS_LADDER.

    `rho_per_second` is Spearman's correlation of motion per second (motion x fps) with the fps asked for, the mean over
    prompts; `rho_per_frame` that of motion per frame, which falls as fps rises. Rendered clips give what can be had.
    """

    fps: tuple[float, ...]
    generated: tuple[float, ...]
    rendered: tuple[float, ...]
    rho_per_second: float
    rho_per_second_rendered: float
    rho_per_frame: float
    rho_per_frame_rendered: float


def draw_prompts(count: int, *, group: Group, seed: int) -> list[Prompt]:
    """`count` prompts, uniform over the pairs of the group and over the places; a pure function of (group, seed)."""
    first = _FIRST_SAMPLE[group]
    scenes = [world.scene_for(seed, first + i, split=_SPLITS[group]) for i in range(count)]
    return [Prompt(s.actor, s.action, s.place, group, first + i) for i, s in enumerate(scenes)]


def needed_family(recipe: Recipe, *, scope: Scope, random_weights: bool = False) -> Family:
    """The weights that `scope` needs. Raises UsageError for a recipe that does not know the words of the pocket world."""
    vocabulary = recipe.cascade.clip.network.vocabulary
    if vocabulary is not None:
        unknown = sorted(_words() - set(vocabulary))
        if unknown:
            raise UsageError(
                f"recipe `{recipe.name}` does not know {len(unknown)} words of the pocket world, the first is `{unknown[0]}`",
                hint="this evaluation is for recipes of the pocket family: --recipe pocket",
            )
    return find_family(recipe, _PIECES[scope], random_weights=random_weights)


def _words() -> set[str]:
    """Every word that a prompt of this evaluation can hold."""
    texts = [
        world.prompt(actor, action, place)
        for actor in world.ACTORS
        for action in world.ACTIONS
        for place in world.PLACES
    ]
    return {word for text in texts for word in text.split()}


def plan(cascade: Cascade, *, prompts: int, fps_prompts: int, scope: Scope, stage_prompts: int = 0) -> float:
    """The cost of the whole evaluation, in the unit of the cascade's reports."""
    base = cascade.cost_of_prior(1) + cascade.cost_of_decoder(1)
    keys, frames = cascade.parts.decoder.frames, cascade.natural_frames
    chains = stage_prompts + (prompts if scope == "full" else 0)
    cost = (prompts + stage_prompts + fps_prompts * len(FPS_LADDER)) * base
    if chains:
        cost += chains * (cascade.cost_of_fill_up(keys, frames) + cascade.cost_of_enlarge(frames))
    return cost


def generate(
    cascade: Cascade,
    prompts: Sequence[Prompt],
    *,
    scope: Scope,
    fps: float,
    seed: int,
    inflated: bool = False,
) -> Tensor:
    """The prompts (b) through the chain: 16 key frames, or all frames at full size; (b, f, 3, h, w) in [-1, 1].

    With `inflated`, D^t is what inflation alone makes of D, before any video: its temporal layers are the identity, so
    every frame is D's own picture (Make-A-Video, section 3.2).
    """
    draws = [Draw(seed, prompt.sample) for prompt in prompts]
    embedding = cascade.image_embedding([prompt.text for prompt in prompts], draws)
    if inflated:
        frames = range(cascade.parts.decoder.frames)
        pictures = [
            cascade.decode(embedding, [Draw(seed, d.sample + i * _SAMPLES) for d in draws], fps=fps, frames=1)
            for i in frames
        ]
        base = torch.cat(pictures, dim=1)
    else:
        base = cascade.decode(embedding, draws, fps=fps)
    return base if scope == "base" else cascade.finish(base, draws, fps=fps)


@dataclass(frozen=True)
class Judges:
    """Who reads the clips: one the pictures, one the motion."""

    pictures: Classifier
    motion: MotionJudge


def read_clip(judges: Judges, clip: Tensor, prompt: Prompt, *, fps: float, seed: int) -> Reading:
    """Read one clip (f, 3, h, w) of `fps` frames a second, and compare its motion with a rendered clip's and its own shuffled."""
    found = probabilities(judges.pictures, clip)
    truth_clip = rendered_clip(prompt, fps=fps, frames=len(clip), size=clip.shape[-1], seed=seed)
    disorder = shuffled(clip, seed=prompt.sample)
    mean = {part: rows.mean(0) for part, rows in found.items()}
    truth = {part: LABELS[part].index(getattr(prompt, part)) for part in PARTS}
    return Reading(
        prompt,
        found={part: LABELS[part][int(mean[part].argmax())] for part in PARTS},
        confidence={part: float(mean[part].max()) for part in PARTS},
        frames_right={part: float((found[part].argmax(-1) == truth[part]).float().mean()) for part in PARTS},
        motion=motion_of(clip),
        rendered=motion_of(truth_clip),
        shuffled=motion_of(disorder),
        moves=read_motion(judges.motion, clip, fps=fps),
        rendered_moves=read_motion(judges.motion, truth_clip, fps=fps),
        shuffled_moves=read_motion(judges.motion, disorder, fps=fps),
    )


def rendered_clip(prompt: Prompt, *, fps: float, frames: int, size: int, seed: int) -> Tensor:
    """A clip of the world that shows the prompt: (f, 3, s, s) in [-1, 1]."""
    scene = world.scene_for(
        _STREAM + seed,
        prompt.sample,
        split="all",
        actor=prompt.actor,
        action=prompt.action,
        place=prompt.place,
    )
    return to_float(world.render_clip(scene, fps=fps, frames=frames, size=size))


def measure(
    cascade: Cascade,
    judges: Judges,
    prompts: Sequence[Prompt],
    *,
    scope: Scope,
    fps: float,
    seed: int,
    batch: int = 1,
    inflated: bool = False,
) -> tuple[list[Reading], list[np.ndarray]]:
    """Generate and read every prompt: the readings, and of each clip 8 frames (8, 64, 64, 3) uint8 to look at.

    `inflated` as in `generate`.
    """
    readings, looks = [], []
    shown_fps = fps if scope == "full" else fps / cascade.skip
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        clips = generate(cascade, some, scope=scope, fps=fps, seed=seed, inflated=inflated)
        for prompt, clip in zip(some, clips, strict=True):
            readings.append(read_clip(judges, clip, prompt, fps=shown_fps, seed=seed))
            chosen = np.linspace(0, len(clip) - 1, _SHEET_FRAMES).round().astype(int)
            looks.append(to_uint8(clip[torch.from_numpy(chosen)]))
    return readings, looks


def control_fps(cascade: Cascade, prompts: Sequence[Prompt], *, seed: int, batch: int = 1) -> FpsControl:
    """D^t of the same prompts and noise at every frame rate of FPS_LADDER. Raises UsageError without prompts."""
    if not prompts:
        raise UsageError("the control of fps needs at least one prompt")
    drawn, truth = np.zeros((len(prompts), len(FPS_LADDER))), np.zeros((len(prompts), len(FPS_LADDER)))
    for column, fps in enumerate(FPS_LADDER):
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            clips = generate(cascade, some, scope="base", fps=fps * cascade.skip, seed=seed)
            for row, (prompt, clip) in enumerate(zip(some, clips, strict=True), start):
                drawn[row, column] = motion_of(clip).motion
                shown = rendered_clip(prompt, fps=fps, frames=len(clip), size=clip.shape[-1], seed=seed)
                truth[row, column] = motion_of(shown).motion

    def rho(values: np.ndarray) -> float:
        return float(np.mean([rank_correlation(FPS_LADDER, row) for row in values.tolist()]))

    return FpsControl(
        fps=FPS_LADDER,
        generated=tuple(drawn.mean(0).tolist()),
        rendered=tuple(truth.mean(0).tolist()),
        rho_per_second=rho(drawn * FPS_LADDER),
        rho_per_second_rendered=rho(truth * FPS_LADDER),
        rho_per_frame=rho(drawn),
        rho_per_frame_rendered=rho(truth),
    )


def shares(readings: Sequence[Reading]) -> dict[Aspect | Literal["all four"], Share]:
    """How many clips are read as their prompts say, for each aspect and for all at once."""
    total = len(readings)
    each: dict[Aspect | Literal["all four"], Share] = {
        aspect: Share(sum(r.right(aspect) for r in readings), total) for aspect in ASPECTS
    }
    each["all four"] = Share(sum(all(r.right(aspect) for aspect in ASPECTS) for r in readings), total)
    return each


def motion_controls(readings: Sequence[Reading]) -> dict[str, Share]:
    """How often the motion of rendered clips is read as their action's, and that of the generated clips' shuffled frames."""
    told = {
        "rendered": [r.rendered_moves for r in readings],
        "shuffled": [r.shuffled_moves for r in readings],
    }
    return {
        name: Share(sum(m.found == r.prompt.action for m, r in zip(moves, readings, strict=True)), len(moves))
        for name, moves in told.items()
    }


def trajectories(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Of each action, what tells its motion: medians over the rendered and over the generated clips."""

    def value(courses: dict[str, Course], signal: str, statistic: str) -> float:
        return abs(getattr(courses[signal], statistic))

    return [
        {
            "action": action,
            "signal": signal,
            "statistic": statistic,
            "rendered": float(np.median([value(r.rendered_moves.courses, signal, statistic) for r in some])),
            "generated": float(np.median([value(r.moves.courses, signal, statistic) for r in some])),
            "clips": len(some),
        }
        for action, telling in _TELLING.items()
        for signal, statistic in telling
        if (some := [r for r in readings if r.prompt.action == action])
    ]


def confusion(readings: Sequence[Reading], part: Part) -> np.ndarray:
    """(classes, classes) counts: rows are what was asked for, columns what was read, in the order of LABELS."""
    names = LABELS[part]
    table = np.zeros((len(names), len(names)), dtype=int)
    for reading in readings:
        table[names.index(getattr(reading.prompt, part)), names.index(reading.found[part])] += 1
    return table


def report_of(groups: dict[Group, list[Reading]], control: FpsControl | None) -> dict[str, Any]:
    """Everything measured, ready for JSON."""
    told: dict[str, Any] = {"groups": {}, "fps_control": None if control is None else asdict(control)}
    for group, readings in groups.items():
        if not readings:
            continue
        stills = [r for r in readings if r.prompt.actor in world.STILL_ONLY_ACTORS]
        told["groups"][group] = {
            "shares": {part: share.as_dict() for part, share in shares(readings).items()},
            "frames_right": {
                part: float(np.mean([r.frames_right[part] for r in readings])) for part in PARTS
            },
            "actors_never_in_video": (
                {part: share.as_dict() for part, share in shares(stills).items()} if stills else None
            ),
            "classes": {
                part: {
                    name: Share(int(row[i]), int(row.sum())).as_dict()
                    for i, (name, row) in enumerate(zip(LABELS[part], confusion(readings, part), strict=True))
                    if row.sum()
                }
                for part in PARTS
            },
            "confusion": {
                part: {"labels": list(LABELS[part]), "counts": confusion(readings, part).tolist()}
                for part in PARTS
            },
            "motion": {
                "generated": asdict(mean_motion([r.motion for r in readings])),
                "rendered": asdict(mean_motion([r.rendered for r in readings])),
                "shuffled": asdict(mean_motion([r.shuffled for r in readings])),
            },
            "motion_controls": {name: share.as_dict() for name, share in motion_controls(readings).items()},
            "trajectories": trajectories(readings),
            "motion_read": [
                {"action": action, "read": counts}
                for action in world.ACTIONS
                if (counts := Counter(r.moves.found for r in readings if r.prompt.action == action))
            ],
            "prompts": [
                {
                    "text": r.prompt.text,
                    "sample": r.prompt.sample,
                    "found": {str(part): name for part, name in r.found.items()} | {"motion": r.moves.found},
                    "confidence": {part: round(value, 3) for part, value in r.confidence.items()},
                }
                for r in readings
            ],
        }
    return told


def write_pages(
    folder: Path, readings: Sequence[Reading], looks: Sequence[np.ndarray], *, name: str, force: bool
) -> list[Path]:
    """Pages of rows for human eyes: eight frames, the prompt, what the judge read. Raises DiskError."""
    pages = []
    for page, start in enumerate(range(0, len(readings), _SHEET_ROWS), 1):
        rows = [
            _row(r, look)
            for r, look in zip(readings[start:], looks[start : start + _SHEET_ROWS], strict=False)
        ]
        path = folder / f"{name}-{page:02d}.png"
        write_png(path, np.concatenate(rows), overwrite=force)
        pages.append(path)
    return pages


def _row(reading: Reading, frames: np.ndarray) -> np.ndarray:
    height, gap, margin = 100, 4, 300
    sheet = Image.new("RGB", (margin + len(frames) * (height + gap), height + gap), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    draw.text((10, 10), reading.prompt.text, font=font, fill=(240, 240, 240))
    for line, part in enumerate(PARTS):
        right = reading.right(part)
        words = f"{part}: {reading.found[part]} {100 * reading.confidence[part]:.0f} %"
        draw.text((10, 30 + 17 * line), words, font=font, fill=_GREEN if right else _RED)
    moves = f"motion: {reading.moves.found} {100 * reading.moves.confidence:.0f} %"
    draw.text((10, 30 + 17 * len(PARTS)), moves, font=font, fill=_GREEN if reading.right("motion") else _RED)
    for i, frame in enumerate(frames):
        picture = Image.fromarray(frame).resize((height, height), Image.Resampling.LANCZOS)
        sheet.paste(picture, (margin + i * (height + gap), gap // 2))
    return np.asarray(sheet)
