"""`C_x` and `C_y` for a family with words and a ResNet of its own: what `Clip` says, to the bit, without open_clip.

Importing open_clip takes seconds, a tenth of the whole chain's time on a small machine and more of a draft's. The layers are
PyTorch's, and carry open_clip's names, so that the same file serves both: the text transformer and the modified ResNet of CLIP
(arXiv 2103.00020, section 2.4: a stem of three convolutions, averages before strides, attention in the place of the last mean).
For weights that are there already: where training begins, open_clip draws them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.models.clip import ClipReader
from mavcli.specs import ClipSpec

HEAD_WIDTH = 64
"""Channels of a head where the ResNet attends; open_clip's own."""


class ClipTowers(ClipReader):
    """Both towers of a spec that `has_own_towers`."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__(spec)
        if self.tokens is None or not has_own_towers(spec):
            raise ValueError("byte-pair tokens, published towers and vision transformers are open_clip's")
        self.towers = _Towers(spec, len(self.tokens))


def has_own_towers(spec: ClipSpec) -> bool:
    """Whether `ClipTowers` can stand for `Clip`: words for tokens, a ResNet for pictures."""
    return spec.pretrained is None and spec.vocabulary is not None and isinstance(spec.vision_layers, tuple)


class _Towers(nn.Module):
    attn_mask: Tensor

    def __init__(self, spec: ClipSpec, tokens: int) -> None:
        super().__init__()
        context, width = spec.text_context, spec.text_width
        self.visual = _ResNet(spec)
        self.token_embedding = nn.Embedding(tokens, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.transformer = _Transformer(spec)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, spec.embed_dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))  # of the contrastive loss; kept in the same file
        causal = torch.full((context, context), float("-inf")).triu(1)
        self.register_buffer("attn_mask", causal, persistent=False)


class _Transformer(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(spec) for _ in range(spec.text_layers))

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class _Block(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        width = spec.text_width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, spec.text_heads, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=_QuickGELU() if spec.quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        h = self.ln_1(x).to(x.dtype)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=attn_mask.to(x.dtype))[0]
        return x + self.mlp(self.ln_2(x).to(x.dtype))


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _ResNet(nn.Module):
    """Pictures (b, 3, s, s) -> (b, embed_dim)."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        width, half, depths = spec.vision_width, spec.vision_width // 2, spec.vision_layers
        assert isinstance(depths, tuple)
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = _layer(width, width, depths[0], stride=1)
        self.layer2 = _layer(4 * width, 2 * width, depths[1], stride=2)
        self.layer3 = _layer(8 * width, 4 * width, depths[2], stride=2)
        self.layer4 = _layer(16 * width, 8 * width, depths[3], stride=2)
        self.attnpool = _AttentionPool(spec, 32 * width)

    def forward(self, x: Tensor) -> Tensor:
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(bn(conv(x)), inplace=True)
        x = F.avg_pool2d(x, 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        pooled: Tensor = self.attnpool(x)
        return pooled


def _layer(channels: int, planes: int, depth: int, *, stride: int) -> nn.Sequential:
    later = (_Bottleneck(4 * planes, planes, stride=1) for _ in range(depth - 1))
    return nn.Sequential(_Bottleneck(channels, planes, stride=stride), *later)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; a stride is an average before the last convolution of each branch."""

    def __init__(self, channels: int, planes: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        h = self._halved(F.relu(self.bn2(self.conv2(h)), inplace=True))
        h = self.bn3(self.conv3(h))
        x = x if self.downsample is None else self.downsample(self._halved(x))
        return F.relu(h.add_(x), inplace=True)

    def _halved(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class _AttentionPool(nn.Module):
    """What the mean of all places (h w) finds by attention among them and itself: (b, c, h, w) -> (b, embed_dim)."""

    def __init__(self, spec: ClipSpec, channels: int) -> None:
        super().__init__()
        self.num_heads = spec.vision_width * 32 // HEAD_WIDTH
        places = (spec.image_size // 32) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.zeros(places, channels))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, spec.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x])
        x = x + self.positional_embedding[:, None].to(x.dtype)
        h, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            embed_dim_to_check=x.shape[-1],
            num_heads=self.num_heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            training=self.training,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return h[0]
