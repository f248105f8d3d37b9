"""Inception v3 as FID uses it: TensorFlow's weights of 2015-12-05 (Heusel et al. 2017), under pytorch-fid's names.

The network is torch-fidelity's; what is ours is the way a frame gets to 299 pixels, in which the codes differ by more than
many papers' improvements:

- `pytorch-fid`: bilinear with half-pixel centres, no antialiasing.
- `torch-fidelity`: bilinear as TensorFlow 1 did, corner-aligned on the top left; torchmetrics with `antialias=False`.
- `torchmetrics`: bilinear with half-pixel centres, antialiased (1.9.0, its default).
- `clean-fid`: Pillow's antialiased bicubic on floats (Parmar et al. 2022).

n pictures, h w pixels; pictures are float32 (n, 3, h, w) in 0..255.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.errors import UsageError, WeightsError
from mavcli.evaluation.weight_files import read_weights
from mavcli.media.frames import resize

SIDE = 299
Layer = Literal["pool3", "logits", "logits_unbiased"]
Resizing = Literal["pytorch-fid", "torch-fidelity", "torchmetrics", "clean-fid"]

_TRUNK = [
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "MaxPool_1",
    "Conv2d_3b_1x1",
    "Conv2d_4a_3x3",
    "MaxPool_2",
    "Mixed_5b",
    "Mixed_5c",
    "Mixed_5d",
    "Mixed_6a",
    "Mixed_6b",
    "Mixed_6c",
    "Mixed_6d",
    "Mixed_6e",
    "Mixed_7a",
    "Mixed_7b",
    "Mixed_7c",
    "AvgPool",
]


class Inception(nn.Module):
    """torch-fidelity's network, entered after the resize."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *, layer: Layer = "pool3") -> Tensor:
        """x (n, 3, 299, 299) in [-1, 1] -> (n, 2048), or (n, 1008) logits; `logits_unbiased` leave the bias out."""
        for name in _TRUNK:
            x = self.network.get_submodule(name)(x)
        x = x.flatten(1)
        if layer == "pool3":
            return x
        last = self.network.get_submodule("fc")
        assert isinstance(last, nn.Linear)
        return F.linear(x, last.weight, last.bias if layer == "logits" else None)


def to_input(x: Tensor, *, resizing: Resizing) -> Tensor:
    """x (n, 3, h, w) in 0..255 -> (n, 3, 299, 299) in [-1, 1], as the code of that name does."""
    if resizing == "pytorch-fid":
        return F.interpolate(x / 255, (SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1
    if resizing == "clean-fid":
        return (resize(x, SIDE, kernel="bicubic").clamp(0, 255) - 128) / 128
    if resizing == "torchmetrics":
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        return (x - 128) / 128
    tensorflow_resize = _torch_fidelity(
        "interpolate_compat_tensorflow"
    ).interpolate_bilinear_2d_like_tensorflow1x
    x = tensorflow_resize(x, size=(SIDE, SIDE), align_corners=False)
    return (x - 128) / 128


def load_inception(path: Path) -> Inception:
    """The network with the weights of `path`. Raises WeightsError when they are not pytorch-fid's layout, UsageError
    without torch-fidelity."""
    library = _torch_fidelity("feature_extractor_inceptionv3")
    tensors = read_weights(path)
    # The library loads by itself and from a file: it is handed what was already read safely.
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    buffer.seek(0)
    try:
        network = library.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer
        )
    except RuntimeError as error:
        raise WeightsError(
            f"{path} is no Inception of pytorch-fid: {_first_complaint(str(error))}",
            hint="pt_inception-2015-12-05-6726825d.pth",
        ) from error
    return Inception(network).eval().requires_grad_(False)


def _first_complaint(told: str) -> str:
    """Of all that `load_state_dict` says, the first fault: `missing key "fc.weight", ... (1 of 3)`."""
    lines = [line.strip() for line in told.splitlines()[1:] if line.strip()]
    head, _, names = (lines or [told])[0].partition("(s) in state_dict: ")
    if not names:
        return head[:200].rstrip(". ")
    every = names.rstrip(". ").split(", ")
    return f"{head.lower()} {every[0]}" + (f" and {len(every) - 1} more" if len(every) > 1 else "")


def _torch_fidelity(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ModuleNotFoundError as error:
        raise UsageError(
            "this needs torch-fidelity, which is not installed", hint="pip install 'mavcli[eval]'"
        ) from error
