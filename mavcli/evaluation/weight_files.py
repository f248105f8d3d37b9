"""Weights of published measuring networks: where a file is, and its tensors, whatever it is wrapped in."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mavcli.errors import WeightsError
from mavcli.weights.manifest import weight_roots
from mavcli.weights.pickles import read_pickle
from mavcli.weights.provenance import StoredTensors
from mavcli.weights.torchscript import is_torchscript, read_torchscript

PUBLISHED: dict[str, tuple[str, ...]] = {
    "i3d": ("i3d_torchscript.pt", "i3d_pretrained_400.pt"),
    "inception": ("pt_inception-2015-12-05-6726825d.pth",),
    "c3d": ("conv3d_deepnetA_ucf.npz",),
    "c3d mean": ("mean2.npz",),
    "ViT-B/32": ("ViT-B-32.pt",),
    "ViT-L/14": ("ViT-L-14.pt",),
}
"""Network -> the names under which its weights are published, the one that is looked for first at the front."""

SOURCES = {
    "i3d": "https://github.com/universome/fvd-comparison (i3d_torchscript.pt), "
    "https://github.com/songweige/content-debiased-fvd (i3d_pretrained_400.pt)",
    "inception": "https://github.com/mseitzer/pytorch-fid/releases",
    "c3d": "https://github.com/pfnet-research/tgan2",
    "c3d mean": "https://github.com/pfnet-research/tgan2",
    "ViT-B/32": "https://github.com/openai/CLIP",
    "ViT-L/14": "https://github.com/openai/CLIP",
}

_SHA256 = {
    "pt_inception-2015-12-05-6726825d.pth": "6726825d",
    "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-L-14.pt": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
}
"""What publishers state of their files, whole or its beginning."""


def metric_folders() -> list[Path]:
    """Where measuring networks are looked for when no file is named: in `metrics` of the installation, of the user."""
    return [root / "metrics" for root in weight_roots()]


def lying_weights(network: str) -> Path | None:
    """The published file of `network` in a folder `metrics` of weights, or None where none lies there."""
    places = (folder / name for name in PUBLISHED.get(network, ()) for folder in metric_folders())
    return next((path for path in places if path.is_file()), None)


def find_weights(network: str, named: Path | None, *, option: str = "--weights") -> Path:
    """The file the user named, or the one that lies ready. Raises WeightsError with where to get it."""
    if named is not None:
        if not named.is_file():
            raise WeightsError(
                f"{named} is no file, weights of `{network}` are wanted", hint=_where(network, option)
            )
        return named
    path = lying_weights(network)
    if path is None:
        raise WeightsError(f"no weights of `{network}` are here", hint=_where(network, option))
    return path


def is_published(path: Path, sha256: str) -> bool | None:
    """Whether a file is the one that its publisher released under this name; None where they state no digest."""
    stated = _SHA256.get(path.name)
    return None if stated is None else sha256.startswith(stated)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, float32, from safetensors, a pickled state dict, or a TorchScript archive; no code runs."""
    if path.suffix == ".safetensors":
        tensors = dict(StoredTensors(path))
    elif is_torchscript(path):
        tensors = read_torchscript(path)
    else:
        tensors = read_pickle(path)
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _where(network: str, option: str) -> str:
    names = " or ".join(PUBLISHED.get(network, ())) or "a file of open_clip's"
    source = SOURCES.get(network)
    return f"{option} FILE, or put {names} into {metric_folders()[-1]}" + (
        f"; published at {source}" if source else ""
    )
