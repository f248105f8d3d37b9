"""CLIP (arXiv 2103.00020), in the layout of OpenAI's releases and in that of `transformers`, which has LAION's too.

open_clip's towers, which ours are, keep OpenAI's names. OpenAI's networks were trained with QuickGELU, LAION's (ViT-bigG-14)
with GELU; in the layout of `transformers` only its configuration tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from mavcli.errors import WeightsError
from mavcli.specs import ClipSpec
from mavcli.weights.keymap import Constant, Conversion, Entry, KeyTable, Same, Shapes, Stacked, Transposed
from mavcli.weights.licences import UNKNOWN
from mavcli.weights.source import Checkpoint, Plan, shapes_of

LICENCE = "MIT"
VOCABULARY = 49408  # the byte-pair encoding's, which open_clip has too
_SIZES = ("input_resolution", "context_length", "vocab_size")


def openai_plan(*paths: Path) -> Plan:
    """Both towers of a release (`ViT-L-14.pt`), for networks that read the embeddings as they come."""
    checkpoint = Checkpoint(*paths)
    spec = _spec_of_openai(checkpoint.shapes, str(paths[0]))
    entries = [Entry(name, (name.removeprefix("towers."),)) for name in shapes_of(spec)]
    # What the release's constructor was given, kept as tensors; and the masks that it made of it.
    dropped = dict.fromkeys(_SIZES, "a size, not a weight")
    for layer in range(
        max(spec.text_layers, spec.vision_layers if isinstance(spec.vision_layers, int) else 0)
    ):
        for tower in ("", "visual."):
            dropped[f"{tower}transformer.resblocks.{layer}.attn_mask"] = "the causal mask, made here"
    table = KeyTable(tuple(entries), dropped)
    return _plan(spec, table, checkpoint, LICENCE)


def transformers_plan(
    *paths: Path, text_heads: int | None = None, vision_heads: int | None = None, quick_gelu: bool = True
) -> Plan:
    """Both towers from `text_encoder` and `image_encoder` of a diffusers folder, or from one CLIPModel.

    Heads and activation stand in their configurations; without, they are OpenAI's (heads of 64, QuickGELU).
    """
    checkpoint = Checkpoint(*paths)
    shapes = checkpoint.shapes
    spec = _spec_of_transformers(
        shapes, str(paths[0]), text_heads=text_heads, vision_heads=vision_heads, quick_gelu=quick_gelu
    )
    return _plan(spec, transformers_table(spec, with_scale="logit_scale" in shapes), checkpoint, UNKNOWN)


def transformers_table(spec: ClipSpec, *, with_scale: bool) -> KeyTable:
    """Our towers and a CLIPModel of transformers, or `with_scale` false its two towers with their projections."""
    dropped = {
        f"{tower}_model.embeddings.position_ids": "0, 1, 2, ..., not a weight" for tower in ("text", "vision")
    }
    return KeyTable(tuple(_transformers_entries(spec, with_scale=with_scale)), dropped)


def _plan(spec: ClipSpec, table: KeyTable, checkpoint: Checkpoint, licence: str) -> Plan:
    return Plan("clip", "clip", "both towers of CLIP", spec, table, checkpoint, licence)


def _spec_of_openai(shapes: Shapes, source: str) -> ClipSpec:
    try:
        return _spec(
            embed=shapes["text_projection"][1],
            patch=shapes["visual.conv1.weight"],
            positions=shapes["visual.positional_embedding"][0],
            tokens=shapes["token_embedding.weight"],
            context=shapes["positional_embedding"][0],
            vision_layers=_count(shapes, "visual.transformer.resblocks.", 3),
            text_layers=_count(shapes, "transformer.resblocks.", 2),
            feed_forward=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        )
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{source} holds no CLIP with a vision transformer in OpenAI's layout ({error})"
        ) from error


def _spec_of_transformers(
    shapes: Shapes, source: str, *, text_heads: int | None, vision_heads: int | None, quick_gelu: bool
) -> ClipSpec:
    try:
        return _spec(
            embed=shapes["text_projection.weight"][0],
            patch=shapes["vision_model.embeddings.patch_embedding.weight"],
            positions=shapes["vision_model.embeddings.position_embedding.weight"][0],
            tokens=shapes["text_model.embeddings.token_embedding.weight"],
            context=shapes["text_model.embeddings.position_embedding.weight"][0],
            vision_layers=_count(shapes, "vision_model.encoder.layers.", 3),
            text_layers=_count(shapes, "text_model.encoder.layers.", 3),
            feed_forward=shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
            text_heads=text_heads,
            vision_heads=vision_heads,
            quick_gelu=quick_gelu,
        )
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{source} holds no CLIP in the layout of transformers ({error})") from error


def _spec(
    *,
    embed: int,
    patch: tuple[int, ...],
    positions: int,
    tokens: tuple[int, ...],
    context: int,
    vision_layers: int,
    text_layers: int,
    feed_forward: int,
    text_heads: int | None = None,
    vision_heads: int | None = None,
    quick_gelu: bool = True,
) -> ClipSpec:
    if tokens[0] != VOCABULARY:
        raise ValueError(f"a vocabulary of {tokens[0]} tokens, CLIP's has {VOCABULARY}")
    width = patch[0]
    if vision_heads is not None and (vision_heads < 1 or width % vision_heads):
        raise ValueError(f"{vision_heads} heads in a width of {width}")
    return ClipSpec(
        embed_dim=embed,
        image_size=patch[-1] * math.isqrt(positions - 1),
        vision_layers=vision_layers,
        vision_width=width,
        vision_patch_size=patch[-1],
        vision_head_width=64 if vision_heads is None else width // vision_heads,
        vision_mlp_ratio=_ratio(feed_forward, width),
        text_context=context,
        text_width=tokens[1],
        text_heads=text_heads or max(1, tokens[1] // 64),
        text_layers=text_layers,
        quick_gelu=quick_gelu,
        unit_norm=False,
    )


def _ratio(feed_forward: int, width: int) -> float:
    """`feed_forward` / `width`, to four places as open_clip writes it where its rounding down gives `feed_forward` again."""
    ratio = round(feed_forward / width, 4)
    return ratio if int(width * ratio) == feed_forward else (feed_forward + 0.5) / width


def _count(shapes: Shapes, prefix: str, place: int) -> int:
    return len({name.split(".")[place] for name in shapes if name.startswith(prefix)})


def _transformers_entries(spec: ClipSpec, *, with_scale: bool) -> Iterator[Entry]:
    assert isinstance(spec.vision_layers, int)

    def named(ours: str, theirs: str, conversion: Conversion = Same()) -> Entry:  # noqa: B008  (frozen)
        return Entry(f"towers.{ours}", (theirs,), conversion)

    def both(ours: str, theirs: str) -> Iterator[Entry]:
        for kind in ("weight", "bias"):
            yield named(f"{ours}.{kind}", f"{theirs}.{kind}")

    def blocks(ours: str, theirs: str, layers: int) -> Iterator[Entry]:
        for layer in range(layers):
            mine, block = f"{ours}.{layer}", f"{theirs}.{layer}"
            for kind in ("weight", "bias"):
                qkv = tuple(f"{block}.self_attn.{part}_proj.{kind}" for part in "qkv")
                yield Entry(f"towers.{mine}.attn.in_proj_{kind}", qkv, Stacked(3))
            yield from both(f"{mine}.attn.out_proj", f"{block}.self_attn.out_proj")
            yield from both(f"{mine}.ln_1", f"{block}.layer_norm1")
            yield from both(f"{mine}.ln_2", f"{block}.layer_norm2")
            yield from both(f"{mine}.mlp.c_fc", f"{block}.mlp.fc1")
            yield from both(f"{mine}.mlp.c_proj", f"{block}.mlp.fc2")

    yield named("token_embedding.weight", "text_model.embeddings.token_embedding.weight")
    yield named("positional_embedding", "text_model.embeddings.position_embedding.weight")
    yield from blocks("transformer.resblocks", "text_model.encoder.layers", spec.text_layers)
    yield from both("ln_final", "text_model.final_layer_norm")
    yield named("text_projection", "text_projection.weight", Transposed())
    yield named("visual.class_embedding", "vision_model.embeddings.class_embedding")
    yield named("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight")
    yield named("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight")
    yield from both("visual.ln_pre", "vision_model.pre_layrnorm")  # their spelling
    yield from blocks("visual.transformer.resblocks", "vision_model.encoder.layers", spec.vision_layers)
    yield from both("visual.ln_post", "vision_model.post_layernorm")
    yield named("visual.proj", "visual_projection.weight", Transposed())
    if with_scale:
        yield named("logit_scale", "logit_scale")
    else:  # the two encoders of a diffusers folder lack the temperature, where all of OpenAI's ended: 100
        yield Entry("towers.logit_scale", (), Constant(math.log(100)))
