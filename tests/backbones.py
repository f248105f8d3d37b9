"""The reference data of the published backbones, as the files that their authors would have published."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


class Backbones:
    """The folder `backbone_references`: layouts, stand-in weights, inputs and outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = importlib.util.spec_from_file_location("reference_recipe", folder / "recipe.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        self.tensor_for: Callable[[str, tuple[int, ...]], np.ndarray] = module.tensor_for

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())

    def npz(self, name: str) -> dict[str, Tensor]:
        with np.load(self.folder / f"{name}.npz") as found:
            return {key: torch.from_numpy(found[key]) for key in found}

    def weights(self, layout: Mapping[str, list[int]]) -> dict[str, Tensor]:
        """Stand-in weights of a layout: the whole key, with its prefix, is what seeds them."""
        return {k: torch.from_numpy(self.tensor_for(k, tuple(s))) for k, s in layout.items()}

    def write(self, name: str, path: Path) -> Path:
        """A tiny model as a checkpoint, and its configuration beside it as `NAME.json`; returns the checkpoint."""
        told = self.json(f"{name}.layout")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.weights(told["layout"]), path)
        # GLIDE's constructor is not told the size in pixels, its options are.
        config = told["config"] if "hparams" in told["config"] else {"image_size": 32, **told["config"]}
        path.with_suffix(".json").write_text(json.dumps(config))
        return path

    def write_diffusers(self, folder: Path) -> Path:
        """The tiny Karlo as diffusers keeps it."""
        for name, model in self.json("karlo_diffusers_tiny.layout")["models"].items():
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text(json.dumps(model["config"]))
            weights = self.weights(model["layout"])
            save_file(weights, folder / name / "diffusion_pytorch_model.safetensors")
        write_schedulers(folder)
        return folder


def write_schedulers(folder: Path) -> None:
    """The three configurations that Karlo's pipeline was published with."""
    kinds: dict[str, dict[str, Any]] = {
        "prior": {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 5.0},
        "decoder": {"variance_type": "learned_range", "prediction_type": "epsilon", "clip_sample_range": 1.0},
        "super_res": {
            "variance_type": "fixed_small_log",
            "prediction_type": "epsilon",
            "clip_sample_range": 1.0,
        },
    }
    for name, kind in kinds.items():
        path = folder / f"{name}_scheduler" / "scheduler_config.json"
        path.parent.mkdir()
        told = {"_class_name": "UnCLIPScheduler", "clip_sample": True, "num_train_timesteps": 1000, **kind}
        path.write_text(json.dumps(told))


@lru_cache
def backbones(folder: Path) -> Backbones:
    return Backbones(folder)


def recorded(network: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A dictionary that the outputs of modules (name in the reference -> our module) are put into when it runs."""
    outputs: dict[str, Tensor] = {}
    for name, module in names.items():
        network.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output)
        )
    return outputs


def assert_near(ours: Tensor, theirs: Tensor, name: str, *, tolerance: float = 1e-4) -> None:
    """Equal up to `tolerance` of the largest value of the reference."""
    assert ours.shape == theirs.shape, f"{name} is {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error < tolerance, f"{name} differs by {error:.1e}"
