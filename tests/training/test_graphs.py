"""`cuda_graphs`: what it does not go with is refused, and a machine without a GPU is told. `test_cuda.py` has the graphs."""

from __future__ import annotations

import pytest
import torch

from mavcli.errors import RecipeError
from mavcli.training.distributed import Group
from mavcli.training.loop import train_stage
from mavcli.weights.provenance import load_weights


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("clip", (), "stage `clip`, whose network is no U-Net"),
        ("decoder", (), "dropout, whose masks are drawn anew"),
        ("sr_l", ("train.defaults.micro_batch=1",), "`train.stages.sr_l.micro_batch`"),
        ("sr_l", ("train.defaults.compile=true",), "`train.stages.sr_l.compile`"),
        ("sr_l", ("train.defaults.recompute=true",), "`train.stages.sr_l.recompute`"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tiny, backend, heard, tmp_path, stage, changes, said):
    where = f"train.stages.{stage}" if stage == "clip" else "train.defaults"
    loaded = tiny(tmp_path, f"{where}.cuda_graphs=true", *changes)
    with pytest.raises(RecipeError) as error:
        train_stage(loaded, stage, backend=backend, report=heard())
    assert error.value.message.endswith(f"does not go with {said}")
    assert error.value.hint == f"--set train.stages.{stage}.cuda_graphs=false"


def test_several_processes_are_refused(tiny, backend, heard, tmp_path):
    loaded = tiny(tmp_path, "train.defaults.cuda_graphs=true")
    with pytest.raises(RecipeError, match="does not go with 2 processes"):
        train_stage(loaded, "sr_l", backend=backend, report=heard(), group=Group(0, 2))


def test_a_cpu_trains_as_ever_and_says_so(train, heard, tmp_path):
    report = heard()
    plain = train("sr_l", tmp_path / "plain")
    asked = train("sr_l", tmp_path / "asked", "train.defaults.cuda_graphs=true", report=report)
    assert "`cuda_graphs` is for a GPU: here every layer is launched by itself" in report.messages
    here, there = load_weights(asked.weights), load_weights(plain.weights)
    assert all(torch.equal(here[name], there[name]) for name in there)
