"""What P learns (unCLIP, section 2.2)."""

from __future__ import annotations

import torch
from torch import nn

from mavcli.engine.assemble import load_clip
from mavcli.models.prior import Prior
from mavcli.training import losses
from mavcli.training.draws import Draws
from mavcli.training.stage import Batch, Task
from mavcli.training.stages import STAGES

ROWS = 400


class Recorder(Prior):
    """Stands for P: remembers what it was asked, answers with a parameter."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.answer = nn.Parameter(
            torch.randn(ROWS, spec.clip_dim, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x, t, condition):
        self.x, self.t, self.condition = x, t, condition
        return self.answer


def test_p_learns_the_embedding_itself_and_is_without_text_for_its_share(family, tiny):
    recipe, stage = tiny(family).recipe, STAGES["prior"]
    config = recipe.stage("prior").model_copy(update={"weighting": "uniform"})
    clip = load_clip(recipe, family / "weights" / "clip.safetensors")
    network = Recorder(stage.network(recipe))
    task = Task("prior", recipe, config, network, torch.device("cpu"), stage.schedule(recipe), clip)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (ROWS, 1, 16, 16, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(pixels, captions=("a cat surfing", "the dog") * (ROWS // 2))
    loss = losses.prior_loss(task, batch, Draws(0, stage="prior", step=0, count=ROWS))
    x0 = network.scale(losses.first_frames(task, batch))
    torch.testing.assert_close(loss, (network.answer - x0).square().mean(1))  # not the noise's
    text = clip.encode_text(list(batch.captions))
    told = network.condition
    assert torch.equal(told.text_embedding, text.embedding) and torch.equal(told.text_states, text.states)
    assert 0.05 < float((~told.keep).float().mean()) < 0.16, "0.1 is unCLIP's, and the default"
