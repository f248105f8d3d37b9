"""What is loaded is what was digested: weights that rot or change are refused, and no record of earlier runs hides it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mavcli.errors import WeightsError
from mavcli.specs import UNetSpec
from mavcli.weights import provenance, reading
from mavcli.weights.provenance import (
    StoredTensors,
    StoredWeights,
    WeightsHeader,
    load_weights,
    read_header,
    save_weights,
)

HEADER = WeightsHeader(role="decoder", spec=UNetSpec())


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if seconds had passed since each file was written."""
    monkeypatch.setattr(reading, "is_settled", lambda *times: True)


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors whose SHA-256 was computed."""
    names: list[str] = []
    digest = provenance._digest_tensor

    def recorded(into: object, name: str, tensor: torch.Tensor) -> None:
        names.append(name)
        digest(into, name, tensor)

    monkeypatch.setattr(provenance, "_digest_tensor", recorded)
    return names


def write(folder: Path, *, seed: int = 0, shards: bool = False) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"block.{i}.weight": torch.randn(500, generator=generator).bfloat16() for i in range(6)}
    path = folder / "decoder.safetensors"
    save_weights(path, tensors, HEADER, max_shard_bytes=6000 if shards else 10**6)
    return path


def flip_a_sign(file: Path) -> None:
    """In place: the last number of the file."""
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([byte ^ 0x80]))


@pytest.mark.parametrize("read", [load_weights, StoredWeights], ids=["whole", "one by one"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_flipped_sign_is_refused_with_the_file_and_a_command(
    tmp_path: Path, read: Callable[[Path], object], shards: bool
) -> None:
    path = write(tmp_path, shards=shards)
    read(path)
    flip_a_sign(provenance.weight_files(path)[-1])
    with pytest.raises(WeightsError, match="its tensors are not those that its header describes") as caught:
        read(path)
    assert str(tmp_path) in caught.value.message and caught.value.exit_code == 3
    assert "mav weights check" in str(caught.value.hint)


def test_weights_that_do_not_say_their_digest_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "decoder.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"mav": HEADER.model_dump_json(by_alias=True)})
    with pytest.raises(WeightsError, match="not those that its header describes"):
        load_weights(path)


@pytest.mark.usefixtures("settled")
def test_what_an_earlier_run_digested_is_summed_and_not_digested_again(
    tmp_path: Path, digested: list[str]
) -> None:
    path = write(tmp_path, shards=True)
    digested.clear()
    first = load_weights(path)
    assert len(digested) == 6
    again = load_weights(path)
    assert len(digested) == 6 and all(torch.equal(first[name], again[name]) for name in first)
    StoredWeights(path)
    assert len(digested) == 6
    StoredWeights(path, again=True)
    assert len(digested) == 12


def test_a_file_that_was_written_just_now_is_not_remembered(
    tmp_path: Path, digested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    now = path.stat().st_ctime_ns + 1_000_000
    monkeypatch.setattr("mavcli.files.time.time_ns", lambda: now)
    digested.clear()
    load_weights(path)
    load_weights(path)
    assert len(digested) == 12


@pytest.mark.usefixtures("settled")
def test_a_change_that_restores_the_time_of_writing_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path)
    load_weights(path)
    status = path.stat()
    flip_a_sign(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(WeightsError, match="its header describes"):
        load_weights(path)


@pytest.mark.usefixtures("settled")
def test_rot_that_no_time_tells_of_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "stamp_of", lambda file: (1, 2, 3, 4, 5))
    path = write(tmp_path)
    load_weights(path)
    assert list((tmp_path / "cache" / "digests").iterdir())
    flip_a_sign(path)
    with pytest.raises(WeightsError, match="its header describes"):
        load_weights(path)


@pytest.mark.usefixtures("settled")
def test_the_shard_that_rotted_is_named_where_the_others_are_known(tmp_path: Path) -> None:
    path = write(tmp_path, shards=True)
    load_weights(path)
    bad = provenance.weight_files(path)[1]
    flip_a_sign(bad)
    with pytest.raises(WeightsError, match=f"^{bad} is damaged"):
        load_weights(path)


@pytest.mark.usefixtures("settled")
def test_a_record_that_is_damaged_or_of_other_weights_is_not_believed(
    tmp_path: Path, digested: list[str]
) -> None:
    path = write(tmp_path)
    load_weights(path)
    (record,) = (tmp_path / "cache" / "digests").iterdir()
    for text in (
        b"",
        b"[]",
        b'{"stamp": null}',
        record.read_bytes().replace(b'"sha256": "', b'"sha256": "f'),
    ):
        record.write_bytes(text)
        digested.clear()
        load_weights(path)
        assert len(digested) == 6


def test_loaded_tensors_do_not_change_with_their_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    tensors = load_weights(path)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    path.write_bytes(bytes(path.stat().st_size))  # in place, as `cp` does
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_weights_that_were_exchanged_since_their_header_was_read_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    seen = read_header(path).content_sha256
    write(tmp_path, seed=1)
    for read in (
        lambda: load_weights(path, expect_sha256=seen),
        lambda: StoredWeights(path, sha256=seen),
    ):
        with pytest.raises(WeightsError, match="other weights than when this run began"):
            read()


def test_tensors_that_are_read_one_by_one_are_those_that_were_checked(tmp_path: Path) -> None:
    path = write(tmp_path)
    stored = StoredWeights(path)
    name = max(stored, key=lambda name: provenance.read_index(path)[name].begin)
    flip_a_sign(path)
    with pytest.raises(WeightsError, match="changed while it was read"):
        stored[name]


def test_a_checkpoint_of_anothers_that_changes_while_it_is_imported_is_refused(tmp_path: Path) -> None:
    from mavcli.weights.source import Checkpoint

    path = write(tmp_path)
    stored, checkpoint = StoredTensors(path), Checkpoint(path)
    os.utime(path, (1, 1))
    with pytest.raises(WeightsError, match="changed while it was read"):
        stored["block.0.weight"]
    with pytest.raises(WeightsError, match="changed while it was read"):
        checkpoint.sha256(path)
