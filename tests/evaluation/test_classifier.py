"""The judge knows the rendered world, forgives soft pictures, and stays out of generation."""

import ast
from pathlib import Path

import pytest
import torch

from mavcli.errors import WeightsError
from mavcli.evaluation.classifier import (
    PARTS,
    Classifier,
    Labelled,
    accuracy,
    damaged,
    default_path,
    default_spec,
    load_classifier,
    rendered,
    save_classifier,
    train_classifier,
)
from mavcli.media.frames import to_float, to_uint8
from mavcli.report import Silent
from mavcli.specs import UNetSpec
from mavcli.weights.provenance import WeightsHeader, save_weights

PACKAGE = Path(__file__).parents[2] / "mavcli"


@pytest.fixture(scope="module")
def fresh() -> Labelled:
    return rendered(64, seed=20_001)


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return load_classifier()


def test_the_judge_reads_fresh_rendered_pictures(judge: Classifier, fresh: Labelled) -> None:
    assert all(value >= 0.98 for value in accuracy(judge, fresh).values())


def test_the_judge_reads_pairs_that_training_of_the_cascade_never_saw(judge: Classifier) -> None:
    shown = rendered(48, seed=20_002, split="held_out")
    assert all(value >= 0.97 for value in accuracy(judge, shown).values())


def test_the_judge_forgives_soft_and_noisy_pictures(judge: Classifier, fresh: Labelled) -> None:
    worse = to_uint8(damaged(to_float(fresh.pictures), torch.Generator().manual_seed(3)))
    assert all(value >= 0.9 for value in accuracy(judge, Labelled(worse, fresh.labels)).values())


def test_the_judge_reads_larger_pictures_too(judge: Classifier) -> None:
    shown = rendered(16, seed=20_003, size=128)
    assert all(value >= 0.9 for value in accuracy(judge, shown).values())


def test_a_judge_of_shuffled_labels_is_at_chance_where_one_of_true_labels_is_not() -> None:
    shown = rendered(128, seed=20_004)
    found = {
        shuffle: accuracy(
            train_classifier(
                report=Silent(), steps=24, batch_size=48, pool=384, shuffle_labels=shuffle
            ).network,
            shown,
        )
        for shuffle in (False, True)
    }
    assert found[False]["place"] > 0.6
    assert found[True]["place"] < 0.45 and found[True]["actor"] < 0.25 and found[True]["action"] < 0.3


def test_a_saved_judge_is_the_same_judge(tmp_path: Path, judge: Classifier, fresh: Labelled) -> None:
    path = tmp_path / "judge.safetensors"
    save_classifier(judge, path, steps=3, samples_seen=30)
    again = load_classifier(path)
    x = to_float(fresh.pictures[:8])
    for part in PARTS:
        assert torch.equal(judge(x)[part], again(x)[part])


def test_the_judge_that_ships_is_small() -> None:
    assert default_path().stat().st_size < 1_500_000


def test_weights_of_another_stage_are_no_judge(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    save_weights(path, {"x": torch.ones(2)}, WeightsHeader(role="decoder", spec=UNetSpec()))
    with pytest.raises(WeightsError, match="holds `decoder` weights, `classifier` is needed"):
        load_classifier(path)


def test_a_judge_of_another_world_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    other = Classifier(default_spec().model_copy(update={"places": ("beach", "desert", "space", "city")}))
    save_classifier(other, path)
    with pytest.raises(WeightsError, match="`places` is"):
        load_classifier(path)


def test_a_missing_judge_names_the_command_that_trains_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist") as caught:
        load_classifier(tmp_path / "none.safetensors")
    assert caught.value.hint is not None and "--train-classifier" in caught.value.hint


def test_nothing_that_generates_or_trains_imports_the_evaluation() -> None:
    importers = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [alias.name for alias in node.names]
                module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                if any(name.startswith("mavcli.evaluation") for name in [module, *names]):
                    importers.add(file.relative_to(PACKAGE).as_posix())
    assert "cli/eval.py" in importers
    # `cli/generate.py` and its kin make; of `cli` only what measures, or looks after files, may know the measures.
    measuring = {
        "eval",
        "eval_metrics",
        "eval_run",
        "eval_human",
        "eval_interpolation",
        "gallery",
        "ranks",
        "runs",
        "weights",
    }
    assert {name.split("/")[0] for name in importers} <= {"cli", "evaluation"}
    assert {name for name in importers if name.startswith("cli/")} <= {f"cli/{name}.py" for name in measuring}
