"""Compares the normalisation's kernels with PyTorch in float64: `python norm_on_kernels.py cuda`, or `cpu` with TRITON_INTERPRET=1."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from mavcli.models.norm_kernels import NormAct

CASES = (
    # n, c, h, w, groups, rows of the modulation, silu
    (4, 64, 8, 8, 32, 2, True),
    (3, 192, 5, 7, 32, None, True),
    (4, 6, 4, 4, 3, 4, False),
    (2, 24, 40, 3, 8, 1, True),
    (5, 160, 1, 1, 1, None, False),
)


def errors(case: tuple, device: str) -> dict[str, float]:
    """Relative error of the value and of each gradient; layout other than channels_last raises."""
    n, c, h, w, groups, rows, silu = case
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    x = (draw(n, c, h, w) * 2 + 3).detach().requires_grad_()
    inputs = {"x": x, "weight": draw(c), "bias": draw(c)}
    if rows is not None:
        inputs |= {"scale": draw(rows, c), "shift": draw(rows, c)}
    scale, shift = inputs.get("scale"), inputs.get("shift")
    y = NormAct.apply(x, inputs["weight"], inputs["bias"], scale, shift, groups, 1e-5, silu)
    assert y.is_contiguous(memory_format=torch.channels_last)

    exact = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    z = F.group_norm(exact["x"], groups, exact["weight"], exact["bias"], 1e-5)
    if rows is not None:
        by, plus = (
            exact[name].repeat_interleave(n // rows, 0)[:, :, None, None] for name in ("scale", "shift")
        )
        z = z * (1 + by) + plus
    z = F.silu(z) if silu else z
    dy = torch.randn(y.shape, generator=generator).to(device)
    ours = torch.autograd.grad(y, list(inputs.values()), dy)
    theirs = torch.autograd.grad(z, list(exact.values()), dy.double())
    pairs = {"y": (y, z)} | {name: pair for name, *pair in zip(inputs, ours, theirs, strict=True)}
    return {name: float(((a - b).norm() / (b.norm() + 1e-9)).detach()) for name, (a, b) in pairs.items()}


if __name__ == "__main__":
    for each in CASES:
        found = errors(each, sys.argv[1])
        assert max(found.values()) < 2e-5, f"{each}: {found}"
