"""Convolutions done in fewer multiplications have the values of their definition, and are counted as that."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mavcli.models import convolution
from mavcli.models.convolution import conv2d, conv2d_of_doubled, direct
from mavcli.models.pseudo3d import PseudoConv3d
from mavcli.recipe.resolve import probe_machine
from mavcli.training.trace import Trace

FEWER = (
    (2, 64, 64, 64, 64),
    (1, 128, 64, 32, 48),
    (3, 64, 128, 64, 32),
)  # n, c, o, h, w done by Winograd's sums


def tensors(n: int, c: int, o: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, generator=g).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(o, c, 3, 3, generator=g) * (9 * c) ** -0.5, torch.randn(o, generator=g)


def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize("shape", FEWER, ids=str)
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_winograds_sums_give_the_convolution(shape: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = tensors(*shape)
    b = bias if biased else None
    with FlopCounterMode(display=False) as counter:
        y = conv2d(x, weight, b)
    n, c, o, h, w = shape
    exact = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), padding=1)
    assert (
        counter.get_total_flops() == n * h * w * c * o * 9 + 2 * 6 * 3 * o * c * 3
    )  # half, and the kernel's rows
    assert y.dtype == torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)
    ours = (y - exact).square().mean().sqrt()
    assert ours < 3 * (F.conv2d(x, weight, b, padding=1) - exact).square().mean().sqrt()
    assert (y - exact).abs().max() < 5e-5  # of values of deviation 1


@pytest.mark.parametrize("shape", FEWER, ids=str)
@torch.no_grad()
def test_a_pictures_bits_do_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    x, weight, bias = tensors(16, *shape[1:])
    clip = conv2d(x, weight, bias)
    for i in (0, 7, 15):
        assert torch.equal(conv2d(x[i : i + 1], weight, bias)[0], clip[i])


@torch.no_grad()
def test_the_convolution_takes_any_layout() -> None:
    x, weight, bias = tensors(*FEWER[0])
    wide = torch.cat([x, x], dim=1)[:, :64]
    assert torch.equal(conv2d(x.contiguous(), weight, bias), conv2d(x, weight, bias))
    assert torch.equal(conv2d(wide, weight, bias), conv2d(x, weight, bias))


@pytest.mark.parametrize(
    ("shape", "dtype", "around"),
    [
        ((2, 64, 64, 64, 64), torch.float32, torch.enable_grad()),
        ((2, 64, 64, 64, 64), torch.float32, direct()),
        ((2, 64, 64, 64, 64), torch.bfloat16, nullcontext()),
        ((2, 64, 64, 64, 64), torch.float64, nullcontext()),
        ((2, 64, 64, 64, 64), torch.float32, torch.autocast("cpu", torch.bfloat16)),
        ((2, 64, 64, 66, 64), torch.float32, nullcontext()),  # rows that are no multiple of 4
        ((2, 32, 64, 64, 64), torch.float32, nullcontext()),  # too few channels
        ((16, 64, 64, 32, 32), torch.float32, nullcontext()),  # too little work in a picture
        (
            (16, 256, 256, 16, 16),
            torch.float32,
            nullcontext(),
        ),  # a plane that oneDNN would not get for every batch
    ],
    ids=["grad", "direct", "bf16", "fp64", "autocast", "rows", "channels", "work", "plane"],
)
@torch.no_grad()
def test_elsewhere_the_convolution_is_torchs_own(shape, dtype, around) -> None:
    x, weight, bias = (v.to(dtype) for v in tensors(*shape))
    with around:
        assert torch.equal(conv2d(x, weight, bias), F.conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize("shape", [(2, 6, 5, 7, 4), (1, 3, 8, 1, 1), (3, 4, 4, 2, 9)], ids=str)
def test_a_doubled_picture_is_convolved_without_being_made(shape: tuple[int, ...]) -> None:
    x, weight, bias = (v.double().requires_grad_() for v in tensors(*shape))
    with FlopCounterMode(display=False) as counter:
        ours = conv2d_of_doubled(x, weight, bias)
    theirs = F.conv2d(repeated(x), weight, bias, padding=1)
    n, c, o, h, w = shape
    assert counter.get_total_flops() == 2 * n * h * w * c * o * 16
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    along = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad((y * along).sum(), (x, weight, bias)) for y in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    with direct(), FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(conv2d_of_doubled(x, weight, bias), theirs, rtol=1e-12, atol=1e-12)
    assert counter.get_total_flops() == 2 * n * 4 * h * w * c * o * 9


@pytest.mark.parametrize("autocast", [True, False])
@torch.no_grad()
def test_in_bfloat16_a_doubled_picture_has_the_error_of_bfloat16(autocast: bool) -> None:
    x, weight, bias = tensors(2, 64, 64, 16, 16)
    exact = F.conv2d(repeated(x).double(), weight.double(), bias.double(), padding=1)
    x = x.bfloat16()
    if not autocast:
        weight, bias = weight.bfloat16(), bias.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = conv2d_of_doubled(x, weight, bias)
        theirs = F.conv2d(repeated(x), weight, bias, padding=1)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    off, usual = ((y.double() - exact).square().mean().sqrt() for y in (ours, theirs))
    # On a CPU that has no bfloat16 PyTorch also adds up the four of a transposed convolution in it: 1.33 times there.
    assert off < (1.2 if probe_machine().cpu_bf16 else 1.5) * usual


def both(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return conv2d(x, weight, bias), conv2d_of_doubled(x, weight, bias)


@torch.no_grad()
def test_tensors_without_memory_get_the_shapes() -> None:
    with FakeTensorMode() as mode:
        fake = both(*(mode.from_tensor(v) for v in tensors(*FEWER[0])))
    meta = both(*(v.to("meta") for v in tensors(*FEWER[0])))
    for small, doubled in (fake, meta):
        assert small.shape == (2, 64, 64, 64)
        assert doubled.shape == (2, 64, 128, 128)


@torch.no_grad()
def test_a_compiler_sees_the_definition() -> None:
    seen: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]):
        seen.extend(node.name for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    x, weight, bias = tensors(*FEWER[0])
    torch.compiler.reset()
    ours = torch.compile(both, backend=backend, fullgraph=True)(x, weight, bias)
    assert seen == ["conv2d", "interpolate", "conv2d_1"]
    assert torch.equal(ours[0], F.conv2d(x, weight, bias, padding=1))


def test_what_is_counted_is_the_definition() -> None:
    layer = PseudoConv3d(64, 64, 3, temporal_kernel=None)
    x = tensors(*FEWER[0])[0]
    for doubled in (False, True):
        with torch.no_grad(), Trace(device=x.device, known=[x, *layer.parameters()]) as trace:
            layer(x, doubled=doubled)
        assert trace.flops == 2 * 2 * 64 * 64 * 64 * 64 * 9 * (4 if doubled else 1)
    assert not convolution._direct.get()
