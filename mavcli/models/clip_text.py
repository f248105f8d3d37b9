"""`C_x` alone, for a family with a vocabulary of its own: what `Clip.encode_text` says, to the bit, without open_clip.

Importing open_clip takes seconds, a fifth of a draft's time on a small machine, and a prompt needs no network for pictures.
The layers are PyTorch's, and carry open_clip's names, so that the same file serves both.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mavcli.models.clip import TextReader
from mavcli.specs import ClipSpec


class ClipText(TextReader):
    """The text tower of a spec with a `vocabulary`."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__(spec)
        if self.tokens is None:
            raise ValueError("byte-pair tokens are open_clip's: only a vocabulary of words does without it")
        self.towers = _Tower(spec, len(self.tokens))


class _Tower(nn.Module):
    attn_mask: Tensor

    def __init__(self, spec: ClipSpec, vocabulary: int) -> None:
        super().__init__()
        context, width = spec.text_context, spec.text_width
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.transformer = _Transformer(spec)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, spec.embed_dim))
        causal = torch.full((context, context), float("-inf")).triu(1)
        self.register_buffer("attn_mask", causal, persistent=False)


class _Transformer(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(spec) for _ in range(spec.text_layers))

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class _Block(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        width = spec.text_width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, spec.text_heads, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=_QuickGELU() if spec.quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        h = self.ln_1(x).to(x.dtype)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=attn_mask.to(x.dtype))[0]
        return x + self.mlp(self.ln_2(x).to(x.dtype))


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
