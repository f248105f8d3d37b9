"""Fréchet distances equal those of the codes of the field, streamed or not."""

import json
from pathlib import Path

import numpy as np
import pytest
from standin_networks import reference_module, references

from mavcli.evaluation.frechet import Covariance, Moments, frechet_distance, gaussian_of

EXACT = (
    "pytorch_fid",
    "clean_fid",
    "torchmetrics",
    "torch_fidelity",
    "stylegan_v_fvd_unbiased_cov",
    "videogpt_fvd_float64",
    "symmetric_eigh_float64",
)
PAIRS = (
    "gauss_n2048_d400",
    "correlated_n1000_d64",
    "singular_n16_d400",
    "same_n256_d64",
    "same_permuted_n256_d64",
    "d1_n100",
    "constant_vs_constant_n16_d400",
    "rank1_n64_d32",
    "big_mean_n512_d128",
)


def distance(a: np.ndarray, b: np.ndarray, covariance: Covariance = "unbiased") -> float:
    """Both sides in uneven batches."""
    return frechet_distance(
        gaussian_of(np.array_split(a, 7), covariance), gaussian_of(np.array_split(b, 5), covariance)
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_a_distance_is_that_of_each_code_in_float64(shared_data: Path, pair: str) -> None:
    values = json.loads((shared_data / "metric_references" / "frechet.json").read_text())["values"]
    assert set(values) == set(PAIRS)
    a, b = reference_module(shared_data, "stats_recipe").feats(pair)
    for covariance, names in (("unbiased", EXACT), ("biased", ("biased_cov_pytorch_fid_formula",))):
        found = distance(a, b, covariance)
        stated = [values[pair][name] for name in names if not isinstance(values[pair][name], str)]
        assert stated or covariance == "biased"
        for value in stated:
            assert found == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_distances_between_the_reference_features_are_those_that_are_stated(shared_data: Path) -> None:
    stated = json.loads((shared_data / "metric_references" / "nets.json").read_text())
    frames = references(shared_data, "inception_pytorch_fid")["pool3"][:, :8].astype(np.float64)
    found = distance(frames[:16], frames[16:])
    wanted = stated["inception"][
        "frechet_first16_vs_last16_first64dims_pytorch_fid"
    ]  # 8 numbers, says its note
    assert found == pytest.approx(wanted, rel=1e-12)
    clips = references(shared_data, "i3d")["logits_eps1e5"][:, :3].astype(np.float64)
    found = distance(clips[:4], clips[4:])
    assert found == pytest.approx(stated["i3d"]["frechet_first4_vs_last4_dims0to2_stylegan_v"], rel=1e-12)
    # VideoGPT's port computes in float32.
    assert found == pytest.approx(stated["i3d"]["frechet_first4_vs_last4_dims0to2_videogpt"], rel=1e-4)


def test_fewer_samples_than_features_give_the_exact_value() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((12, 60)), rng.standard_normal((9, 60)) + 0.5
    x, y = a - a.mean(0), b - b.mean(0)
    # With X^T X / (n - 1) for covariances the trace of the root is the nuclear norm of X Y^T.
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt(11 * 8)
    traces = (x**2).sum() / 11 + (y**2).sum() / 8
    exact = ((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * overlap
    assert distance(a, b) == pytest.approx(exact, rel=1e-12)


def test_moments_do_not_depend_on_the_batches_and_keep_digits_far_from_zero() -> None:
    rows = 1e6 + np.random.default_rng(1).standard_normal((500, 5))
    at_once, in_parts, merged = Moments(), Moments(), Moments()
    at_once.add(rows)
    for part in np.array_split(rows, 60):
        in_parts.add(part)
    for part in (rows[:3], rows[3:400], rows[400:]):
        one = Moments()
        one.add(part)
        merged.merge(one)
    wanted = np.cov((rows - 1e6).T)
    for moments in (at_once, in_parts, merged):
        found = moments.gaussian()
        assert found.count == 500
        np.testing.assert_allclose(found.covariance, wanted, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-15)


def test_what_has_no_covariance_or_is_not_finite_is_refused() -> None:
    one = Moments()
    one.add(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        one.gaussian()
    with pytest.raises(ValueError, match="not finite"):
        one.add(np.array([[0.0, np.nan, 0.0]]))
    with pytest.raises(ValueError, match="features of 4 numbers after features of 3"):
        one.add(np.zeros((2, 4)))
