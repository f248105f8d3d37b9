"""3x3 convolutions on the CPU in fewer multiplications than their definition has. The values are the same but for rounding.

- `conv2d_of_doubled`: a convolution of a picture doubled by repetition reads every pixel up to four times. Adding up the
  weights that meet the same pixel makes it a transposed convolution with a 4x4 kernel and stride 2 on the small picture: 4
  multiplications a pixel instead of 9, and no large copy. Forward and backward, in every type.
- `conv2d`: Winograd's F(4, 3) over the rows (arXiv 1509.09308, section 4; one dimension of two). Four output rows read six
  input rows; six sums of those rows, each convolved with a kernel of one row, give the four: half the multiplications. In
  float32 without gradients only, where the error is a few times that of a direct convolution; bfloat16 would lose digits.

Which way a picture goes depends on its shape and on nothing beside it in the batch. On other devices, under
`torch.compile` and inside `with direct():` every convolution is done as it is defined.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F

_direct = ContextVar("_direct", default=False)

WORTH_CHANNELS = 64
WORTH_FLOP = 1e8
"""A picture's, of the definition. Below these the sums cost what the multiplications save (measured on a Zen 4 core)."""

SMALL_INPUT = 20480
"""PyTorch convolves one picture of so many numbers without oneDNN: its last bits would then depend on the batch."""

# What the kernel's three rows add up to at F(4, 3)'s points 0, 1, -1, 2, -2 and infinity.
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


@contextlib.contextmanager
def direct() -> Iterator[None]:
    """Inside, every convolution is done as it is defined: to compare with, or to count its operations."""
    token = _direct.set(True)
    try:
        yield
    finally:
        _direct.reset(token)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, c, h, w) with weight (o, c, 3, 3), stride 1, zero-padded -> (n, o, h, w)."""
    return _winograd(x, weight, bias) if _pays(x, weight) else F.conv2d(x, weight, bias, padding=1)


def conv2d_of_doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, c, h, w), each pixel of which stands for 2x2, with weight (o, c, 3, 3), zero-padded -> (n, o, 2 h, 2 w)."""
    if not _may_rewrite(x):
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    # Row m of the 4 adds up rows 2 - m and 3 - m of the 3: those that meet one pixel of the small picture.
    sums = F.pad(weight.float() if weight.dtype == torch.bfloat16 else weight, (1, 1, 1, 1))
    sums = sums[:, :, :-1] + sums[:, :, 1:]
    sums = (sums[..., :-1] + sums[..., 1:]).to(weight.dtype)
    sums = sums.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    return F.conv_transpose2d(x, sums, bias, stride=2, padding=1)


def _may_rewrite(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _direct.get()


def _pays(x: Tensor, weight: Tensor) -> bool:
    channels, height, width = x.shape[1:]
    return (
        _may_rewrite(x)
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_grad_enabled()
        and height % 4 == 0
        and min(weight.shape[:2]) >= WORTH_CHANNELS
        and 2 * height * width * weight.numel() >= WORTH_FLOP
        and channels * height // 4 * width > SMALL_INPUT
    )


def _winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv2d` of x (n, c, h, w), h a multiple of 4, by F(4, 3) over the rows."""
    n, c, h, w = x.shape
    o, tiles = len(weight), h // 4
    kernels = weight.new_tensor(KERNEL) @ weight.permute(2, 0, 3, 1).reshape(3, -1)
    kernels = kernels.view(6, o, 1, 3, c).permute(0, 1, 4, 2, 3)

    # Tile i makes rows 4 i to 4 i + 3, its d1 to d4, and also reads the row above and the row below, d0 and d5.
    rows = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(n, tiles, 4, w, c)
    sums, outside = x.new_empty(6, n, tiles, w, c), x.new_zeros(1, w, c)
    for picture, (s0, s1, s2, s3, s4, s5) in zip(rows, sums.transpose(0, 1), strict=True):  # one stays cached
        d1, d2, d3, d4 = picture.unbind(1)
        d0, d5 = torch.cat([outside, d4[:-1]]), torch.cat([d1[1:], outside])
        even, odd = torch.sub(d4, d2, alpha=4), torch.sub(d3, d1, alpha=4)
        torch.add(even, odd, out=s1)
        torch.sub(even, odd, out=s2)
        torch.sub(d4, d2, out=even)
        torch.sub(d3, d1, out=odd)
        torch.add(even, odd, alpha=2, out=s3)
        torch.sub(even, odd, alpha=2, out=s4)
        torch.add(even, d0.sub_(d2), alpha=4, out=s0)
        torch.sub(d5.sub_(d3), odd, alpha=4, out=s5)

    planes = sums.permute(0, 1, 4, 2, 3)
    # The bias goes where it reaches each of the four rows once.
    biases = (None, bias, None, None, None, None)
    products = [
        F.conv2d(plane, kernel, b, padding=(0, 1)).permute(0, 2, 3, 1)
        for plane, kernel, b in zip(planes, kernels, biases, strict=True)
    ]
    y = x.new_empty(n, tiles, 4, w, o)
    for p0, p1, p2, p3, p4, p5, four in zip(*(p.view(n, tiles, w, o) for p in products), y, strict=True):
        plus1, plus2 = p1 + p2, p3 + p4
        minus1, minus2 = p1.sub_(p2), p3.sub_(p4)
        torch.add(p0.add_(plus1), plus2, out=four[:, 0])
        torch.add(minus1, minus2, alpha=2, out=four[:, 1])
        torch.add(plus1, plus2, alpha=4, out=four[:, 2])
        torch.add(minus1.add_(p5), minus2, alpha=8, out=four[:, 3])
    return y.view(n, h, w, o).permute(0, 3, 1, 2)
