"""Kept stage outputs: found again, never wrong, never too many."""

import os

import torch

from mavcli.engine.work import Work, content_key


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
