"""The CUDA kernels of the normalisation, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mavcli.models.normalisation import kernels_fault

pytest.importorskip("triton")


def test_values_and_gradients_are_those_of_pytorch():
    # Triton decides when its kernels are defined whether they are interpreted, so in a process of its own.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if device == "cpu" else {})}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("norm_on_kernels.py"), device],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so the kernels can be had")
def test_where_they_cannot_be_had_the_reason_is_told_once():
    kernels_fault.cache_clear()
    with pytest.warns(UserWarning, match=r"PyTorch's own kernels on this GPU .*`mav doctor`") as told:
        first, again = kernels_fault(warn=True), kernels_fault(warn=True)
    assert first and first == again and len(told) == 1
    kernels_fault.cache_clear()
