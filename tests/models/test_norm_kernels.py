"""The CUDA kernels of the normalisation, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
