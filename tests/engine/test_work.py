"""Kept stage outputs: found again, never wrong, never too many."""

import os
from dataclasses import replace

import pytest
import torch
from tiny_family import tiny_recipe

from mavcli.engine import backend
from mavcli.engine.backend import Backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.output import run_key
from mavcli.engine.randomness import Draw
from mavcli.engine.versions import sources_sha256
from mavcli.engine.work import Work, content_key

CPU = torch.device("cpu")


def test_what_was_put_comes_back_bit_for_bit(tmp_path):
    work = Work(tmp_path / "work")
    frames = torch.randint(0, 256, (1, 4, 8, 8, 3), dtype=torch.uint8)
    assert work.get("a") is None
    work.put("a", frames)
    assert torch.equal(work.get("a"), frames)
    assert [p.name for p in work.folder.iterdir()] == ["a.safetensors"]


def test_a_damaged_entry_is_forgotten(tmp_path):
    work = Work(tmp_path)
    for name, damage in (
        ("cut", lambda b: b[:-20]),
        ("flipped", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("empty", lambda b: b""),
    ):
        work.put(name, torch.arange(100.0))
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damage(path.read_bytes()))
        assert work.get(name) is None
        assert not path.exists()


def test_the_longest_unused_entries_go_first(tmp_path):
    work = Work(tmp_path, limit=12_000)  # three of these, not four
    for age, name in enumerate(("old", "next", "young")):
        work.put(name, torch.zeros(900))
        os.utime(tmp_path / f"{name}.safetensors", (1000 + age, 1000 + age))
    assert work.get("old") is not None  # used again
    work.put("new", torch.zeros(900))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["new", "old", "young"]
    assert work.size() <= 12_000


def test_a_folder_that_cannot_be_written_does_not_stop_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    work = Work(tmp_path / "file" / "work")
    work.put("a", torch.zeros(3))
    assert work.get("a") is None


def test_a_key_tells_tensors_settings_and_types_apart():
    base = {"x": torch.zeros(4), "seed": 1}
    keys = {
        content_key(base),
        content_key({**base, "seed": 2}),
        content_key({**base, "x": torch.zeros(2, 2)}),
        content_key({**base, "x": torch.zeros(4, dtype=torch.float64)}),
        content_key({**base, "x": torch.tensor([0.0, 0.0, 0.0, 1e-6])}),
    }
    assert len(keys) == 5
    assert content_key({"seed": 1, "x": torch.zeros(4)}) == content_key(base)


class Stage:
    """One stage of a cascade whose output is kept, with all that decides it."""

    def __init__(self, tiny, folder):
        self.folder, self.recipe = folder, tiny_recipe(tiny)
        self.family = find_family(self.recipe, ["sr_h"])
        self.backend = Backend(CPU, torch.float32, 1)
        self.name, self.settings, self.draws, self.at_once = "sr_h", {"fps": 24.0}, [Draw(0)], 1

    def part(self, **changes):
        self.family.parts["sr_h"] = replace(self.family.parts["sr_h"], **changes)

    def is_made(self):
        """Whether it is made, and not taken from what was kept."""
        made = []
        cascade = Cascade(
            self.recipe, self.family, self.backend, work=Work(self.folder), windows_at_once=self.at_once
        )
        make = lambda: made.append(1) or torch.zeros(2)  # noqa: E731
        cascade._kept(self.name, ("sr_h",), 0.0, self.settings, self.draws, make)
        return bool(made)


def other_norm(stage):
    stage.part(spec=stage.family.parts["sr_h"].spec.model_copy(update={"norm_eps": 1e-3}))


OTHER_STAGES = {
    "weights": lambda stage, patch: stage.part(sha256="f" * 64),
    "a description that has the same tensors": lambda stage, patch: other_norm(stage),
    "role": lambda stage, patch: stage.part(role="sr_l"),
    "stage": lambda stage, patch: setattr(stage, "name", "sr_l"),
    "setting": lambda stage, patch: setattr(stage, "settings", {"fps": 25.0}),
    "seed": lambda stage, patch: setattr(stage, "draws", [Draw(1)]),
    "sample": lambda stage, patch: setattr(stage, "draws", [Draw(0, 1)]),
    "windows that share a call": lambda stage, patch: setattr(stage, "at_once", 2),
    "device": lambda stage, patch: setattr(stage, "backend", Backend(torch.device("xpu"), torch.float32, 1)),
    "processor": lambda stage, patch: patch.setattr(backend, "_processor", lambda: "another"),
    "instruction set": lambda stage, patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    "dtype": lambda stage, patch: setattr(stage, "backend", Backend(CPU, torch.bfloat16, 1)),
    "threads": lambda stage, patch: setattr(stage, "backend", Backend(CPU, torch.float32, 2)),
    "torch": lambda stage, patch: patch.setattr(backend, "versions", lambda: {"torch": "2.99"}),
    "code": lambda stage, patch: patch.setattr(backend, "code_sha256", lambda: "0"),
}


@pytest.mark.parametrize("other", OTHER_STAGES)
def test_the_key_of_kept_work_moves_with_each_of_its_parts(other, tiny, tmp_path, monkeypatch):
    assert Stage(tiny, tmp_path).is_made() and not Stage(tiny, tmp_path).is_made()
    stage = Stage(tiny, tmp_path)
    OTHER_STAGES[other](stage, monkeypatch)
    assert stage.is_made()


RUN = {
    "kind": "generate", "prompt": "a dog", "options": {"fps": 24}, "seed": 0, "sample": 0, "device": "cpu", "dtype": "float32",
    "threads": 2, "versions": {"mavcli": "0.1.0", "torch": "2.10"}, "code_sha256": "ab",
    "weights": {"prior": {"sha256": "cd", "path": "here"}}, "inputs": [{"sha256": "ef", "path": "there"}],
    "recipe": {"resolved": {"cascade": {"skip": 5}}},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "vary"}, {"prompt": "a cat"}, {"options": {}}, {"seed": 1}, {"sample": 1}, {"device": "cuda:0"},
        {"dtype": "bfloat16"}, {"threads": 3}, {"versions": {"mavcli": "0.2.0", "torch": "2.10"}}, {"code_sha256": "ac"},
        {"weights": {"prior": {"sha256": "ce"}}}, {"inputs": [{"sha256": "fe"}]},
        {"recipe": {"resolved": {"cascade": {"skip": 4}}}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_result_is_of_the_same_run_only_where_all_that_makes_frames_is_the_same(change):
    assert run_key({**RUN, **change}) != run_key(RUN)


def test_a_result_is_of_the_same_run_from_another_place_or_with_other_threads_beside_a_gpu():
    moved = {"weights": {"prior": {"sha256": "cd", "path": "x"}}, "inputs": [{"sha256": "ef", "path": "y"}]}
    assert run_key({**RUN, **moved}) == run_key(RUN)
    gpu = {**RUN, "device": "cuda:0"}
    assert run_key({**gpu, "threads": 3}) == run_key(gpu)


def test_a_checkout_whose_code_changed_is_another_mav(tmp_path):
    for name, text in (("a.py", "x = 1"), ("engine/b.py", "y = 2"), ("cli/c.py", "z = 3"), ("notes.txt", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    first = sources_sha256(tmp_path)
    (tmp_path / "cli" / "c.py").write_text("z = 4")  # makes nothing
    assert sources_sha256(tmp_path) == first
    (tmp_path / "engine" / "b.py").write_text("y = 3")
    assert sources_sha256(tmp_path) != first
    (tmp_path / "engine" / "b.py").rename(tmp_path / "engine" / "c.py")
    assert sources_sha256(tmp_path) != first


def test_an_entry_that_cannot_be_opened_is_not_taken_for_damaged(tmp_path, monkeypatch):
    work = Work(tmp_path)
    work.put("a", torch.zeros(3))

    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("mavcli.engine.work.safe_open", refused)
        assert work.get("a") is None
    assert work.get("a") is not None
