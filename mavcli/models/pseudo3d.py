"""Pseudo-3-D layers: 2-D over space, then 1-D over time (Make-A-Video, section 3.2).

A layer takes the folded batch `(b f) c h w` and the number of frames. In channels_last that tensor is, in memory,
`b f (h w) c`: an image of height f and width h w. So a convolution over time is one conv2d with a (k, 1) kernel and no
copy. Both layers start as the identity, and are skipped for a single frame: an image goes through the image network.

b batch, f frames, c channels, h w pixels; t is always the diffusion step, never time.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.models.attention import attend
from mavcli.models.convolution import conv2d, conv2d_of_doubled
from mavcli.models.normalisation import GroupNorm


class PseudoConv3d(nn.Conv2d):
    """Conv2d over space followed by a Conv1d over time (section 3.2.1, equation 2).

    The 2-D weights keep the names of `nn.Conv2d`; what inflation adds is `temporal.weight` and `temporal.bias`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        temporal_kernel: int | None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.temporal: nn.Conv1d | None = None
        if temporal_kernel is not None:
            self.temporal = identity_conv(out_channels, temporal_kernel)

    def forward(self, x: Tensor, frames: int = 1, *, doubled: bool = False) -> Tensor:
        """x ((b f), c, h, w) -> ((b f), c', h', w'); with `doubled` (3x3, stride 1) each pixel of x stands for 2x2."""
        if doubled:
            h = conv2d_of_doubled(x, self.weight, self.bias)
        elif self.kernel_size == (3, 3) and self.stride == (1, 1):
            h = conv2d(x, self.weight, self.bias)
        else:
            h = super().forward(x)
        if self.temporal is None or frames == 1:
            return h
        return temporal_conv(h, self.temporal, frames)


def identity_conv(channels: int, kernel: int) -> nn.Conv1d:
    """A convolution over time that changes nothing."""
    conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def temporal_conv(x: Tensor, conv: nn.Conv1d, frames: int) -> Tensor:
    """`conv` along the frames of x ((b f), c, h, w), zero-padded at both ends."""
    _, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    columns = x.permute(0, 2, 3, 1).reshape(-1, frames, h * w, c).permute(0, 3, 1, 2)  # b c f (h w), no copy
    out = F.conv2d(columns, conv.weight[..., None], conv.bias, padding=(conv.kernel_size[0] // 2, 0))
    out = out.permute(0, 2, 3, 1).reshape(-1, h, w, conv.out_channels)
    return out.permute(0, 3, 1, 2)


class TemporalAttention(nn.Module):
    """Attention over the frames of each pixel (section 3.2.2, equation 3); the output projection starts at zero.

    Positions are relative (rotary, or a learned bias by distance), so a clip may be longer than those of training.
    """

    def __init__(
        self, channels: int, num_heads: int, *, groups: int, eps: float, position: str, embed_dim: int | None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position = position
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.emb = None if embed_dim is None else zero_linear(embed_dim, 2 * channels)
        self.bias = RelativeBias(num_heads) if position == "relbias" else None

    def forward(self, x: Tensor, frames: int, emb: Tensor | None) -> Tensor:
        """x ((b f), c, h, w), emb (b, e) of the frame rate -> ((b f), c, h, w)."""
        if frames == 1:
            return x
        height, width = x.shape[2:]
        scale = shift = None
        if self.emb is not None and emb is not None:
            scale, shift = self.emb(emb).chunk(2, dim=-1)
        qkv = pointwise(self.norm(x, scale=scale, shift=shift), self.qkv)
        qkv = rearrange(
            qkv, "(b f) (three d c) h w -> three (b h w) d f c", f=frames, three=3, d=self.num_heads
        )
        q, k = rotate(qkv[:2]) if self.position == "rope" else qkv[:2]
        v = qkv[2]
        mask = None if self.bias is None else self.bias(frames).to(q.dtype)
        h = rearrange(attend(q, k, v, mask=mask), "(b h w) d f c -> (b f) h w (d c)", h=height, w=width)
        return residual(x, pointwise(h.permute(0, 3, 1, 2), self.proj_out))


def residual(x: Tensor, h: Tensor) -> Tensor:
    """x + h, in h's memory where no gradient needs it: h must be a tensor that nothing else holds."""
    if torch.is_grad_enabled() or h.dtype != x.dtype:
        return x + h
    return h.add_(x)


def pointwise(x: Tensor, layer: nn.Linear) -> Tensor:
    """`layer` on the channels of x (n, c, h, w): as a 1x1 convolution up to twice as fast on the CPU, without copies."""
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) on x (..., f, d): frame i turns pair j by i * 100^(-2j/d).

    The base is 100, not 10,000: clips have tens of frames, not thousands of tokens.
    """
    f, d = x.shape[-2:]
    half = d // 2
    frequencies = 100.0 ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angles = torch.arange(f, dtype=torch.float32, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos), rest], dim=-1)


class RelativeBias(nn.Module):
    """A score per head from the signed distance between two frames, by a small network: no longest distance."""

    def __init__(self, num_heads: int, *, width: int = 32) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, num_heads))

    def forward(self, frames: int) -> Tensor:
        """(1, heads, f, f)."""
        weight = next(self.mlp.parameters())
        place = torch.arange(frames, device=weight.device, dtype=torch.float32)
        distance = place[:, None] - place
        features = torch.stack([distance / 16, distance.sign() * distance.abs().log1p()], dim=-1)
        return rearrange(self.mlp(features.to(weight.dtype)), "q k d -> 1 d q k")


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
