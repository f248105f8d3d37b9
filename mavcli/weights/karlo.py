"""Karlo (kakaobrain, unCLIP 2204.06125) in its original checkpoints: prior, decoder, both super-resolution nets, CLIP.

Names are ours but for a prefix; qkv's rows are grouped by head. The statistics of CLIP's image embeddings, which the prior
needs, are a file of their own (`ViT-L-14_stats.th`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mavcli.errors import WeightsError
from mavcli.specs import PriorSpec, SamplerSpec, ScheduleSpec
from mavcli.weights.adm import (
    Hidden,
    Published,
    adm_table,
    compare_flags,
    find_hidden,
    read_structure,
    schedule_of_flags,
    unet_spec,
)
from mavcli.weights.keymap import Entry, KeyTable, Shapes
from mavcli.weights.openai_clip import openai_plan
from mavcli.weights.source import Checkpoint, Plan, find_one, shapes_of

LICENCE = "CreativeML Open RAIL-M"
PRIOR_SCHEDULE = ScheduleSpec(name="cosine", prediction="x0", variance="fixed_small")
DECODER_SCHEDULE = ScheduleSpec(name="cosine", variance="learned_range")
SR_SCHEDULE = ScheduleSpec(name="cosine", variance="fixed_small")
PRIOR_SAMPLER = SamplerSpec(name="ddpm", steps=25, guidance_scale=4.0, clip_x0=10.0)
DECODER_SAMPLER = SamplerSpec(name="ddpm", steps=50, guidance_scale=8.0)
SR_SAMPLER = SamplerSpec(name="ddpm", steps=7)
FILES = {
    "clip": ("ViT-?-[0-9][0-9].pt", "ViT-?-[0-9][0-9].safetensors"),
    "prior": ("prior*.ckpt", "prior*.safetensors"),
    "decoder": ("decoder*.ckpt", "decoder*.safetensors"),
    "sr_l": ("improved-sr*.ckpt", "sr*.ckpt", "improved-sr*.safetensors", "sr*.safetensors"),
}
"""The published names of the files in a folder; a single file is recognised by what it holds."""
_STATISTICS = ("*stats*.th", "*stats*.pt", "*stats*.safetensors")
_PRIOR_HEADS = {(2048, 20): 32}  # of the published prior, by width and layers
_DECODER = Published(
    "decoder",
    {"model_channels": 320, "channel_mult": (1.0, 2.0, 3.0, 4.0), "num_res_blocks": 3, "low_res_channels": 0},
    (1, 2, 3),
    Hidden(64, DECODER_SCHEDULE),
)


def plans(source: Path, flags: Sequence[Mapping[str, Any]], *, roles: Sequence[str]) -> list[Plan]:
    """The networks of a file, or those of `roles` (empty: all there are) of a folder.

    `flags` are the configurations of the repository's `configs/`, one for each network or none at all.
    """
    if not source.is_dir():
        checkpoint = Checkpoint(source)
        return _plans_of(_kind(checkpoint.shapes, source), checkpoint, source, flags)
    found: list[Plan] = []
    for role, patterns in FILES.items():
        if roles and role not in roles:
            continue
        path = find_one(source, patterns)
        if path is not None:
            found += _plans_of(role, Checkpoint(path), path, flags)
    if not found:
        names = ", ".join(
            f"`{patterns[0]}`" for role, patterns in FILES.items() if not roles or role in roles
        )
        raise WeightsError(
            f"{source} holds none of Karlo's files ({names})",
            hint="--as unclip-diffusers for a folder of diffusers",
        )
    return found


def _kind(shapes: Shapes, path: Path) -> str:
    signs = {
        "model.prd_emb": "prior",
        "model.cf_param": "decoder",
        "model_first_steps.input_blocks.0.0.weight": "sr_l",
        "visual.conv1.weight": "clip",
    }
    for name, kind in signs.items():
        if name in shapes:
            return kind
    raise WeightsError(
        f"{path} holds none of Karlo's networks: no tensor named {', '.join(f'`{name}`' for name in signs)}",
        hint="--as adm|unclip-diffusers for another code's",
    )


def _plans_of(
    kind: str, checkpoint: Checkpoint, path: Path, flags: Sequence[Mapping[str, Any]]
) -> list[Plan]:
    if kind == "clip":
        return [openai_plan(path)]
    told = next((f for f in flags if _flags_kind(f) == kind), None)
    if kind == "prior":
        return [_prior(checkpoint, path, told)]
    return [_decoder(checkpoint, path, told)] if kind == "decoder" else _super(checkpoint, path, told)


def _flags_kind(flags: Mapping[str, Any]) -> str:
    if "num_channels" in flags:
        return "decoder"
    return "sr_l" if "channels_multiple" in flags else "prior"


def _prior(checkpoint: Checkpoint, path: Path, flags: Mapping[str, Any] | None) -> Plan:
    shapes = checkpoint.shapes
    try:
        width = shapes["model.prd_emb"][2]
        sizes: dict[str, Any] = {
            "clip_dim": shapes["model.out_proj.weight"][0],
            "text_dim": shapes["model.text_enc_proj.weight"][1],
            "text_context": shapes["model.positional_embedding"][1] - 4,
            "width": width,
            "layers": len({n.split(".")[3] for n in shapes if n.startswith("model.transformer.resblocks.")}),
            "final_norm": "model.final_ln.weight" in shapes,
        }
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{path} holds no prior of Karlo ({error})") from error
    heads = flags.get("xf_heads") if flags is not None else _PRIOR_HEADS.get((width, sizes["layers"]))
    if heads is None:
        raise WeightsError(
            f"{path} is a prior of {sizes['layers']} layers x {width}, not the published one, and tensors do not show its heads",
            hint="--config FILE gives the configuration that it was trained with",
        )
    spec = PriorSpec(num_heads=int(heads), null_text="empty", **sizes)
    if "clip_mean" not in shapes:
        _add_statistics(checkpoint, path)
    entries = [
        Entry(name, (name if name in ("clip_mean", "clip_std") else f"model.{name}",))
        for name in shapes_of(spec)
    ]
    schedule = PRIOR_SCHEDULE
    if flags is not None:
        schedule = schedule_of_flags(flags, learned=False, default=PRIOR_SCHEDULE)
    return Plan(
        role="prior",
        name="prior",
        what="Karlo's prior",
        spec=spec,
        table=KeyTable(tuple(entries)),
        tensors=checkpoint,
        licence=LICENCE,
        schedule=schedule,
        sampler=PRIOR_SAMPLER,
    )


def _add_statistics(checkpoint: Checkpoint, path: Path) -> None:
    """Mean and deviation of CLIP's image embeddings, from the file beside the prior: a pair, or two named tensors."""
    file = find_one(path.parent, _STATISTICS)
    if file is None:
        raise WeightsError(
            f"{path} has no statistics of CLIP's embeddings beside it, which its prior needs",
            hint=f"put ViT-L-14_stats.th of Karlo's release into {path.parent}",
        )
    checkpoint.add(file)
    if "0" in checkpoint.shapes and "1" in checkpoint.shapes:
        checkpoint.rename({"0": "clip_mean", "1": "clip_std"})


def _decoder(checkpoint: Checkpoint, path: Path, flags: Mapping[str, Any] | None) -> Plan:
    shapes = checkpoint.shapes
    visible, levels = read_structure(shapes, str(path), prefix="model.")
    hidden = find_hidden(
        visible,
        levels,
        flags=flags,
        published=(_DECODER,),
        default=DECODER_SCHEDULE,
        what="Karlo",
        path=path,
    )
    try:
        spec = unet_spec(
            visible,
            levels,
            hidden,
            clip_dim=shapes["model.cf_param"][0],
            clip_tokens=shapes["model.clip_tok_proj.weight"][0] // visible["context_dim"],
            text="clip",
            text_dim=shapes["model.text_seq_proj.0.weight"][1],
            text_context=hidden.text_context,
        )
    except KeyError as error:
        raise WeightsError(f"{path} holds no decoder of Karlo: it has no {error}") from error
    return Plan(
        role="decoder",
        name="decoder",
        what="Karlo's decoder",
        spec=spec,
        table=adm_table(spec, legacy=True, prefix="model."),
        tensors=checkpoint,
        licence=LICENCE,
        schedule=hidden.schedule,
        sampler=DECODER_SAMPLER,
    )


def _super(checkpoint: Checkpoint, path: Path, flags: Mapping[str, Any] | None) -> list[Plan]:
    """SR_l, and the net of its sampler's last step, which was fine-tuned to give a clean picture."""
    prefixes = {"sr_l": "model_first_steps.", "sr_l_last": "model_last_step."}
    foreign = [n for n in checkpoint.shapes if not n.startswith(tuple(prefixes.values()))]
    if foreign:
        raise WeightsError(f"{path} holds {len(foreign)} tensors of neither net, the first is `{foreign[0]}`")
    found = []
    for name, prefix in prefixes.items():
        visible, levels = read_structure(checkpoint.shapes, str(path), prefix=prefix)
        schedule, size = SR_SCHEDULE, 256
        if flags is not None:
            compare_flags(flags, visible, path)
            schedule = schedule_of_flags(flags, learned=visible["out_channels"] == 6, default=SR_SCHEDULE)
            size = int(flags.get("image_size", size))
        spec = unet_spec(visible, levels, Hidden(size, schedule))
        found.append(
            Plan(
                role="sr_l",
                name=name,
                what=f"Karlo's super-resolution ({'last step' if name == 'sr_l_last' else 'first steps'})",
                spec=spec,
                table=adm_table(spec, legacy=True, prefix=prefix),
                tensors=checkpoint,
                licence=LICENCE,
                schedule=schedule,
                sampler=SR_SAMPLER,
                prefix=prefix,
            )
        )
    return found
