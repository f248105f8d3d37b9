"""The judge of motion in the pocket world: how actor and camera of a clip move, and whose motion that is.

A small network reads poses off pairs of neighbouring frames; from the poses of a clip come the statistics of its
trajectories (period, speed, rotation, parallax), and from these alone, without any picture, a classifier says which of
the actions moves like that, or that none does: the frames stand still, or are in no order. Both are trained on rendered
clips alone, held-out pairs included; nothing in the engine or in training may import this.

b clips, f frames, c channels, h w pixels; clips are float32 in [-1, 1]. Lengths are frame sides, angles radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.data import world
from mavcli.evaluation.judges import load_judge, save_judge
from mavcli.media.frames import resize, to_float
from mavcli.recipe.share import share_dir
from mavcli.report import Report
from mavcli.specs import MotionJudgeSpec

NO_MOTION = "none"
LABELS: tuple[str, ...] = (*world.ACTIONS, NO_MOTION)
RETRAIN = "mav eval pocket --train-motion FILE"

TRAIN_SEED, TEST_SEED = 0x6D6F74, 0x6D6F75
"""Streams of `world.generator` that no training stage of the cascade draws from."""
FPS = (3.5, 7.0)
"""Frame rates of the clips it was trained on; others are thinned out to this range before reading."""
_FRAMES = 16
_POSE = 5  # x, y, cos, sin, stretch
_BETWEEN = 2  # camera, lift
# What a pose is about, and how far it strays: the network learns (value - mean) / deviation.
_MEAN = torch.tensor([0.5, 0.5, 0.85, 0.0, 1.0])
_DEVIATION = torch.tensor([0.1, 0.1, 0.4, 0.4, 0.06])
_STEP = torch.tensor([0.04, 0.02])
_FREQUENCIES = torch.linspace(0.2, 2.0, 37)  # Hz


@dataclass(frozen=True)
class Trajectory:
    """Poses over time, each (f,): position and angle of the actor, its stretch, camera and ground since the first frame."""

    x: Tensor
    y: Tensor
    angle: Tensor
    stretch: Tensor
    camera: Tensor
    lift: Tensor
    fps: float

    def signals(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in SIGNALS}


SIGNALS = ("x", "y", "angle", "stretch", "camera", "lift")


@dataclass(frozen=True)
class Course:
    """One signal over time: `speed` per second (slope of the straight line through it), `amplitude` (deviation from that
    line, times sqrt 2), `frequency` in Hz of the sinusoid that explains most of the deviation, and the `share` it explains."""

    speed: float
    amplitude: float
    frequency: float
    share: float


def course_of(signal: Tensor, *, fps: float) -> Course:
    """The statistics of one signal (f,), f at least 4; frequencies are looked for between 0.2 and 2 Hz."""
    t = torch.arange(len(signal), dtype=torch.float64) / fps
    line = torch.stack([torch.ones_like(t), t], dim=1)
    value = signal.double()
    coefficients = torch.linalg.lstsq(line, value[:, None]).solution
    rest = value - (line @ coefficients)[:, 0]
    power = float(rest.square().sum())
    if power < 1e-10:
        return Course(float(coefficients[1]), 0.0, 0.0, 0.0)
    # Least squares of line + sinusoid together: a slow sinusoid and a slope are not orthogonal over a short clip.
    angle = 2 * math.pi * _FREQUENCIES.double()[:, None] * t
    basis = torch.stack([*line.T.expand(len(angle), 2, -1).unbind(1), angle.cos(), angle.sin()], dim=-1)
    solution = torch.linalg.lstsq(basis, value[None, :, None].expand(len(basis), -1, 1)).solution
    left = (value - (basis @ solution)[..., 0]).square().sum(-1)
    best = int(left.argmin())
    share = 1 - float(left[best]) / power
    return Course(
        float(coefficients[1]), math.sqrt(2 * power / len(t)), float(_FREQUENCIES[best]), max(0.0, share)
    )


def courses_of(trajectory: Trajectory) -> dict[str, Course]:
    """The statistics of every signal."""
    return {name: course_of(signal, fps=trajectory.fps) for name, signal in trajectory.signals().items()}


class MotionJudge(nn.Module):
    """The reader of poses and the classifier of their statistics."""

    feature_mean: Tensor
    feature_deviation: Tensor

    def __init__(self, spec: MotionJudgeSpec) -> None:
        super().__init__()
        self.spec = spec
        layers: list[nn.Module] = []
        before = 6
        for index, width in enumerate(spec.widths):
            kernel = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(before, width, kernel, 2, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        side = spec.image_size // 2 ** len(spec.widths)
        # Flattened, not pooled: where something is, is the question.
        self.reader = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, spec.hidden))
        self.poses = nn.Linear(spec.hidden, 2 * _POSE + _BETWEEN)
        self.register_buffer("feature_mean", torch.zeros(_FEATURES))
        self.register_buffer("feature_deviation", torch.ones(_FEATURES))
        self.classifier = nn.Sequential(
            nn.Linear(_FEATURES, 64), nn.ReLU(), nn.Linear(64, len(spec.actions) + 1)
        )

    def read_pairs(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two frames (b, 3, h, w) -> their poses (b, 5) each, x y cos sin stretch, and the step of camera and lift (b, 2)."""
        size = self.spec.image_size
        pair = torch.cat([resize(first.float(), size), resize(second.float(), size)], dim=1)
        a, b, step = self.poses(F.relu(self.reader(pair))).split([_POSE, _POSE, _BETWEEN], dim=-1)
        return a * _DEVIATION + _MEAN, b * _DEVIATION + _MEAN, step * _STEP

    def classify(self, features: Tensor) -> Tensor:
        """Statistics (b, n) of `features_of` -> logits (b, labels), in the order of LABELS."""
        scaled = (features - self.feature_mean) / self.feature_deviation
        return self.classifier(scaled.clamp(-5, 5))


_FEATURES = 5 * len(SIGNALS)


def features_of(trajectory: Trajectory) -> Tensor:
    """What the classifier sees of a clip (n,): of each signal speed (its size alone), amplitude, frequency, share, jerk.

    Left and right, clockwise and counter-clockwise are the same motion; jerk is the mean change of the step over the step.
    """
    values: list[float] = []
    for name, course in courses_of(trajectory).items():
        step = trajectory.signals()[name].diff()
        jerk = float(step.diff().abs().mean() / (step.abs().mean() + 1e-4))
        speed = course.speed if name in ("y", "lift") else abs(course.speed)
        values += [
            speed,
            math.log(course.amplitude + 3e-3),
            course.frequency * course.share,
            course.share,
            jerk,
        ]
    return torch.tensor(values, dtype=torch.float32)


def thinned(clip: Tensor, fps: float) -> tuple[Tensor, float]:
    """Every k-th frame of a clip (f, c, h, w), so that its rate comes near the judge's, at most 16 of them; and that rate."""
    middle = math.sqrt(FPS[0] * FPS[1])
    every = max(1, round(fps / middle))
    return clip[::every][:_FRAMES], fps / every


@torch.no_grad()
def track(judge: MotionJudge, clip: Tensor, *, fps: float) -> Trajectory:
    """The poses in a clip (f, 3, h, w), f at least 4, `fps` frames a second."""
    if clip.ndim != 4 or len(clip) < 4:
        raise ValueError(f"a trajectory needs a clip `f c h w` of at least 4 frames, got {tuple(clip.shape)}")
    a, b, step = judge.read_pairs(clip[:-1], clip[1:])
    pose = torch.cat([a[:1], (a[1:] + b[:-1]) / 2, b[-1:]])  # inner frames are read twice
    turn = torch.atan2(pose[:, 3], pose[:, 2])
    change = torch.remainder(turn.diff() + math.pi, 2 * math.pi) - math.pi
    start = torch.zeros(1)
    return Trajectory(
        x=pose[:, 0],
        y=pose[:, 1],
        angle=turn[0] + torch.cat([start, change.cumsum(0)]),
        stretch=pose[:, 4],
        camera=torch.cat([start, step[:, 0].cumsum(0)]),
        lift=torch.cat([start, step[:, 1].cumsum(0)]),
        fps=fps,
    )


@dataclass(frozen=True)
class MotionReading:
    """Whose motion a clip shows: the label of the highest probability, and the statistics it was read from."""

    found: str
    confidence: float
    courses: dict[str, Course]


@torch.no_grad()
def read_motion(judge: MotionJudge, clip: Tensor, *, fps: float) -> MotionReading:
    """Read one clip (f, 3, h, w) of `fps` frames a second."""
    some, rate = thinned(clip, fps)
    trajectory = track(judge, some, fps=rate)
    row = judge.classify(features_of(trajectory)[None])[0].softmax(-1)
    best = int(row.argmax())
    return MotionReading(LABELS[best], float(row[best]), courses_of(trajectory))


@dataclass(frozen=True)
class Trained:
    """A new judge, and what it took."""

    network: MotionJudge
    steps: int
    samples_seen: int


def default_spec() -> MotionJudgeSpec:
    """The judge that this repository ships."""
    return MotionJudgeSpec(actions=world.ACTIONS)


def default_path() -> Path:
    """Where the judge that belongs to this installation is."""
    return share_dir("weights") / "judges" / "pocket_motion.safetensors"


@dataclass(frozen=True)
class Pairs:
    """Two neighbouring frames each (n, s, s, 3) uint8, their poses (n, 5), and the steps of camera and lift (n, 2)."""

    first: np.ndarray
    second: np.ndarray
    first_pose: Tensor
    second_pose: Tensor
    step: Tensor


def rendered_pairs(count: int, *, seed: int, start: int = 0, size: int = 64) -> Pairs:
    """Pairs `start` to `start + count` of the stream `seed`, of all pairs of actor and action."""
    pictures: list[tuple[np.ndarray, np.ndarray]] = []
    poses: list[tuple[world.Pose, world.Pose]] = []
    for index in range(start, start + count):
        scene = world.scene_for(seed, index, split="all")
        rng = world.generator(seed, index, stream=2)
        time = float(rng.uniform(0, 4.0))
        later = time + float(rng.uniform(0, 1 / FPS[0])) * (rng.random() > 0.05)
        pictures.append((world.render(scene, time, size), world.render(scene, later, size)))
        poses.append((world.pose(scene, time), world.pose(scene, later)))
    step = [(b.camera - a.camera, b.lift - a.lift) for a, b in poses]
    return Pairs(
        np.stack([p[0] for p in pictures]),
        np.stack([p[1] for p in pictures]),
        torch.tensor([_row(p[0]) for p in poses], dtype=torch.float32),
        torch.tensor([_row(p[1]) for p in poses], dtype=torch.float32),
        torch.tensor(step, dtype=torch.float32),
    )


def _row(pose: world.Pose) -> tuple[float, ...]:
    return pose.x, pose.y, math.cos(pose.angle), math.sin(pose.angle), pose.stretch


@dataclass(frozen=True)
class Moving:
    """Rendered clips (n, 16, s, s, 3) uint8, their frame rates (n,) and the labels of their motion (n,)."""

    clips: np.ndarray
    fps: np.ndarray
    labels: Tensor


def rendered_clips(count: int, *, seed: int, start: int = 0, size: int = 64) -> Moving:
    """Clips of the stream `seed`; one in nine has no motion: its frames are one frame, or stand in no order."""
    clips, rates, labels = [], [], []
    for index in range(start, start + count):
        scene = world.scene_for(seed, index, split="all")
        rng = world.generator(seed, index, stream=3)
        fps = float(rng.uniform(*FPS))
        clip = world.render_clip(scene, fps=fps, frames=_FRAMES, size=size, start=float(rng.uniform(0, 1)))
        label = LABELS.index(scene.action)
        if index % len(LABELS) == 0:
            label = LABELS.index(NO_MOTION)
            still = rng.random() < 0.5
            clip = clip[[int(rng.integers(_FRAMES))] * _FRAMES] if still else rng.permutation(clip)
        clips.append(clip)
        rates.append(fps)
        labels.append(label)
    return Moving(np.stack(clips), np.array(rates), torch.tensor(labels))


def worn(x: Tensor, generator: torch.Generator, *, together: int = 1) -> Tensor:
    """x (n, 3, h, w) in [-1, 1] -> softened, recoloured and noised as a mediocre generator might draw it.

    Nothing is moved: poses stay true. `together` frames in a row (of one clip) are softened and recoloured alike.
    """
    n, _, h, w = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        values = low + (high - low) * torch.rand(n // together, *shape, generator=generator)
        return values.repeat_interleave(together, dim=0)

    soft = resize(resize(x, (h * 3 // 8, w * 3 // 8), kernel="area"), (h, w), kernel="bilinear")
    x = x + uniform(-0.5, 1, 1, 1, 1).clamp(min=0) * (soft - x)
    x = x * uniform(0.75, 1.2, 3, 1, 1) + uniform(-0.15, 0.15, 3, 1, 1)
    return (x + uniform(0, 0.2, 1, 1, 1) * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def train_motion_judge(
    *,
    report: Report,
    steps: int = 400,
    batch_size: int = 96,
    pairs: int = 6_000,
    clips: int = 900,
    lr: float = 3e-3,
    seed: int = 0,
) -> Trained:
    """A new judge; a pure function of its arguments on one machine. About three minutes of one core as it stands."""
    spec = default_spec()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first weights alone
        network = MotionJudge(spec)
    report.stage("rendering pairs of frames", pairs)
    chunks = []
    for start in range(0, pairs, 500):
        chunks.append(
            rendered_pairs(min(500, pairs - start), seed=TRAIN_SEED + seed, start=start, size=spec.image_size)
        )
        report.advance(len(chunks[-1].first))
    first, second = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("first", "second"))
    truth = torch.cat(
        [
            torch.cat([(p - _MEAN) / _DEVIATION for p in (c.first_pose, c.second_pose)] + [c.step / _STEP], 1)
            for c in chunks
        ]
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    report.stage("training the reader of poses", steps)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(pairs, (batch_size,), generator=generator)
        both = torch.stack([to_float(x[chosen.numpy()]) for x in (first, second)], dim=1).flatten(0, 1)
        a, b = worn(both, generator, together=2).unflatten(0, (-1, 2)).unbind(1)
        pose_a, pose_b, step = network.read_pairs(a, b)
        read = torch.cat([(p - _MEAN) / _DEVIATION for p in (pose_a, pose_b)] + [step / _STEP], dim=1)
        loss = F.smooth_l1_loss(read, truth[chosen], beta=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report.advance()
    network.eval()
    _train_classifier(network, clips, generator, report=report, seed=seed)
    return Trained(network.requires_grad_(False), steps, steps * batch_size)


def _train_classifier(
    network: MotionJudge, clips: int, generator: torch.Generator, *, report: Report, seed: int
) -> None:
    """Fit the classifier to what the finished reader reads off rendered clips."""
    report.stage("rendering clips", clips)
    rows, labels = [], []
    for start in range(0, clips, 90):
        moving = rendered_clips(min(90, clips - start), seed=TRAIN_SEED + seed, start=start)
        for clip, fps in zip(moving.clips, moving.fps, strict=True):
            shown = worn(to_float(clip), generator, together=len(clip))
            rows.append(features_of(track(network, shown, fps=float(fps))))
        labels.append(moving.labels)
        report.advance(len(moving.clips))
    features, label = torch.stack(rows), torch.cat(labels)
    network.feature_mean.copy_(features.mean(0))
    network.feature_deviation.copy_(features.std(0) + 1e-6)
    optimizer = torch.optim.AdamW(network.classifier.parameters(), lr=3e-3, weight_decay=0.05)
    for _ in range(600):
        chosen = torch.randint(len(features), (256,), generator=generator)
        loss = F.cross_entropy(network.classify(features[chosen]), label[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(judge: MotionJudge, moving: Moving) -> float:
    """Share of rendered clips whose motion is read rightly."""
    read = [
        read_motion(judge, to_float(clip), fps=float(fps)).found
        for clip, fps in zip(moving.clips, moving.fps, strict=True)
    ]
    return sum(a == LABELS[int(b)] for a, b in zip(read, moving.labels, strict=True)) / len(read)


def save_motion_judge(judge: MotionJudge, path: Path, *, samples_seen: int = 0, steps: int = 0) -> None:
    """Write the judge of motion."""
    save_judge(
        judge, path, role="motion", spec=judge.spec, source=RETRAIN, steps=steps, samples_seen=samples_seen
    )


def load_motion_judge(path: Path | None = None) -> MotionJudge:
    """The judge of `path`, or the one that ships. Raises WeightsError when it is missing or knows other actions."""
    spec = default_spec()
    return load_judge(MotionJudge(spec), path or default_path(), role="motion", spec=spec, hint=RETRAIN)
