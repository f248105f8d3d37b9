"""P: the diffusion prior of unCLIP (arXiv 2204.06125, section 2.2), the only network of the chain that sees text.

A causal transformer over [text token states, text embedding, diffusion step, noised image embedding, query]; the output
at the query predicts the un-noised CLIP image embedding. Modules carry Karlo's names.

b batch, n tokens, d width of the CLIP space; t is always the diffusion step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mavcli.models.clip import TextTower
from mavcli.models.embeddings import sinusoid, small_normal
from mavcli.models.transformer import Transformer, padding_mask
from mavcli.models.unet import mlp
from mavcli.specs import PriorSpec


@dataclass(frozen=True)
class PriorCondition:
    """text_embedding (b, d) unit norm; text_states (b, n, w); text_mask (b, n) bool, True for real tokens.

    Rows where `keep` (b,) is False are without text: the embedding and the states are zeroed and all tokens masked. Where
    a prior was trained on the empty prompt instead (`PriorSpec.null_text`), `null` is that prompt, a row of its own.
    """

    text_embedding: Tensor
    text_states: Tensor
    text_mask: Tensor
    keep: Tensor | None = None
    null: PriorCondition | None = None

    def without_conditioning(self) -> PriorCondition:
        """The unconditional half of classifier-free guidance."""
        return self.only(torch.zeros_like(self.text_mask[:, 0]))

    def only(self, keep: Tensor) -> PriorCondition:
        """The rows where `keep` (b,) is True; the others are without text."""
        null = self.null
        if null is None:
            return dataclasses.replace(self, keep=keep)
        return PriorCondition(
            torch.where(keep[:, None], self.text_embedding, null.text_embedding),
            torch.where(keep[:, None, None], self.text_states, null.text_states),
            torch.where(keep[:, None], self.text_mask, null.text_mask),
        )

    def repeated(self, times: int) -> PriorCondition:
        """Each row `times` times in a row."""
        rows = torch.arange(len(self.text_mask), device=self.text_mask.device).repeat_interleave(times)
        return PriorCondition(
            self.text_embedding[rows],
            self.text_states[rows],
            self.text_mask[rows],
            None if self.keep is None else self.keep[rows],
            self.null,
        )

    @staticmethod
    def cat(conditions: Sequence[PriorCondition]) -> PriorCondition:
        def rows(c: PriorCondition) -> Tensor:
            return torch.ones_like(c.text_mask[:, 0]) if c.keep is None else c.keep

        return PriorCondition(
            text_embedding=torch.cat([c.text_embedding for c in conditions]),
            text_states=torch.cat([c.text_states for c in conditions]),
            text_mask=torch.cat([c.text_mask for c in conditions]),
            keep=torch.cat([rows(c) for c in conditions]),
        )


def text_condition(spec: PriorSpec, clip: TextTower, texts: list[str]) -> PriorCondition:
    """What a prior of `spec` is told of the texts (b)."""
    text = clip.encode_text(texts)
    null = None
    if spec.null_text == "empty":
        empty = clip.encode_text([""])
        null = PriorCondition(empty.embedding, empty.states, empty.mask)
    return PriorCondition(text.embedding, text.states, text.mask, null=null)


class Prior(nn.Module):
    """Predicts x0 in normalised space: (embedding - clip_mean) / clip_std per dimension, as Karlo does."""

    clip_mean: Tensor
    clip_std: Tensor

    def __init__(self, spec: PriorSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        self.positional_embedding = small_normal(1, spec.text_context + 4, width)
        self.prd_emb = small_normal(1, 1, width)
        self.time_embed = mlp(width, width)
        self.text_enc_proj = nn.Linear(spec.text_dim, width)
        self.text_emb_proj = nn.Linear(spec.clip_dim, width)
        self.clip_img_proj = nn.Linear(spec.clip_dim, width)
        self.transformer = Transformer(width, spec.layers, spec.num_heads)
        self.final_ln = nn.LayerNorm(width) if spec.final_norm else nn.Identity()
        self.out_proj = nn.Linear(width, spec.clip_dim)
        self.register_buffer("clip_mean", torch.zeros(spec.clip_dim))
        self.register_buffer("clip_std", torch.full((spec.clip_dim,), spec.clip_dim**-0.5))

    def scale(self, embedding: Tensor) -> Tensor:
        """CLIP image embedding (b, d) -> the space that is diffused, about unit variance."""
        return (embedding - self.clip_mean) / self.clip_std

    def unscale(self, x: Tensor) -> Tensor:
        return x * self.clip_std + self.clip_mean

    def forward(self, x: Tensor, t: Tensor, condition: PriorCondition) -> Tensor:
        """x (b, d) noised, t (b,) -> x0 (b, d), both in normalised space."""
        embedding, states, mask = condition.text_embedding, condition.text_states, condition.text_mask
        if condition.keep is not None:
            keep = condition.keep
            embedding = embedding * keep[:, None].to(embedding.dtype)
            states = states * keep[:, None, None].to(states.dtype)
            mask = mask & keep[:, None]
        dtype = self.out_proj.weight.dtype
        sequence = torch.cat(
            [
                self.text_enc_proj(states.to(dtype)),
                self.text_emb_proj(embedding.to(dtype))[:, None],
                self.time_embed(sinusoid(t, self.spec.width).to(dtype))[:, None],
                self.clip_img_proj(x.to(dtype))[:, None],
                self.prd_emb.expand(len(x), -1, -1).to(dtype),
            ],
            dim=1,
        )
        length = sequence.shape[1]
        causal = torch.full((length, length), float("-inf"), device=x.device).triu_(1)
        visible = torch.cat([mask, mask.new_ones(len(x), 4)], dim=1)
        # A padded token may see itself only: a row of -inf alone would be nan.
        scores = (causal + padding_mask(visible)).masked_fill_(
            torch.eye(length, dtype=torch.bool, device=x.device), 0.0
        )
        h = self.transformer(sequence + self.positional_embedding, scores.to(dtype))
        return self.out_proj(self.final_ln(h[:, -1])).to(x.dtype)
