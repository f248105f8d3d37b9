"""`inflate_file` on whole networks of every family: what it writes is the image network, frame by frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_unets import SPECS, Family

from mavcli.engine.assemble import load_network
from mavcli.errors import DiskError, WeightsError
from mavcli.models.unet import UNet, is_temporal
from mavcli.specs import PriorSpec, UNetSpec
from mavcli.weights import inflation
from mavcli.weights.inflation import InflatedWeights, inflate_file, prove
from mavcli.weights.locate import inherit
from mavcli.weights.provenance import (
    StoredWeights,
    WeightsHeader,
    load_weights,
    read_header,
    read_index,
    save_weights,
)

ROLES = {name: "sr_l" if spec.low_res_channels else "decoder" for name, spec in SPECS.items()}


def save_image(
    folder: Path, name: str = "pocket decoder", *, dtype: torch.dtype = torch.float32
) -> tuple[Path, UNet]:
    """The image weights of a tiny family, and the network."""
    network = Family(name, SPECS[name]).image_network()
    path = folder / f"{ROLES[name]}.safetensors"
    tensors = {key: value.to(dtype) for key, value in network.state_dict().items()}
    save_weights(path, tensors, WeightsHeader(role=ROLES[name], spec=network.spec))
    return path, network


def load(path: Path) -> UNet:
    header = read_header(path)
    network = load_network(header.spec, path, role=header.role)
    assert isinstance(network, UNet)
    return network


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_inflation_is_exact_and_stays_so_when_saved_loaded_and_widened(tmp_path: Path, name: str) -> None:
    family = Family(name, SPECS[name])
    source, image = save_image(tmp_path, name)
    done = inflate_file(source, tmp_path)
    video = load(tmp_path / f"{done.header.role}.safetensors")
    x, t, condition = family.inputs(2, 5, fps=video.spec.fps)
    pictures = image(x, t, replace(condition, fps=None))
    assert pictures.std() > 0.1 and done.inflation.difference == (0.0, 0.0, 0.0, 0.0)
    assert (video(x, t, condition) - pictures).abs().max() == 0

    again = tmp_path / "again.safetensors"
    save_weights(again, video.state_dict(), done.header)
    assert (load(again)(x, t, condition) - pictures).abs().max() == 0
    if family.spec.mask_channels or family.spec.low_res_channels:
        return
    widened = inflate_file(source, tmp_path, widen="mask")
    assert widened.header.role == "interp" and set(widened.inflation.difference) == {0.0}
    known = torch.randn(2, 5, 4, *x.shape[3:])
    wide = load(tmp_path / "interp.safetensors")
    assert (wide(x, t, replace(condition, masked_video=known)) - pictures).abs().max() == 0


def test_a_video_decoder_becomes_an_interpolator(tmp_path: Path) -> None:
    source, image = save_image(tmp_path)
    first = inflate_file(source, tmp_path)
    later = inflate_file(tmp_path / "decoder_t.safetensors", tmp_path, widen="mask")
    assert set(later.inflation.difference) == {0.0} and later.header.role == "interp"
    held = sum(p.numel() for p in image.parameters())
    # of the chain, so that what nothing has trained is counted whole
    assert later.inflation.added == later.inflation.parameters - held > first.inflation.added


def test_the_file_is_what_the_trainer_would_start_from(tmp_path: Path) -> None:
    source, image = save_image(tmp_path)
    done = inflate_file(source, tmp_path, position="relbias")
    written = load_weights(tmp_path / "decoder_t.safetensors", expect_role="decoder_t")
    assert isinstance(done.header.spec, UNetSpec)
    network = UNet(done.header.spec)
    new = inherit(network, image.state_dict(), source=source)
    assert written.keys() == network.state_dict().keys()
    assert {name for name in written if is_temporal(name)} == set(new)
    for name, value in network.state_dict().items():
        if name not in new:
            assert torch.equal(written[name], value), name
        elif not value.any() or ".temporal.weight" in name:
            assert torch.equal(written[name], value), f"{name} does not start as in training"
        elif value.numel() > 64:
            assert 0.5 < float(written[name].std() / value.std()) < 2, name
    with pytest.raises(WeightsError, match="another network"):
        load_weights(tmp_path / "decoder_t.safetensors", expect_spec=image.spec)


def test_the_header_says_what_was_added_and_what_it_comes_from(tmp_path: Path) -> None:
    source, image = save_image(tmp_path, dtype=torch.bfloat16)
    done = inflate_file(source, tmp_path, command="mav inflate decoder.safetensors")
    header = read_header(tmp_path / "decoder_t.safetensors")
    assert header == done.header and load_weights(tmp_path / "decoder_t.safetensors")
    held = sum(p.numel() for p in image.parameters())
    index = read_index(tmp_path / "decoder_t.safetensors")
    assert header.inflation is not None and header.inflation.parameters == sum(
        info.parameters for info in index.values()
    )
    assert header.inflation.added == header.inflation.parameters - held > 0
    assert {info.dtype for info in index.values()} == {"BF16"}
    assert header.parents == (read_header(source).as_parent(),) and header.step == 0
    assert done.bytes_after > done.bytes_before


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    source, _ = save_image(tmp_path)
    hashes = [
        inflate_file(source, tmp_path / str(i), seed=seed).header.content_sha256
        for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_network_that_is_not_the_same_fails_the_proof_and_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = save_image(tmp_path)

    class Spoilt(InflatedWeights):
        def _fresh(self, name: str) -> torch.Tensor:
            value = super()._fresh(name)
            return value + 0.01 if name == "middle_block.1.temporal.proj_out.weight" else value

    monkeypatch.setattr(inflation, "InflatedWeights", Spoilt)
    with pytest.raises(WeightsError, match="differs from .* nothing was written"):
        inflate_file(source, tmp_path)
    assert list(tmp_path.iterdir()) == [source]


def test_the_proof_looks_at_each_frame(tmp_path: Path) -> None:
    source, image = save_image(tmp_path)
    spec = UNetSpec.model_validate(image.spec.model_dump() | {"temporal": "p3d"})
    after = dict(InflatedWeights(StoredWeights(source), spec, source=source))
    shift = after["input_blocks.0.0.temporal.weight"]
    shift.zero_()
    shift[:, :, 0] = torch.eye(len(shift))  # every frame becomes the one before it, the first becomes nothing
    difference, size = prove(image.spec, StoredWeights(source), spec, after)
    assert size == 2 * spec.multiple and min(difference) > 0.01 and len(set(difference)) == 4


@pytest.mark.parametrize(
    ("role", "spec", "widen", "words"),
    [
        ("prior", PriorSpec(width=8, layers=1, num_heads=1), "none", "only `decoder` and `sr_l`"),
        ("sr_l", SPECS["pocket sr"], "mask", "only a decoder becomes ↑F"),
        ("decoder_t", Family("", SPECS["adm plain"]).inflated(), "none", "have temporal layers already"),
        ("decoder", SPECS["adm plain"], "none", "does not fit its own description"),
    ],
)
def test_weights_that_cannot_be_inflated_are_refused(
    tmp_path: Path, role: str, spec: UNetSpec | PriorSpec, widen: str, words: str
) -> None:
    source = tmp_path / "x.safetensors"
    save_weights(source, {"input_blocks.0.0.weight": torch.zeros(1)}, WeightsHeader(role=role, spec=spec))
    with pytest.raises(WeightsError, match=words):
        inflate_file(source, tmp_path / "out", widen=widen)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    source, _ = save_image(tmp_path)
    inflate_file(source, tmp_path)
    with pytest.raises(DiskError, match="exists"):
        inflate_file(source, tmp_path)
    inflate_file(source, tmp_path, force=True)
