"""A family small enough to train each of its stages in a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mavcli.engine.backend import Backend
from mavcli.recipe.load import LoadedRecipe, load_recipe
from mavcli.training.loop import Trained, train_stage

RECIPE = """
name: tiny
cascade:
  clip:
    network: {embed_dim: 16, image_size: 16, vision_layers: 1, vision_width: 64, vision_patch_size: 8,
      text_context: 8, text_width: 16, text_heads: 2, text_layers: 1,
      vocabulary: [a, bear, beach, cat, city, dog, in, photo, "on", panda, robot, running, space, surfing, the]}
  prior:
    network: {clip_dim: 16, text_dim: 16, text_context: 8, width: 16, layers: 1, num_heads: 2}
  decoder:
    network: &decoder {image_size: 16, patch: 2, model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1,
      attention_resolutions: [4], num_head_channels: 8, norm_groups: 8, resblock_updown: false, dropout: 0.1,
      clip_dim: 16, context_dim: 16, temporal: p3d, fps: true}
    schedule: {name: cosine, prediction: x0}
    sampler: {steps: 2}
  interp:
    sampler: {steps: 2}
  sr_l:
    size: 32
    network: {image_size: 32, low_res_channels: 3, low_res_residual: true, noise_level: true, patch: 4,
      model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [], mid_attention: false,
      norm_groups: 8, resblock_updown: false, temporal: p3d}
    schedule: {name: cosine, prediction: x0}
    sampler: {steps: 2}
  sr_h:
    size: 64
    network: {image_size: 64, low_res_channels: 3, noise_level: true, patch: 4, model_channels: 16,
      channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [], mid_attention: false, norm_groups: 8,
      resblock_updown: false}
    schedule: {name: cosine, prediction: x0}
    sampler: {steps: 2}
train:
  seed: 3
  data: {world: true}
  defaults: {steps: 3, batch_size: 2, frames: 4, lr: 1e-3, warmup: 1, ema: 0.9, optimizer: muon, save_every: 2,
    sample_every: 100, log_every: 1}
  stages:
    clip: {batch_size: 4, optimizer: adamw}
    prior: {optimizer: adamw, batch_size: 4}
    sr_h: {crop: 32}
    decoder_t: {image_batch: 0.34}
""".replace("&decoder ", "")

Train = Callable[..., Trained]


class Heard:
    """A report that remembers, and may do something at a step."""

    def __init__(self, at_step: dict[int, Callable[[], None]] | None = None) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.steps = 0.0
        self.reading = False
        self.at_step = at_step or {}

    def plan(self, total: float) -> None:
        return None

    def stage(self, name: str, total: float) -> None:
        self.reading = name.startswith("reading ")  # how often that is told depends on the clock

    def advance(self, amount: float = 1) -> None:
        if self.reading:
            return
        self.steps += amount
        if amount and self.steps in self.at_step:
            self.at_step[int(self.steps)]()

    def skip(self, amount: float) -> None:
        return None

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backend() -> Backend:
    return Backend(torch.device("cpu"), torch.float32, 1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedRecipe]:
    """`tiny(out, "a.b=c", ...)`: the tiny recipe, writing to the folder `out`."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)

    def load(out: Path, *sets: str) -> LoadedRecipe:
        return load_recipe(path, sets=(f"train.out={out}", f"weights.dir={out}/none", *sets))

    return load


@pytest.fixture(scope="session")
def train(tiny: Callable[..., LoadedRecipe], backend: Backend) -> Train:
    """`train("decoder", out, "a.b=c", report=...)`."""

    def run(
        stage: str,
        out: Path,
        *sets: str,
        report: Heard | None = None,
        fresh: bool = False,
        allow: Sequence[str] = (),
    ) -> Trained:
        loaded = tiny(out, *sets)
        return train_stage(loaded, stage, backend=backend, report=report or Heard(), fresh=fresh, allow=allow)

    return run


@pytest.fixture(scope="session")
def heard() -> type[Heard]:
    return Heard


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Path:
    """The output folder of all eight stages, trained in order on the rendered world."""
    out = tmp_path_factory.mktemp("family")
    for stage in ("clip", "prior", "decoder", "sr_l", "sr_h", "decoder_t", "interp", "sr_lt"):
        train(stage, out, *(["train.defaults.sample_every=3"] if stage in ("sr_lt", "interp") else []))
    return out
