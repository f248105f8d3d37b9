"""The judge of the pocket world: which actor, action and place a picture shows.

A small convolutional network trained on rendered pictures alone, held-out pairs included, because it must be able to
recognise what generation never saw. It measures; nothing in the engine or in training may import it (a test looks).

b batch, c channels, h w pixels; pictures are float32 in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.data import world
from mavcli.evaluation.judges import load_judge, save_judge
from mavcli.media.frames import resize, to_float
from mavcli.recipe.share import share_dir
from mavcli.report import Report
from mavcli.specs import ClassifierSpec

Part = Literal["actor", "action", "place"]
PARTS: tuple[Part, ...] = ("actor", "action", "place")
LABELS: dict[Part, tuple[str, ...]] = {"actor": world.ACTORS, "action": world.ACTIONS, "place": world.PLACES}
RETRAIN = "mav eval pocket --train-classifier FILE"

# Streams of `world.generator` that no training stage of the cascade draws from.
TRAIN_SEED, TEST_SEED = 0x6A7564, 0x676502
_LONGEST = 4.0  # seconds: as far into a clip as the cascade's training pictures reach


def default_spec() -> ClassifierSpec:
    """The judge that this repository ships: 64 pixels, about 0.4 M parameters."""
    return ClassifierSpec(actors=world.ACTORS, actions=world.ACTIONS, places=world.PLACES)


def default_path() -> Path:
    """Where the judge that belongs to this installation is."""
    return share_dir("weights") / "judges" / "pocket.safetensors"


class Classifier(nn.Module):
    """Five convolutions, then the mean and the maximum over the picture, then one linear head for each part."""

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(spec.widths):
            kernel = 5 if index == 0 else 3
            stride = 1 if index == 2 else 2
            layers += [
                nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {
                "actor": nn.Linear(2 * before, len(spec.actors)),
                "action": nn.Linear(2 * before, len(spec.actions)),
                "place": nn.Linear(2 * before, len(spec.places)),
            }
        )

    def features(self, x: Tensor) -> Tensor:
        """x (b, 3, h, w) in [-1, 1], any size -> (b, d), the space of Fréchet distances between pocket pictures."""
        h = self.body(resize(x.float(), self.spec.image_size))
        return torch.cat([h.mean((-2, -1)), h.amax((-2, -1))], dim=-1)

    def forward(self, x: Tensor) -> dict[Part, Tensor]:
        """x (b, 3, h, w) in [-1, 1], any size -> logits (b, classes) for each part."""
        h = self.features(x)
        return {part: self.heads[part](h) for part in PARTS}


@torch.no_grad()
def probabilities(classifier: Classifier, x: Tensor, *, batch: int = 64) -> dict[Part, Tensor]:
    """x (b, 3, h, w) in [-1, 1] -> probabilities (b, classes) for each part, float32."""
    found: dict[Part, list[Tensor]] = {part: [] for part in PARTS}
    for chunk in x.split(batch):
        for part, logits in classifier(chunk).items():
            found[part].append(logits.softmax(-1))
    return {part: torch.cat(rows) for part, rows in found.items()}


@dataclass(frozen=True)
class Labelled:
    """Rendered pictures (n, s, s, 3) uint8 and, for each part, the class of each picture (n,)."""

    pictures: np.ndarray
    labels: dict[Part, Tensor]

    def __len__(self) -> int:
        return len(self.pictures)


def rendered(
    count: int, *, seed: int, start: int = 0, size: int = 64, split: world.Split = "all"
) -> Labelled:
    """Pictures `start` to `start + count` of the stream `seed`, with what they show."""
    numbers = range(start, start + count)
    scenes = [world.scene_for(seed, index, split=split) for index in numbers]
    times = [float(world.generator(seed, index, stream=2).uniform(0, _LONGEST)) for index in numbers]
    pictures = np.stack([world.render(scene, time, size) for scene, time in zip(scenes, times, strict=True)])
    labels: dict[Part, Tensor] = {
        part: torch.tensor([LABELS[part].index(getattr(scene, part)) for scene in scenes]) for part in PARTS
    }
    return Labelled(pictures, labels)


def accuracy(classifier: Classifier, shown: Labelled) -> dict[Part, float]:
    """Share of the pictures that the classifier reads rightly, for each part."""
    found = probabilities(classifier, to_float(shown.pictures))
    return {part: float((found[part].argmax(-1) == shown.labels[part]).float().mean()) for part in PARTS}


@dataclass(frozen=True)
class Trained:
    """A new judge, and what it took."""

    network: Classifier
    steps: int
    samples_seen: int


def train_classifier(
    *,
    report: Report,
    steps: int = 340,
    batch_size: int = 128,
    pool: int = 10_000,
    lr: float = 4e-3,
    seed: int = 0,
    shuffle_labels: bool = False,
) -> Trained:
    """A new judge; a pure function of its arguments on one machine. About two and a half minutes of one core as it stands.

    `pool` pictures are rendered once and shown damaged in a new way each time (`damaged`). `shuffle_labels` is the
    control: it must end at chance.
    """
    spec = default_spec()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first weights alone
        network = Classifier(spec)
    report.stage("rendering pictures", pool)
    parts = []
    for start in range(0, pool, 500):
        count = min(500, pool - start)
        parts.append(rendered(count, seed=TRAIN_SEED + seed, start=start, size=spec.image_size))
        report.advance(len(parts[-1]))
    pictures = np.concatenate([part.pictures for part in parts])
    labels: dict[Part, Tensor] = {part: torch.cat([p.labels[part] for p in parts]) for part in PARTS}
    if shuffle_labels:
        labels = {part: values[torch.randperm(pool, generator=generator)] for part, values in labels.items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    report.stage("training the classifier", steps)
    order = torch.empty(0, dtype=torch.long)
    network.train()
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(pool, generator=generator)])
        chosen, order = order[:batch_size], order[batch_size:]
        logits = network(damaged(to_float(pictures[chosen.numpy()]), generator))
        losses = [F.cross_entropy(logits[part], labels[part][chosen], label_smoothing=0.05) for part in PARTS]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        report.advance()
    return Trained(network.eval().requires_grad_(False), steps, steps * batch_size)


def damaged(x: Tensor, generator: torch.Generator) -> Tensor:
    """x (b, 3, h, w) in [-1, 1] -> the same pictures as a mediocre generator might have drawn them.

    Moved, scaled and mirrored a little; softened (blur, or lost resolution); recoloured; a patch missing; noised. The
    judge must forgive what a viewer forgives, and must not learn to read traces of the renderer.
    """
    b, _, h, w = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    flip = 1 - 2 * (uniform(0, 1, b) < 0.5).float()
    zoom = uniform(0.9, 1.1, b)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, :, 2] = uniform(-0.1, 0.1, b, 2)
    x = F.grid_sample(
        x, F.affine_grid(theta, [b, 3, h, w], align_corners=False), padding_mode="border", align_corners=False
    )
    soft = resize(resize(x, (h * 3 // 8, w * 3 // 8), kernel="area"), (h, w), kernel="bilinear")
    share = (uniform(-0.5, 1, b, 1, 1, 1)).clamp(min=0)
    x = x + share * (soft - x)
    gain, bias = uniform(0.75, 1.2, b, 3, 1, 1), uniform(-0.15, 0.15, b, 3, 1, 1)
    x = x * gain + bias
    for row, (top, left, blind) in enumerate(
        zip(*(uniform(0, 1, b).tolist() for _ in range(3)), strict=True)
    ):
        if blind < 0.4:
            side = h // 5
            y0, x0 = int(top * (h - side)), int(left * (w - side))
            patch = x[row, :, y0 : y0 + side, x0 : x0 + side]
            patch.copy_(patch.mean((-2, -1), keepdim=True).expand_as(patch).clone())
    noise = torch.randn(x.shape, generator=generator)
    return (x + uniform(0, 0.2, b, 1, 1, 1) * noise).clamp(-1, 1)


def save_classifier(classifier: Classifier, path: Path, *, samples_seen: int = 0, steps: int = 0) -> None:
    """Write the judge of pictures."""
    save_judge(
        classifier,
        path,
        role="classifier",
        spec=classifier.spec,
        source=RETRAIN,
        steps=steps,
        samples_seen=samples_seen,
    )


def load_classifier(path: Path | None = None) -> Classifier:
    """The judge of `path`, or the one that ships. Raises WeightsError when it is missing or knows another world."""
    spec = default_spec()
    return load_judge(Classifier(spec), path or default_path(), role="classifier", spec=spec, hint=RETRAIN)
