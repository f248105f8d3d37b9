"""Scalar embeddings, and the condition that travels beside x through a network.

b batch, f frames, c channels, h w pixels, n tokens, d embedding width; t is always the diffusion step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn


def sinusoid(values: Tensor, width: int, *, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding as in guided-diffusion: cosines, then sines. values (b,) -> (b, width) float32."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    )
    angles = values.float()[:, None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(embedding, (0, width % 2))


def small_normal(*shape: int) -> nn.Parameter:
    """A learned position before training: normal, standard deviation 0.01."""
    values = torch.empty(shape)
    # On the meta device there is nothing to fill, and PyTorch would import its compiler for it: seconds.
    return nn.Parameter(values if values.is_meta else values.normal_(std=0.01))


def weight_dtype(module: nn.Module) -> torch.dtype:
    """The type of a module's parameters."""
    return next(module.parameters()).dtype


class FpsEmbedding(nn.Module):
    """Frames per second -> (b, width). The rate enters by its logarithm: 1 to 2 fps is as far as 15 to 30."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, fps: Tensor) -> Tensor:
        embedding = sinusoid(100.0 * fps.float().log(), self.width)
        return self.mlp(embedding.to(weight_dtype(self.mlp)))


@dataclass(frozen=True)
class Condition:
    """What a U-Net is told beside x_t; a field that a network has no use for is refused by the network.

    image_embedding  (b, d) CLIP image embedding; None is the null embedding of classifier-free guidance
    keep_embedding   (b,) bool; False replaces that row by the null embedding
    text_states      (b, n, d) token states of CLIP's text tower; text_mask (b, n) bool, True for real tokens
    text_embedding   (b, d) CLIP text embedding
    low_res          (b, f, 3, h, w) in [-1, 1], already at the size of x
    masked_video     (b, f, 4, h, w): RGB with unknown frames zeroed, then 1 where a frame is known
    fps              (b,) frames per second of x; noise_level (b,) augmentation step of low_res, in [0, T)
    """

    image_embedding: Tensor | None = None
    keep_embedding: Tensor | None = None
    text_states: Tensor | None = None
    text_mask: Tensor | None = None
    text_embedding: Tensor | None = None
    low_res: Tensor | None = None
    masked_video: Tensor | None = None
    fps: Tensor | None = None
    noise_level: Tensor | None = None

    def without_conditioning(self) -> Condition:
        """The unconditional half of guidance: everything but the CLIP image embedding stays."""
        if self.image_embedding is None:
            return self
        drop = torch.zeros(len(self.image_embedding), dtype=torch.bool, device=self.image_embedding.device)
        return dataclasses.replace(self, keep_embedding=drop)

    def scaled(self, factor: Tensor) -> Condition:
        """The CLIP image embedding times factor (b,); everything else stays, the null embedding too."""
        if self.image_embedding is None:
            return self
        return dataclasses.replace(self, image_embedding=self.image_embedding * factor[:, None])

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Joined on the batch axis; all must have the same fields (a missing `keep_embedding` is all True)."""
        merged: dict[str, Tensor | None] = {}
        for field in fields(Condition):
            values = [getattr(c, field.name) for c in conditions]
            if field.name == "keep_embedding" and any(v is not None for v in values):
                values = [
                    torch.ones(len(c.image_embedding), dtype=torch.bool, device=c.image_embedding.device)
                    if v is None and c.image_embedding is not None
                    else v
                    for v, c in zip(values, conditions, strict=True)
                ]
            present = [v for v in values if v is not None]
            if len(present) not in (0, len(values)):
                raise ValueError(f"`{field.name}` is given for {len(present)} of {len(values)} conditions")
            merged[field.name] = torch.cat(present) if present else None
        return Condition(**merged)

    def to(self, device: torch.device | str) -> Condition:
        return Condition(
            **{f.name: None if (v := getattr(self, f.name)) is None else v.to(device) for f in fields(self)}
        )


def fill_unknown(masked_video: Tensor) -> Tensor:
    """masked_video (b, f, 4, h, w), unknown frames zeroed -> the same with these showing the nearest known frame.

    The mask becomes 1 / (1 + distance in frames): 1 where a frame is known, and 0 where none is. So what a small network
    would have to carry from frame to frame lies before every frame's own eyes. The earlier of two as near is taken.
    """
    frames = masked_video.shape[1]
    known = masked_video[:, :, 3].amax((-2, -1)) > 0  # b f
    place = torch.arange(frames, device=known.device)
    distance = (place[:, None] - place).abs().expand(len(known), -1, -1)  # b f f
    distance = distance.masked_fill(~known[:, None, :], 2 * frames)
    nearest, source = distance.min(dim=-1)
    near = (1 / (1 + nearest.to(masked_video.dtype))) * known.any(dim=1)[:, None]
    rows = torch.arange(len(known), device=known.device)[:, None]
    rgb = masked_video[rows, source][:, :, :3]
    mask = near[:, :, None, None, None].expand(*rgb.shape[:2], 1, *rgb.shape[3:])
    return torch.cat([rgb, mask], dim=2)
