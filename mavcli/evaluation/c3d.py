"""C3D fine-tuned on UCF-101: the classifier of video Inception Scores (Tran et al. 2015; Saito et al., TGANv2).

Weights are TGANv2's: `conv3d_deepnetA_ucf.npz` and the mean clip `mean2.npz` that is taken off its input. The layout is that of
pfnet-research/tgan2 @d83018c, and its code gives the same logits on the same stand-in weights; the published files were not
at hand.

b clips, f frames, h w pixels; clips are float32 (b, 3, 16, h, w) RGB in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.errors import WeightsError

FRAMES = 16
SIDE = 112
_CROP = slice(8, 8 + SIDE)

_CONVOLUTIONS = {
    "conv1a": (3, 64),
    "conv2a": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}
_LINEAR = {"fc6": (8192, 4096), "fc7": (4096, 4096), "fc8": (4096, 101)}


class C3D(nn.Module):
    """Eight convolutions and three linear layers; `mean` is the BGR mean clip, cut to 112 pixels."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, (before, after) in _CONVOLUTIONS.items():
            self.add_module(name, nn.Conv3d(before, after, 3, padding=1))
        for name, (before, after) in _LINEAR.items():
            self.add_module(name, nn.Linear(before, after))
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        """x (b, 3, 16, h, w) RGB in [-1, 1], any size -> logits (b, 101)."""
        h = self._prepared(x)
        for name in _CONVOLUTIONS:
            h = F.relu(self.get_submodule(name)(h))
            if name == "conv1a":
                h = F.max_pool3d(h, (1, 2, 2))
            elif name in ("conv2a", "conv3b", "conv4b", "conv5b"):
                h = F.max_pool3d(h, 2, ceil_mode=True)  # Chainer's `cover_all`
        h = h.flatten(1)
        h = F.relu(self.get_submodule("fc6")(h))
        h = F.relu(self.get_submodule("fc7")(h))
        logits: Tensor = self.get_submodule("fc8")(h)
        return logits

    def _prepared(self, x: Tensor) -> Tensor:
        """RGB in [-1, 1] -> BGR around 0 in steps of a grey level, 112 pixels, less the mean clip."""
        b, c, f, h, w = x.shape
        frames = to_side(x.flip(1).transpose(1, 2).reshape(b * f, c, h, w)) * 128
        return frames.reshape(b, f, c, SIDE, SIDE).transpose(1, 2) + (128 - self.mean)


def to_side(frames: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, 3, 112, 112) as Chainer's `resize_images` does, corners aligned; what has that size stays."""
    return F.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=True)


def load_c3d(path: Path, mean: Path) -> C3D:
    """The network of TGANv2's two files. Raises WeightsError when a tensor is missing or of another shape."""
    network = C3D()
    own = network.state_dict()
    found: dict[str, Tensor] = {}
    with _arrays(path) as arrays:
        for name in [*_CONVOLUTIONS, *_LINEAR]:
            for theirs, ours in (("W", "weight"), ("b", "bias")):
                found[f"{name}.{ours}"] = _array(
                    arrays, f"{name}/{theirs}", own[f"{name}.{ours}"].shape, path
                )
    found["mean"] = mean_clip(mean)
    network.load_state_dict(found)
    return network.eval().requires_grad_(False)


def mean_clip(path: Path) -> Tensor:
    """The BGR mean clip (3, 16, 112, 112) of `mean2.npz`, its centre. Raises WeightsError."""
    with _arrays(path) as arrays:
        if "mean" not in arrays.files:
            raise WeightsError(f"{path} lacks `mean`: it is no mean clip of TGANv2", hint="mean2.npz")
        clip = arrays["mean"]
    least = _CROP.stop
    if clip.ndim != 4 or clip.shape[:2] != (3, FRAMES) or min(clip.shape[2:]) < least:
        raise WeightsError(
            f"{path} holds {tuple(clip.shape)}, a mean clip (3, {FRAMES}, {least} or more, {least} or more) is wanted",
            hint="mean2.npz of TGANv2",
        )
    return torch.from_numpy(np.ascontiguousarray(clip[:, :, _CROP, _CROP], np.float32))


def _arrays(path: Path) -> np.lib.npyio.NpzFile:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(f"{path} is no npz file: {error}") from error
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise WeightsError(f"{path} holds one array, a map of arrays is wanted")
    return found


def _array(arrays: np.lib.npyio.NpzFile, name: str, shape: torch.Size, path: Path) -> Tensor:
    if name not in arrays.files:
        raise WeightsError(f"{path} lacks `{name}`: it is no C3D of TGANv2", hint="conv3d_deepnetA_ucf.npz")
    array = arrays[name]
    if array.shape != tuple(shape):
        raise WeightsError(f"{path}: `{name}` is {array.shape}, {tuple(shape)} is wanted")
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
