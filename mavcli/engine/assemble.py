"""Networks out of specs and weight files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mavcli.models.clip import Clip, ClipReader
from mavcli.models.clip_towers import ClipTowers, has_own_towers
from mavcli.models.prior import Prior
from mavcli.models.unet import UNet
from mavcli.recipe.schema import Recipe
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec
from mavcli.weights.provenance import index_of, load_weights
from mavcli.weights.safety import check_fit


def build_network(spec: ClipSpec | PriorSpec | UNetSpec) -> nn.Module:
    """The network of a spec, with its first (untrained) weights."""
    if isinstance(spec, ClipSpec):
        return Clip(spec)
    return Prior(spec) if isinstance(spec, PriorSpec) else UNet(spec)


def on_meta(spec: ClipSpec | PriorSpec | UNetSpec) -> nn.Module:
    """The network of a spec without memory."""
    with torch.device("meta"):
        return build_network(spec)


def load_network(
    spec: ClipSpec | PriorSpec | UNetSpec,
    path: Path,
    *,
    role: str | tuple[str, ...],
    sha256: str | None = None,
) -> nn.Module:
    """The network of `spec` with the weights of `path`, in float32, ready for sampling.

    `sha256` is the digest of the tensors that are expected, where their header was read before.
    CLIP's towers do without open_clip where that can be.
    Raises WeightsError when the file is missing or damaged, of another stage, of another network or other weights.
    """
    tensors = load_weights(path, expect_role=role, expect_spec=spec, expect_sha256=sha256)
    # CLIP's towers keep buffers outside their state, so they are built for real; all else without memory
    if isinstance(spec, ClipSpec):
        network: nn.Module = ClipTowers(spec) if has_own_towers(spec) else Clip(spec)
    else:
        network = on_meta(spec)
    check_fit(index_of(tensors), network.state_dict(), path)
    for name in tensors:  # one by one: of half-precision weights no second copy is held
        if tensors[name].is_floating_point():
            tensors[name] = tensors[name].float()
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def load_clip(recipe: Recipe, path: Path, *, sha256: str | None = None) -> ClipReader:
    """CLIP's towers, frozen."""
    network = load_network(recipe.cascade.clip.network, path, role="clip", sha256=sha256)
    assert isinstance(network, ClipReader)
    return network


def load_prior(recipe: Recipe, path: Path, *, sha256: str | None = None) -> Prior:
    """P, frozen."""
    network = load_network(recipe.cascade.prior.network, path, role="prior", sha256=sha256)
    assert isinstance(network, Prior)
    return network
