"""`mean_file`: the mean of weights of one network, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mavcli.errors import DiskError, MavError, UsageError, WeightsError
from mavcli.models.unet import UNet
from mavcli.specs import ScheduleSpec, UNetSpec
from mavcli.weights.inflation import inflate_file
from mavcli.weights.mean import mean_file
from mavcli.weights.provenance import WeightsHeader, load_weights, read_header, save_weights

SPEC = UNetSpec(
    image_size=8, model_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4,
    mid_attention=False,
)  # fmt: skip


def trained(
    path: Path, *, seed: int, role: str = "decoder", dtype: torch.dtype = torch.float32, **header
) -> Path:
    torch.manual_seed(seed)
    spec = header.pop("spec", SPEC)
    tensors = {name: value.to(dtype) for name, value in UNet(spec).state_dict().items()}
    tensors["steps_seen"] = torch.tensor(seed)
    save_weights(path, tensors, WeightsHeader(role=role, spec=spec, step=seed, **header))
    return path


@pytest.mark.parametrize(("shares", "wanted"), [(None, (0.5, 0.5)), ((3.0, 1.0), (0.75, 0.25))])
def test_every_tensor_is_the_weighted_mean(
    tmp_path: Path, shares: Sequence[float] | None, wanted: tuple[float, float]
) -> None:
    one, two = (trained(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    done = mean_file([one, two], tmp_path / "out", shares=shares, command="mav weights mean 1 2")
    a, b, mean = load_weights(one), load_weights(two), load_weights(tmp_path / "out" / "decoder.safetensors")
    assert mean.keys() == a.keys() and done.shares == wanted
    for name in mean:
        if name == "steps_seen":
            assert torch.equal(mean[name], a[name])
        else:
            torch.testing.assert_close(mean[name], wanted[0] * a[name] + wanted[1] * b[name])
    floating = [name for name in a if a[name].is_floating_point()]
    distance = sum(float((a[n] - b[n]).square().sum()) for n in floating)
    assert done.apart == pytest.approx(
        [(distance / sum(float(a[n].square().sum()) for n in floating)) ** 0.5]
    )


def test_the_header_names_all_of_them(tmp_path: Path) -> None:
    sources = [
        trained(tmp_path / "1.safetensors", seed=1, samples_seen=10, licence="MIT", recipe_sha256="a"),
        trained(tmp_path / "2.safetensors", seed=2, samples_seen=20, licence="Apache-2.0", recipe_sha256="b"),
        trained(tmp_path / "3.safetensors", seed=3, samples_seen=5, licence="MIT", recipe_sha256="a"),
    ]
    done = mean_file(sources, tmp_path / "out", command="mav weights mean 1 2 3")
    header = read_header(tmp_path / "out" / "decoder.safetensors")
    assert header == done.header and load_weights(tmp_path / "out" / "decoder.safetensors")
    assert [parent.content_sha256 for parent in header.parents] == [
        read_header(s).content_sha256 for s in sources
    ]
    assert (header.step, header.samples_seen) == (3, 20)
    assert (header.licence, header.recipe_sha256) == ("MIT and Apache-2.0", "")
    assert header.source == "mav weights mean 1 2 3"


def test_the_type_is_the_first_ones_and_sums_are_not_rounded_on_the_way(tmp_path: Path) -> None:
    one = trained(tmp_path / "1.safetensors", seed=1, dtype=torch.bfloat16)
    two = trained(tmp_path / "2.safetensors", seed=2)
    mean_file([one, two], tmp_path / "out")
    a, b, mean = load_weights(one), load_weights(two), load_weights(tmp_path / "out" / "decoder.safetensors")
    for name in mean.keys() - {"steps_seen"}:
        assert torch.equal(mean[name], ((a[name].double() + b[name].double()) / 2).bfloat16()), name


def test_the_mean_may_take_the_place_of_a_source(tmp_path: Path) -> None:
    one, two = trained(tmp_path / "decoder.safetensors", seed=1), trained(tmp_path / "2.safetensors", seed=2)
    elsewhere = mean_file([one, two], tmp_path / "out")
    here = mean_file([one, two], tmp_path, force=True)
    assert here.header == elsewhere.header and here.apart == elsewhere.apart
    assert load_weights(one)


def test_layers_that_one_of_them_trained_do_not_count_as_untrained(tmp_path: Path) -> None:
    image = tmp_path / "decoder.safetensors"
    torch.manual_seed(0)
    save_weights(image, UNet(SPEC).state_dict(), WeightsHeader(role="decoder", spec=SPEC))
    inflate_file(image, tmp_path / "a")
    untrained = tmp_path / "a" / "decoder_t.safetensors"
    header = read_header(untrained)
    later = tmp_path / "b" / "decoder_t.safetensors"
    save_weights(later, load_weights(untrained), header.model_copy(update={"inflation": None, "step": 7}))
    assert mean_file([untrained, later], tmp_path / "ab").header.inflation is None
    assert mean_file([untrained, untrained], tmp_path / "aa").header.inflation == header.inflation


def test_what_has_no_mean_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    one, two = (trained(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    wide = trained(tmp_path / "wide.safetensors", seed=1, spec=SPEC.model_copy(update={"model_channels": 16}))
    other = trained(tmp_path / "other.safetensors", seed=1, role="sr_l")
    noise = trained(tmp_path / "noise.safetensors", seed=1, schedule=ScheduleSpec(name="linear"))
    lacking = tmp_path / "lacking.safetensors"
    save_weights(lacking, {"steps_seen": torch.tensor(1)}, read_header(one))
    out = tmp_path / "out"

    def fault(kind: type[MavError], *sources: Path, shares: Sequence[float] | None = None) -> str:
        with pytest.raises(kind) as caught:
            mean_file(sources, out, shares=shares)
        assert not out.exists()
        return caught.value.message

    assert "two trainings or more" in fault(UsageError, one)
    assert "do not fit 2 weights" in fault(UsageError, one, two, shares=(1.0,))
    assert "do not fit 2 weights" in fault(UsageError, one, two, shares=(1.0, 0.0))
    assert "`model_channels` is 16, 8 is wanted" in fault(WeightsError, one, wide)
    assert "weights of `sr_l` and of `decoder`" in fault(WeightsError, one, other)
    assert "schedules differ" in fault(WeightsError, one, noise)
    assert "is not in both of one shape" in fault(WeightsError, one, lacking)

    mean_file([one, two], out)
    before = (out / "decoder.safetensors").read_bytes()
    with pytest.raises(DiskError, match="exists"):
        mean_file([two, two], out)
    assert (out / "decoder.safetensors").read_bytes() == before
    mean_file([two, two], out, force=True)
    assert (out / "decoder.safetensors").read_bytes() != before
