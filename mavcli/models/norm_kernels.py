"""CUDA kernels of the group normalisation that `normalisation.py` describes, in Triton.

PyTorch's own leave channels_last, and return float32 under autocast. These read x twice and write once, forward; read x and its gradient twice and write once, backward.

x (n, c, h, w) is seen as (n, l, c) with l = h w, which is what channels_last is in memory. Statistics are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
"""Numbers a program holds at once."""


@triton.jit
def _load_sums(first, second, row, at, groups_of: tl.constexpr, channels, there):  # type: ignore[no-untyped-def]
    """Sums over the group of each channel `at` of two tables (n, c)."""
    start = row * channels + at // groups_of * groups_of
    a = tl.zeros(at.shape, tl.float32)
    b = tl.zeros(at.shape, tl.float32)
    for k in tl.static_range(groups_of):
        a += tl.load(first + start + k, mask=there, other=0.0)
        b += tl.load(second + start + k, mask=there, other=0.0)
    return a, b


@triton.jit
def _load_affine(weight, bias, scale, shift, row, at, channels, there, modulated: tl.constexpr):  # type: ignore[no-untyped-def]
    """What multiplies the normalised channel, and what is added: (1 + scale) weight, (1 + scale) bias + shift."""
    gain = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    offset = tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    if modulated:
        factor = 1.0 + tl.load(scale + row * channels + at, mask=there, other=0.0).to(tl.float32)
        gain = gain * factor
        offset = offset * factor + tl.load(shift + row * channels + at, mask=there, other=0.0).to(tl.float32)
    return gain, offset


@triton.jit
def _silu_slope(z):  # type: ignore[no-untyped-def]
    s = 1.0 / (1.0 + tl.exp(-z))
    return s * (1.0 + z * (1.0 - s))


@triton.jit
def _sums(x, sum1, sum2, length, channels, rows: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of x and of x squared over l: two tables (n, c). Grid: n, blocks of channels."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * wide + tl.arange(0, wide)
    there = at < channels
    a = tl.zeros([wide], tl.float32)
    b = tl.zeros([wide], tl.float32)
    for start in range(0, length, rows):
        line = start + tl.arange(0, rows)
        inside = (line < length)[:, None] & there[None, :]
        v = tl.load(x + (n * length + line)[:, None] * channels + at[None, :], mask=inside, other=0.0)
        v = v.to(tl.float32)
        a += tl.sum(v, 0)
        b += tl.sum(v * v, 0)
    tl.store(sum1 + n * channels + at, a, mask=there)
    tl.store(sum2 + n * channels + at, b, mask=there)


@triton.jit
def _apply(  # type: ignore[no-untyped-def]
    x, y, sum1, sum2, mean_of, rstd_of, weight, bias, scale, shift, length, channels, each, eps,
    groups_of: tl.constexpr, modulated: tl.constexpr, silu: tl.constexpr, rows: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """y = act(gain (x - mean) / deviation + offset); keeps mean and 1 / deviation as (n, c). Grid: n, parts of l, channels."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(2) * wide + tl.arange(0, wide)
    there = at < channels
    a, b = _load_sums(sum1, sum2, n, at, groups_of, channels, there)
    count = groups_of * length
    mean = a / count
    rstd = 1.0 / tl.sqrt(tl.maximum(b / count - mean * mean, 0.0) + eps)
    if tl.program_id(1) == 0:
        tl.store(mean_of + n * channels + at, mean, mask=there)
        tl.store(rstd_of + n * channels + at, rstd, mask=there)
    gain, offset = _load_affine(weight, bias, scale, shift, n // each, at, channels, there, modulated)
    line = tl.program_id(1) * rows + tl.arange(0, rows)
    inside = (line < length)[:, None] & there[None, :]
    place = (n * length + line)[:, None] * channels + at[None, :]
    v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    z = (v - mean[None, :]) * (rstd * gain)[None, :] + offset[None, :]
    if silu:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y + place, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums(  # type: ignore[no-untyped-def]
    x, dy, sum_dz, sum_dz_xhat, mean_of, rstd_of, weight, bias, scale, shift, length, channels, each,
    modulated: tl.constexpr, silu: tl.constexpr, rows: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Sums over l of dz, the gradient before the activation, and of dz times the normalised x: two tables (n, c)."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * wide + tl.arange(0, wide)
    there = at < channels
    mean = tl.load(mean_of + n * channels + at, mask=there, other=0.0)
    rstd = tl.load(rstd_of + n * channels + at, mask=there, other=0.0)
    gain, offset = _load_affine(weight, bias, scale, shift, n // each, at, channels, there, modulated)
    a = tl.zeros([wide], tl.float32)
    b = tl.zeros([wide], tl.float32)
    for start in range(0, length, rows):
        line = start + tl.arange(0, rows)
        inside = (line < length)[:, None] & there[None, :]
        place = (n * length + line)[:, None] * channels + at[None, :]
        xhat = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
        dz = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        if silu:
            dz = dz * _silu_slope(xhat * gain[None, :] + offset[None, :])
        a += tl.sum(dz, 0)
        b += tl.sum(dz * xhat, 0)
    tl.store(sum_dz + n * channels + at, a, mask=there)
    tl.store(sum_dz_xhat + n * channels + at, b, mask=there)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    x, dy, dx, by_dz, by_dz_xhat, mean_of, rstd_of, weight, bias, scale, shift, length, channels, each,
    groups_of: tl.constexpr, modulated: tl.constexpr, silu: tl.constexpr, rows: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """dx = (gain dz - mean of gain dz - xhat mean of gain dz xhat) / deviation; the means are over a group's numbers.

    `by_dz` and `by_dz_xhat` are the sums of `_gradient_sums` times the gain.
    """
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(2) * wide + tl.arange(0, wide)
    there = at < channels
    a, b = _load_sums(by_dz, by_dz_xhat, n, at, groups_of, channels, there)
    count = groups_of * length
    mean = tl.load(mean_of + n * channels + at, mask=there, other=0.0)
    rstd = tl.load(rstd_of + n * channels + at, mask=there, other=0.0)
    gain, offset = _load_affine(weight, bias, scale, shift, n // each, at, channels, there, modulated)
    line = tl.program_id(1) * rows + tl.arange(0, rows)
    inside = (line < length)[:, None] & there[None, :]
    place = (n * length + line)[:, None] * channels + at[None, :]
    xhat = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
    dz = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    if silu:
        dz = dz * _silu_slope(xhat * gain[None, :] + offset[None, :])
    d = rstd[None, :] * (gain[None, :] * dz - (a / count)[None, :] - xhat * (b / count)[None, :])
    tl.store(dx + place, d.to(dx.dtype.element_ty), mask=inside)


class NormAct(torch.autograd.Function):
    """act(norm(x) * (1 + scale) + shift) of x (n, c, h, w); scale and shift (r, c), r divides n, or None."""

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
        x = x.contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        if scale is not None and shift is not None:
            scale, shift = scale.contiguous(), shift.contiguous()
        y = torch.empty_like(x)
        sum1, sum2, mean, rstd = x.new_empty((4, n, c), dtype=torch.float32)
        rows, wide = _tile(h * w, c)
        blocks = triton.cdiv(c, wide)
        each = n if scale is None else n // len(scale)
        _sums[(n, blocks)](x, sum1, sum2, h * w, c, rows=rows, wide=wide)
        _apply[(n, triton.cdiv(h * w, rows), blocks)](
            x, y, sum1, sum2, mean, rstd, weight, bias, scale, shift, h * w, c, each, eps,
            groups_of=c // groups, modulated=scale is not None, silu=silu, rows=rows, wide=wide,
        )  # fmt: skip
        ctx.groups, ctx.silu, ctx.each = groups, silu, each
        ctx.save_for_backward(x, weight, bias, scale, shift, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        rows, wide = _tile(h * w, c)
        blocks = triton.cdiv(c, wide)
        modulated = scale is not None
        tables = (mean, rstd, weight, bias, scale, shift, h * w, c, ctx.each)
        how = {"modulated": modulated, "silu": ctx.silu, "rows": rows, "wide": wide}
        dz, dz_xhat = sums = x.new_empty((2, n, c), dtype=torch.float32)
        _gradient_sums[(n, blocks)](x, dy, dz, dz_xhat, *tables, **how)

        gain = weight.float()
        if modulated:
            # (r, each, c) -> (r, c): what one row of scale and shift got from all its samples
            own = sums.view(2, len(scale), ctx.each, c)
            together = own.sum(2)
            factor = 1 + scale.float()
            dscale = (together[1] * gain + together[0] * bias.float()).to(scale.dtype)
            dshift = together[0].to(scale.dtype)
            dbias, dweight = (together * factor).sum(1)
            by = (own * (gain * factor)[:, None]).view(2, n, c)
        else:
            dscale = dshift = None
            dbias, dweight = sums.sum(1)
            by = sums * gain
        dx = torch.empty_like(x)
        _gradient[(n, triton.cdiv(h * w, rows), blocks)](
            x, dy, dx, by[0], by[1], *tables, groups_of=c // ctx.groups, **how
        )
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale, dshift, None, None, None


def _tile(length: int, channels: int) -> tuple[int, int]:
    """Positions and channels of a program: powers of two, _TILE numbers in all."""
    wide = min(128, triton.next_power_of_2(channels))
    return min(triton.next_power_of_2(length), max(1, _TILE // wide)), wide
