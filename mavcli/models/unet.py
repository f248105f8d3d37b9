"""The ADM / GLIDE U-Net with pseudo-3-D layers: D, D^t, ↑F, SR_l, SR_l^t and SR_h are all this one class.

Sources: ADM (arXiv 2105.05233), GLIDE (2112.10741), unCLIP (2204.06125, section 2.1), Make-A-Video (2209.14792, section
3.2). Modules carry guided-diffusion's names, so published checkpoints map key by key; what inflation adds is named
`temporal` or `fps_embed`.

b batch, f frames, c channels, h w pixels, e embedding width; t is always the diffusion step, never time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.models.attention import attend
from mavcli.models.embeddings import (
    Condition,
    FpsEmbedding,
    fill_unknown,
    sinusoid,
    weight_dtype,
)
from mavcli.models.normalisation import GroupNorm
from mavcli.models.pseudo3d import PseudoConv3d, TemporalAttention, residual, zero_linear
from mavcli.models.transformer import padding_mask
from mavcli.specs import UNetSpec


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass shares.

    emb (b f, e); tokens (b, n, d) or None with token_mask (b, 1, 1, n) added to the scores; fps_emb (b, e) or None.
    With `cross_frame` the spatial attention of every frame also reads the first frame of its clip.
    """

    emb: Tensor
    frames: int
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    fps_emb: Tensor | None = None
    cross_frame: bool = False


class UNet(nn.Module):
    """Predicts what its schedule says (noise, x0 or v) from x_t, t and a condition.

    `cross_frame` is set from outside, for a network whose temporal layers nothing has trained (arXiv 2303.13439, 3.2).
    """

    cross_frame = False

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.model_channels
        emb = spec.time_embed_dim or 4 * width
        self.time_embed = mlp(width, emb)
        self.noise_embed = mlp(width, emb) if spec.noise_level else None
        self.fps_embed = FpsEmbedding(emb) if spec.fps else None
        self._build_condition(spec, emb)
        self._build_blocks(spec, emb)

    def _build_condition(self, spec: UNetSpec, emb: int) -> None:
        if spec.clip_dim is not None:
            self.cf_param = nn.Parameter(torch.zeros(spec.clip_dim))
            self.clip_emb = nn.Linear(spec.clip_dim, emb)
            if spec.clip_tokens and spec.context_dim is not None:
                self.clip_tok_proj = nn.Linear(spec.clip_dim, spec.clip_tokens * spec.context_dim)
        if spec.text == "clip" and spec.context_dim is not None:
            self.text_seq_proj = nn.Sequential(
                nn.Linear(spec.text_dim, spec.context_dim), nn.LayerNorm(spec.context_dim)
            )
            self.text_feat_proj = nn.Linear(spec.text_dim, emb)

    def _build_blocks(self, spec: UNetSpec, emb: int) -> None:
        temporal = spec.temporal_kernel if spec.temporal == "p3d" else None
        side = spec.image_size // spec.patch
        with_attention = {side // 2**level for level in range(spec.levels)} & set(spec.attention_resolutions)
        channels_in = spec.in_channels + spec.low_res_channels + spec.mask_channels

        ch = first = int(spec.channel_mult[0] * spec.model_channels)
        stem = PseudoConv3d(channels_in * spec.patch**2, ch, 3, temporal_kernel=temporal)
        self.input_blocks = nn.ModuleList([Stage(stem)])
        skips = [ch]
        for level, mult in enumerate(spec.channel_mult):
            for _ in range(spec.depths[level]):
                layers: list[nn.Module] = [ResBlock(spec, ch, int(mult * spec.model_channels), emb)]
                ch = int(mult * spec.model_channels)
                if side in with_attention:
                    layers.append(AttentionBlock(spec, ch, emb))
                self.input_blocks.append(Stage(*layers))
                skips.append(ch)
            if level != spec.levels - 1:
                down = (
                    ResBlock(spec, ch, ch, emb, resample="down")
                    if spec.resblock_updown
                    else Downsample(ch, temporal)
                )
                self.input_blocks.append(Stage(down))
                skips.append(ch)
                side //= 2

        middle: list[nn.Module] = [ResBlock(spec, ch, ch, emb), ResBlock(spec, ch, ch, emb)]
        if spec.mid_attention:
            middle.insert(1, AttentionBlock(spec, ch, emb))
        self.middle_block = Stage(*middle)

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(spec.channel_mult))):
            for i in range(spec.depths[level] + 1):
                layers = [ResBlock(spec, ch + skips.pop(), int(mult * spec.model_channels), emb)]
                ch = int(mult * spec.model_channels)
                if side in with_attention:
                    layers.append(AttentionBlock(spec, ch, emb))
                if level and i == spec.depths[level]:
                    up = (
                        ResBlock(spec, ch, ch, emb, resample="up")
                        if spec.resblock_updown
                        else Upsample(ch, temporal)
                    )
                    layers.append(up)
                    side *= 2
                self.output_blocks.append(Stage(*layers))

        last = PseudoConv3d(first, spec.out_channels * spec.patch**2, 3, temporal_kernel=temporal)
        zero_weights(last)
        # The identity is the activation, fused into the norm; it keeps the published numbering.
        self.out = nn.ModuleList([GroupNorm(spec.norm_groups, first, eps=spec.norm_eps), nn.Identity(), last])
        # How much of the nearest known frame each pixel keeps; zero at first, so that widening changes nothing.
        self.mask_gate: nn.Conv2d | None = None
        if spec.mask_fill == "nearest" and spec.mask_channels:
            self.mask_gate = nn.Conv2d(first + 1, spec.patch**2, 3, padding=1)
            nn.init.zeros_(self.mask_gate.weight)
            nn.init.zeros_(self.mask_gate.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """x (b, f, c, h, w), t (b,) steps of the trained process -> (b, f, out_channels, h, w) in x's dtype."""
        condition = condition or Condition()
        self._check(x, condition)
        frames = x.shape[1]
        context = self._context(t, condition, frames)

        masked = condition.masked_video
        if masked is not None and self.spec.mask_fill == "nearest":
            masked = fill_unknown(masked)
        extra = [c for c in (masked, condition.low_res) if c is not None]
        h = rearrange(torch.cat([x, *(c.to(x.dtype) for c in extra)], dim=2), "b f c h w -> (b f) c h w")
        h = F.pixel_unshuffle(h, self.spec.patch) if self.spec.patch > 1 else h
        h = h.to(weight_dtype(self.out)).contiguous(memory_format=torch.channels_last)

        skips = []
        for block in self.input_blocks:
            h = block(h, context)
            skips.append(h)
        h = self.middle_block(h, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), context)

        h = self.out[0](h, activation=self.spec.activation)
        features, h = h, self._pixels(self.out[2](h, frames), frames).to(x.dtype)
        if self.mask_gate is not None and masked is not None:
            h = self._keep_known(self.mask_gate, features, h, masked.to(x.dtype))
        if self.spec.low_res_residual and condition.low_res is not None:
            h = h + condition.low_res.to(h.dtype)
        return h

    def _keep_known(self, gate: nn.Conv2d, features: Tensor, h: Tensor, masked: Tensor) -> Tensor:
        """h (b, f, c, h, w), of which the gate lets the nearest known frame's pixels stay; nothing known changes nothing."""
        near = masked[:, :, 3:, :1, :1].flatten(0, 1).expand(-1, -1, *features.shape[2:])
        opened = self._pixels(gate(torch.cat([features, near.to(features.dtype)], dim=1)), h.shape[1])
        return h + opened.to(h.dtype).tanh() * (masked[:, :, 3:] > 0) * (masked[:, :, :3] - h)

    def _pixels(self, h: Tensor, frames: int) -> Tensor:
        """((b f), c p^2, h, w) -> (b, f, c, h p, w p): the stem's unshuffling undone."""
        h = F.pixel_shuffle(h, self.spec.patch) if self.spec.patch > 1 else h
        return rearrange(h, "(b f) c h w -> b f c h w", f=frames)

    def _check(self, x: Tensor, condition: Condition) -> None:
        spec = self.spec
        if x.ndim != 5 or x.shape[2] != spec.in_channels:
            raise ValueError(f"x must be (b, f, {spec.in_channels}, h, w), not {tuple(x.shape)}")
        if x.shape[3] % spec.multiple or x.shape[4] % spec.multiple:
            raise ValueError(
                f"sides must be multiples of {spec.multiple} pixels, not {x.shape[4]} x {x.shape[3]}"
            )
        for name, channels in (("low_res", spec.low_res_channels), ("masked_video", spec.mask_channels)):
            value = getattr(condition, name)
            if bool(channels) != (value is not None):
                raise ValueError(f"this network {'needs' if channels else 'has no input for'} `{name}`")
            if value is not None and value.shape[2] != channels:
                raise ValueError(f"`{name}` must have {channels} channels, not {value.shape[2]}")
        for name, wanted in (
            ("image_embedding", spec.clip_dim is not None),
            ("fps", spec.fps),
            ("noise_level", spec.noise_level),
            ("text_states", spec.text == "clip"),
        ):
            if getattr(condition, name) is not None and not wanted:
                raise ValueError(f"this network has no input for `{name}`")
        if spec.noise_level and condition.noise_level is None:
            raise ValueError("this network needs `noise_level`")
        if spec.fps and x.shape[1] > 1 and condition.fps is None:
            raise ValueError("this network needs `fps` for more than one frame")

    def _context(self, t: Tensor, condition: Condition, frames: int) -> Context:
        spec, dtype = self.spec, weight_dtype(self.time_embed)
        emb = self.time_embed(sinusoid(t, spec.model_channels).to(dtype))
        tokens: list[Tensor] = []
        keep: list[Tensor] = []
        if self.noise_embed is not None and condition.noise_level is not None:
            emb = emb + self.noise_embed(sinusoid(condition.noise_level, spec.model_channels).to(dtype))
        if spec.clip_dim is not None:
            image = self._image_embedding(condition, len(t)).to(dtype)
            emb = emb + self.clip_emb(image)
            if hasattr(self, "clip_tok_proj"):
                # Karlo's order: channel-major, and before the text.
                tokens.append(rearrange(self.clip_tok_proj(image), "b (d n) -> b n d", n=spec.clip_tokens))
        if spec.text == "clip" and condition.text_states is not None and condition.text_embedding is not None:
            tokens.append(self.text_seq_proj(condition.text_states.to(dtype)))
            emb = emb + self.text_feat_proj(condition.text_embedding.to(dtype))
        mask = None
        if spec.text == "clip" and condition.text_mask is not None:
            keep = [torch.ones(len(t), n.shape[1], dtype=torch.bool, device=t.device) for n in tokens[:-1]]
            mask = padding_mask(torch.cat([*keep, condition.text_mask], dim=1)).to(dtype)
        fps = None
        if self.fps_embed is not None and condition.fps is not None and frames > 1:
            fps = self.fps_embed(condition.fps)
        return Context(
            emb=emb.repeat_interleave(frames, dim=0),
            frames=frames,
            tokens=torch.cat(tokens, dim=1) if tokens else None,
            token_mask=mask,
            fps_emb=fps,
            cross_frame=self.cross_frame and frames > 1,
        )

    def _image_embedding(self, condition: Condition, batch: int) -> Tensor:
        """(b, d): the scaled CLIP embedding, or the learned null one where it is absent or dropped."""
        null = self.cf_param.expand(batch, -1)
        if condition.image_embedding is None:
            return null
        embedding = self.spec.clip_scale * condition.image_embedding.to(null.dtype)
        return (
            embedding
            if condition.keep_embedding is None
            else torch.where(condition.keep_embedding[:, None], embedding, null)
        )


class Stage(nn.Sequential):
    """Layers run one after the other, each with the context it needs."""

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, context.frames) if isinstance(layer, PseudoConv3d) else layer(x, context)
        return x


class ResBlock(nn.Module):
    """ADM's residual block; both 3x3 convolutions are pseudo-3-D, and the frame rate modulates the second norm."""

    def __init__(
        self, spec: UNetSpec, ch_in: int, ch_out: int, emb: int, *, resample: str | None = None
    ) -> None:
        super().__init__()
        self.activation = spec.activation
        self.scale_shift = spec.use_scale_shift_norm
        self.resample = resample
        temporal = spec.temporal_kernel if spec.temporal == "p3d" else None

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(spec.norm_groups, channels, eps=spec.norm_eps)

        # Numbered as in guided-diffusion: norm, activation, (dropout,) convolution.
        self.in_layers = nn.ModuleList(
            [norm(ch_in), nn.Identity(), PseudoConv3d(ch_in, ch_out, 3, temporal_kernel=temporal)]
        )
        activation = nn.GELU() if spec.activation == "gelu" else nn.SiLU()
        modulation = 2 * ch_out if self.scale_shift else ch_out
        self.emb_layers = nn.Sequential(activation, nn.Linear(emb, modulation))
        conv = PseudoConv3d(ch_out, ch_out, 3, temporal_kernel=temporal)
        self.out_layers = nn.ModuleList([norm(ch_out), nn.Identity(), nn.Dropout(spec.dropout), conv])
        zero_weights(conv)
        self.skip_connection = nn.Identity() if ch_in == ch_out else nn.Conv2d(ch_in, ch_out, 1)
        self.temporal_emb = zero_linear(emb, modulation) if spec.fps else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        h = self.in_layers[0](x, activation=self.activation)
        if self.resample:
            x = resample(x, self.resample)
        if self.resample == "down":
            h = resample(h, "down")
        h = self.in_layers[2](h, context.frames, doubled=self.resample == "up")

        emb = self.emb_layers(context.emb)
        if self.temporal_emb is not None and context.fps_emb is not None:
            emb = emb + self.temporal_emb(context.fps_emb).repeat_interleave(context.frames, dim=0)
        if self.scale_shift:
            scale, shift = emb[:: context.frames].chunk(2, dim=-1)  # one row a clip: its frames share it
            h = self.out_layers[0](h, scale=scale, shift=shift, activation=self.activation)
        else:
            h = self.out_layers[0](h + emb[:, :, None, None].to(h.dtype), activation=self.activation)
        h = self.out_layers[3](self.out_layers[2](h), context.frames)
        return residual(self.skip_connection(x), h)


class AttentionBlock(nn.Module):
    """Spatial attention, with the context's keys and values before the picture's own, then attention over time.

    `qkv` is in canonical order (all of q, then k, then v), whatever the checkpoint it came from had.
    """

    def __init__(self, spec: UNetSpec, channels: int, emb: int) -> None:
        super().__init__()
        heads = spec.num_heads if spec.num_head_channels is None else channels // spec.num_head_channels
        assert heads is not None  # UNetSpec refuses a recipe without either
        self.num_heads = heads
        self.norm = GroupNorm(spec.norm_groups, channels, eps=spec.norm_eps)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = None if spec.context_dim is None else nn.Conv1d(spec.context_dim, 2 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)  # type: ignore[arg-type]
        self.temporal: TemporalAttention | None = None
        if spec.temporal != "none":
            self.temporal = TemporalAttention(
                channels,
                heads,
                groups=spec.norm_groups,
                eps=spec.norm_eps,
                position=spec.temporal_position,
                embed_dim=emb if spec.fps else None,
            )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        height, width = x.shape[2:]
        qkv = F.conv2d(self.norm(x), self.qkv.weight[..., None], self.qkv.bias)
        q, k, v = rearrange(qkv, "n (three d c) h w -> three n d (h w) c", three=3, d=self.num_heads)
        own, mask = k.shape[2], None
        if context.cross_frame:
            k, v, mask = with_first_frame(k, v, context.frames)
        if self.encoder_kv is not None and context.tokens is not None:
            tokens = F.linear(context.tokens, self.encoder_kv.weight[..., 0], self.encoder_kv.bias)
            tokens = tokens.repeat_interleave(context.frames, dim=0)
            ek, ev = rearrange(tokens, "n t (two d c) -> two n d t c", two=2, d=self.num_heads)
            k, v = torch.cat([ek, k], dim=2), torch.cat([ev, v], dim=2)
            if context.token_mask is not None:
                seen = F.pad(context.token_mask, (0, own)).repeat_interleave(context.frames, dim=0)
                mask = seen if mask is None else torch.cat([seen, mask[..., own:].to(seen.dtype)], dim=-1)
            elif mask is not None:
                mask = F.pad(mask, (ek.shape[2], 0))
        h = rearrange(attend(q, k, v, mask=mask), "n d (h w) c -> n h w (d c)", h=height).permute(0, 3, 1, 2)
        x = residual(x, F.conv2d(h, self.proj_out.weight[..., None], self.proj_out.bias))
        return x if self.temporal is None else self.temporal(x, context.frames, context.fps_emb)


def with_first_frame(k: Tensor, v: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values ((b f), heads, n, c) of every frame, followed by those of the first frame of its clip.

    The mask ((b f), 1, 1, 2 n) hides the latter from the first frame itself, which would count its own twice.
    """

    def both(x: Tensor) -> Tensor:
        return torch.cat([x, x[::frames].repeat_interleave(frames, dim=0)], dim=2)

    mask = torch.zeros(len(k), 1, 1, 2 * k.shape[2], dtype=k.dtype, device=k.device)
    mask[::frames, ..., k.shape[2] :] = float("-inf")
    return both(k), both(v), mask


class Downsample(nn.Module):
    """A strided convolution (ADM without `resblock_updown`)."""

    def __init__(self, channels: int, temporal: int | None) -> None:
        super().__init__()
        self.op = PseudoConv3d(channels, channels, 3, stride=2, temporal_kernel=temporal)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.op(x, context.frames)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution (ADM without `resblock_updown`)."""

    def __init__(self, channels: int, temporal: int | None) -> None:
        super().__init__()
        self.conv = PseudoConv3d(channels, channels, 3, temporal_kernel=temporal)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.conv(x, context.frames, doubled=True)


def resample(x: Tensor, direction: str) -> Tensor:
    """Halve by averaging, or double by repetition."""
    return F.avg_pool2d(x, 2) if direction == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), nn.Linear(outputs, outputs))


def zero_weights(conv: PseudoConv3d) -> None:
    """Zero the 2-D part; the temporal part stays the identity."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


def is_temporal(key: str) -> bool:
    """True for a parameter that an image network gets when it becomes one for video; ↑F's gate on known frames is one."""
    return ".temporal." in key or ".temporal_emb." in key or key.startswith(("fps_embed.", "mask_gate."))
