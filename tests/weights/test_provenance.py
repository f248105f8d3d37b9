"""Weight files: what is saved comes back, and what does not fit is refused by name."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mavcli.errors import WeightsError
from mavcli.specs import ClipSpec, PriorSpec, ScheduleSpec, UNetSpec
from mavcli.weights.provenance import (
    Parent,
    WeightsHeader,
    load_weights,
    read_header,
    read_index,
    save_weights,
)

SPEC = UNetSpec(
    model_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    norm_groups=8,
    num_head_channels=8,
)


def header(**changes: object) -> WeightsHeader:
    return WeightsHeader(role="decoder", spec=SPEC).model_copy(update=changes)


def tensors(count: int = 4, size: int = 100) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"block.{i}.weight": torch.randn(size, generator=generator).bfloat16() for i in range(count)}


def test_what_is_saved_comes_back_with_its_header(tmp_path: Path) -> None:
    full = WeightsHeader(
        role="decoder", spec=SPEC, schedule=ScheduleSpec(), recipe_sha256="ab", step=7, samples_seen=70,
        parents=(Parent(role="clip", content_sha256="cd", step=3),), licence="OFL-1.1", source="mav train-stage decoder r",
    )  # fmt: skip
    written = save_weights(tmp_path / "decoder.safetensors", tensors(), full)
    assert written == [tmp_path / "decoder.safetensors"]
    back = load_weights(written[0], expect_role="decoder", expect_spec=SPEC)
    assert back.keys() == tensors().keys()
    assert all(torch.equal(back[name], value) for name, value in tensors().items())
    found = read_header(written[0])
    assert found == full.model_copy(update={"content_sha256": found.content_sha256})
    assert len(found.content_sha256) == 64 and load_weights(written[0])


@pytest.mark.parametrize(
    ("role", "spec"), [("clip", ClipSpec(vocabulary=("a", "dog"))), ("prior", PriorSpec())]
)
def test_a_header_keeps_the_kind_of_its_network(
    tmp_path: Path, role: str, spec: ClipSpec | PriorSpec
) -> None:
    save_weights(tmp_path / "x.safetensors", tensors(), WeightsHeader(role=role, spec=spec))
    assert read_header(tmp_path / "x.safetensors").spec == spec


def test_large_weights_are_split_and_joined(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    many = tensors(count=20, size=3000)
    written = save_weights(path, many, header(), max_shard_bytes=30_000)
    assert len(written) > 3 and written[0].name == f"decoder-00001-of-{len(written):05d}.safetensors"
    assert all(file.stat().st_size <= 30_000 for file in written)
    assert load_weights(path).keys() == many.keys() == read_index(path).keys()
    whole = save_weights(path, many, header())
    assert whole == [path] and list(tmp_path.iterdir()) == [path]
    split = tmp_path / "again.safetensors"
    save_weights(split, many, header(), max_shard_bytes=30_000)
    assert read_header(split).content_sha256 == read_header(path).content_sha256


def test_shards_of_two_saves_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    first = save_weights(path, tensors(8, 3000), header(), max_shard_bytes=30_000)[0].read_bytes()
    changed = {name: value + 1 for name, value in tensors(8, 3000).items()}
    written = save_weights(path, changed, header(), max_shard_bytes=30_000)
    written[0].write_bytes(first)
    with pytest.raises(WeightsError, match="different saves"):
        load_weights(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    save_weights(path, tensors(8, 3000), header(), max_shard_bytes=20_000)[1].unlink()
    with pytest.raises(WeightsError, match=r"decoder-00002-of-"):
        load_weights(path)


def test_missing_weights_come_with_the_command_that_gets_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"sr_h\.safetensors does not exist") as caught:
        load_weights(tmp_path / "sr_h.safetensors", expect_role="sr_h")
    assert caught.value.hint == "mav train-stage sr_h RECIPE" and caught.value.exit_code == 3


def test_another_stage_and_another_network_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    save_weights(path, tensors(), header())
    with pytest.raises(WeightsError, match="holds `decoder` weights, `sr_l` is needed"):
        load_weights(path, expect_role="sr_l")
    with pytest.raises(WeightsError, match=r"`channel_mult` is \[1.0, 2.0\], \[1.0, 3.0\] is wanted"):
        load_weights(path, expect_spec=SPEC.model_copy(update={"channel_mult": (1.0, 3.0)}))
    assert load_weights(path, expect_spec=SPEC.model_copy(update={"dropout": 0.3}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path, value: float) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "decoder.safetensors"
    bad = {**tensors(), "bad": torch.tensor([0.0, value])}
    with pytest.raises(WeightsError, match="`bad` holds nan or inf"):
        save_weights(path, bad, header())
    assert not list(tmp_path.iterdir())
    save_file(bad, path, metadata={"mav": header().model_dump_json(by_alias=True)})
    with pytest.raises(WeightsError, match="nan or inf in `bad`"):
        load_weights(path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\\b", "a\nb", "", "a/b"])
def test_names_that_look_like_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="unusable name"):
        save_weights(tmp_path / "decoder.safetensors", {name: torch.zeros(1)}, header())


def raw(index: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(index)) + index + data


ENTRY = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", struct.pack("<Q", 2**60), raw(b"[]"), raw(b"\xff"), raw(b'{"a": 3}'), raw(b"[" * 100_000),
     raw(f'{{"a": {ENTRY}, "a": {ENTRY}}}'.encode(), b"0000"), raw(f'{{"a": {ENTRY}}}'.encode(), b"00"),
     raw(f'{{"a": {ENTRY}}}'.encode(), b"0000")],
    ids=["empty", "junk", "huge", "list", "bytes", "number", "nested", "twice", "short", "no header"],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "decoder.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="decoder.safetensors"):
        load_weights(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "decoder.safetensors"
    save_weights(path, tensors(), header(step=1))

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(Exception, match="no space left"):
        save_weights(path, tensors(), header(step=2))
    assert read_header(path).step == 1 and list(tmp_path.iterdir()) == [path]


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    save_weights(path, tensors(), header(step=5))
    code = (
        "import sys; from mavcli.weights.provenance import read_header, read_index\n"
        "print(read_header(sys.argv[1]).step, len(read_index(sys.argv[1])), 'torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["5", "4", "False"]


def test_headers_written_when_a_unet_could_be_class_conditional_or_glides_are_still_read_and_those_networks_refused():
    old = {"num_classes": None, "text_layers": 16, "text_heads": 8, "text_vocabulary": 50257}
    spec = {**UNetSpec().model_dump(mode="json"), **old}
    assert WeightsHeader.model_validate_json(json.dumps({"role": "decoder", "spec": spec})).spec == UNetSpec()
    for told, kind in (({"num_classes": 1000}, "class-conditional ADM"), ({"text": "glide"}, "GLIDE")):
        with pytest.raises(ValidationError, match=f"{kind} network.*is no longer taken"):
            WeightsHeader.model_validate_json(json.dumps({"role": "decoder", "spec": {**spec, **told}}))
