"""Torch-free descriptions of networks, schedules and samplers.

One definition serves the YAML recipe, the constructor and the header of a weight file. Names are the field's own
(guided-diffusion, GLIDE, Karlo) and are for ever: changing one makes old files unreadable.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

WIDEST = 65_536
"""Channels of any layer, and dimensions of any embedding."""
MOST_PARAMETERS = 10**12
"""Of one network: a hundred times the largest that is published for pictures."""

HEAD_WIDTH = 64
"""Channels of a head of CLIP's image tower, but for ViT-bigG's."""

Width = Annotated[int, Field(ge=1, le=WIDEST)]
Depth = Annotated[int, Field(ge=1, le=512)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Heads = Annotated[int, Field(ge=1, le=4096)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=8192)]


class SpecError(ValueError):
    """What several keys say together cannot be; `at` is the key, below the spec that is checked, to tell it of."""

    def __init__(self, at: str, message: str) -> None:
        super().__init__(message)
        self.at = tuple(at.split("."))


class Spec(BaseModel):
    """Frozen; unknown keys, implicit conversions, inf and nan are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def fewest_layers(self) -> int:
        """How many layers a network of this description has at least, each with a tensor of its own; 0 for no network."""
        return 0


class ClipSpec(Spec):
    """The two CLIP towers, as open_clip builds them (section 3.1: `C_x`, `C_y`)."""

    embed_dim: Width = Field(512, description="width of the shared embedding space")
    image_size: Side = Field(224, description="pixels a side that the image tower reads")
    vision_layers: Depth | tuple[Depth, Depth, Depth, Depth] = Field(
        12, description="transformer layers, or four stage depths for a modified ResNet"
    )
    vision_width: Width = 768
    vision_patch_size: Side | None = Field(16, description="null for a ResNet")
    vision_head_width: Width = Field(
        HEAD_WIDTH, description="channels of a head of the image transformer; ViT-bigG's have 104"
    )
    vision_mlp_ratio: float = Field(
        4.0,
        ge=0.1,
        le=64,
        description="width of the image transformer's feed-forward layers over its own; ViT-bigG's is 4.9231",
    )
    text_context: int = Field(77, ge=4, le=8192, description="tokens a caption is cut or padded to")
    text_width: Width = 512
    text_heads: Heads = 8
    text_layers: Depth = 12
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

    @model_validator(mode="after")
    def _can_be_built(self) -> ClipSpec:
        if self.pretrained is not None:
            return self
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width {self.text_width} is no multiple of text_heads {self.text_heads}")
        if isinstance(self.vision_layers, int):
            if self.vision_patch_size is None:
                raise ValueError("vision_patch_size is null, which only a ResNet has")
            if self.vision_patch_size > self.image_size:
                raise ValueError(
                    f"vision_patch_size {self.vision_patch_size} is more than image_size {self.image_size}"
                )
            heads = self.vision_width // self.vision_head_width
            if not heads or self.vision_width % heads:
                raise ValueError(
                    f"vision_width {self.vision_width} is no multiple of vision_head_width {self.vision_head_width}"
                )
        elif self.image_size < 32 or self.vision_width % 2:
            raise ValueError("a ResNet needs an image_size of at least 32 and an even vision_width")
        _refuse_giants(self.parameters)
        return self

    @property
    def parameters(self) -> int:
        """The fewest that such towers have; of a published model 0."""
        if self.pretrained is not None:
            return 0
        depths = (self.vision_layers,) if isinstance(self.vision_layers, int) else self.vision_layers
        words = len(self.vocabulary) if self.vocabulary else 49_408
        vision = int(4 + 2 * min(self.vision_mlp_ratio, 4.0)) * sum(depths) * self.vision_width**2
        return vision + 12 * self.text_layers * self.text_width**2 + self.text_width * words


class PriorSpec(Spec):
    """P: unCLIP's causal transformer that predicts the un-noised CLIP image embedding (arXiv 2204.06125, section 2.2)."""

    clip_dim: Width = 768
    text_dim: Width = Field(768, description="width of the text tower's token states")
    text_context: int = Field(77, ge=1, le=8192)
    width: int = Field(2048, ge=2, le=WIDEST)
    layers: Depth = 24
    num_heads: Heads = 32
    final_norm: bool = True
    clip_scale: float | None = Field(
        None,
        ge=1e-4,
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

    @model_validator(mode="after")
    def _can_be_built(self) -> PriorSpec:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        _refuse_giants(self.parameters)
        return self

    @property
    def parameters(self) -> int:
        """The fewest that such a network has."""
        return 12 * self.layers * self.width**2


class UNetSpec(Spec):
    """One ADM / GLIDE U-Net: D, D^t, ↑F, SR_l, SR_l^t and SR_h are all of this shape.

    `image_size` is the side, in pixels, of the square that the network was laid out for; it only decides at which
    levels attention sits. Convolutional networks run at any multiple of `patch * 2^(levels-1)`.
    """

    image_size: Side = 64
    in_channels: int = Field(
        3, ge=1, le=64, description="channels of the noised picture, before what is concatenated"
    )
    out_channels: int = Field(3, ge=1, le=128, description="3, or 6 with a learned variance range")
    low_res_channels: int = Field(
        0, ge=0, le=64, description="3 for super-resolution: the upsampled low-res picture"
    )
    mask_channels: int = Field(
        0, ge=0, le=64, description="4 for frame interpolation: masked RGB and the mask (section 3.3)"
    )
    mask_fill: Literal["zeros", "nearest"] = Field(
        "zeros",
        description="what unknown frames show: nothing (the paper), or the nearest known frame and how near it is; a "
        "learned gate then says which of its pixels stay. For networks that predict x0",
    )
    patch: int = Field(1, ge=1, le=8, description="pixel-unshuffle factor of the stem; 1 is ADM's own stem")
    model_channels: int = Field(320, ge=2, le=WIDEST)
    channel_mult: tuple[Annotated[float, Field(ge=0.01, le=100)], ...] = Field(
        (1, 2, 3, 4), min_length=1, max_length=12
    )
    num_res_blocks: Blocks | tuple[Blocks, ...] = 3
    attention_resolutions: tuple[Side, ...] = Field(
        (32, 16, 8), description="sides of the feature maps that get attention"
    )
    mid_attention: bool = True
    num_heads: Heads | None = Field(None, description="heads of every attention; or give `num_head_channels`")
    num_head_channels: Width | None = Field(64, description="channels of a head; wins over `num_heads`")
    activation: Literal["silu", "gelu"] = "silu"
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    norm_groups: Width = 32
    norm_eps: float = Field(1e-5, ge=1e-12, le=1)
    time_embed_dim: int | None = Field(None, ge=2, le=4 * WIDEST, description="null for 4 x model_channels")
    noise_level: bool = Field(False, description="embed the augmentation level of the low-res picture")
    clip_dim: Width | None = Field(
        None, description="CLIP image embedding: added to the time embedding and as tokens"
    )
    clip_scale: float = Field(
        1.0,
        ge=1e-4,
        le=10_000,
        description="the CLIP embedding times this goes in; sqrt(clip_dim) makes a unit norm unit variance",
    )
    clip_tokens: int = Field(
        4, ge=0, le=1024, description="extra context tokens made from the CLIP embedding"
    )
    context_dim: Width | None = Field(
        None, description="width of the context tokens; null without cross attention"
    )
    text: Literal["none", "clip"] = Field(
        "none", description="text branch of Karlo's decoder, which this chain shows the empty prompt"
    )
    text_dim: Width = Field(768, description="width of CLIP's text states (`clip`)")
    text_context: int = Field(77, ge=1, le=8192)
    low_res_residual: bool = Field(
        False, description="the output is added to the upsampled low-res picture (x0 only)"
    )
    temporal: Literal["none", "p3d", "attention"] = Field(
        "none",
        description="pseudo-3-D layers of section 3.2, or of them the attention over time alone (VDM, arXiv 2204.03458)",
    )
    temporal_position: Literal["none", "rope", "relbias"] = "rope"
    temporal_kernel: int = Field(3, ge=1, le=31, description="frames, an odd number")
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
        if self.temporal_kernel % 2 == 0:
            raise ValueError(
                f"temporal_kernel must be odd, not {self.temporal_kernel}: a frame is its middle"
            )
        self._refuse_channels()
        _refuse_giants(self.parameters)
        return self

    def _refuse_channels(self) -> None:
        """ValueError for channels that groups, heads or layers cannot share."""
        side = self.image_size // self.patch
        for level, channels in enumerate(self.channels):
            what = f"{channels} channels of level {level} (model_channels x channel_mult)"
            if not 1 <= channels <= WIDEST:
                raise ValueError(f"{what}, wanted 1 to {WIDEST}")
            if channels % self.norm_groups:
                raise ValueError(f"{what} are no multiple of norm_groups {self.norm_groups}")
            deepest = level == self.levels - 1 and self.mid_attention
            if side // 2**level not in self.attention_resolutions and not deepest:
                continue
            heads = channels // self.num_head_channels if self.num_head_channels else self.num_heads
            if not heads or channels % heads:
                wanted = (
                    f"num_head_channels {self.num_head_channels}"
                    if self.num_head_channels
                    else f"num_heads {self.num_heads}"
                )
                raise ValueError(f"{what} cannot be shared out to heads by {wanted}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level, the largest pixels' first."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def parameters(self) -> int:
        """The fewest that such a network has: of its residual blocks alone."""
        return sum(2 * 9 * depth * width**2 for depth, width in zip(self.depths, self.channels, strict=True))

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

    image_size: int = Field(64, ge=16, le=8192)
    widths: tuple[Width, ...] = (32, 64, 96, 128, 160)
    actors: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    @property
    def fewest_layers(self) -> int:
        return len(self.widths)


class MotionJudgeSpec(Spec):
    """The judge of motion in the pocket world, for `mav eval` alone: a clip -> the action that moves like it."""

    image_size: int = Field(64, ge=32, le=8192)
    widths: tuple[Width, ...] = (32, 64, 96, 128)
    hidden: Width = 128
    actions: tuple[str, ...] = ()

    @property
    def fewest_layers(self) -> int:
        return len(self.widths)


class ScheduleSpec(Spec):
    """Forward process and what the network predicts."""

    name: Literal["linear", "cosine"] = "cosine"
    timesteps: int = Field(1000, ge=1, le=100_000, description="T of the trained process")
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"


class SamplerSpec(Spec):
    """How one network of the cascade is sampled."""

    name: Literal["ddpm", "ddim", "dpm++2m"] = "ddim"
    steps: Steps | tuple[Annotated[int, Field(ge=0, le=99_999)], ...] = Field(
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
    guidance_scale: float = Field(1.0, ge=0, le=1000, description="classifier-free guidance; 1 is off")
    guidance_interval: tuple[Share, Share] = Field(
        (0.0, 1.0), description="guide only while t / T lies in here (arXiv 2404.07724): fewer network calls"
    )
    embedding_scale: float = Field(
        1.0,
        ge=1e-4,
        le=10_000,
        description="the CLIP embedding times this goes in: above 1 the network draws more surely what it is told, at no call",
    )
    embedding_interval: tuple[Share, Share] = Field(
        (0.0, 1.0), description="`embedding_scale` counts only while t / T lies in here"
    )
    clip_x0: float | None = Field(
        1.0, ge=1e-3, le=1e6, description="predictions of x0 are clamped to +- this; null for never"
    )

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, steps: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(steps, int):
            return steps
        if not steps or any(before <= after for before, after in pairwise(steps)):
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

    def refuse_beyond(self, schedule: ScheduleSpec, *, at: str = "sampler") -> None:
        """SpecError where more steps are asked for than `schedule` has, or one that it has not."""
        most = schedule.timesteps
        if isinstance(self.steps, int):
            if self.steps > most:
                raise SpecError(
                    f"{at}.steps", f"`{self.steps}` must be 1 to {most}, the schedule's timesteps"
                )
        elif self.steps[0] >= most:
            raise SpecError(
                f"{at}.steps",
                f"begins at `{self.steps[0]}`, the last of the schedule's timesteps is {most - 1}",
            )


def _refuse_giants(parameters: int) -> None:
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"a network of at least {parameters:.1e} parameters, wanted at most {MOST_PARAMETERS:.0e}"
        )
