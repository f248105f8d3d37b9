"""Inception scores equal TGANv2's and torch-fidelity's."""

import json
from pathlib import Path

import numpy as np
import pytest
from standin_networks import references

from mavcli.evaluation.inception_score import InceptionSums, inception_score

LOGITS = {
    "logits_n1010_c101": lambda: 3 * np.random.RandomState(21).standard_normal((1010, 101)),
    "onehot_like_n1010_c101": lambda: np.eye(101)[np.arange(1010) % 101] * 60,
    "constant_n100_c101": lambda: np.zeros((100, 101)),
    "odd_n1003_c1008": lambda: 2 * np.random.RandomState(22).standard_normal((1003, 1008)),
}


@pytest.mark.parametrize("name", LOGITS)
def test_a_score_is_that_of_both_codes(shared_data: Path, name: str) -> None:
    stated = json.loads((shared_data / "metric_references" / "inception_score.json").read_text())
    assert set(stated) == set(LOGITS)
    for code, (mean, std) in stated[name].items():
        seed = 2020 if "shuffle2020" in code else None
        found = inception_score(LOGITS[name](), splits=int(code.rsplit("splits", 1)[1]), shuffle_seed=seed)
        assert found.mean == pytest.approx(mean, rel=1e-9)
        assert found.std == pytest.approx(std, abs=1e-9)


def test_the_score_of_the_reference_logits_is_torch_fidelity_s(shared_data: Path) -> None:
    stated = json.loads((shared_data / "metric_references" / "nets.json").read_text())["inception"]
    # The stated values are those of a twentieth of the stored logits, in all digits that float32 logits leave.
    logits = references(shared_data, "inception_torch_fidelity")["logits_unbiased"] * np.float32(0.05)
    for splits in (1, 4):
        wanted = stated[f"isc_torch_fidelity_splits{splits}_noshuffle"]
        found = inception_score(logits, splits=splits)
        assert found.mean == pytest.approx(wanted["inception_score_mean"], abs=1e-12)
        assert found.std == pytest.approx(wanted["inception_score_std"], abs=1e-12)


def test_batches_do_not_change_a_score() -> None:
    logits = LOGITS["logits_n1010_c101"]()
    for seed in (None, 2020):
        sums = InceptionSums(1010, splits=10, shuffle_seed=seed)
        for part in np.array_split(logits, 13):
            sums.add(part)
        whole = inception_score(logits, splits=10, shuffle_seed=seed)
        assert sums.score().mean == pytest.approx(whole.mean, rel=1e-13)


def test_a_score_of_fewer_samples_than_said_is_refused() -> None:
    sums = InceptionSums(10)
    sums.add(np.zeros((9, 3)))
    with pytest.raises(ValueError, match="9 of 10 samples"):
        sums.score()
    with pytest.raises(ValueError, match="4 splits of 3 samples"):
        inception_score(np.zeros((3, 5)), splits=4)
