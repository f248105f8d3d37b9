"""Attention that also reads the first frame: what it computes, and that it is nothing when off or for one frame."""

from __future__ import annotations

import torch
from einops import rearrange
from torch.nn import functional as F

from mavcli.models.unet import AttentionBlock, Context
from mavcli.specs import UNetSpec


@torch.no_grad()
def test_a_frame_attends_to_the_text_itself_and_the_first_frame(helpers) -> None:
    spec: UNetSpec = helpers.families["karlo decoder"].spec
    torch.manual_seed(0)
    block = helpers.perturb(AttentionBlock(spec, 16, 64))
    x, tokens = torch.randn(6, 16, 4, 4), torch.randn(2, 5, 16)
    hidden = torch.zeros(2, 1, 1, 5)
    hidden[0, ..., 3:] = float("-inf")
    for mask in (None, hidden):
        context = Context(torch.randn(6, 64), 3, tokens, mask, cross_frame=True)
        found = block(x, context)
        q, k, v = rearrange(F.conv1d(block.norm(x).flatten(2), block.qkv.weight, block.qkv.bias),
                            "n (three d c) p -> three n d p c", three=3, d=2)  # fmt: skip
        told = F.conv1d(tokens.mT, block.encoder_kv.weight, block.encoder_kv.bias)
        ek, ev = rearrange(told, "b (two d c) t -> two b d t c", two=2, d=2)
        for n in range(6):
            clip, first = n // 3, n - n % 3
            seen = slice(None) if mask is None or clip else slice(3)
            places = [n] if n == first else [n, first]
            keys = torch.cat([ek[clip][:, seen], *(k[i] for i in places)], dim=1)
            values = torch.cat([ev[clip][:, seen], *(v[i] for i in places)], dim=1)
            h = ((q[n] @ keys.mT) * 8**-0.5).softmax(-1) @ values
            h = F.conv1d(rearrange(h, "d p c -> 1 (d c) p"), block.proj_out.weight, block.proj_out.bias)
            torch.testing.assert_close(found[n], x[n] + h.view(16, 4, 4), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_first_frame_and_a_single_frame_do_not_notice_it(family, helpers) -> None:
    network = family.image_network()
    x, t, condition = family.inputs(2, 3, fps=False)
    apart = network(x, t, condition)
    network.cross_frame = True
    crossed = network(x, t, condition)
    torch.testing.assert_close(crossed[:, 0], apart[:, 0], rtol=1e-4, atol=1e-4)
    has_attention = family.spec.mid_attention or bool(family.spec.attention_resolutions)
    assert ((crossed[:, 1:] - apart[:, 1:]).abs().max() > 1e-3) == has_attention
    x, t, condition = family.inputs(2, 1, fps=False)
    one = network(x, t, condition)
    network.cross_frame = False
    assert torch.equal(network(x, t, condition), one)
