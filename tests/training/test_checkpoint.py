"""A checkpoint as something that people share: it is read and never run, its mode is the usual one, damage is one thing and a
missing permission another."""

from __future__ import annotations

import errno
import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mavcli.errors import DiskError, WeightsError
from mavcli.training import checkpoint as checkpoints
from mavcli.training.checkpoint import newest_checkpoint, save_checkpoint


class Payload:
    """Unpickled by anybody, it makes a file: harmless, and seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """A manifest that is right about whatever lies in `folder`, as anybody can write one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json")
    described = {f.relative_to(folder).as_posix(): checkpoints.describe_file(f) for f in files}
    manifest |= {"files": described, **changes}
    told = {"manifest_sha256": checkpoints._digest(manifest), **manifest}
    (folder / "manifest.json").write_text(json.dumps(told))


@pytest.mark.parametrize("schema", [2, checkpoints.SCHEMA])
@pytest.mark.parametrize("name", ["shards/.metadata", "shards/00000.safetensors", "state.safetensors"])
def test_a_pickle_in_a_checkpoint_is_never_run(name, schema, tmp_path):
    run = tmp_path / "run"
    folder = save_checkpoint(run, {"x": torch.zeros(2)}, {"step": 1})
    (folder / "state.safetensors").unlink()
    (folder / "shards").mkdir()
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "it-ran")))
    rewrite_manifest(folder, schema=schema)
    for use in (checkpoints.Checkpoint.shapes, checkpoints.Checkpoint.tensors):
        with pytest.raises(WeightsError, match="pickle|no safetensors file"):
            use(newest_checkpoint(run)[0])
    assert not (tmp_path / "it-ran").exists()


def test_the_payload_of_these_tests_does_run_when_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "it-ran"))).close()
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"x": {"shape": [4]}},
        {"x": {"shape": [4, 1], "first": 0}},
        {"x": {"shape": "four", "first": 0}},
        [],
    ],
)
def test_a_shard_whose_words_make_no_sense_is_a_line(told, tmp_path):
    folder = save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": 1})
    (folder / "state.safetensors").unlink()
    (folder / "shards").mkdir()
    save_file({"x": torch.zeros(2)}, folder / "shards" / "00000.safetensors", {"shares": json.dumps(told)})
    rewrite_manifest(folder)
    with pytest.raises(WeightsError, match="is no shard of a checkpoint"):
        newest_checkpoint(tmp_path)[0].tensors()


def test_shards_that_lack_rows_are_not_filled_up_with_zeros(tmp_path):
    folder = save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": 1})
    (folder / "state.safetensors").unlink()
    (folder / "shards").mkdir()
    told = {"shares": json.dumps({"x": {"shape": [4], "first": 0}})}
    save_file({"x": torch.ones(2)}, folder / "shards" / "00000.safetensors", told)
    rewrite_manifest(folder)
    with pytest.raises(WeightsError, match="lack rows of `x`"):
        newest_checkpoint(tmp_path)[0].tensors()


MANIFESTS = [
    "{}",
    "[]",
    "null",
    "7",
    '"text"',
    '{"schema": 3}',
    '{"manifest_sha256": "0"}',
    '{"schema": 3, "step"',
]


@pytest.mark.parametrize("text", [*MANIFESTS, "[" * 100_000])
def test_a_manifest_of_any_shape_that_is_not_whole_falls_back_to_the_older_checkpoint(text, tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": step})
    newest = tmp_path / "step-0000002"
    (newest / "manifest.json").write_text(text)
    found, skipped = newest_checkpoint(tmp_path)
    assert found.step == 1 and skipped == [f"{newest} is damaged and was skipped"]


@contextmanager
def umask(value: int):
    old = os.umask(value)
    try:
        yield
    finally:
        os.umask(old)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_the_modes_of_a_checkpoint_and_of_exported_weights_are_what_the_umask_says(
    mask, file, folder, train, tmp_path
):
    with umask(mask):
        train("sr_h", tmp_path / "out", "train.defaults.steps=1")
    paths = [p for name in ("sr_h", "weights") for p in (tmp_path / "out" / name).rglob("*")]
    modes = {p: p.stat().st_mode & 0o777 for p in paths if p.name not in (".lock", ".sr_h.lock")}
    assert any(p.name == "state.safetensors" for p in modes)
    assert {p: mode for p, mode in modes.items() if mode != (folder if p.is_dir() else file)} == {}


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": step})
    file = tmp_path / "step-0000002" / "state.safetensors"

    def forbidden(path):  # root may read what has no permission at all
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "describe_file", forbidden)
    with pytest.raises(DiskError, match=f"{file} may not be read by this user") as told:
        newest_checkpoint(tmp_path)
    assert told.value.exit_code == 6 and "delete" not in told.value.hint and "chmod" in told.value.hint
