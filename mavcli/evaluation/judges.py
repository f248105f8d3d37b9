"""How the judges of the pocket world are kept: networks that measure, and take no part in what makes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from torch import nn

from mavcli.errors import WeightsError
from mavcli.specs import ClassifierSpec, MotionJudgeSpec
from mavcli.weights.provenance import WeightsHeader, load_weights, save_weights

N = TypeVar("N", bound=nn.Module)


def save_judge(
    network: nn.Module,
    path: Path,
    *,
    role: str,
    spec: ClassifierSpec | MotionJudgeSpec,
    source: str,
    steps: int,
    samples_seen: int,
) -> None:
    """Write a judge: matrices as bfloat16, vectors (normalisation statistics among them) as float32."""
    tensors = {
        name: value.bfloat16() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in network.state_dict().items()
    }
    recipe = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    header = WeightsHeader(
        role=role,
        spec=spec,
        recipe_sha256=hashlib.sha256(recipe.encode()).hexdigest(),
        step=steps,
        samples_seen=samples_seen,
        source=source,
    )
    save_weights(path, tensors, header)


def load_judge(network: N, path: Path, *, role: str, spec: ClassifierSpec | MotionJudgeSpec, hint: str) -> N:
    """`network` with the weights of `path`, frozen. Raises WeightsError when they are missing or of another world."""
    tensors = load_weights(path, expect_role=role, expect_spec=spec, hint=hint)
    if set(tensors) != set(network.state_dict()):
        raise WeightsError(f"{path} does not fit its own description", hint=hint)
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return network.eval().requires_grad_(False)
