"""The transformer of unCLIP's prior (GLIDE's text transformer): pre-norm blocks with a fused, head-interleaved qkv."""

import torch
from einops import rearrange
from torch import Tensor, nn

from mavcli.models.attention import attend


class Transformer(nn.Module):
    """`layers` residual blocks on (b, n, width)."""

    def __init__(self, width: int, layers: int, num_heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, num_heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is added to the attention scores and broadcasts to (b, heads, n, n)."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, num_heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class SelfAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.c_qkv(x), "b n (h three d) -> three b h n d", h=self.num_heads, three=3)
        return self.c_proj(rearrange(attend(q, k, v, mask=mask), "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


def padding_mask(keep: Tensor) -> Tensor:
    """keep (b, n) bool -> (b, 1, 1, n): 0 where kept, -inf where padded."""
    mask = torch.zeros(keep.shape, dtype=torch.float32, device=keep.device)
    return mask.masked_fill_(~keep, float("-inf"))[:, None, None, :]
