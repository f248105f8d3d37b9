"""The unconditional U-Nets of guided-diffusion (ADM, arXiv 2105.05233), whose layout Karlo's share.

Its class-conditional networks, and GLIDE's, are refused by name: nothing in Make-A-Video's chain could tell them what to
draw. D is told a CLIP image embedding (section 3.1), those a class or a caption.

Most of a network can be read from the shapes of its tensors. What cannot (heads, the order of qkv's rows, the size in
pixels, the schedule) comes from the source's own configuration, or is known of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mavcli.errors import UsageError, WeightsError
from mavcli.specs import SamplerSpec, ScheduleSpec, UNetSpec
from mavcli.weights.keymap import Conversion, Entry, KeyTable, PerHead, Same, Shapes
from mavcli.weights.licences import UNKNOWN
from mavcli.weights.source import CHECKPOINTS, Checkpoint, Plan, shapes_of

SAMPLER = SamplerSpec(name="ddpm", steps=250)
LINEAR = ScheduleSpec(name="linear", variance="learned_range")
COSINE = ScheduleSpec(name="cosine", variance="learned_range")
_SCHEDULES: dict[str, Literal["linear", "cosine"]] = {
    "linear": "linear",
    "cosine": "cosine",
    "squaredcos_cap_v2": "cosine",
}


@dataclass(frozen=True)
class Hidden:
    """What the tensors of a U-Net do not show. `legacy` is qkv's order by head; `text_context` is of Karlo's decoder."""

    image_size: int
    schedule: ScheduleSpec
    num_heads: int | None = None
    num_head_channels: int | None = 64
    legacy: bool = True
    text_context: int = 77


@dataclass(frozen=True)
class Published:
    """A checkpoint that was published: its structure is how it is recognised."""

    name: str
    visible: Mapping[str, Any]
    attention_levels: tuple[int, ...]
    hidden: Hidden


def _published(
    name: str,
    width: int,
    mult: Sequence[float],
    blocks: int,
    levels: tuple[int, ...],
    hidden: Hidden,
    **more: Any,
) -> Published:
    visible = {
        "model_channels": width, "channel_mult": tuple(map(float, mult)), "num_res_blocks": blocks,
        "low_res_channels": 0, **more,
    }  # fmt: skip
    return Published(name, visible, levels, hidden)


PUBLISHED = (
    _published("256x256_diffusion_uncond", 256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), Hidden(256, LINEAR)),
)


def plans(source: Path, flags: Mapping[str, Any] | None) -> list[Plan]:
    """The U-Net of a checkpoint, or those of the checkpoints of a folder; classifiers are not wanted there."""
    files = [source]
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix in CHECKPOINTS and "classifier" not in f.name)
        if not files:
            raise WeightsError(f"{source} holds no checkpoint", hint="give the .pt file of guided-diffusion")
    return [_plan(file, flags) for file in files]


def _plan(path: Path, flags: Mapping[str, Any] | None) -> Plan:
    checkpoint = Checkpoint(path)
    if "out.2.weight" not in checkpoint.shapes or "cf_param" in checkpoint.shapes:
        raise WeightsError(f"{path} is no U-Net of guided-diffusion: it has no `out.2.weight`")
    _refuse_told_otherwise(checkpoint.shapes, path)
    visible, levels = read_structure(checkpoint.shapes, str(path))
    hidden = find_hidden(
        visible, levels, flags=flags, published=PUBLISHED, default=LINEAR, what="guided-diffusion", path=path
    )
    spec = unet_spec(visible, levels, hidden)
    upsampler = spec.low_res_channels > 0
    role = "decoder" if not upsampler else "sr_l" if hidden.image_size <= 256 else "sr_h"
    return Plan(
        role=role,
        name=role,
        what=f"a guided-diffusion {'upsampler' if upsampler else 'U-Net'}",
        spec=spec,
        table=adm_table(spec, legacy=hidden.legacy),
        tensors=checkpoint,
        licence=UNKNOWN,
        schedule=hidden.schedule,
        sampler=SAMPLER,
    )


def _refuse_told_otherwise(shapes: Shapes, path: Path) -> None:
    """Raises WeightsError for a network that is told what to draw by something else than a CLIP image embedding."""
    told_by = None
    if "label_emb.weight" in shapes:
        told_by = f"is class-conditional ({shapes['label_emb.weight'][0]} classes)"
    elif "transformer_proj.weight" in shapes:
        told_by = "reads captions with a text transformer of its own (GLIDE)"
    if told_by is not None:
        raise WeightsError(
            f"{path} {told_by}: nothing in Make-A-Video's chain tells it what to draw, and with nothing told the prompt "
            "would have no say",
            hint="the unconditional ADM (`mav weights pull adm-256-uncond`), Karlo and diffusers' unCLIP can be imported",
        )


def read_structure(
    shapes: Shapes, source: str, *, prefix: str = ""
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The fields of a UNetSpec that the shapes show, and the levels that have attention.

    The output blocks say where a level ends (its last block enlarges), and with that how many blocks it has. Raises
    WeightsError where the tensors are not those of such a U-Net.
    """
    own = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
    try:
        return _structure(own)
    except (KeyError, IndexError, ZeroDivisionError, ValueError) as error:
        raise WeightsError(
            f"{source} is no U-Net of the ADM family: its tensors do not make one ({error})",
            hint="--as karlo|adm|unclip-diffusers says which code it comes from",
        ) from error


def _structure(shapes: Shapes) -> tuple[dict[str, Any], tuple[int, ...]]:
    width = shapes["time_embed.0.weight"][1]
    embed = shapes["time_embed.0.weight"][0]
    blocks, channels, attention = _levels(shapes)
    stem = shapes["input_blocks.0.0.weight"][1]
    if stem not in (3, 6, 7, 10):
        raise ValueError(f"a stem of {stem} channels; 3, 6, 7 or 10 are known")
    scale_shift = shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * channels[0]
    context = [shape[1] for name, shape in shapes.items() if name.endswith("encoder_kv.weight")]
    return {
        "model_channels": width,
        "time_embed_dim": None if embed == 4 * width else embed,
        "channel_mult": tuple(c / width for c in channels),
        "num_res_blocks": blocks[0] if len(set(blocks)) == 1 else blocks,
        "mid_attention": "middle_block.1.qkv.weight" in shapes,
        "low_res_channels": 3 if stem in (6, 10) else 0,
        "mask_channels": 4 if stem in (7, 10) else 0,
        "out_channels": shapes["out.2.weight"][0],
        "use_scale_shift_norm": scale_shift,
        "resblock_updown": not any(name.endswith(".op.weight") for name in shapes),
        "context_dim": context[0] if context else None,
    }, tuple(level for level, has in enumerate(attention) if has)


def _levels(shapes: Shapes) -> tuple[tuple[int, ...], list[int], list[bool]]:
    """Of each level, the finest first: residual blocks of its input half, channels, and whether it has attention."""
    blocks, channels, attention = [], [], []
    count, place = 0, 0
    while f"output_blocks.{place}.0.in_layers.2.weight" in shapes:
        stage = f"output_blocks.{place}"
        has = f"{stage}.1.qkv.weight" in shapes
        last = f"{stage}.{2 if has else 1}"
        count += 1
        place += 1
        grows = f"{last}.in_layers.2.weight" in shapes or f"{last}.conv.weight" in shapes
        if grows or f"output_blocks.{place}.0.in_layers.2.weight" not in shapes:
            blocks.append(count - 1)
            channels.append(shapes[f"{stage}.0.out_layers.3.weight"][0])
            attention.append(has)
            count = 0
    return tuple(reversed(blocks)), channels[::-1], attention[::-1]


def unet_spec(visible: Mapping[str, Any], levels: Sequence[int], hidden: Hidden, **more: Any) -> UNetSpec:
    """The network: what its tensors show and what they hide."""
    return UNetSpec(
        image_size=hidden.image_size,
        attention_resolutions=tuple(hidden.image_size // 2**level for level in levels),
        num_heads=hidden.num_heads,
        num_head_channels=hidden.num_head_channels,
        **visible,
        **more,
    )


def find_hidden(
    visible: Mapping[str, Any],
    levels: tuple[int, ...],
    *,
    flags: Mapping[str, Any] | None,
    published: Sequence[Published],
    default: ScheduleSpec,
    what: str,
    path: Path,
) -> Hidden:
    """What the tensors hide, of the configuration where there is one, else of the published checkpoint that it is.

    Raises WeightsError where neither says it, UsageError where the configuration is of another network.
    """
    if flags is not None:
        compare_flags(flags, visible, path)
        return hidden_of_flags(flags, visible, default)
    for known in published:
        if known.attention_levels == levels and all(visible[k] == v for k, v in known.visible.items()):
            return known.hidden
    mult = ", ".join(f"{m:g}" for m in visible["channel_mult"])
    raise WeightsError(
        f"{path} is none of the U-Nets that {what} published ({visible['model_channels']} channels x [{mult}]), and "
        f"tensors show neither its heads nor its size in pixels",
        hint="--config FILE gives the configuration that it was trained with",
    )


def hidden_of_flags(flags: Mapping[str, Any], visible: Mapping[str, Any], default: ScheduleSpec) -> Hidden:
    """The flags of guided-diffusion's scripts, of Karlo's YAML (`model.hparams`, `diffusion`) or of the constructor."""
    each = int(flags.get("num_head_channels", -1))
    heads = int(flags.get("num_heads", 4))
    up = int(flags.get("num_heads_upsample", -1))
    if each <= 0 and up not in (-1, heads):
        raise UsageError(f"num_heads_upsample {up} beside num_heads {heads} is not supported")
    size = flags.get("image_size", flags.get("large_size"))
    if size is None:
        raise UsageError("the configuration says neither `image_size` nor `large_size`")
    return Hidden(
        image_size=int(size),
        schedule=schedule_of_flags(flags, learned=visible["out_channels"] == 6, default=default),
        num_heads=None if each > 0 else heads,
        num_head_channels=each if each > 0 else None,
        legacy=not flags.get("use_new_attention_order", False),
        text_context=int(flags.get("text_ctx", 77)),
    )


def schedule_of_flags(flags: Mapping[str, Any], *, learned: bool, default: ScheduleSpec) -> ScheduleSpec:
    """The process that the flags describe; what they leave out is `default`'s. Raises UsageError for an unknown one."""
    name = str(flags.get("noise_schedule", default.name))
    if name not in _SCHEDULES:
        raise UsageError(f"noise_schedule `{name}` is not known; {', '.join(_SCHEDULES)} are")
    small = flags.get("sigma_small", default.variance != "fixed_large")
    return ScheduleSpec(
        name=_SCHEDULES[name],
        timesteps=int(flags.get("steps", flags.get("diffusion_steps", default.timesteps))),
        prediction=("x0" if flags["predict_xstart"] else "epsilon")
        if "predict_xstart" in flags
        else default.prediction,
        variance="learned_range" if learned else "fixed_small" if small else "fixed_large",
    )


def compare_flags(flags: Mapping[str, Any], visible: Mapping[str, Any], path: Path) -> None:
    """Raises UsageError where the configuration contradicts the tensors: it is then of another network."""
    told = {
        "model_channels": flags.get("num_channels", flags.get("model_channels", flags.get("channels"))),
        "num_res_blocks": flags.get("num_res_blocks", flags.get("depth")),
        "use_scale_shift_norm": flags.get("use_scale_shift_norm"),
        "resblock_updown": flags.get("resblock_updown"),
    }
    mult = flags.get("channel_mult", flags.get("channels_multiple"))
    if mult:
        told["channel_mult"] = tuple(float(m) for m in (mult.split(",") if isinstance(mult, str) else mult))
    faults = [
        f"`{name}` is {value} there, the tensors show {visible[name]}"
        for name, value in told.items()
        if value is not None and value != visible[name]
    ]
    if faults:
        raise UsageError(f"the configuration is not that of {path}: {'; '.join(faults)}")


def flat_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """One level of flags out of Karlo's `model.hparams` and `diffusion`, or what is flat already."""
    model = config.get("model", config)
    if isinstance(model, Mapping) and isinstance(model.get("hparams"), Mapping):
        return {**model["hparams"], **config.get("diffusion", {})}
    return dict(config)


def adm_table(spec: UNetSpec, *, legacy: bool, prefix: str = "") -> KeyTable:
    """Our names are theirs; the rows of qkv and of the context's keys and values are grouped by head where `legacy`."""
    entries = []
    for name, shape in shapes_of(spec).items():
        conversion: Conversion = Same()
        parts = 3 if ".qkv." in name else 2 if ".encoder_kv." in name else 0
        if parts and (legacy or parts == 2):
            conversion = PerHead(parts, heads_of(spec, shape[0] // parts))
        entries.append(Entry(name, (prefix + name,), conversion))
    return KeyTable(tuple(entries))


def heads_of(spec: UNetSpec, channels: int) -> int:
    """Heads of an attention over `channels`."""
    heads = spec.num_heads if spec.num_head_channels is None else channels // spec.num_head_channels
    assert heads is not None  # UNetSpec refuses a network without either
    return heads


def with_role(plan: Plan, role: str) -> Plan:
    """The same network for another stage."""
    return dataclasses.replace(plan, role=role, name=role)
