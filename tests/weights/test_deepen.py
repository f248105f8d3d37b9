"""`deepen_file`: a deeper network says what the shallower one said, learns with all of its layers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mavcli.errors import DiskError, WeightsError
from mavcli.models.embeddings import Condition
from mavcli.models.unet import UNet
from mavcli.specs import PriorSpec, UNetSpec
from mavcli.weights.deepen import deepen_file, moves
from mavcli.weights.provenance import (
    Inflation,
    WeightsHeader,
    load_weights,
    read_header,
    save_weights,
)

SPEC = UNetSpec(
    image_size=16, patch=2, model_channels=8, channel_mult=(1, 2, 2), num_res_blocks=(1, 2, 1), attention_resolutions=(4,),
    num_head_channels=8, norm_groups=4, resblock_updown=False, temporal="p3d", fps=True, clip_dim=6, context_dim=8,
)  # fmt: skip


def stirred(spec: UNetSpec, seed: int) -> UNet:
    """A network in which no layer is zero or the identity any more."""
    torch.manual_seed(seed)
    network = UNet(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def says(network: UNet, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, frames, 3, 16, 16, generator=generator)
    told = Condition(
        image_embedding=torch.randn(2, 6, generator=generator),
        fps=torch.tensor([4.0, 9.0]) if frames > 1 else None,
    )
    return network(x, torch.tensor([10, 700]), told)


def stored(path: Path, network: UNet, **header) -> Path:
    save_weights(path, network.state_dict(), WeightsHeader(role="decoder_t", spec=network.spec, **header))
    return path


@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("blocks", [(1, 2, 2), (2, 2, 1), (3, 4, 2)])
def test_a_deeper_network_says_the_same_of_clips_and_of_pictures(
    tmp_path: Path, blocks: tuple[int, ...], updown: bool
) -> None:
    shallow = stirred(SPEC.model_copy(update={"resblock_updown": updown}), 0)
    done = deepen_file(
        stored(tmp_path / "decoder_t.safetensors", shallow), blocks, tmp_path / "out", command="mav"
    )
    header = read_header(tmp_path / "out" / "decoder_t.safetensors")
    assert (
        header == done.header and isinstance(header.spec, UNetSpec) and header.spec.num_res_blocks == blocks
    )
    deep = UNet(header.spec).eval()
    deep.load_state_dict(load_weights(tmp_path / "out" / "decoder_t.safetensors"))
    assert done.after == sum(p.numel() for p in deep.parameters())
    assert done.before == sum(p.numel() for p in shallow.parameters()) < done.after
    for frames in (1, 3):
        with torch.no_grad():
            assert torch.equal(says(deep, frames), says(shallow, frames))


def test_every_new_block_learns(tmp_path: Path) -> None:
    """After two steps no new block is what it was: gradients reach them all."""
    source = stored(tmp_path / "decoder_t.safetensors", stirred(SPEC, 0))
    deepen_file(source, (2, 3, 2), tmp_path / "out")
    tensors = load_weights(tmp_path / "out" / "decoder_t.safetensors")
    spec = read_header(tmp_path / "out" / "decoder_t.safetensors").spec
    assert isinstance(spec, UNetSpec)
    deep = UNet(spec)
    deep.load_state_dict(tensors)
    for _ in range(2):  # behind a convolution of zeros gradients begin with the second step
        says(deep, 3).square().mean().backward()
        torch.optim.SGD(deep.parameters(), lr=1.0).step()
    kept = set(moves((1, 2, 1), (2, 3, 2)).values())
    new = [
        name
        for name in tensors
        if name.startswith(("input_blocks", "output_blocks"))
        and ".".join(name.split(".")[:2]) not in kept
        and name.endswith(("in_layers.2.weight", "out_layers.3.weight"))
    ]
    assert len(new) == 2 * 6
    for name in new:
        assert not torch.equal(deep.state_dict()[name], tensors[name]), name


def test_the_header_says_where_it_comes_from(tmp_path: Path) -> None:
    source = stored(
        tmp_path / "decoder_t.safetensors", stirred(SPEC, 0), step=12, samples_seen=34, licence="MIT"
    )
    done = deepen_file(source, (1, 2, 2), tmp_path / "out", command="mav weights deepen it")
    was = read_header(source)
    assert done.header.parents == (was.as_parent(),) and done.header.source == "mav weights deepen it"
    assert (done.header.step, done.header.samples_seen, done.header.licence) == (12, 34, "MIT")
    assert load_weights(tmp_path / "out" / "decoder_t.safetensors")


def test_what_inflation_added_is_counted_with_the_new_blocks(tmp_path: Path) -> None:
    def counted(spec: UNetSpec) -> dict[str, int]:
        image = UNet(spec.model_copy(update={"temporal": "none", "fps": False}))
        total, own = (sum(p.numel() for p in network.parameters()) for network in (UNet(spec), image))
        return {"parameters": total, "added": total - own}

    inflation = Inflation(**counted(SPEC), difference=(0.0,), size=16)
    source = stored(tmp_path / "decoder_t.safetensors", stirred(SPEC, 0), inflation=inflation)
    told = deepen_file(source, (2, 2, 2), tmp_path / "out").header
    assert told.inflation == inflation.model_copy(update=counted(told.spec))


def test_new_layers_have_the_type_of_the_old_and_come_from_the_seed(tmp_path: Path) -> None:
    network = stirred(SPEC, 0).bfloat16()
    source = stored(tmp_path / "decoder_t.safetensors", network)
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        deepen_file(source, (2, 2, 1), tmp_path / name, seed=seed)
        found.append(load_weights(tmp_path / name / "decoder_t.safetensors"))
    assert {t.dtype for t in found[0].values() if t.is_floating_point()} == {torch.bfloat16}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_what_cannot_be_deepened_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source = stored(tmp_path / "decoder_t.safetensors", stirred(SPEC, 0))
    out = tmp_path / "out"
    for blocks, fault in (
        ((2, 2), "has 3 levels, and 2 numbers of blocks are given"),
        ((1, 2, 1), "1,2,1 adds nothing"),
        ((4, 1, 1), "4,1,1 adds nothing"),
    ):
        with pytest.raises(WeightsError, match=fault):
            deepen_file(source, blocks, out)
    prior = PriorSpec(clip_dim=4, text_dim=4, text_context=4, width=8, layers=1, num_heads=2)
    save_weights(
        tmp_path / "prior.safetensors", {"x": torch.zeros(1)}, WeightsHeader(role="prior", spec=prior)
    )
    with pytest.raises(WeightsError, match="holds `prior`, which has no residual blocks"):
        deepen_file(tmp_path / "prior.safetensors", (2,), out)
    assert not out.exists()
    deepen_file(source, (2, 2, 1), out)
    before = (out / "decoder_t.safetensors").read_bytes()
    with pytest.raises(DiskError, match="exists"):
        deepen_file(source, (2, 2, 2), out)
    assert (out / "decoder_t.safetensors").read_bytes() == before
    deepen_file(source, (2, 2, 2), out, force=True)
    assert (out / "decoder_t.safetensors").read_bytes() != before
