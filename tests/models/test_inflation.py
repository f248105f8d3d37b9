"""What the pseudo-3-D U-Net owes to the image U-Net it is made of (design, section 3, invariants 1 to 6)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mavcli.errors import WeightsError
from mavcli.models.unet import UNet, is_temporal
from mavcli.weights.locate import inherit

HERE = Path("decoder.safetensors")


def inflated(family, image: UNet, **changes: object) -> UNet:
    torch.manual_seed(3)
    network = UNet(family.inflated(**changes)).eval()
    inherit(network, image.state_dict(), source=HERE)
    return network


@torch.no_grad()
def test_an_inflated_network_treats_each_frame_as_the_image_network_did(family, helpers):
    image = family.image_network()
    x, t, condition = family.inputs(2, 5)
    pictures = image(x, t, helpers.replace(condition, fps=None))
    assert pictures.std() > 0.1, "a network of zeros would agree with anything"
    for position in ("none", "rope", "relbias"):
        video = inflated(family, image, temporal_position=position)
        assert (video(x, t, condition) - pictures).abs().max() == 0
    # and the image network's own frames are pictures: another batch for the embeddings, so another rounding
    apart = image(*helpers.per_frame(x, t, condition))[:, 0].unflatten(0, (2, 5))
    torch.testing.assert_close(apart, pictures, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_after_video_training_a_single_frame_still_goes_through_the_image_network(family, helpers):
    image = family.image_network()
    video = inflated(family, image)
    x, t, condition = family.inputs(2, 4)
    untouched = video(x, t, condition)
    helpers.perturb(video, only=is_temporal)
    assert (video(x, t, condition) - untouched).abs().max() > 1e-3, "the temporal layers were not disturbed"
    x, t, condition = family.inputs(3, 1)
    picture = image(x, t, helpers.replace(condition, fps=None))
    assert torch.equal(video(x, t, condition), picture)
    assert torch.equal(video(x, t, helpers.replace(condition, fps=None)), picture)


@torch.no_grad()
def test_input_channels_that_start_at_zero_change_nothing(family, helpers):
    name, channels = ("low_res", 3) if family.spec.mask_channels else ("masked_video", 4)
    image = family.image_network()
    base = inflated(family, image)
    helpers.perturb(base, only=is_temporal)
    wide = UNet(family.inflated(**{name.replace("masked_video", "mask") + "_channels": channels})).eval()
    assert inherit(wide, base.state_dict(), source=HERE) == []
    x, t, condition = family.inputs(2, 4)
    extra = torch.randn(2, 4, channels, *x.shape[3:])
    widened = wide(x, t, helpers.replace(condition, **{name: extra}))
    # another number of input channels, another order of the stem's sums
    torch.testing.assert_close(widened, base(x, t, condition), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_image_network_becomes_one_for_super_resolution_without_changing(helpers):
    family = helpers.families["pocket decoder"]
    image = family.image_network()
    wide = UNet(family.spec.model_copy(update={"low_res_channels": 3, "mask_channels": 4})).eval()
    assert inherit(wide, image.state_dict(), source=HERE) == []
    x, t, condition = family.inputs(2, 1, fps=False)
    extra = {"low_res": torch.randn(2, 1, 3, 16, 16), "masked_video": torch.randn(2, 1, 4, 16, 16)}
    widened = wide(x, t, helpers.replace(condition, **extra))
    torch.testing.assert_close(widened, image(x, t, condition), rtol=1e-4, atol=1e-5)


def test_a_stem_that_no_widening_explains_is_refused(helpers):
    family = helpers.families["pocket decoder"]
    tensors = family.image_network().state_dict()
    odd = {**tensors, "input_blocks.0.0.weight": tensors["input_blocks.0.0.weight"][:, :11]}
    with pytest.raises(WeightsError, match=r"`input_blocks\.0\.0\.weight` of .* is \(16, 11, 3, 3\)"):
        inherit(UNet(family.inflated(mask_channels=4)), odd, source=HERE)


def test_what_an_image_checkpoint_lacks_is_exactly_the_temporal_layers(family):
    image = family.image_network()
    video = UNet(family.inflated(temporal_position="relbias"))
    missing = inherit(video, image.state_dict(), source=HERE)
    assert set(missing) == set(video.state_dict()) - set(image.state_dict())
    assert all(is_temporal(name) for name in missing)
    assert not any(is_temporal(name) for name in image.state_dict())
    convolutions = [
        n
        for n, m in video.named_modules()
        if hasattr(m, "temporal") and n.endswith(("op", "conv", ".0", ".2", ".3"))
    ]
    assert len(convolutions) >= 10 and {f"{n}.temporal.weight" for n in convolutions} <= set(missing)


def test_a_checkpoint_of_another_network_is_refused_by_name(helpers):
    family = helpers.families["pocket decoder"]
    tensors = family.image_network().state_dict()

    def load(changed: dict[str, torch.Tensor]) -> None:
        inherit(UNet(family.inflated()), changed, source=HERE)

    with pytest.raises(
        WeightsError, match=r"lacks 1 tensors, the first is `middle_block\.0\.in_layers\.2\.weight`"
    ):
        load({k: v for k, v in tensors.items() if k != "middle_block.0.in_layers.2.weight"})
    with pytest.raises(WeightsError, match=r"no place for 1 tensors, the first is `extra`"):
        load({**tensors, "extra": torch.zeros(1)})
    with pytest.raises(
        WeightsError, match=r"`time_embed\.0\.weight` of .* is \(3, 3\), the network has \(64, 16\)"
    ):
        load({**tensors, "time_embed.0.weight": torch.zeros(3, 3)})


@torch.no_grad()
def test_norms_see_one_frame_at_a_time(family, helpers):
    """Making one frame 50 times brighter must not reach another: temporal layers are the identity here."""
    video = inflated(family, family.image_network())
    x, t, condition = family.inputs(1, 4)
    before = video(x, t, condition)
    x[:, 2] *= 50
    after = video(x, t, condition)
    others = [0, 1, 3]
    assert torch.equal(after[:, others], before[:, others])
    assert not torch.equal(after[:, 2], before[:, 2])


@torch.no_grad()
def test_a_clip_may_be_longer_than_any_that_was_trained(family, helpers):
    for position in ("rope", "relbias"):
        video = inflated(family, family.image_network(), temporal_position=position)
        helpers.perturb(video, only=is_temporal)
        assert not any(
            "position" in name and "emb" in name for name, _ in video.named_parameters() if is_temporal(name)
        )
        for frames in (2, 7, 40):
            x, t, condition = family.inputs(1, frames)
            assert bool(torch.isfinite(video(x, t, condition)).all())


def test_the_frame_rate_reaches_every_temporal_block(family, helpers):
    video = inflated(family, family.image_network())
    helpers.perturb(video, only=is_temporal)
    x, t, condition = family.inputs(2, 4)
    output = video(x, t, condition)
    output.square().mean().backward()
    names = [n for n, _ in video.named_parameters() if ".temporal_emb." in n or ".temporal.emb." in n]
    residual = [n for n in video.state_dict() if n.endswith("emb_layers.1.weight")]
    attention = [n for n in video.state_dict() if n.endswith("temporal.proj_out.weight")]
    assert len(names) == 2 * (len(residual) + len(attention))
    gradients = dict(video.named_parameters())
    silent = [n for n in names if not gradients[n].grad.abs().sum() > 0]
    assert silent == []
    with torch.no_grad():
        other = video(x, t, helpers.replace(condition, fps=condition.fps + 5))
    for row in range(2):
        assert (other[row] - output[row]).abs().max() > 1e-4


def test_the_frame_rate_says_nothing_before_it_is_trained_but_can_learn(family, helpers):
    video = inflated(family, family.image_network())
    x, t, condition = family.inputs(2, 4)
    output = video(x, t, condition)
    assert torch.equal(video(x, t, helpers.replace(condition, fps=condition.fps + 5)), output)
    output.square().mean().backward()
    stuck = [n for n, p in video.named_parameters() if n.endswith("temporal_emb.weight") and not p.grad.any()]
    assert stuck == []


def test_every_temporal_layer_learns_from_the_first_step(family):
    """A layer behind a zero needs one step more; none may need two, or be forgotten."""
    torch.manual_seed(0)
    video = inflated(family, family.image_network()).train()
    optimizer = torch.optim.SGD(video.parameters(), lr=0.1)
    x, t, condition = family.inputs(2, 4)
    target = torch.randn_like(video(x, t, condition).detach())
    for _ in range(2):
        optimizer.zero_grad()
        (video(x, t, condition) - target).square().mean().backward()
        optimizer.step()
    idle = [n for n, p in video.named_parameters() if is_temporal(n) and not p.grad.any()]
    assert [n for n in idle if not n.startswith("fps_embed")] == []


def test_conditions_that_a_network_has_no_use_for_are_refused(helpers):
    family = helpers.families["adm plain"]
    network = family.image_network()
    x, t, _ = family.inputs(1, 1)
    donor = helpers.families["karlo decoder"].inputs(1, 1)[2]
    with pytest.raises(ValueError, match="no input for `image_embedding`"):
        network(x, t, donor)
    with pytest.raises(ValueError, match="needs `fps` for more than one frame"):
        UNet(family.inflated())(x.expand(-1, 2, -1, -1, -1), t)
    with pytest.raises(ValueError, match="multiples of 2 pixels"):
        network(x[..., :15], t)


@torch.no_grad()
def test_dropping_the_condition_gives_the_learned_null_embedding_row_by_row(helpers):
    family = helpers.families["pocket decoder"]
    network = family.image_network()
    x, t, condition = family.inputs(2, 1)
    condition = helpers.replace(condition, fps=None)
    null = helpers.replace(condition, image_embedding=None)
    assert torch.equal(network(x, t, condition.without_conditioning()), network(x, t, null))
    half = helpers.replace(condition, keep_embedding=torch.tensor([True, False]))
    given, dropped = network(x, t, condition), network(x, t, null)
    assert torch.equal(network(x, t, half), torch.stack([given[0], dropped[1]]))
    both = type(condition).cat([condition, condition.without_conditioning()])
    joined = network(x.repeat(2, 1, 1, 1, 1), t.repeat(2), both)
    torch.testing.assert_close(joined, torch.cat([given, dropped]), rtol=1e-4, atol=1e-5)
