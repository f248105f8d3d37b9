"""A whole family, tiny and on random weights, as files and a recipe: real code in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mavcli.engine.assemble import build_network
from mavcli.recipe.load import load_recipe
from mavcli.recipe.schema import Recipe
from mavcli.weights.provenance import WeightsHeader, save_weights

UNET = """
      model_channels: 8
      channel_mult: [1, 1]
      num_res_blocks: 1
      attention_resolutions: [4]
      num_head_channels: 4
      norm_groups: 4
      resblock_updown: false
"""
RECIPE = f"""
name: tiny
weights: {{dir: ./weights}}
hardware: {{backend: cpu, dtype: float32, threads: 1}}
output: {{dir: outputs}}
cascade:
  clip:
    network: {{embed_dim: 16, image_size: 8, vision_layers: 1, vision_width: 64, vision_patch_size: 4, text_context: 8,
      text_width: 16, text_heads: 2, text_layers: 1, vocabulary: [a, cat, dog, surfing, sea, the]}}
  prior:
    network: {{clip_dim: 16, text_dim: 16, text_context: 8, width: 16, layers: 1, num_heads: 2}}
    sampler: {{name: ddpm, steps: 2, guidance_scale: 2.0, clip_x0: null}}
  decoder:
    schedule: {{prediction: x0}}
    sampler: {{steps: 2, guidance_scale: 2.0}}
    network:
      image_size: 8
      clip_dim: 16
      clip_tokens: 1
      context_dim: 8
      temporal: p3d
      fps: true{UNET}
  interp:
    sampler: {{name: ddpm, steps: 2}}
  sr_l:
    size: 16
    chunk: 16
    noise_level: 0.02
    schedule: {{prediction: x0}}
    sampler: {{steps: 2}}
    network:
      image_size: 16
      low_res_channels: 3
      low_res_residual: true
      noise_level: true
      temporal: p3d{UNET.replace("[4]", "[]")}
      mid_attention: false
  sr_h:
    size: 32
    chunk: 8
    noise_level: 0.02
    schedule: {{prediction: x0}}
    sampler: {{name: ddpm, steps: 2}}
    network:
      image_size: 32
      low_res_channels: 3
      low_res_residual: true
      noise_level: true{UNET.replace("[4]", "[]")}
      mid_attention: false
"""


def write_family(folder: Path) -> Path:
    """`folder`/tiny.yaml with all its weights; every layer has something to say. Returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path).recipe
    parts = recipe.cascade
    specs = {
        "clip": parts.clip.network,
        "prior": parts.prior.network,
        "decoder_t": parts.decoder.network,
        "interp": recipe.cascade.interp_network(),
        "sr_lt": parts.sr_l.network,
        "sr_h": parts.sr_h.network,
    }
    for number, (role, spec) in enumerate(specs.items()):
        save_weights(
            folder / "weights" / f"{role}.safetensors",
            random_network(spec, seed=number).state_dict(),
            WeightsHeader(role=role, spec=spec),
        )
    return path


def random_network(spec: object, *, seed: int) -> nn.Module:
    """A network in which no layer is the identity or zero, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(spec)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def tiny_recipe(path: Path, *sets: str) -> Recipe:
    return load_recipe(path, sets=sets).recipe
