"""Group normalisation fused with the affine modulation and the activation that follow it in an ADM block.

`silu(norm(x) * (1 + scale) + shift)` is one affine map per sample and channel, so forward and backward are a handful of
passes over memory in whatever layout x has. PyTorch's own backward on channels_last CPU tensors is 5 to 23 times slower.
On CUDA the passes are those of `norm_kernels.py`; other devices, and `torch.compile`, take PyTorch's own.
Values are those of `torch.nn.GroupNorm`, whose parameters and names this keeps.
"""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """GroupNorm over (n, c, h, w), optionally modulated per sample and followed by an activation."""

    def forward(
        self,
        x: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """x (n, c, h, w); scale and shift (r, c) modulate the normalised x as `x * (1 + scale) + shift`.

        r divides n: each row serves the n / r samples (the frames of one clip) in its turn.
        `activation` is None, "silu" or "gelu".
        """
        if x.device.type == "cpu" and activation != "gelu":
            return _NormAct.apply(
                x, self.weight, self.bias, scale, shift, self.num_groups, self.eps, activation == "silu"
            )
        if activation != "gelu" and _fits_kernels(x):
            from mavcli.models.norm_kernels import NormAct  # Triton takes a second to import

            return NormAct.apply(
                x, self.weight, self.bias, scale, shift, self.num_groups, self.eps, activation == "silu"
            )
        h = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        if scale is not None and shift is not None:
            each = len(x) // len(scale)
            scale, shift = scale.repeat_interleave(each, dim=0), shift.repeat_interleave(each, dim=0)
            h = h * (1 + scale[:, :, None, None]).to(h.dtype) + shift[:, :, None, None].to(h.dtype)
        if activation == "silu":
            return F.silu(h)
        return F.gelu(h) if activation == "gelu" else h


def _fits_kernels(x: Tensor) -> bool:
    return (
        x.is_cuda
        and x.dtype != torch.float64
        and not torch.compiler.is_compiling()
        and kernels_fault(warn=True) is None
    )


@functools.cache
def kernels_fault(*, warn: bool = False) -> str | None:
    """Why the kernels of `norm_kernels.py` cannot be had on this GPU; None when they can, which is tried once a process.

    Triton builds a launcher at first use, for which it wants a C compiler and Python's headers. Without them PyTorch's own
    kernels serve; `warn` says so, once.
    """
    try:
        from mavcli.models.norm_kernels import NormAct

        with torch.no_grad():
            x, one = torch.zeros(1, 4, 2, 2, device="cuda"), torch.ones(4, device="cuda")
            NormAct.apply(x, one, one, None, None, 2, 1e-5, True)
            torch.cuda.synchronize()
    except Exception as error:  # whatever Triton or the compiler it calls may raise
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if warn:
            warnings.warn(
                f"normalisation takes PyTorch's own kernels on this GPU ({fault}); `mav doctor` says what helps",
                stacklevel=2,
            )
        return fault
    return None


class _NormAct(torch.autograd.Function):
    """y = act(a * x + b), with a and b (n, c) from the group statistics, the affine parameters and the modulation."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        gain, offset = weight.to(wide)[None], bias.to(wide)[None]
        if scale is not None and shift is not None:
            gain, offset = gain * (1 + scale.to(wide)), offset * (1 + scale.to(wide)) + shift.to(wide)
        y, mean, rstd = _normalise(x, gain, offset, groups, eps)
        ctx.groups, ctx.silu, ctx.modulated = groups, silu, scale is not None
        ctx.save_for_backward(x, weight, bias, scale, mean, rstd, gain, offset)
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, bias, scale, mean, rstd, gain, offset = ctx.saved_tensors
        n, c, h, w = x.shape
        dtype = x.dtype
        rows, each = len(gain), n // len(gain)
        mean, rstd = (s.repeat_interleave(c // ctx.groups, dim=1) for s in (mean, rstd))
        gain, offset = (s.repeat_interleave(each, dim=0) for s in (gain, offset))
        if ctx.silu:
            a = (gain * rstd)[:, :, None, None].to(dtype)
            b = (offset - gain * rstd * mean)[:, :, None, None].to(dtype)
            z = torch.addcmul(b, x, a)
            dy = torch.ops.aten.silu_backward(dy, z)
        # Sums over space in float32 at least; everything after is (n, c) arithmetic until the last line.
        db = dy.sum((2, 3), dtype=gain.dtype)
        dx_sum = (dy * x).sum((2, 3), dtype=gain.dtype)
        dxhat = rstd * (dx_sum - mean * db)  # sum of dy * xhat
        size = c // ctx.groups * h * w
        mean_dy = (gain * db).view(n, ctx.groups, -1).sum(2).div(size).repeat_interleave(c // ctx.groups, 1)
        mean_dxhat = (
            (gain * dxhat).view(n, ctx.groups, -1).sum(2).div(size).repeat_interleave(c // ctx.groups, 1)
        )
        by_dy = (gain * rstd)[:, :, None, None].to(dtype)
        by_x = (-rstd * rstd * mean_dxhat)[:, :, None, None].to(dtype)
        rest = (rstd * (rstd * mean * mean_dxhat - mean_dy))[:, :, None, None].to(dtype)
        dx = torch.addcmul(rest, dy, by_dy).addcmul_(x, by_x)
        if ctx.modulated:
            modulation = (1 + scale.to(gain.dtype)).repeat_interleave(each, dim=0)
            dweight, dbias = (dxhat * modulation).sum(0), (db * modulation).sum(0)
            dscale = (weight * dxhat + bias * db).view(rows, each, c).sum(1).to(scale.dtype)
            dshift = db.view(rows, each, c).sum(1).to(scale.dtype)
        else:
            dweight, dbias, dscale, dshift = dxhat.sum(0), db.sum(0), None, None
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale, dshift, None, None, None


def _normalise(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised x times gain plus offset (r, c), in x's layout; mean and 1 / deviation (n, groups).

    The rows are taken one at a time, because the native kernel can apply one gain on its way and not many.
    """
    n, c, h, w = x.shape
    each = n // len(gain)
    x = _without_gaps(x)
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    # Below 1024 pixels the native channels_last kernel in bfloat16 is 3 to 5 times slower than two copies.
    copy = channels_last and x.dtype == torch.bfloat16 and h * w < 1024
    source = x.contiguous() if copy else x
    parts = [
        torch.native_group_norm(source[i * each : (i + 1) * each], g, o, each, c, h * w, groups, eps)
        for i, (g, o) in enumerate(zip(gain, offset, strict=True))
    ]
    y = torch.cat([part[0] for part in parts]) if len(parts) > 1 else parts[0][0]
    mean, rstd = (torch.cat([part[i] for part in parts]).to(gain.dtype) for i in (1, 2))
    return y.contiguous(memory_format=torch.channels_last) if copy else y, mean, rstd


def _without_gaps(x: Tensor) -> Tensor:
    """x (n, c, h, w) itself or a copy, in one of the two layouts that the native kernel of every torch takes (2.10's no other)."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    _, c, h, w = x.shape
    sample, channel, row, pixel = x.stride()
    channels_last = channel == 1 and pixel >= c and row >= pixel * w and sample >= row * h
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
