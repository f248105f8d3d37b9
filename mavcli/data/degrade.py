"""How super-resolution sees its input in training (unCLIP, arXiv 2204.06125, section 2.1; CDM, arXiv 2106.15282).

The low-res picture is blurred and noised, so that the network forgives the artefacts of the network before it; the
amount of noise is told to the network.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def downsample(x: Tensor, size: int) -> Tensor:
    """x (b, f, c, h, w) -> (b, f, c, size, size) by antialiased bilinear averaging."""
    frames = rearrange(x, "b f c h w -> (b f) c h w")
    small = F.interpolate(frames, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(small, "(b f) c h w -> b f c h w", b=len(x))


def upsample(x: Tensor, size: int | tuple[int, int], *, how: str = "bicubic") -> Tensor:
    """x (b, f, c, h, w) -> (b, f, c, size, size): what an SR network is given, by `how` it was trained.

    `bicubic` is clamped to [-1, 1]; `bicubic-antialias` (Karlo: another cubic, a = -0.5) and `bilinear` (ADM, GLIDE) are not.
    """
    size = (size, size) if isinstance(size, int) else size
    frames = rearrange(x, "b f c h w -> (b f) c h w")
    mode, _, antialias = how.partition("-")
    large = F.interpolate(frames, size, mode=mode, align_corners=False, antialias=bool(antialias))
    large = large.clamp(-1, 1) if how == "bicubic" else large
    return rearrange(large, "(b f) c h w -> b f c h w", b=len(x))


def gaussian_blur(x: Tensor, *, kernel: int, sigma: float) -> Tensor:
    """x (b, f, c, h, w) convolved with a normalised `kernel` x `kernel` Gaussian, edges repeated."""
    offsets = torch.arange(kernel, dtype=x.dtype, device=x.device) - (kernel - 1) / 2
    line = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weight = torch.outer(line, line)
    weight = (weight / weight.sum()).expand(x.shape[2], 1, kernel, kernel)
    frames = rearrange(x, "b f c h w -> (b f) c h w")
    before, after = (kernel - 1) // 2, kernel // 2
    padded = F.pad(frames, (before, after, before, after), mode="replicate")
    return rearrange(F.conv2d(padded, weight, groups=x.shape[2]), "(b f) c h w -> b f c h w", b=len(x))
