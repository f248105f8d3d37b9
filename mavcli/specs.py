"""Torch-free descriptions of networks, schedules and samplers.

One definition serves the YAML recipe, the constructor and the header of a weight file. Names are the field's own
(guided-diffusion, GLIDE, Karlo) and are for ever: changing one makes old files unreadable.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Spec(BaseModel):
    """Frozen; unknown keys, implicit conversions, inf and nan are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def fewest_layers(self) -> int:
        """How many layers a network of this description has at least, each with a tensor of its own; 0 for no network."""
        return 0


class ClipSpec(Spec):
    """The two CLIP towers, as open_clip builds them (section 3.1: `C_x`, `C_y`)."""

    embed_dim: int = Field(512, ge=1, description="width of the shared embedding space")
    image_size: int = Field(224, ge=1, description="pixels a side that the image tower reads")
    vision_layers: int | tuple[int, int, int, int] = Field(
        12, description="transformer layers, or four stage depths for a modified ResNet"
    )
    vision_width: int = Field(768, ge=1)
    vision_patch_size: int | None = Field(16, description="null for a ResNet")
    text_context: int = Field(77, ge=4, description="tokens a caption is cut or padded to")
    text_width: int = Field(512, ge=1)
    text_heads: int = Field(8, ge=1)
    text_layers: int = Field(12, ge=1)
    quick_gelu: bool = Field(False, description="OpenAI's towers use QuickGELU")
    unit_norm: bool = Field(
        True,
        description="embeddings have length 1; Karlo's networks read OpenAI's as they come, unnormalised",
    )
    vocabulary: tuple[str, ...] | None = Field(
        None, description="the words the text tower knows; null for CLIP's whole byte-pair vocabulary"
    )
    pretrained: str | None = Field(
        None, description="an open_clip model name (`ViT-L-14`); the sizes above are then its own"
    )

    @property
    def fewest_layers(self) -> int:
        vision = self.vision_layers
        return self.text_layers + (vision if isinstance(vision, int) else sum(max(n, 0) for n in vision))


class PriorSpec(Spec):
    """P: unCLIP's causal transformer that predicts the un-noised CLIP image embedding (arXiv 2204.06125, section 2.2)."""

    clip_dim: int = Field(768, ge=1)
    text_dim: int = Field(768, ge=1, description="width of the text tower's token states")
    text_context: int = Field(77, ge=1)
    width: int = Field(2048, ge=1)
    layers: int = Field(24, ge=1)
    num_heads: int = Field(32, ge=1)
    final_norm: bool = True
    clip_scale: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="embeddings times this are diffused (unCLIP, appendix C: 17.2); null for their mean and deviation per "
        "dimension, which the stage measures (Karlo)",
    )
    null_text: Literal["masked", "empty"] = Field(
        "masked",
        description="what guidance takes for no text: every token masked, or the empty prompt (Karlo)",
    )

    @property
    def fewest_layers(self) -> int:
        return self.layers


class UNetSpec(Spec):
    """One ADM / GLIDE U-Net: D, D^t, ↑F, SR_l, SR_l^t and SR_h are all of this shape.

    `image_size` is the side, in pixels, of the square that the network was laid out for; it only decides at which
    levels attention sits. Convolutional networks run at any multiple of `patch * 2^(levels-1)`.
    """

    image_size: int = Field(64, ge=1)
    in_channels: int = Field(
        3, ge=1, description="channels of the noised picture, before what is concatenated"
    )
    out_channels: int = Field(3, ge=1, description="3, or 6 with a learned variance range")
    low_res_channels: int = Field(
        0, ge=0, description="3 for super-resolution: the upsampled low-res picture"
    )
    mask_channels: int = Field(
        0, ge=0, description="4 for frame interpolation: masked RGB and the mask (section 3.3)"
    )
    mask_fill: Literal["zeros", "nearest"] = Field(
        "zeros",
        description="what unknown frames show: nothing (the paper), or the nearest known frame and how near it is; a "
        "learned gate then says which of its pixels stay. For networks that predict x0",
    )
    patch: int = Field(1, description="pixel-unshuffle factor of the stem; 1 is ADM's own stem")
    model_channels: int = Field(320, ge=1)
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int | tuple[int, ...] = 3
    attention_resolutions: tuple[int, ...] = Field(
        (32, 16, 8), description="sides of the feature maps that get attention"
    )
    mid_attention: bool = True
    num_heads: int | None = Field(None, description="heads of every attention; or give `num_head_channels`")
    num_head_channels: int | None = Field(64, description="channels of a head; wins over `num_heads`")
    activation: Literal["silu", "gelu"] = "silu"
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    norm_groups: int = Field(32, ge=1)
    norm_eps: float = Field(1e-5, gt=0)
    time_embed_dim: int | None = Field(None, description="null for 4 x model_channels")
    noise_level: bool = Field(False, description="embed the augmentation level of the low-res picture")
    clip_dim: int | None = Field(
        None, description="CLIP image embedding: added to the time embedding and as tokens"
    )
    clip_scale: float = Field(
        1.0,
        gt=0,
        description="the CLIP embedding times this goes in; sqrt(clip_dim) makes a unit norm unit variance",
    )
    clip_tokens: int = Field(4, ge=0, description="extra context tokens made from the CLIP embedding")
    context_dim: int | None = Field(
        None, description="width of the context tokens; null without cross attention"
    )
    text: Literal["none", "clip"] = Field(
        "none", description="text branch of Karlo's decoder, which this chain shows the empty prompt"
    )
    text_dim: int = Field(768, ge=1, description="width of CLIP's text states (`clip`)")
    text_context: int = Field(77, ge=1)
    low_res_residual: bool = Field(
        False, description="the output is added to the upsampled low-res picture (x0 only)"
    )
    temporal: Literal["none", "p3d"] = Field("none", description="pseudo-3-D layers of section 3.2")
    temporal_position: Literal["none", "rope", "relbias"] = "rope"
    temporal_kernel: int = Field(3, ge=1)
    fps: bool = Field(False, description="the frame rate reaches every temporal block")

    @model_validator(mode="after")
    def _consistent(self) -> UNetSpec:
        if self.patch not in (1, 2, 4, 8):
            raise ValueError(f"patch must be 1, 2, 4 or 8, not {self.patch}")
        if not isinstance(self.num_res_blocks, int) and len(self.num_res_blocks) != len(self.channel_mult):
            raise ValueError(
                f"num_res_blocks has {len(self.num_res_blocks)} entries for {len(self.channel_mult)} levels"
            )
        if self.num_heads is None and self.num_head_channels is None:
            raise ValueError("give num_heads or num_head_channels")
        if self.clip_tokens and self.clip_dim and self.context_dim is None:
            raise ValueError("clip_tokens need a context_dim")
        if self.fps and self.temporal == "none":
            raise ValueError("fps needs temporal layers")
        if self.low_res_residual and self.low_res_channels != self.in_channels:
            raise ValueError("low_res_residual needs as many low_res_channels as in_channels")
        if self.mask_fill == "nearest" and self.out_channels != self.in_channels:
            raise ValueError("`mask_fill: nearest` needs a network without learned variance")
        return self

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def depths(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down, the largest pixels' first."""
        each = self.num_res_blocks
        return each if isinstance(each, tuple) else (each,) * self.levels

    @property
    def fewest_layers(self) -> int:
        each = self.num_res_blocks
        blocks = each * self.levels if isinstance(each, int) else sum(max(n, 0) for n in each)
        return 2 * blocks + self.levels

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this many pixels."""
        return self.patch * 2 ** (self.levels - 1)


class ClassifierSpec(Spec):
    """The judge of the pocket world, for `mav eval` alone: a picture -> actor, action, place."""

    image_size: int = Field(64, ge=16)
    widths: tuple[int, ...] = (32, 64, 96, 128, 160)
    actors: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    @property
    def fewest_layers(self) -> int:
        return len(self.widths)


class MotionJudgeSpec(Spec):
    """The judge of motion in the pocket world, for `mav eval` alone: a clip -> the action that moves like it."""

    image_size: int = Field(64, ge=32)
    widths: tuple[int, ...] = (32, 64, 96, 128)
    hidden: int = Field(128, ge=1)
    actions: tuple[str, ...] = ()

    @property
    def fewest_layers(self) -> int:
        return len(self.widths)


class ScheduleSpec(Spec):
    """Forward process and what the network predicts."""

    name: Literal["linear", "cosine"] = "cosine"
    timesteps: int = Field(1000, ge=1, description="T of the trained process")
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"


class SamplerSpec(Spec):
    """How one network of the cascade is sampled."""

    name: Literal["ddpm", "ddim", "dpm++2m"] = "ddim"
    steps: int | tuple[int, ...] = Field(
        50,
        description="network calls per sample, before guidance doubles them; or a list: the very steps of T, from the noisiest "
        "on, and `spacing` and `shift` have no say",
    )
    eta: float = Field(0.0, ge=0, le=1, description="DDIM's: 0 is deterministic, 1 is DDPM-like")
    spacing: Literal["linspace", "trailing", "leading"] = Field(
        "linspace",
        description="how the steps are picked out of T: both ends held (guided-diffusion's `N`), from T - 1 on down "
        "(diffusers' `trailing`), or from 0 on up by T // steps (diffusers' `leading`)",
    )
    shift: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="steps are picked as if every signal-to-noise ratio were divided by its square",
    )
    guidance_scale: float = Field(1.0, ge=0, description="classifier-free guidance; 1 is off")
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="guide only while t / T lies in here (arXiv 2404.07724): fewer network calls"
    )
    embedding_scale: float = Field(
        1.0,
        gt=0,
        description="the CLIP embedding times this goes in: above 1 the network draws more surely what it is told, at no call",
    )
    embedding_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="`embedding_scale` counts only while t / T lies in here"
    )
    clip_x0: float | None = Field(
        1.0, gt=0, description="predictions of x0 are clamped to +- this; null for never"
    )

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, steps: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(steps, int):
            if steps < 1:
                raise ValueError("there must be at least 1 step")
        elif not steps or steps[-1] < 0 or any(before <= after for before, after in pairwise(steps)):
            raise ValueError("a list of steps must fall, from the noisiest to the last, and none be below 0")
        return steps

    @property
    def calls(self) -> int:
        """Network calls per sample, before guidance doubles them."""
        return self.steps if isinstance(self.steps, int) else len(self.steps)

    @field_validator("guidance_interval", "embedding_interval")
    @classmethod
    def _two_shares(cls, interval: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{info.field_name} [{low}, {high}] must be two shares of T, 0 to 1, the lower first"
            )
        return interval
