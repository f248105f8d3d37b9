"""Muon, the learning rate, the moving average and which parameters train."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mavcli.models.unet import UNet, is_temporal
from mavcli.recipe.schema import StageTraining
from mavcli.specs import UNetSpec
from mavcli.training.distributed import Group
from mavcli.training.optim import Muon, build_optimizers, is_hidden_matrix, learning_rate, orthogonalise
from mavcli.training.stage import Batch
from mavcli.training.trainer import Trainer

SPEC = UNetSpec(
    image_size=16,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=8,
    norm_groups=8,
    temporal="p3d",
    fps=True,
)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32), (8, 400)])
def test_orthogonalising_brings_singular_values_near_one_and_keeps_the_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrix)
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ result @ v.T
    assert (inner - inner.diag().diag()).abs().max() < 0.1, "singular vectors are kept"
    assert result.dtype == matrix.dtype


def test_muon_takes_a_step_of_its_rate_whatever_the_size_of_the_gradient():
    steps = []
    for size in (1e-4, 1e3):
        p = nn.Parameter(torch.zeros(32, 16, 3, 3))
        p.grad = size * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        Muon([{"params": [p]}], lr=0.02).step()
        steps.append(p.detach().clone())
        assert 0.6 * 0.02 < float(torch.linalg.matrix_norm(p.detach().flatten(1), 2)) < 1.3 * 0.02
    torch.testing.assert_close(*steps, rtol=0.05, atol=2e-4)


def test_muon_takes_hidden_matrices_and_adam_the_rest():
    network = UNet(SPEC)
    optimizers, count = build_optimizers(network, StageTraining(optimizer="muon"), inherited=False)
    adam, muon = ({id(p) for g in o.param_groups for p in g["params"]} for o in optimizers)
    assert not adam & muon and count == sum(p.numel() for p in network.parameters())
    names = {n: id(p) for n, p in network.named_parameters()}
    assert set(names.values()) == adam | muon
    in_muon = {n for n, i in names.items() if i in muon}
    assert "middle_block.0.in_layers.2.weight" in in_muon and "middle_block.1.qkv.weight" in in_muon
    for outer in (
        "input_blocks.0.0.weight",
        "out.2.weight",
        "time_embed.0.weight",
        "middle_block.0.in_layers.0.weight",
    ):
        assert outer in names and outer not in in_muon
    assert all(p.ndim >= 2 for n, p in network.named_parameters() if is_hidden_matrix(n, p))


def test_inherited_layers_learn_at_their_own_rate():
    network, config = UNet(SPEC), StageTraining(lr=1e-3, muon_lr=0.01, optimizer="muon", spatial_lr=0.1)
    for inherited, spatial in ((True, 0.1), (False, 1.0)):
        optimizers, _ = build_optimizers(network, config, inherited=inherited)
        rates = {id(p): g["base_lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
        for name, p in network.named_parameters():
            full = 0.01 if is_hidden_matrix(name, p) else 1e-3
            assert rates[id(p)] == pytest.approx(full * (1.0 if is_temporal(name) else spatial))


def test_temporal_training_trains_what_inflation_added():
    network = UNet(SPEC)
    _, count = build_optimizers(network, StageTraining(train="temporal"), inherited=True)
    for name, p in network.named_parameters():
        assert p.requires_grad == is_temporal(name)
    assert count == sum(p.numel() for n, p in network.named_parameters() if is_temporal(n))


def test_the_rate_rises_stays_and_falls():
    config = StageTraining(steps=100, warmup=10, decay=0.4)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:60] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5) and 0 < rates[99] < 0.03
    assert learning_rate(99, StageTraining(steps=100, warmup=0, decay=0.0)) == 1.0


def test_the_moving_average_is_the_average_it_says():
    """decay = min(ema, (1 + step) / (10 + step)), so early weights are soon forgotten; counters are copied."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    config = StageTraining(ema=0.5)
    task = SimpleNamespace(network=network, config=config, group=Group())
    trainer = Trainer(task, None, None)  # type: ignore[arg-type]
    expected = network[0].weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            network[0].weight.add_(torch.randn(2, 3))
            network[1].num_batches_tracked += 1
        trainer._update_average(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
        torch.testing.assert_close(trainer.average["0.weight"], expected)
    assert int(trainer.average["1.num_batches_tracked"]) == 12


def test_the_stem_of_a_widened_network_learns_at_the_full_rate_and_even_where_only_temporal_layers_do():
    network = nn.Module()
    network.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(7, 32, 3)])])
    network.other = nn.Linear(32, 32)
    stem = network.input_blocks[0][0].weight
    config = StageTraining(lr=1e-3, spatial_lr=0.1)
    for widened, rate in ((True, 1e-3), (False, 1e-4)):
        (adam,), _ = build_optimizers(network, config, inherited=True, widened=widened)
        assert [g["base_lr"] for g in adam.param_groups if any(p is stem for p in g["params"])] == [rate]
    build_optimizers(network, StageTraining(train="temporal"), inherited=True, widened=True)
    assert stem.requires_grad and not network.other.weight.requires_grad


def test_adam_is_given_the_recipes_epsilon():
    optimizers, _ = build_optimizers(UNet(SPEC), StageTraining(adam_eps=1e-6), inherited=False)
    assert [group["eps"] for o in optimizers for group in o.param_groups] == [1e-6]


def _least_squares(rho: float, rate: float) -> tuple[nn.Linear, Trainer, torch.Tensor]:
    """A linear map, a trainer of it by plain gradient steps whose loss is half its squared output, and the rows it sees."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    network = nn.Linear(4, 1, bias=False)
    nn.init.constant_(network.weight, 0.5)
    config = StageTraining(sam_rho=rho, clip_grad=1e9, warmup=0, batch_size=6, micro_batch=2)
    task = SimpleNamespace(
        network=network, config=config, group=Group(), recipe=SimpleNamespace(train=SimpleNamespace(seed=0))
    )
    stage = SimpleNamespace(
        name="clip", loss=lambda task, batch, draws: task.network(batch.pixels).square().sum(-1) / 2
    )
    backend = SimpleNamespace(autocast=nullcontext)
    trainer = Trainer(task, stage, backend)  # type: ignore[arg-type]
    group = {"params": list(network.parameters()), "lr": rate, "base_lr": rate}
    trainer.optimizers = [torch.optim.SGD([group])]
    return network, trainer, rows


def test_sam_steps_along_the_gradient_at_the_top_of_a_climb_of_length_rho():
    """SAM, arXiv 2010.01412, equations 2 and 3, over micro-batches."""
    network, trainer, rows = _least_squares(rho=0.3, rate=0.1)
    w = network.weight.detach().clone()
    gradient = lambda w: (rows @ w.T * rows).mean(0, keepdim=True)  # noqa: E731
    top = w + 0.3 * gradient(w) / gradient(w).norm()
    result = trainer.step(0, Batch(rows))
    torch.testing.assert_close(network.weight.detach(), w - 0.1 * gradient(top))
    assert result.loss == pytest.approx(float((rows @ w.T).square().mean() / 2)), "the loss is that at w"
    assert result.norm == pytest.approx(float(gradient(top).norm()))


def test_sam_comes_back_to_the_very_bits_it_climbed_from():
    network, trainer, rows = _least_squares(rho=0.7, rate=0.0)
    before = network.weight.detach().clone()
    trainer.step(0, Batch(rows))
    assert torch.equal(network.weight, before)


def test_a_step_of_sam_whose_loss_is_no_number_changes_nothing():
    network, trainer, rows = _least_squares(rho=0.3, rate=0.1)
    before = network.weight.detach().clone()
    rows[4] = float("nan")
    result = trainer.step(0, Batch(rows))
    assert not result.finite and result.bad_rows == (4,) and torch.equal(network.weight, before)


def test_pictures_beside_clips_count_frame_by_frame_in_one_step():
    """VDM, arXiv 2204.03458: a step's loss is the mean over all frames, of clips and of pictures."""
    network, trainer, rows = _least_squares(rho=0.0, rate=0.1)
    clips = rows.reshape(2, 3, 4)  # two clips of three frames
    pictures = torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(2))
    trainer.stage.loss = lambda task, batch, draws: network(batch.pixels).square().mean((1, 2)) / 2
    w = network.weight.detach().clone()
    every = torch.cat([rows, pictures[:, 0]])
    result = trainer.step(0, Batch(clips, beside=Batch(pictures, first=2)))
    gradient = (every @ w.T * every).mean(0, keepdim=True)
    torch.testing.assert_close(network.weight.detach(), w - 0.1 * gradient)
    assert result.norm == pytest.approx(float(gradient.norm()))
    assert result.loss == pytest.approx(float((rows @ w.T).square().mean() / 2)), (
        "the loss that is told is the clips'"
    )
