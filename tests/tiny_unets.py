"""Tiny versions of the published families of one U-Net, with conditions for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mavcli.models.embeddings import Condition
from mavcli.models.unet import UNet
from mavcli.specs import UNetSpec

SIDE = 16
TINY = {
    "image_size": SIDE,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "num_head_channels": 8,
    "norm_groups": 8,
}
SR = {**TINY, "attention_resolutions": (), "mid_attention": False, "low_res_channels": 3}
SPECS = {
    "karlo decoder": UNetSpec(
        **TINY, out_channels=6, clip_dim=12, context_dim=16, text="clip", text_dim=12, text_context=5
    ),
    "karlo sr": UNetSpec(**SR, use_scale_shift_norm=False),
    "adm plain": UNetSpec(
        **{**TINY, "num_head_channels": None}, num_heads=2, use_scale_shift_norm=False, resblock_updown=False
    ),
    "adm resblock_updown": UNetSpec(**TINY, out_channels=6),
    "pocket decoder": UNetSpec(
        **{**TINY, "attention_resolutions": (4,)},
        patch=2,
        resblock_updown=False,
        clip_dim=12,
        context_dim=16,
    ),
    "pocket sr": UNetSpec(**SR, patch=2, resblock_updown=False, noise_level=True, low_res_residual=True),
}


@dataclass(frozen=True)
class Family:
    """A tiny image network of one published family."""

    name: str
    spec: UNetSpec

    def inflated(self, **changes: object) -> UNetSpec:
        """The spec of the video network, with the frame rate unless `changes` say otherwise."""
        return self.spec.model_copy(update={"temporal": "p3d", "fps": True, **changes})

    def image_network(self, *, seed: int = 0) -> UNet:
        torch.manual_seed(seed)
        return perturb(UNet(self.spec), seed=seed).eval()

    def inputs(
        self, batch: int, frames: int, *, side: int = SIDE, fps: bool = True
    ) -> tuple[Tensor, Tensor, Condition]:
        """x, t and all of the condition that the network takes."""
        g, spec = torch.Generator().manual_seed(batch), self.spec

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g)

        video = (batch, frames)
        mask = torch.arange(5)[None] < torch.arange(batch)[:, None] % 4 + 1
        known = (
            (torch.arange(frames) % 3 == 0)[None, :, None, None, None].expand(*video, 1, side, side).float()
        )
        condition = Condition(
            image_embedding=normal(batch, spec.clip_dim) if spec.clip_dim else None,
            text_states=normal(batch, 5, 12) if spec.text == "clip" else None,
            text_embedding=normal(batch, 12) if spec.text == "clip" else None,
            text_mask=mask if spec.text != "none" else None,
            low_res=normal(*video, 3, side, side) if spec.low_res_channels else None,
            masked_video=torch.cat([normal(*video, 3, side, side) * known, known], dim=2)
            if spec.mask_channels
            else None,
            fps=torch.linspace(2.0, 30.0, batch) if fps else None,
            noise_level=torch.arange(batch) * 7 if spec.noise_level else None,
        )
        return normal(*video, 3, side, side), torch.linspace(3, 980, batch).long(), condition


def perturb(network: nn.Module, *, seed: int = 1, only: object = None) -> nn.Module:
    """Move every parameter away from where it starts, the zeros too; `only(name)` chooses."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if only is None or only(name):  # type: ignore[operator]
                p.add_(torch.randn(p.shape, generator=g) * 0.1)
    return network


def per_frame(x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Condition]:
    """The frames of a batch of clips as a batch of pictures (b f) 1 c h w, each with its clip's condition."""
    frames = x.shape[1]
    fields = {}
    for name, value in vars(condition).items():
        if value is None or name == "fps":
            continue
        fields[name] = (
            value.flatten(0, 1)[:, None] if value.ndim == 5 else value.repeat_interleave(frames, dim=0)
        )
    return x.flatten(0, 1)[:, None], t.repeat_interleave(frames), Condition(**fields)
