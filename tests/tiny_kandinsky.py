"""Kandinsky's priors, tiny and on random weights, in the folders that `kandinsky-community/kandinsky-2-1-prior` and `...-2-2-prior`
were published as: configurations with their published keys, tokenizer, scheduler and model card."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tiny_karlo import random_state, save
from torch import Tensor

from mavcli.specs import ClipSpec, PriorSpec
from mavcli.weights.openai_clip import transformers_table
from mavcli.weights.unclip import prior_table

Version = Literal["2-1", "2-2"]
CONTEXT, WIDTH = 12, 64
_CLIP: dict[str, Any] = {
    "embed_dim": WIDTH, "image_size": 8, "vision_patch_size": 4, "text_context": CONTEXT, "text_width": WIDTH, "unit_norm": False,
}  # fmt: skip
CLIPS: dict[Version, ClipSpec] = {
    # OpenAI's ViT-L/14: heads of 64, QuickGELU
    "2-1": ClipSpec(
        **_CLIP, vision_layers=2, vision_width=128, text_layers=2, text_heads=1, quick_gelu=True
    ),
    # LAION's ViT-bigG/14: heads of the image tower are no 64, its feed-forward no four times as wide, GELU
    "2-2": ClipSpec(
        **_CLIP, vision_layers=2, vision_width=208, vision_head_width=104, vision_mlp_ratio=4.9231, text_layers=2, text_heads=4
    ),
}  # fmt: skip
PRIOR = PriorSpec(
    clip_dim=WIDTH, text_dim=WIDTH, text_context=CONTEXT, width=32, layers=2, num_heads=2, null_text="empty"
)
SCHEDULER = {
    "_class_name": "UnCLIPScheduler",
    "_diffusers_version": "0.17.0.dev0",
    "clip_sample": True,
    "clip_sample_range": 10.0,
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
}
"""Both priors' scheduler/scheduler_config.json as it is published."""


def write_kandinsky(folder: Path, version: Version, *, licence: str | None = "apache-2.0") -> Path:
    """`folder` as `mav weights pull` leaves it; without a `licence` its card states none."""
    clip, prior = CLIPS[version], random_state(PRIOR, 5)
    generator = torch.Generator().manual_seed(6)
    prior["out_proj.weight"] *= 12  # so that the clamp of x0, at 10, has something to do
    prior["clip_mean"] = 0.3 * torch.randn(WIDTH, generator=generator)
    prior["clip_std"] = 0.2 + 0.3 * torch.rand(WIDTH, generator=generator)
    towers = dict(transformers_table(clip, with_scale=False).invert(random_state(clip, 7)))
    text = {name: value for name, value in towers.items() if name.startswith("text_")}
    vision = {name: value for name, value in towers.items() if name not in text}
    text["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]  # transformers of 2023 saved it
    positions = (clip.image_size // clip.vision_patch_size) ** 2 + 1 if clip.vision_patch_size else 0
    vision["vision_model.embeddings.position_ids"] = torch.arange(positions)[None]
    folder.mkdir(parents=True)
    front = "" if licence is None else f"license: {licence}\n"
    (folder / "README.md").write_text(
        f"---\n{front}tags:\n- text-to-image\n- kandinsky\n---\n\n# Kandinsky\n"
    )
    write_json(folder / "model_index.json", _index(version))
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_network(
        folder / "prior", "diffusion_pytorch_model", _prior_config(), dict(prior_table(PRIOR).invert(prior))
    )
    _write_network(folder / "text_encoder", "model", _text_config(clip), text)
    _write_network(folder / "image_encoder", "model", _vision_config(clip), vision)
    return folder


def write_tokenizer(folder: Path, version: Version) -> None:
    """CLIP's byte-pair encoding as transformers keeps it, of the same merges that open_clip has."""
    import open_clip.tokenizer as known

    with gzip.open(known.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    characters = list(known.bytes_to_unicode().values())
    words = [*characters, *(c + "</w>" for c in characters), *("".join(line.split()) for line in lines)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    write_json(folder / "tokenizer" / "vocab.json", vocabulary)
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    # OpenAI's pads with the end token, LAION's with the first one; what pads is masked
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>" if version == "2-1" else "!",
    }
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True, **special}
    write_json(folder / "tokenizer" / "tokenizer_config.json", told)
    write_json(folder / "tokenizer" / "special_tokens_map.json", special)
    side = CLIPS[version].image_size
    write_json(
        folder / "image_processor" / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor", "crop_size": {"height": side, "width": side}, "do_center_crop": True,
            "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": side},
        },
    )  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _write_network(folder: Path, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    write_json(folder / "config.json", config)
    save(tensors, folder / f"{name}.safetensors")


def _index(version: Version) -> dict[str, Any]:
    return {
        "_class_name": "KandinskyPriorPipeline" if version == "2-1" else "KandinskyV22PriorPipeline",
        "_diffusers_version": "0.17.0.dev0",
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
        "prior": ["diffusers", "PriorTransformer"],
        "scheduler": ["diffusers", "UnCLIPScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }


def _prior_config() -> dict[str, Any]:
    return {
        "_class_name": "PriorTransformer", "_diffusers_version": "0.17.0.dev0", "additional_embeddings": 4,
        "attention_head_dim": PRIOR.width // PRIOR.num_heads, "dropout": 0.0, "embedding_dim": WIDTH,
        "num_attention_heads": PRIOR.num_heads, "num_embeddings": CONTEXT, "num_layers": PRIOR.layers,
    }  # fmt: skip


def _tower_config(clip: ClipSpec) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu" if clip.quick_gelu else "gelu",
        "initializer_factor": 1.0, "initializer_range": 0.02, "layer_norm_eps": 1e-05, "projection_dim": WIDTH,
        "transformers_version": "4.28.1",
    }  # fmt: skip


def _text_config(clip: ClipSpec) -> dict[str, Any]:
    return _tower_config(clip) | {
        "architectures": ["CLIPTextModelWithProjection"], "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "hidden_size": clip.text_width, "intermediate_size": 4 * clip.text_width, "max_position_embeddings": CONTEXT,
        "model_type": "clip_text_model", "num_attention_heads": clip.text_heads, "num_hidden_layers": clip.text_layers,
        "vocab_size": 49408,
    }  # fmt: skip


def _vision_config(clip: ClipSpec) -> dict[str, Any]:
    width = clip.vision_width
    return _tower_config(clip) | {
        "architectures": ["CLIPVisionModelWithProjection"], "hidden_size": width, "image_size": clip.image_size,
        "intermediate_size": int(width * clip.vision_mlp_ratio), "model_type": "clip_vision_model",
        "num_attention_heads": width // clip.vision_head_width, "num_channels": 3,
        "num_hidden_layers": clip.vision_layers, "patch_size": clip.vision_patch_size,
    }  # fmt: skip
