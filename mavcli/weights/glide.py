"""GLIDE's U-Nets (openai/glide-text2im, arXiv 2112.10741): ADM's, with a text transformer inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mavcli.errors import WeightsError
from mavcli.specs import SamplerSpec
from mavcli.weights.adm import (
    COSINE,
    LINEAR,
    Hidden,
    Published,
    adm_table,
    find_hidden,
    read_structure,
    unet_spec,
)
from mavcli.weights.source import Checkpoint, Plan, find_one

LICENCE = "MIT"
FILES = {
    "base": ("decoder", "decoder"),
    "base_inpaint": ("decoder", "decoder_inpaint"),
    "upsample": ("sr_l", "sr_l"),
    "upsample_inpaint": ("sr_l", "sr_l_inpaint"),
}
"""The published files, the stage that each is for, and the name it gets here."""
BASE = SamplerSpec(name="ddpm", steps=100, guidance_scale=3.0)
UPSAMPLE = SamplerSpec(name="ddim", steps=27)
PUBLISHED = (
    Published(
        "base",
        {
            "model_channels": 192,
            "channel_mult": (1.0, 2.0, 3.0, 4.0),
            "num_res_blocks": 3,
            "low_res_channels": 0,
        },
        (1, 2, 3),
        Hidden(64, COSINE),
    ),
    Published(
        "upsample",
        {
            "model_channels": 192,
            "channel_mult": (1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
            "num_res_blocks": 2,
            "low_res_channels": 3,
        },
        (3, 4, 5),
        Hidden(256, LINEAR),
    ),
)


def plans(source: Path, flags: Mapping[str, Any] | None) -> list[Plan]:
    """The network of one checkpoint, or all published ones of a folder."""
    files = [source]
    if source.is_dir():
        named = {name: find_one(source, (f"{name}.*", f"{name}-*.safetensors")) for name in FILES}
        files = [file for file in named.values() if file is not None]
        if not files:
            raise WeightsError(
                f"{source} holds none of GLIDE's checkpoints ({', '.join(f'{name}.pt' for name in FILES)})"
            )
    return [_plan(file, flags) for file in files]


def _plan(path: Path, flags: Mapping[str, Any] | None) -> Plan:
    checkpoint = Checkpoint(path)
    shapes = checkpoint.shapes
    if "transformer_proj.weight" not in shapes or "positional_embedding" not in shapes:
        raise WeightsError(f"{path} is no U-Net of GLIDE: it has no text transformer")
    visible, levels = read_structure(shapes, str(path))
    upsample = visible["low_res_channels"] > 0
    hidden = find_hidden(
        visible,
        levels,
        flags=flags,
        published=PUBLISHED,
        default=LINEAR if upsample else COSINE,
        what="GLIDE",
        path=path,
    )
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer.resblocks.")}
    spec = unet_spec(
        visible,
        levels,
        hidden,
        text="glide",
        text_context=shapes["positional_embedding"][0],
        text_layers=len(layers),
        text_heads=hidden.text_heads,
        text_vocabulary=shapes["token_embedding.weight"][0],
    )
    kind = ("upsample" if upsample else "base") + ("_inpaint" if spec.mask_channels else "")
    role, name = FILES[kind]
    return Plan(
        role=role,
        name=name,
        what=f"GLIDE's `{kind}`",
        spec=spec,
        table=adm_table(spec, legacy=True),
        tensors=checkpoint,
        licence=LICENCE,
        schedule=hidden.schedule,
        sampler=UPSAMPLE if upsample else BASE,
    )
