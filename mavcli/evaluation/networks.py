"""The published measuring networks as `FeatureNetwork`s: how each takes frames, and what it says of itself.

f frames, h w pixels; frames are uint8 `f h w 3`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavcli.errors import InputError, counted
from mavcli.evaluation.c3d import C3D, load_c3d, to_side
from mavcli.evaluation.c3d import FRAMES as C3D_FRAMES
from mavcli.evaluation.clip_sim import ClipJudge, load_clip
from mavcli.evaluation.i3d import FEWEST_FRAMES, I3D, Squaring, default_eps, load_i3d, square
from mavcli.evaluation.i3d import Layer as I3DLayer
from mavcli.evaluation.inception import Inception, Resizing, load_inception, to_input
from mavcli.evaluation.inception import Layer as InceptionLayer
from mavcli.evaluation.weight_files import is_published
from mavcli.media.frames import Frames
from mavcli.weights.reading import Digested

_PICTURES = 32
"""Pictures that a picture network takes at once."""
_FRAMES = 8
"""Frames that are floats in their own size at once."""


class I3DFeatures:
    """One row a clip: 400 logits, or 1,024 pooled features."""

    def __init__(
        self,
        path: Path,
        *,
        eps: float | None = None,
        squaring: Squaring = "squash",
        layer: I3DLayer = "logits",
        device: torch.device | None = None,
    ) -> None:
        self._file, self._squaring, self._layer = Digested.of(path), squaring, layer
        self._eps = default_eps(path) if eps is None else eps
        self._device = device or torch.device("cpu")
        self.facts: Mapping[str, Any] = {
            "name": "I3D Kinetics-400",
            **_weights_facts(self._file),
            "batchnorm_eps": self._eps,
            "resize": f"bilinear to 224, {squaring}",
            "layer": layer,
        }

    def prepare(self, frames: Frames) -> Tensor:
        """-> (1, 3, f, 224, 224) in [-1, 1]."""
        if len(frames) < FEWEST_FRAMES:
            raise InputError(f"{_count(frames)}, I3D needs at least {FEWEST_FRAMES}")
        x = _in_parts(frames, lambda part: square(part, rule=self._squaring) / 127.5 - 1)
        return x.transpose(0, 1)[None].contiguous()

    @cached_property
    def _network(self) -> I3D:
        # Not before it is needed: what is kept already needs its digest alone.
        network = load_i3d(self._file.path, eps=self._eps)
        self._file.check()
        return network.to(self._device)

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        found: Tensor = self._network(prepared, layer=self._layer)
        return found


class C3DLogits:
    """One row a clip of exactly 16 frames: 101 logits."""

    def __init__(self, path: Path, mean: Path, *, device: torch.device | None = None) -> None:
        self._file, self._mean, self._device = (
            Digested.of(path),
            Digested.of(mean),
            device or torch.device("cpu"),
        )
        self.facts: Mapping[str, Any] = {
            "name": "C3D UCF-101",
            **_weights_facts(self._file),
            "mean": _weights_facts(self._mean),
            "resize": "bilinear to 112, squash, corners aligned",
            "layer": "logits",
        }

    def prepare(self, frames: Frames) -> Tensor:
        """-> (1, 3, 16, 112, 112) in [-1, 1]."""
        if len(frames) != C3D_FRAMES:
            raise InputError(f"{_count(frames)}, C3D reads {C3D_FRAMES}")
        x = _in_parts(frames, lambda part: to_side(part / 127.5 - 1))
        return x.transpose(0, 1)[None].contiguous()

    @cached_property
    def _network(self) -> C3D:
        network = load_c3d(self._file.path, self._mean.path)
        self._file.check()
        self._mean.check()
        return network.to(self._device)

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        found: Tensor = self._network(prepared)
        return found


class InceptionFeatures:
    """One row a frame: 2,048 pooled features, or 1,008 logits."""

    def __init__(
        self,
        path: Path,
        *,
        resizing: Resizing = "pytorch-fid",
        layer: InceptionLayer = "pool3",
        device: torch.device | None = None,
    ) -> None:
        self._file, self._resizing, self._layer = Digested.of(path), resizing, layer
        self._device = device or torch.device("cpu")
        self.facts: Mapping[str, Any] = {
            "name": "Inception v3 of FID",
            **_weights_facts(self._file),
            "resize": f"to 299 as {resizing} does",
            "layer": layer,
        }

    def prepare(self, frames: Frames) -> Tensor:
        """-> (f, 3, 299, 299) in [-1, 1]."""
        return _in_parts(frames, lambda part: to_input(part, resizing=self._resizing))

    @cached_property
    def _network(self) -> Inception:
        network = load_inception(self._file.path)
        self._file.check()
        return network.to(self._device)

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        return torch.cat([self._network(part, layer=self._layer) for part in prepared.split(_PICTURES)])


class ClipFeatures:
    """One row a frame: the image tower's features, before they are normalised."""

    def __init__(self, name: str, path: Path, *, device: torch.device | None = None) -> None:
        file = Digested.of(path)
        self.judge: ClipJudge = load_clip(name, path)
        file.check()
        self.judge.network.to(device or "cpu")
        self.facts: Mapping[str, Any] = {
            "name": f"CLIP {name}",
            **_weights_facts(file),
            "resize": "Pillow bicubic, shorter side 224, centre crop",
        }

    def prepare(self, frames: Frames) -> Tensor:
        """-> (f, 3, 224, 224), CLIP's own range."""
        return self.judge.prepare(frames)

    def features(self, prepared: Tensor) -> Tensor:
        return torch.cat([self.judge.encode_image(part) for part in prepared.split(_PICTURES)])


def _weights_facts(file: Digested) -> dict[str, Any]:
    """Name and digest of a weight file, and whether its publisher's digest is this one."""
    told: dict[str, Any] = {"weights": file.path.name, "weights_sha256": file.sha256}
    published = is_published(file.path, file.sha256)
    return told if published is None else {**told, "weights_as_published": published}


def _count(frames: Frames) -> str:
    return f"a clip of {counted(len(frames), 'frame')}"


def _in_parts(frames: Frames, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """`prepare` of float32 (f, 3, h, w) in 0..255, some frames at a time: all of a long clip's would not fit in memory."""
    parts = (frames[start : start + _FRAMES] for start in range(0, len(frames), _FRAMES))
    return torch.cat(
        [prepare(torch.from_numpy(np.ascontiguousarray(part)).permute(0, 3, 1, 2).float()) for part in parts]
    )
