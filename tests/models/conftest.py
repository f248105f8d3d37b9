"""The tiny families of `tiny_unets.py` as fixtures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_unets import SPECS, Family, per_frame, perturb


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small only wait for one another's threads."""
    torch.set_num_threads(1)


@pytest.fixture(params=SPECS, scope="session")
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param, SPECS[request.param])


@pytest.fixture(scope="session")
def helpers() -> SimpleNamespace:
    """Functions of this file; test modules cannot import one another."""
    families = {name: Family(name, spec) for name, spec in SPECS.items()}
    return SimpleNamespace(perturb=perturb, per_frame=per_frame, replace=replace, families=families)
