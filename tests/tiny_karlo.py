"""A whole Karlo, tiny and on random weights, as the files of its release: original checkpoints or a folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_family import random_network
from torch import Tensor

from mavcli.specs import ClipSpec, PriorSpec, UNetSpec
from mavcli.weights import adm

CLIP = ClipSpec(
    embed_dim=64, image_size=8, vision_layers=1, vision_width=64, vision_patch_size=4, text_context=8, text_width=64,
    text_heads=1, text_layers=1, quick_gelu=True, unit_norm=False,
)  # fmt: skip
PRIOR = PriorSpec(
    clip_dim=64, text_dim=64, text_context=8, width=32, layers=1, num_heads=2, null_text="empty"
)
_UNET: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
DECODER = UNetSpec(
    **_UNET, image_size=16, attention_resolutions=(8,), num_head_channels=16, out_channels=6, clip_dim=64, context_dim=24,
    text="clip", text_dim=64, text_context=8,
)  # fmt: skip
SR = UNetSpec(
    **_UNET, image_size=32, attention_resolutions=(), mid_attention=False, low_res_channels=3, use_scale_shift_norm=False
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "prior_1B_vit_l": {
        "model": {"type": "prior", "hparams": {
            "text_ctx": 8, "xf_width": 32, "xf_layers": 1, "xf_heads": 2, "xf_final_ln": True, "text_drop": 0.2, "clip_dim": 64,
        }},
        "diffusion": {"steps": 1000, "learn_sigma": False, "sigma_small": True, "noise_schedule": "squaredcos_cap_v2",
                      "predict_xstart": True},
    },
    "decoder_900M_vit_l": {
        "model": {"type": "t2i-decoder", "hparams": {
            "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "8",
            "num_heads": -1, "num_head_channels": 16, "use_scale_shift_norm": True, "resblock_updown": True, "clip_dim": 64,
            "text_ctx": 8, "xf_width": 24, "xf_heads": 0, "learn_sigma": True,
        }},
        "diffusion": {"steps": 1000, "learn_sigma": True, "sigma_small": False, "noise_schedule": "squaredcos_cap_v2",
                      "predict_xstart": False},
    },
    "improved_sr_64_256_1.4B": {
        "model": {"type": "sr", "hparams": {
            "channels": 32, "depth": 1, "channels_multiple": [1, 2], "dropout": 0.0, "image_size": 32,
        }},
        "diffusion": {"steps": 1000, "learn_sigma": False, "sigma_small": True, "noise_schedule": "squaredcos_cap_v2",
                      "predict_xstart": False, "timestep_respacing": "7"},
    },
}  # fmt: skip


def random_state(spec: ClipSpec | PriorSpec | UNetSpec, seed: int) -> dict[str, Tensor]:
    return random_network(spec, seed=seed).state_dict()


def write_karlo(folder: Path, *, pickles: bool = False) -> Path:
    """The original release: checkpoints (safetensors, or pickles as they were published) and `configs/`."""
    prior, sr = random_state(PRIOR, 1), adm.adm_table(SR, legacy=True, prefix="model_first_steps.")
    statistics = [prior.pop(name) + 0.1 for name in ("clip_mean", "clip_std")]
    files = {
        "ViT-L-14": {k.removeprefix("towers."): v for k, v in random_state(CLIP, 0).items()},
        "prior-ckpt-step=01000000-of-01000000": {f"model.{k}": v for k, v in prior.items()},
        "decoder-ckpt-step=01000000-of-01000000": dict(
            adm.adm_table(DECODER, legacy=True, prefix="model.").invert(random_state(DECODER, 2))
        ),
        "improved-sr-ckpt-step=1.2M": {
            **dict(sr.invert(random_state(SR, 3))),
            **dict(adm.adm_table(SR, legacy=True, prefix="model_last_step.").invert(random_state(SR, 4))),
        },
    }
    (folder / "configs").mkdir(parents=True)
    for name, config in CONFIGS.items():
        (folder / "configs" / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    for name, state in files.items():
        suffix = ".pt" if name == "ViT-L-14" else ".ckpt"
        if pickles:
            torch.save(state if suffix == ".pt" else {"state_dict": state}, folder / f"{name}{suffix}")
        else:
            save(state, folder / f"{name}.safetensors")
    if pickles:
        torch.save(tuple(statistics), folder / "ViT-L-14_stats.th")
    else:
        save(
            dict(zip(("clip_mean", "clip_std"), statistics, strict=True)),
            folder / "ViT-L-14_stats.safetensors",
        )
    return folder


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
