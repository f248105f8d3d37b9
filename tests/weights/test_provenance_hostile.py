"""Files made to mislead, and files damaged at random: one line that names the fault, at once, and never a crash."""

from __future__ import annotations

import json
import random
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mavcli.cli.app import run
from mavcli.cli.weights import _state
from mavcli.engine.assemble import load_clip, load_network
from mavcli.errors import WeightsError
from mavcli.models.clip_towers import ClipTowers
from mavcli.models.unet import UNet
from mavcli.recipe.schema import Cascade, ClipPart, Recipe
from mavcli.specs import ClipSpec, UNetSpec
from mavcli.weights.provenance import WeightsHeader, content_sha256, load_weights, read_header, save_weights
from mavcli.weights.shelf import check_weights

SPEC = UNetSpec(
    image_size=8, model_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4,
    mid_attention=False,
)  # fmt: skip
ZEROS = {"a": torch.zeros(2), "b": torch.zeros(2)}
HEADER = WeightsHeader(role="decoder", spec=SPEC, content_sha256=content_sha256(ZEROS)).model_dump_json(
    by_alias=True
)
Index = dict[str, Any]


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> Index:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(index: object, data: bytes) -> bytes:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    return struct.pack("<Q", len(text)) + text + data


def good() -> Index:
    return {"__metadata__": {"mav": HEADER}, "a": entry([2], 0, 8), "b": entry([2], 8, 16)}


def with_(**changes: object) -> bytes:
    return packed({**good(), **changes}, bytes(16))


def renamed(name: str) -> bytes:
    index = good()
    index[name] = index.pop("b")
    return packed(index, bytes(16))


def twice() -> bytes:
    text = json.dumps(good())
    return packed(f'{text[:-1]}, "b": {json.dumps(entry([2], 8, 16))}}}'.encode(), bytes(16))


def mav(**changes: object) -> bytes:
    return with_(__metadata__={"mav": json.dumps({**json.loads(HEADER), **changes})})


NAN = struct.pack("<4f", 1, 2, float("nan"), 4)
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CRAFTED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "no safetensors": (b"PK\x03\x04" + bytes(100), "is no safetensors file"),
    "index length beyond the file": (struct.pack("<Q", 2**60) + b"{}" + bytes(20), "its index should have"),
    "huge index": (struct.pack("<Q", 7_000_000) + b"{" + b" " * 7_000_000, "index of 7 MB, at most 6 MB"),
    "index cut short": (packed(good(), b"")[:40], "is cut short"),
    "a million lists": (packed(b'{"a": [' + b"[]," * 1_900_000 + b"[]]}", bytes(16)), "more lists and maps than any network"),
    "not JSON": (packed(b"{not json", bytes(16)), "damaged index: Expecting property name"),
    "not UTF-8": (packed(b'{"\xff": 1}', bytes(16)), "is no UTF-8"),
    "nested": (packed(DEEP, bytes(16)), "nested too deeply"),
    "data cut short": (packed(good(), bytes(10)), "10 bytes of tensors, its index describes 16"),
    "trailing bytes": (packed(good(), bytes(20)), "4 bytes behind the last tensor"),
    "overlap": (packed({**good(), "b": entry([2], 4, 12)}, bytes(12)), "`a` and `b` overlap"),
    "hole": (packed({**good(), "b": entry([2], 12, 20)}, bytes(20)), "4 bytes before `b` belong to no tensor"),
    "offsets out of range": (with_(b=entry([2], 2**40, 2**40 + 8)), "before `b` belong to no tensor"),
    "offsets backwards": (with_(b=entry([2], 16, 8)), "`b` of shape"),
    "shape and place disagree": (with_(b=entry([3], 8, 16)), "takes 12 bytes"),
    "negative shape": (with_(b=entry([-2, -1], 8, 16)), "impossible shape"),
    "empty tensor of enormous shape": (with_(c=entry([0, 2**60], 16, 16)), "impossible shape"),
    "unknown type": (with_(b=entry([2], 8, 16, "PICKLE")), "unknown type 'PICKLE'"),
    "twice": (twice(), "the name 'b' occurs twice"),
    "path as a name": (renamed("../../etc/x"), "unusable name '../../etc/x'"),
    "NUL in a name": (renamed("a\0b"), "unusable name 'a\\x00b'"),
    "not finite": (packed(good(), NAN), "holds nan or inf in `b`"),
    "metadata no map": (with_(__metadata__=["mav"]), "metadata is no map of texts"),
    "no header of ours": (with_(__metadata__={}), "has no `mav` header"),
    "header no JSON": (with_(__metadata__={"mav": "{"}), "has a header that cannot be read"),
    "header of another role": (mav(role="prior"), "has a header that cannot be read: spec"),
    "header with a field too many": (mav(evil=1), "cannot be read: evil"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "told"), CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_file_is_refused_in_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "decoder.safetensors"
    path.write_bytes(content)
    started = time.process_time()
    with pytest.raises(WeightsError, match=re.escape(told)) as caught:
        load_weights(path)
    assert time.process_time() - started < 1
    assert "decoder.safetensors" in caught.value.message and "\n" not in caught.value.message
    assert len(caught.value.message) < 600 + len(str(path)) and caught.value.exit_code == 3


def described(path: Path, role: str, **spec: object) -> None:
    """A file of two tensors whose header describes the network `spec`."""
    header = {**json.loads(HEADER), "role": role, "spec": spec}
    index = {**good(), "__metadata__": {"mav": json.dumps(header)}}
    path.write_bytes(packed(index, bytes(16)))


@pytest.mark.parametrize(
    ("role", "spec"),
    [
        ("decoder", {"num_res_blocks": 10**8}),
        ("decoder", {"num_res_blocks": [10**8, -(10**8), 1, 1]}),
        ("decoder", {"channel_mult": [1] * 100_000, "num_res_blocks": 1}),
        ("decoder", {"channel_mult": [1e300]}),
        ("decoder", {"model_channels": 10**12}),
        ("decoder", {"norm_groups": 7}),
        ("decoder", {"num_res_blocks": 64}),
        ("decoder", {"model_channels": 65536}),
        ("prior", {"layers": 512}),
        ("prior", {"layers": 10**8}),
        ("clip", {"text_layers": 10**8, "vision_layers": [1, 1, 1, 1], "vocabulary": ["a"]}),
        ("clip", {"text_context": 10**8, "vision_layers": [1, 1, 1, 1], "vocabulary": ["a"]}),
        ("classifier", {"widths": [10**9] * 50}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_description_of_far_more_than_the_file_holds_is_refused_before_anything_is_built(
    tmp_path: Path, role: str, spec: dict[str, object]
) -> None:
    path = tmp_path / f"{role}.safetensors"
    described(path, role, **spec)
    started = time.process_time()
    with pytest.raises(
        WeightsError,
        match="does not fit its own description|describes no network|has a header that cannot be read: spec",
    ) as caught:
        check_weights(path, _state(path, read_header(path)))
    assert time.process_time() - started < 3
    assert str(path) in caught.value.message and "\n" not in caught.value.message


EVIL = "all is\nwell\r\x1b[31m red \u202e back\x07"


def test_no_text_of_a_header_gets_a_second_line_or_a_control_character_onto_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clip.safetensors"
    texts = dict.fromkeys(("licence", "source", "importer", "recipe_sha256"), EVIL)
    parent = {"role": EVIL, "content_sha256": EVIL, "source": EVIL}
    more = {"parents": [parent], "imported_from": [{"name": EVIL, "sha256": EVIL}]}
    spec = {"vocabulary": [EVIL, "b"], "vision_layers": [1, 1, 1, 1], "pretrained": EVIL}
    header = {**json.loads(HEADER), **texts, **more, "role": "clip", "spec": spec}
    path.write_bytes(packed({**good(), "__metadata__": {"mav": json.dumps(header)}}, bytes(16)))
    plain = tmp_path / "decoder.safetensors"
    text = json.dumps({**json.loads(HEADER), **texts, **more})
    plain.write_bytes(packed({**good(), "__metadata__": {"mav": text}}, bytes(16)))
    for command, file in (("show", path), ("check", plain)):
        run(["weights", command, str(file)])
        found = capsys.readouterr()
        lines = (found.out + found.err).splitlines()
        assert all(line.isprintable() and not line.startswith("well") for line in lines), lines
    run(["weights", "show", str(path), "--json"])
    assert not re.search(r"[\x00-\x1f]", capsys.readouterr().out.rstrip("\n"))
    path.write_bytes(
        packed({**good(), "__metadata__": {"mav": HEADER.replace('"decoder"', json.dumps(EVIL))}}, bytes(16))
    )
    assert run(["weights", "show", str(path)]) == 3
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(WeightsError) as caught:
        read_header(path)
    assert caught.value.message.isprintable()


def test_the_file_that_the_crafted_ones_differ_from_is_read(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    path.write_bytes(packed(good(), bytes(16)))
    assert set(load_weights(path)) == {"a", "b"}


def network_tensors() -> dict[str, torch.Tensor]:
    return dict(UNet(SPEC).state_dict())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update({"out.2.bias": torch.zeros(3, 1)}), "`out.2.bias` is [3, 1], [3] is wanted"),
        (lambda t: t.update({"out.2.bias": torch.zeros(3, dtype=torch.int64)}), "`out.2.bias` is I64, floating point"),
        (lambda t: t.pop("out.2.bias"), "it lacks `out.2.bias`"),
        (lambda t: t.update({"more": torch.zeros(1)}), "it has `more`, which the network has not"),
        (lambda t: t.update({"z.1": t.pop("out.2.bias"), "z.2": torch.zeros(1)}), "`out.2.bias`, and 2 more"),
    ],
    ids=["shape", "type", "lacking", "unknown", "several"],
)  # fmt: skip
def test_tensors_of_another_network_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], told: str
) -> None:
    tensors = network_tensors()
    change(tensors)
    path = tmp_path / "decoder.safetensors"
    save_weights(path, tensors, WeightsHeader(role="decoder", spec=SPEC))
    with pytest.raises(WeightsError, match=re.escape(told)):
        load_network(SPEC, path, role="decoder")


def test_a_piece_of_clips_towers_that_a_file_lacks_is_named(tmp_path: Path) -> None:
    spec = ClipSpec(
        text_width=8, text_heads=1, text_layers=1, embed_dim=8, vocabulary=("a", "cat"),
        image_size=32, vision_layers=(1, 1, 1, 1), vision_width=8, vision_patch_size=None,
    )  # fmt: skip
    recipe = Recipe(name="tiny", cascade=Cascade(clip=ClipPart(network=spec)))
    tensors = dict(ClipTowers(spec).state_dict())
    path = tmp_path / "clip.safetensors"
    save_weights(path, tensors, WeightsHeader(role="clip", spec=spec))
    clip = load_clip(recipe, path)
    assert isinstance(clip, ClipTowers)
    assert clip.encode_text(["a cat"]).states.shape == (1, 77, 8)
    del tensors["towers.visual.attnpool.c_proj.bias"]
    save_weights(path, tensors, WeightsHeader(role="clip", spec=spec))
    with pytest.raises(WeightsError, match=re.escape("it lacks `towers.visual.attnpool.c_proj.bias`")):
        load_clip(recipe, path)


def shards(folder: Path) -> list[Path]:
    many = {f"block.{i}": torch.full((1000,), float(i)) for i in range(6)}
    header = WeightsHeader(role="decoder", spec=SPEC)
    return save_weights(folder / "decoder.safetensors", many, header, max_shard_bytes=10_000)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda files: files[1].unlink(), "lacks 1 of its 3 shards, the first is decoder-00002-of-00003"),
        (lambda files: files[0].with_name("decoder-00004-of-00003.safetensors").write_bytes(b""), "is one too many"),
        (lambda files: files[0].with_name("decoder-00001-of-00002.safetensors").write_bytes(b""), "more than one form"),
        (lambda files: files[0].with_name("decoder.safetensors").write_bytes(b""), "more than one form"),
        (lambda files: files[2].write_bytes(files[1].read_bytes()), "repeats the tensor"),
        (lambda files: files[2].write_bytes(b""), "00003-of-00003.safetensors is empty"),
    ],
    ids=["missing", "extra", "two sets", "both forms", "duplicate", "empty"],
)  # fmt: skip
def test_a_set_of_shards_that_is_not_whole_is_refused(
    tmp_path: Path, spoil: Callable[[list[Path]], object], told: str
) -> None:
    spoil(shards(tmp_path))
    with pytest.raises(WeightsError, match=re.escape(told)) as caught:
        load_weights(tmp_path / "decoder.safetensors")
    assert "\n" not in caught.value.message


def test_a_thousand_mutated_files_are_refused_or_known_by_their_sha256(tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    save_weights(path, network_tensors(), WeightsHeader(role="decoder", spec=SPEC))
    whole = path.read_bytes()
    index = 8 + struct.unpack("<Q", whole[:8])[0]
    draw = random.Random(5)
    refused = found = passed = 0
    slowest = 0.0
    for case in range(1000):
        mutated = bytearray(whole)
        # Two thirds in the index, where the claims are; one to three bytes each, and every tenth file is cut as well.
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(index) if case % 3 else draw.randrange(len(whole))
            mutated[place] ^= draw.randint(1, 255)
        if case % 10 == 9:
            del mutated[draw.randrange(len(mutated)) :]
        path.write_bytes(mutated)
        started = time.process_time()
        try:
            load_weights(path)
        except WeightsError as error:
            found += "its tensors are not those" in error.message
            refused += "its tensors are not those" not in error.message
            assert "\n" not in error.message and str(path) in error.message, error.message
        else:
            passed += 1
            # What passes is a change of the header's words, which no tensor depends on.
            assert mutated[index:] == whole[index:]
        slowest = max(slowest, time.process_time() - started)
    assert refused + found + passed == 1000 and slowest < 1
    assert refused > 500 and found > 200 and passed < 100, (refused, found, passed)
