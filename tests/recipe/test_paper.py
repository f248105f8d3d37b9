"""`recipes/paper.yaml` against the papers: every number carries its source, and the source says that number.

The tables below were read off the papers, not off the recipe: unCLIP (arXiv 2204.06125; T3 its table 3, C its appendix C),
Make-A-Video (m, arXiv 2209.14792) and, for what unCLIP's CLIP takes over, CLIP (arXiv 2103.00020, table 20).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from mavcli.recipe.load import find_recipe, load_recipe
from mavcli.recipe.yaml_tree import Key, dotted, parse

UNCLIP_TABLE_3: dict[str, dict[str, Any]] = {
    "prior": {
        "cascade.prior.schedule.timesteps": 1000,
        "cascade.prior.schedule.name": "cosine",
        "cascade.prior.sampler.steps": 64,
        "cascade.prior.network.width": 2048,
        "cascade.prior.network.layers": 24,
        "cascade.prior.network.num_heads": 32,
        "train.stages.prior.weight_decay": 6.0e-2,
        "train.stages.prior.batch_size": 4096,
        "train.stages.prior.steps": 600_000,
        "train.stages.prior.lr": 1.1e-4,
        "train.stages.prior.betas.1": 0.96,
        "train.stages.prior.adam_eps": 1.0e-6,
        "train.stages.prior.ema": 0.9999,
    },
    "64": {
        "cascade.decoder.schedule.timesteps": 1000,
        "cascade.decoder.schedule.name": "cosine",
        "cascade.decoder.sampler.name": "ddpm",
        "cascade.decoder.sampler.steps": 250,
        "cascade.decoder.network.model_channels": 512,
        "cascade.decoder.network.num_res_blocks": 3,
        "cascade.decoder.network.channel_mult": [1, 2, 3, 4],
        "cascade.decoder.network.num_head_channels": 64,
        "cascade.decoder.network.attention_resolutions": [32, 16, 8],
        "cascade.decoder.network.context_dim": 2048,
        "cascade.decoder.network.dropout": 0.1,
        "train.stages.decoder.weight_decay": 0.0,
        "train.stages.decoder.batch_size": 2048,
        "train.stages.decoder.steps": 800_000,
        "train.stages.decoder.lr": 1.2e-4,
        "train.stages.decoder.betas.1": 0.999,
        "train.stages.decoder.adam_eps": 1.0e-8,
        "train.stages.decoder.ema": 0.9999,
    },
    "64 -> 256": {
        "cascade.sr_l.schedule.timesteps": 1000,
        "cascade.sr_l.schedule.name": "cosine",
        "cascade.sr_l.sampler.name": "ddim",
        "cascade.sr_l.sampler.steps": 27,
        "cascade.sr_l.network.model_channels": 320,
        "cascade.sr_l.network.num_res_blocks": 3,
        "cascade.sr_l.network.channel_mult": [1, 2, 3, 4],
        "cascade.sr_l.network.dropout": 0.1,
        "train.stages.sr_l.crop": 256 // 4,
        "train.stages.sr_l.weight_decay": 0.0,
        "train.stages.sr_l.batch_size": 1024,
        "train.stages.sr_l.steps": 1_000_000,
        "train.stages.sr_l.lr": 1.2e-4,
        "train.stages.sr_l.betas.1": 0.999,
        "train.stages.sr_l.adam_eps": 1.0e-8,
        "train.stages.sr_l.ema": 0.9999,
    },
    "256 -> 1024": {
        "cascade.sr_h.schedule.timesteps": 1000,
        "cascade.sr_h.schedule.name": "linear",
        "cascade.sr_h.sampler.name": "ddim",
        "cascade.sr_h.sampler.steps": 15,
        "cascade.sr_h.network.model_channels": 192,
        "cascade.sr_h.network.num_res_blocks": 2,
        "cascade.sr_h.network.channel_mult": [1, 1, 2, 2, 4, 4],
        "cascade.sr_h.network.dropout": 0.0,
        "train.stages.sr_h.crop": 768 // 4,  # a quarter, of Make-A-Video's 768
        "train.stages.sr_h.weight_decay": 0.0,
        "train.stages.sr_h.batch_size": 512,
        "train.stages.sr_h.steps": 1_000_000,
        "train.stages.sr_h.lr": 1.0e-4,
        "train.stages.sr_h.betas.1": 0.999,
        "train.stages.sr_h.adam_eps": 1.0e-8,
        "train.stages.sr_h.ema": 0.9999,
    },
}
UNCLIP_TEXT: dict[str, tuple[str, Any]] = {
    "cascade.clip.network.image_size": ("u C", 256),
    "cascade.clip.network.vision_width": ("u C", 1280),
    "cascade.clip.network.vision_layers": ("u C", 32),
    "cascade.clip.network.vision_patch_size": ("u C", 16),
    "cascade.clip.network.text_width": ("u C", 1024),
    "cascade.clip.network.text_layers": ("u C", 24),
    "cascade.clip.network.embed_dim": ("u 2.2", 1024),
    "cascade.prior.network.clip_dim": ("u 2.2", 1024),
    "cascade.prior.network.clip_scale": ("u C", 17.2),
    "cascade.prior.schedule.prediction": ("u 2.2", "x0"),
    "cascade.prior.samples": ("u 2.2", 2),
    "cascade.decoder.network.clip_dim": ("u 2.2", 1024),
    "cascade.decoder.network.clip_tokens": ("u 2.1", 4),
    "cascade.decoder.network.out_channels": ("u C", 6),
    "cascade.decoder.schedule.prediction": ("u C", "epsilon"),
    "cascade.decoder.schedule.variance": ("u C", "learned_range"),
    "cascade.sr_l.network.low_res_channels": ("u 2.1", 3),
    "cascade.sr_l.network.attention_resolutions": ("u 2.1", []),
    "cascade.sr_l.network.mid_attention": ("u 2.1", False),
    "cascade.sr_l.schedule.prediction": ("u C", "epsilon"),
    "cascade.sr_h.network.low_res_channels": ("u 2.1", 3),
    "cascade.sr_h.network.attention_resolutions": ("u 2.1", []),
    "cascade.sr_h.network.mid_attention": ("u 2.1", False),
    "cascade.sr_h.schedule.prediction": ("u C", "epsilon"),
    "train.stages.clip.lr": ("u C", 3.0e-4),
    "train.stages.clip.sam_rho": ("u C", 0.1),
    "train.stages.sr_l.degradation.blur_kernel": ("u C", 3),
    "train.stages.sr_l.degradation.blur_sigma": ("u C", 0.6),
    "train.defaults.drop_condition": ("u 2.1", 0.1),
}
CLIP_TEXT: dict[str, tuple[str, Any]] = {
    "cascade.clip.network.text_context": ("CLIP", 77),
    "train.stages.clip.batch_size": ("CLIP", 32_768),
    "train.stages.clip.betas": ("CLIP", [0.9, 0.98]),
    "train.stages.clip.adam_eps": ("CLIP", 1.0e-6),
    "train.stages.clip.weight_decay": ("CLIP", 0.2),
    "train.stages.clip.warmup": ("CLIP", 2000),
    "train.stages.clip.decay": ("CLIP", 1.0),
    "train.stages.clip.decay_shape": ("CLIP", "cosine"),
}
MAKE_A_VIDEO: dict[str, tuple[str, Any]] = {
    "cascade.decoder.frames": ("m 3.2", 16),
    "cascade.decoder.network.image_size": ("m 3.2", 64),
    "cascade.decoder.network.temporal": ("m 3.2", "p3d"),
    "cascade.decoder.network.temporal_kernel": ("m 3.2.1", 3),
    "cascade.decoder.network.fps": ("m 3.2.2", True),
    "cascade.interp.frame_skip": ("m 3.3", 5),
    "cascade.sr_l.size": ("m 3.2", 256),
    "cascade.sr_l.network.image_size": ("m 3.2", 256),
    "cascade.sr_l.network.temporal": ("m 3.2", "p3d"),
    "cascade.sr_l.network.temporal_kernel": ("m 3.2.1", 3),
    "cascade.sr_h.size": ("m 3.2", 768),
    "cascade.sr_h.network.image_size": ("m 3.2", 768),
    "train.defaults.vlb_weight": ("m 3.2", 0.001),
    "train.stages.decoder_t.frames": ("m 3.2", 16),
    "train.stages.decoder_t.fps.low": ("m 3.2.2", 1),
    "train.stages.decoder_t.fps.high": ("m 3.2.2", 30),
}
TEXTS = UNCLIP_TEXT | CLIP_TEXT | MAKE_A_VIDEO
TABLE_3 = {key: value for column in UNCLIP_TABLE_3.values() for key, value in column.items()}

PATH = find_recipe("paper")
WRITTEN = parse(PATH.read_text(encoding="utf-8"), "paper.yaml")
COMMENTS = [line.partition("#")[2].strip() for line in PATH.read_text(encoding="utf-8").splitlines()]


def leaves(value: Any, key: Key = ()) -> Iterator[Key]:
    """The path of every value that is no map."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*key, name))
    else:
        yield key


def resolved(key: str) -> Any:
    """What the recipe comes to at `key`, the defaults of the stages included."""
    value: Any = load_recipe("paper").recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def comment(key: str) -> str:
    """What stands beside `key`, or beside the default that it takes its value from."""
    path: Key = tuple(part for part in key.split(".") if not part.isdigit())
    for place in (path, ("train", "defaults", *path[3:])):
        if place in WRITTEN.origins:
            return COMMENTS[WRITTEN.origins[place].line - 1]
    raise KeyError(key)


NUMBERS = [
    dotted(key) for key in leaves(WRITTEN.value) if key[0] in ("cascade", "train") and key[1] != "data"
]


@pytest.mark.parametrize("key", TABLE_3)
def test_a_number_of_unclips_table_3_is_the_recipes(key: str) -> None:
    assert resolved(key) == TABLE_3[key]
    implied = {"train.stages.sr_h.weight_decay", "cascade.sr_h.network.dropout"}  # a dash there, our default
    if key not in implied:
        assert comment(key).startswith("[u T3]")


@pytest.mark.parametrize("key", TEXTS)
def test_a_number_of_the_papers_texts_is_the_recipes(key: str) -> None:
    tag, value = TEXTS[key]
    assert resolved(key) == value
    assert comment(key).startswith(f"[{tag}]")


@pytest.mark.parametrize("key", [key for key in NUMBERS if key != "train.out"])
def test_every_number_carries_a_source_that_says_so_or_is_marked_as_our_choice(key: str) -> None:
    source = COMMENTS[WRITTEN.origins[tuple(key.split("."))].line - 1]
    if source.startswith("our choice"):
        assert not {key} & {*TEXTS, *TABLE_3}
        return
    tag = re.match(r"\[(m 3\.\d(\.\d)?|u 2\.[12]|u T3|u C|CLIP)\]", source)
    assert tag, f"`{key}` says no source: {source!r}"
    stages = [
        key.replace("train.defaults", f"train.stages.{s}") for s in load_recipe("paper").recipe.train.stages
    ]
    known = any(name.startswith((key, *stages)) for name in (*TEXTS, *TABLE_3))
    assert known, f"`{key}` is said to be {tag[0]}, which the tables of this test do not hold"


def test_what_shapes_a_training_stands_in_the_recipe_and_is_no_hidden_default() -> None:
    said = set(NUMBERS)
    for stage in ("sr_l", "sr_h", "sr_lt"):
        for name in ("blur_kernel", "blur_sigma", "blur_probability", "noise_max"):
            assert f"train.stages.{stage}.degradation.{name}" in said
    for name in load_recipe("paper").recipe.stage("interp").masks.model_dump():
        assert f"train.stages.interp.masks.{name}" in said
    assert {"train.defaults.clip_grad", "train.defaults.adam_eps", "train.defaults.vlb_weight"} <= said
