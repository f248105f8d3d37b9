"""The layers that replace PyTorch's own for speed have its values, and layers over time know distances only."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.models import attention, pseudo3d
from mavcli.models.attention import attend
from mavcli.models.embeddings import FpsEmbedding, fill_unknown, sinusoid
from mavcli.models.normalisation import GroupNorm
from mavcli.models.pseudo3d import PseudoConv3d, RelativeBias, TemporalAttention, rotate, temporal_conv
from mavcli.models.unet import UNet, is_temporal
from mavcli.weights.locate import inherit


def reference_norm(
    norm: GroupNorm, x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str | None
) -> Tensor:
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if scale is not None and shift is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return h if activation is None else {"silu": F.silu, "gelu": F.gelu}[activation](h)


def a_norm(dtype: torch.dtype = torch.float32) -> GroupNorm:
    torch.manual_seed(0)
    norm = GroupNorm(2, 6, eps=1e-5).to(dtype)
    nn.init.normal_(norm.weight, 1.0, 0.5)
    nn.init.normal_(norm.bias, 0.0, 0.5)
    return norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize("modulated", [False, True])
def test_the_fused_norm_has_pytorchs_values_and_gradients(layout, activation, modulated):
    norm = a_norm()
    g = torch.Generator().manual_seed(1)
    x = (3 + 2 * torch.randn(4, 6, 5, 7, generator=g)).to(memory_format=layout).requires_grad_()
    scale, shift = (
        (torch.randn(4, 6, generator=g).requires_grad_() for _ in "ab") if modulated else (None, None)
    )
    leaves = [v for v in (x, norm.weight, norm.bias, scale, shift) if v is not None]
    weights = torch.randn(4, 6, 5, 7, generator=g)
    ours = norm(x, scale=scale, shift=shift, activation=activation)
    theirs = reference_norm(norm, x, scale, shift, activation)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    assert ours.is_contiguous(memory_format=layout)
    gradients = (torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("modulated", [False, True])
def test_the_fused_norms_gradient_is_that_of_finite_differences(activation, modulated):
    norm = a_norm(torch.float64)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64, generator=g).to(memory_format=torch.channels_last)
    extra = (
        [torch.randn(2, 6, dtype=torch.float64, generator=g, requires_grad=True) for _ in "ab"]
        if modulated
        else []
    )

    def run(x: Tensor, weight: Tensor, bias: Tensor, *modulation: Tensor) -> Tensor:
        scale, shift = modulation or (None, None)
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(
            norm, parameters, (x,), {"scale": scale, "shift": shift, "activation": activation}
        )

    leaves = [
        x.requires_grad_(),
        norm.weight.detach().requires_grad_(),
        norm.bias.detach().requires_grad_(),
        *extra,
    ]
    assert torch.autograd.gradcheck(run, leaves)


def test_the_fused_norm_in_bfloat16_is_near_that_in_float32():
    norm = a_norm()
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, 6, 16, 16, generator=g).bfloat16()
    scale, shift = torch.randn(2, 6, generator=g).bfloat16(), torch.randn(2, 6, generator=g).bfloat16()
    weights = torch.randn(2, 6, 16, 16, generator=g)
    results = []
    for run, dtype in (
        (norm, torch.bfloat16),
        (lambda *a, **k: reference_norm(norm, *a, **k), torch.float32),
    ):
        leaves = [v.to(dtype).requires_grad_() for v in (x, scale, shift)]
        y = run(leaves[0], scale=leaves[1], shift=leaves[2], activation="silu")
        assert y.dtype == dtype
        results.append(
            [y, *torch.autograd.grad((y.float() * weights).sum(), [*leaves, norm.weight, norm.bias])]
        )
    for one, other in zip(*results, strict=True):
        assert (one.float() - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_norm_takes_frames_that_share_memory_or_have_gaps_in_it(layout, dtype):
    norm, large = a_norm(dtype), torch.randn(2, 12, 10, 10).to(dtype, memory_format=layout)
    one = torch.randn(1, 6, 5, 5).to(dtype, memory_format=layout)
    views = [one.expand(3, -1, -1, -1), large[:, :6], large[:, 6:, ::2, ::2], large[:, :6].transpose(2, 3)]
    for x in views:
        dense = x.detach().contiguous().requires_grad_()
        x = x.detach().requires_grad_()
        y, wanted = norm(x, activation="silu"), norm(dense, activation="silu")
        near = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
        torch.testing.assert_close(y, wanted, **near)
        for slope, right in zip(
            torch.autograd.grad(y.float().square().sum(), x),
            torch.autograd.grad(wanted.float().square().sum(), dense),
            strict=True,
        ):
            torch.testing.assert_close(slope, right, **(near and {"rtol": 0.1, "atol": 0.1}))


def test_a_norm_over_a_folded_batch_is_not_one_over_the_clip():
    norm, x = a_norm(), torch.randn(4, 6, 8, 8)
    x[1] += 10
    clip = rearrange(x, "f c h w -> 1 c f h w")
    assert (
        norm(x) - rearrange(F.group_norm(clip, 2, norm.weight, norm.bias), "1 c f h w -> f c h w")
    ).abs().max() > 0.5


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_over_time_is_conv1d_along_the_frames_of_each_pixel(kernel, layout):
    conv = nn.Conv1d(6, 4, kernel, padding=kernel // 2)
    x = torch.randn(2 * 5, 6, 3, 7).to(memory_format=layout)
    lines = rearrange(x, "(b f) c h w -> (b h w) c f", f=5)
    wanted = rearrange(conv(lines), "(b h w) c f -> (b f) c h w", h=3, w=7)
    torch.testing.assert_close(temporal_conv(x, conv, 5), wanted, rtol=1e-5, atol=1e-6)


def test_a_pseudo_3d_convolution_is_space_then_time():
    layer = PseudoConv3d(3, 4, 3, stride=2, temporal_kernel=3)
    x = torch.randn(2 * 5, 3, 8, 8)
    plain = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
    assert torch.equal(layer(x, 5), plain)
    nn.init.normal_(layer.temporal.weight)
    torch.testing.assert_close(layer(x, 5), temporal_conv(plain, layer.temporal, 5))
    assert (layer(x, 5) - plain).abs().max() > 0.1
    assert torch.equal(layer(x, 1), plain)


@torch.no_grad()
def test_a_convolution_over_time_moves_with_the_clip_away_from_its_ends():
    conv = nn.Conv1d(6, 6, 3, padding=1)
    x = torch.randn(12, 6, 4, 4)
    later = temporal_conv(x[2:], conv, 10)
    torch.testing.assert_close(later[1:-1], temporal_conv(x, conv, 12)[3:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [None, "per row", "shared"])
def test_attention_is_pytorchs(masked):
    q, k, v = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 7, 4), torch.randn(3, 2, 7, 4)
    mask = None
    if masked is not None:
        mask = torch.zeros(3, 1, 1, 7) if masked == "per row" else torch.zeros(1, 2, 5, 7)
        mask[..., -2:] = float("-inf")
        mask[..., 0] = 0.7
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask=mask), wanted, rtol=1e-5, atol=1e-6)


def test_attention_on_a_device_whose_kernels_have_a_limit_goes_in_pieces(monkeypatch):
    """The branch of other devices, run on `meta`: shapes, and no piece above the limit."""
    sizes = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(attention, "CUDA_BATCH_LIMIT", 4)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *a, **k: sizes.append(len(q)) or fused(q, *a, **k)
    )
    q = torch.empty(10, 2, 3, 4, device="meta")
    assert attend(q, q, q, mask=torch.empty(1, 2, 3, 3, device="meta")).shape == (10, 2, 3, 4)
    assert sizes == [4, 4, 2]


def attention_over_time(position: str) -> TemporalAttention:
    torch.manual_seed(5)
    layer = TemporalAttention(16, 2, groups=4, eps=1e-5, position=position, embed_dim=8)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.4)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "relbias"])
def test_attention_over_time_knows_distances_and_no_places(position, monkeypatch):
    """In a still clip the score of two frames is a function of how far the second is after the first."""
    scores = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None) -> Tensor:
        scores.append(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + (0 if mask is None else mask))
        return attend(q, k, v, mask=mask)

    monkeypatch.setattr(pseudo3d, "attend", spy)
    x = torch.randn(1, 16, 1, 1).expand(12, -1, -1, -1)
    attention_over_time(position)(x, 12, torch.ones(1, 8))
    (score,) = scores
    torch.testing.assert_close(score[..., 1:, 1:], score[..., :-1, :-1], rtol=1e-4, atol=1e-4)
    assert (score[..., 0, 5] - score[..., 5, 0]).abs().max() > 1e-3, "before and after are told apart"
    assert (score[..., 0, 5] - score[..., 0, 11]).abs().max() > 1e-3, "near and far are told apart"


@torch.no_grad()
def test_without_positions_attention_over_time_does_not_know_the_order():
    layer = attention_over_time("none")
    x, order = torch.randn(6, 16, 2, 2), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(layer(x[order], 6, None), layer(x, 6, None)[order], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_over_time_looks_at_one_pixel_of_one_clip():
    layer = attention_over_time("rope")
    layer.norm = nn.Identity()  # the norm does mix pixels of a frame
    layer.norm.forward = lambda x, **_: x
    x = torch.randn(2 * 4, 16, 2, 2)
    before = layer(x, 4, None)
    x[1, :, 0, 1] += 1
    changed = (layer(x, 4, None) - before).abs().amax(dim=1) > 1e-6
    assert changed[:4, 0, 1].all() and int(changed.sum()) == 4


def test_rotation_turns_pair_j_of_frame_i_by_i_times_100_to_the_minus_2j_over_d():
    frames, d = 5, 6
    x = torch.randn(2, frames, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = rotate(x)
    for i in range(frames):
        for j in range(d // 2):
            angle = i * 100.0 ** (-2 * j / d)
            turned = torch.complex(x[:, i, j], x[:, i, j + d // 2]) * complex(
                math.cos(angle), math.sin(angle)
            )
            pair = torch.complex(y[:, i, j], y[:, i, j + d // 2])
            torch.testing.assert_close(pair, turned, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["linear", "logarithmic"])
def test_the_bias_of_a_distance_has_its_sign_in_both_features(part):
    """With one feature alone weighed, a frame before and one as far behind are not alike."""
    bias = RelativeBias(2)
    with torch.no_grad():
        bias.mlp[0].weight[:, 1 if part == "linear" else 0] = 0
        scores = bias(7)[0]
    distance = torch.arange(7)[:, None] - torch.arange(7)
    feature = distance / 16 if part == "linear" else distance.sign() * distance.abs().log1p()
    features = torch.zeros(7, 7, 2)
    features[..., 0 if part == "linear" else 1] = feature
    with torch.no_grad():
        wanted = bias.mlp(features).permute(2, 0, 1)
    torch.testing.assert_close(scores, wanted)
    assert not torch.allclose(scores, scores.transpose(1, 2))


def test_the_frame_rates_embedding_scales_first_and_shifts_second():
    """The order in which trained weights have them."""
    layer = TemporalAttention(8, 2, groups=2, eps=1e-5, position="rope", embed_dim=3)
    seen = {}
    layer.norm.register_forward_pre_hook(lambda _, x, named: seen.update(named), with_kwargs=True)
    with torch.no_grad():
        layer.emb.weight.copy_(torch.arange(48.0).view(16, 3))
        layer.emb.bias.copy_(torch.arange(16.0))
        emb = torch.tensor([[1.0, -2.0, 0.5]])
        layer(torch.randn(2, 8, 2, 2), 2, emb)
        wanted = emb @ layer.emb.weight.T + layer.emb.bias
    torch.testing.assert_close(seen["scale"], wanted[:, :8])
    torch.testing.assert_close(seen["shift"], wanted[:, 8:])


def test_rotation_keeps_lengths_and_the_first_frame():
    x = torch.randn(2, 3, 6, 9)
    y = rotate(x)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[..., 0, :], x[..., 0, :])
    dots = rotate(x[:, :, :1].expand(-1, -1, 6, -1)) @ rotate(x[:, :, 1:2].expand(-1, -1, 6, -1)).transpose(
        -2, -1
    )
    torch.testing.assert_close(dots[..., 1:, 1:], dots[..., :-1, :-1], rtol=1e-4, atol=1e-5)


def test_the_sinusoid_is_guided_diffusions():
    values = torch.tensor([0.0, 17.0, 999.0])
    embedding = sinusoid(values, 8)
    assert embedding.shape == (3, 8)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    torch.testing.assert_close(embedding[1, 1], torch.tensor(17.0 / 10).cos())
    torch.testing.assert_close(embedding[1, 5], torch.tensor(17.0 / 10).sin())
    assert sinusoid(values, 7).shape == (3, 7)


def test_the_frame_rate_is_embedded_by_its_logarithm():
    torch.manual_seed(0)
    embed = FpsEmbedding(16)
    rates = torch.tensor([1.0, 2.0, 15.0, 30.0])
    argument = sinusoid(100 * rates.log(), 16)
    torch.testing.assert_close(embed(rates), embed.mlp(argument))
    assert torch.pdist(embed(rates)).min() > 1e-3


def test_an_unknown_frame_shows_the_nearest_known_one_and_how_near_it_is():
    torch.manual_seed(0)
    known = torch.tensor([[1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0], [0] * 6]).bool()
    mask = known[:, :, None, None, None].float()
    picture = torch.randn(3, 6, 3, 4, 4)
    masked = torch.cat([picture * mask, mask.expand(3, 6, 1, 4, 4)], dim=2)

    filled = fill_unknown(masked)

    for clip, sources in ((0, [0, 0, 0, 5, 5, 5]), (1, [3] * 6)):
        assert torch.equal(filled[clip, :, :3], picture[clip, sources])
        distance = (torch.arange(6) - torch.tensor(sources)).abs()
        assert torch.equal(filled[clip, :, 3, 0, 0], 1 / (1 + distance.float()))
    assert torch.equal(filled[2], masked[2])  # nothing is known: nothing is shown
    assert torch.equal(filled[0, known[0]], masked[0, known[0]])


@torch.no_grad()
def test_a_filling_network_starts_as_one_of_the_paper_that_sees_the_filled_frames(helpers):
    family = helpers.families["pocket decoder"]
    spec = family.inflated(mask_channels=4)
    paper, filling = UNet(spec).eval(), UNet(spec.model_copy(update={"mask_fill": "nearest"})).eval()
    helpers.perturb(paper)
    new = inherit(filling, paper.state_dict(), source=Path("paper.safetensors"))
    assert new == ["mask_gate.bias", "mask_gate.weight"] and all(is_temporal(name) for name in new)
    x, t, condition = family.inputs(1, 4)
    masked = torch.zeros(1, 4, 4, *x.shape[3:])
    masked[:, 1, :3], masked[:, 1, 3] = torch.randn(*x.shape[2:]), 1.0

    def say(network: UNet, masked: Tensor) -> Tensor:
        return network(x, t, helpers.replace(condition, masked_video=masked))

    assert torch.equal(say(filling, masked), say(paper, fill_unknown(masked)))
    assert not torch.allclose(say(filling, masked), say(paper, masked))

    filling.mask_gate.bias.fill_(20.0)  # wide open: every frame is the nearest known one
    torch.testing.assert_close(say(filling, masked), masked[:, [1] * 4, :3])
    nothing = torch.zeros_like(masked)
    assert torch.equal(say(filling, nothing), say(paper, nothing))
