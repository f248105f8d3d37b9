"""P: what it may look at, and what it does without text."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mavcli.models import transformer
from mavcli.models.prior import Prior, PriorCondition
from mavcli.specs import PriorSpec

SPEC = PriorSpec(clip_dim=6, text_dim=5, text_context=4, width=16, layers=2, num_heads=2)


@pytest.fixture(scope="module")
def prior(helpers) -> Prior:
    torch.manual_seed(0)
    return helpers.perturb(Prior(SPEC)).eval()


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, PriorCondition]:
    g = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True], [True, False, False, False]])[
        :batch
    ]
    condition = PriorCondition(
        torch.randn(batch, 6, generator=g), torch.randn(batch, 4, 5, generator=g), mask
    )
    return torch.randn(batch, 6, generator=g), torch.tensor([0, 500, 999])[:batch], condition


@torch.no_grad()
def test_each_input_moves_the_prediction(prior):
    x, t, c = inputs()
    base = prior(x, t, c)
    assert base.shape == (3, 6)
    for other in (
        prior(x + 0.1, t, c),
        prior(x, t - 50, c),
        prior(x, t, dataclasses.replace(c, text_embedding=c.text_embedding + 0.1)),
        prior(x, t, dataclasses.replace(c, text_states=c.text_states + 0.1)),
    ):
        assert ((other - base).abs().amax(dim=1) > 1e-4).all()


@torch.no_grad()
def test_padded_tokens_are_not_read(prior):
    x, t, c = inputs()
    states = torch.where(c.text_mask[..., None], c.text_states, 100.0)
    assert torch.equal(prior(x, t, dataclasses.replace(c, text_states=states)), prior(x, t, c))


@torch.no_grad()
def test_without_conditioning_no_text_is_left(prior):
    x, t, c = inputs()
    _, _, other = inputs()
    other = PriorCondition(other.text_embedding * -3, other.text_states + 7, torch.ones_like(other.text_mask))
    assert torch.equal(prior(x, t, c.without_conditioning()), prior(x, t, other.without_conditioning()))
    silent = PriorCondition(torch.zeros(3, 6), torch.zeros(3, 4, 5), torch.zeros(3, 4, dtype=torch.bool))
    assert torch.equal(prior(x, t, c.without_conditioning()), prior(x, t, silent))
    assert bool(torch.isfinite(prior(x, t, silent)).all())


@torch.no_grad()
def test_rows_are_dropped_one_by_one_and_joined_for_guidance(prior):
    x, t, c = inputs()
    keep = torch.tensor([True, False, True])
    mixed = prior(x, t, dataclasses.replace(c, keep=keep))
    given, dropped = prior(x, t, c), prior(x, t, c.without_conditioning())
    torch.testing.assert_close(mixed, torch.where(keep[:, None], given, dropped))
    both = PriorCondition.cat([c, c.without_conditioning()])
    joined = prior(x.repeat(2, 1), t.repeat(2), both)
    torch.testing.assert_close(joined, torch.cat([given, dropped]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_is_causal(prior, monkeypatch):
    """No weight lies on what comes later, so the transformer's inner tokens cannot see x_t or the query."""
    scores = []
    original = transformer.attend

    def spy(q, k, v, *, mask):
        scores.append(mask)
        return original(q, k, v, mask=mask)

    monkeypatch.setattr(transformer, "attend", spy)
    x, t, c = inputs()
    prior(x, t, c)
    assert len(scores) == SPEC.layers
    later = torch.ones(8, 8, dtype=torch.bool).triu(1)
    for mask in scores:
        assert bool((mask[..., later] == float("-inf")).all())
        assert bool((mask[:, 0, -1, -4:] == 0).all()), "the query sees the text embedding, t, x and itself"


def test_scaling_is_undone_by_unscaling(prior):
    prior.clip_mean.copy_(torch.linspace(-1, 1, 6))
    prior.clip_std.copy_(torch.linspace(0.5, 2, 6))
    embedding = torch.randn(4, 6)
    torch.testing.assert_close(prior.scale(embedding), (embedding - prior.clip_mean) / prior.clip_std)
    torch.testing.assert_close(prior.unscale(prior.scale(embedding)), embedding)
    assert "clip_mean" in prior.state_dict(), "travels with the weights"
