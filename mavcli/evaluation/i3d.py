"""I3D on Kinetics-400: the network of the Fréchet Video Distance (Carreira and Zisserman 2017; Unterthiner et al. 2018).

Inception-v1 whose convolutions also span time. Two published files hold it: `i3d_pretrained_400.pt` (VideoGPT, TATS,
cd-fvd; the same keys as piergiaj's `rgb_imagenet.pt`) and `i3d_torchscript.pt` (StyleGAN-V). They differ in the BatchNorm
eps that their codes use: 1e-5 in the first, TensorFlow's 1e-3 in the second and in piergiaj's.

b clips, f frames, h w pixels; clips are float32 (b, 3, f, 224, 224) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.errors import WeightsError, counted
from mavcli.evaluation.weight_files import read_weights
from mavcli.weights.torchscript import is_torchscript

SIDE = 224
FEWEST_FRAMES = 9
"""Three halvings of time must leave the two steps that the last pooling spans."""

Layer = Literal["logits", "avgpool"]
Squaring = Literal["squash", "crop"]
"""How frames become square: `squash` resizes both sides to 224 (the TensorFlow original, cd-fvd); `crop` resizes the
shorter side and cuts the centre (VideoGPT, StyleGAN-V)."""

_MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


class I3D(nn.Module):
    """The network under the published names. `eps` is BatchNorm's."""

    def __init__(self, *, eps: float, classes: int = 400) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2, eps=eps)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, eps=eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, eps=eps)
        for name, widths in _MIXED.items():
            self.add_module(name, Mixed(*widths, eps=eps))
        self.logits = Unit(1024, classes, 1, eps=None)

    def forward(self, x: Tensor, *, layer: Layer = "logits") -> Tensor:
        """x (b, 3, f, 224, 224) in [-1, 1], f at least 9 -> (b, 400) logits or (b, 1024) pooled, mean over time."""
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            x = self.get_submodule(name)(x)
            if name == "Mixed_3c":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_4f":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        if layer == "logits":
            x = self.logits(x)
        return x.mean(dim=(2, 3, 4))


class Unit(nn.Module):
    """A convolution that keeps the size as TensorFlow's SAME does, BatchNorm and ReLU; without `eps` it alone."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, eps: float | None) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(before, after, kernel, stride, bias=eps is None)
        self.bn = nn.BatchNorm3d(after, eps=eps) if eps is not None else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Mixed(nn.Module):
    """Four branches side by side: 1; 1 and 3; 1 and 3; pooling and 1."""

    def __init__(
        self, before: int, n0: int, n1a: int, n1b: int, n2a: int, n2b: int, n3: int, *, eps: float
    ) -> None:
        super().__init__()
        self.b0 = Unit(before, n0, 1, eps=eps)
        self.b1a = Unit(before, n1a, 1, eps=eps)
        self.b1b = Unit(n1a, n1b, 3, eps=eps)
        self.b2a = Unit(before, n2a, 1, eps=eps)
        self.b2b = Unit(n2a, n2b, 3, eps=eps)
        self.b3b = Unit(before, n3, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


def square(x: Tensor, *, rule: Squaring, side: int = SIDE) -> Tensor:
    """x (f, 3, h, w) of any range -> (f, 3, side, side): bilinear, half-pixel centres, no antialiasing, as all ports do."""
    h, w = x.shape[-2:]
    if rule == "squash":
        return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    scale = side / min(h, w)
    # The longer side is rounded up, VideoGPT's way.
    size = (side, -int(-w * scale // 1)) if h < w else (-int(-h * scale // 1), side)
    x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return x[..., top : top + side, left : left + side]


def default_eps(path: Path) -> float:
    """BatchNorm's eps in the code that each published file comes with."""
    return 1e-3 if is_torchscript(path) or path.name.startswith("rgb_imagenet") else 1e-5


def load_i3d(path: Path, *, eps: float | None = None) -> I3D:
    """The network with the weights of a published file. Raises WeightsError when they are not I3D's."""
    tensors = read_weights(path)
    network = I3D(eps=default_eps(path) if eps is None else eps)
    network.load_state_dict(_renamed(tensors, network, path))
    return network.eval().requires_grad_(False)


def _renamed(tensors: Mapping[str, Tensor], network: I3D, path: Path) -> dict[str, Tensor]:
    """The file's tensors under our names: as they are, or by their order and shape where its code uses other names."""
    own = network.state_dict()
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    # The counter of training steps plays no part, and some releases lack it.
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    wanted = {k: v for k, v in own.items() if k not in counters}
    if set(tensors) == set(wanted):
        _check_shapes(tensors, wanted, path)
        return {**tensors, **counters}
    return {**_by_order(tensors, network, path), **counters}


def _by_order(tensors: Mapping[str, Tensor], network: I3D, path: Path) -> dict[str, Tensor]:
    """Each convolution's kernel with the vectors that follow it, in the order in which the network runs them."""
    units = {name: module for name, module in network.named_modules() if isinstance(module, Unit)}
    names = [*(n for n in units if n != "logits"), "logits"]
    groups: list[tuple[Tensor, dict[str, Tensor]]] = []
    for name, value in tensors.items():
        if value.ndim == 5:
            groups.append((value, {}))
        elif groups and value.numel() == groups[-1][0].shape[0]:
            groups[-1][1][_part(name)] = value.flatten()
    if len(groups) != len(names):
        raise WeightsError(
            f"{path} is no I3D of Kinetics-400: it has {counted(len(groups), 'convolution')}, {len(names)} are wanted",
            hint="i3d_pretrained_400.pt or i3d_torchscript.pt",
        )
    found: dict[str, Tensor] = {}
    for name, (kernel, vectors) in zip(names, groups, strict=True):
        unit = units[name]
        if kernel.shape != unit.conv3d.weight.shape:
            raise WeightsError(
                f"{path}: convolution `{name}` is {tuple(kernel.shape)}, {tuple(unit.conv3d.weight.shape)} is wanted"
            )
        found[f"{name}.conv3d.weight"] = kernel
        wanted = ("bias",) if unit.bn is None else ("bias", "running_mean", "running_var")
        missing = [part for part in wanted if part not in vectors]
        if missing:
            raise WeightsError(f"{path} has no `{missing[0]}` after the convolution `{name}`")
        prefix = f"{name}.conv3d" if unit.bn is None else f"{name}.bn"
        found.update({f"{prefix}.{part}": vectors[part] for part in wanted})
        if unit.bn is not None:
            # TensorFlow's I3D has no gain.
            found[f"{prefix}.weight"] = vectors.get("weight", torch.ones_like(vectors["bias"]))
    return found


def _part(name: str) -> str:
    last = name.rsplit(".", 1)[-1].lower()
    for part, words in {
        "running_mean": ("mean",),
        "running_var": ("var",),
        "bias": ("bias", "beta", "offset"),
    }.items():
        if any(word in last for word in words):
            return part
    return "weight"


def _check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            raise WeightsError(
                f"{path}: `{name}` is {tuple(tensors[name].shape)}, {tuple(value.shape)} is wanted"
            )


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_same(x, kernel, stride), kernel, stride)


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around (b, c, f, h, w) as TensorFlow's SAME puts them: the odd one behind. After a ReLU they are minima."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - (s if size % s == 0 else size % s), 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads) if any(pads) else x
