"""Published measuring networks with the stand-in weights of `metric_references`, and small folders of clips."""

import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import torch

from mavcli.media.video import write_video


def reference_module(shared_data: Path, name: str):
    """A module of the references, such as `recipe`."""
    spec = importlib.util.spec_from_file_location(
        f"metric_{name}", shared_data / "metric_references" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def standin_tensors(shared_data: Path, layout: str) -> dict[str, torch.Tensor]:
    """The state dict that `layout_NAME.json` and `recipe.py` describe."""
    recipe = reference_module(shared_data, "recipe")
    shapes = json.loads((shared_data / "metric_references" / f"layout_{layout}.json").read_text())["shapes"]
    return {key: torch.from_numpy(recipe.tensor_for(key, shape)) for key, shape in shapes.items()}


def references(shared_data: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of one reference file."""
    with np.load(shared_data / "metric_references" / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def off_after_centring(found: np.ndarray, wanted: np.ndarray, *, centre: np.ndarray | None = None) -> float:
    """The largest relative difference, both less the mean over the reference's samples."""
    centre = wanted.mean(axis=0) if centre is None else centre
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - centre))


def write_clips(folder: Path, count: int, *, frames: int = 16, side: int = 16, seed: int = 0) -> list[Path]:
    """Lossless clips of moving noise, each with a content of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        rng = np.random.default_rng([seed, i, zlib.crc32(folder.name.encode())])
        still = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        video = np.stack([np.roll(still, f, axis=1) for f in range(frames)])
        path = folder / f"clip{i:02d}.mkv"
        write_video(path, video, fps=8, codec="ffv1")
        paths.append(path)
    return paths
