from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mavcli.diffusion.guidance import emphatic, guided, rows_per_sample
from mavcli.diffusion.process import read_output, to_v
from mavcli.diffusion.samplers import sample
from mavcli.diffusion.schedule import Schedule
from mavcli.errors import RecipeError
from mavcli.recipe.load import load_recipe
from mavcli.specs import SamplerSpec, ScheduleSpec

T = torch.tensor([300, 700])


def _by(
    scale: float, interval: tuple[float, float] = (0.0, 1.0), clip_x0: float | None = None
) -> SamplerSpec:
    return SamplerSpec(guidance_scale=scale, guidance_interval=interval, clip_x0=clip_x0)


@dataclass(frozen=True)
class Label:
    """The smallest condition: one number a row, 0 for none."""

    value: Tensor

    def without_conditioning(self) -> Label:
        return Label(torch.zeros_like(self.value))

    def scaled(self, factor: Tensor) -> Label:
        return Label(self.value * factor)

    @staticmethod
    def cat(conditions: Sequence[Label]) -> Label:
        return Label(torch.cat([c.value for c in conditions]))


class Network:
    """Counts its calls; its value and its variance both depend on the condition, x and t."""

    def __init__(self, *, learned: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.learned, self.dtype = learned, dtype
        self.batches: list[list[float]] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Label) -> Tensor:
        self.batches.append(condition.value.tolist())
        label = condition.value.reshape(-1, 1, 1, 1, 1)
        output = torch.tanh(x * (1 + label)) + t.reshape(-1, 1, 1, 1, 1) / 1000
        if self.learned:
            output = torch.cat([output, torch.sin(x + label)], dim=2)
        return output.to(self.dtype)


def _x_t(shape=(2, 2, 3, 2, 2)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_value_is_guided_and_the_variance_is_the_conditional_one(scale, prediction, learned):
    variance = "learned_range" if learned else "fixed_small"
    schedule = Schedule.from_spec(ScheduleSpec(prediction=prediction, variance=variance))
    x_t, label, network = _x_t(), Label(torch.tensor([1.0, 2.0])), Network(learned=learned)
    conditional, unconditional = network(x_t, T, label), network(x_t, T, label.without_conditioning())
    wanted = unconditional + scale * (conditional - unconditional)
    if learned:
        wanted = torch.cat([wanted[:, :, :3], conditional[:, :, 3:]], dim=2)
    wanted = read_output(schedule, wanted, x_t=x_t, t=T)
    network.batches.clear()
    read = guided(network, label, _by(scale), schedule=schedule)(x_t, T)
    torch.testing.assert_close(read.x0, wanted.x0)
    torch.testing.assert_close(read.epsilon, wanted.epsilon)
    assert (read.variance_fraction is not None) == learned
    if learned:
        torch.testing.assert_close(read.variance_fraction, wanted.variance_fraction)
    assert network.batches == [[1, 2, 0, 0]]


@pytest.mark.parametrize(("scale", "rows"), [(1.0, [1, 2]), (0.0, [0, 0])])
def test_scales_one_and_zero_cost_one_forward_and_are_exact(scale, rows):
    schedule = Schedule.from_spec(ScheduleSpec())
    x_t, label, network = _x_t(), Label(torch.tensor([1.0, 2.0])), Network()
    read = guided(network, label, _by(scale), schedule=schedule)(x_t, T)
    assert network.batches == [rows]
    output = network(x_t, T, Label(torch.tensor(rows, dtype=torch.float32)))
    assert torch.equal(read.x0, read_output(schedule, output, x_t=x_t, t=T).x0)


def test_x0_is_clamped_after_the_guidance():
    schedule = Schedule.from_spec(ScheduleSpec(prediction="x0"))
    x_t, label, network = _x_t(), Label(torch.tensor([1.0, 2.0])), Network()
    free = guided(network, label, _by(6.0), schedule=schedule)(x_t, T)
    clamped = guided(network, label, _by(6.0, clip_x0=0.9), schedule=schedule)(x_t, T)
    assert free.x0.abs().max() > 1
    assert torch.equal(clamped.x0, free.x0.clamp(-0.9, 0.9))


def test_the_rounding_of_a_reduced_precision_network_is_not_made_worse_by_the_sum():
    schedule = Schedule.from_spec(ScheduleSpec())
    x_t, label = _x_t(), Label(torch.tensor([1.0, 2.0]))
    reduced = Network(dtype=torch.bfloat16)
    conditional = reduced(x_t, T, label).float()
    unconditional = reduced(x_t, T, label.without_conditioning()).float()
    read = guided(reduced, label, _by(8.0), schedule=schedule)(x_t, T)
    wanted = unconditional + 8 * (conditional - unconditional)
    assert read.epsilon.dtype == torch.float32
    torch.testing.assert_close(read.epsilon, wanted)


def test_an_embedding_is_guided_like_a_video():
    schedule = Schedule.from_spec(ScheduleSpec(prediction="v"))
    x_t, label = _x_t((2, 6)), Label(torch.tensor([1.0, 2.0]))

    def network(x: Tensor, t: Tensor, condition: Label) -> Tensor:
        return x * condition.value[:, None]

    read = guided(network, label, _by(3.0), schedule=schedule, channel_dim=1)(x_t, T)
    value = to_v(schedule, read.x0, epsilon=read.epsilon, t=T)
    torch.testing.assert_close(value, 3 * x_t * label.value[:, None])


@pytest.mark.parametrize(("t", "inside"), [(149, False), (150, True), (600, True), (601, False)])
def test_outside_of_its_interval_guidance_is_the_conditional_network_alone(t, inside):
    schedule = Schedule.from_spec(ScheduleSpec(prediction="epsilon", timesteps=1000))
    network, label = Network(), Label(torch.tensor([1.0, 2.0]))
    steps = torch.tensor([t, t])
    read = guided(network, label, _by(4.0, (0.15, 0.6)), schedule=schedule)(_x_t(), steps)
    assert network.batches == [[1.0, 2.0, 0.0, 0.0] if inside else [1.0, 2.0]]
    wanted = guided(network, label, _by(4.0 if inside else 1.0), schedule=schedule)(_x_t(), steps)
    torch.testing.assert_close(read.epsilon, wanted.epsilon, rtol=0, atol=0)


def test_an_unconditional_sample_is_conditional_where_it_is_not_guided():
    schedule = Schedule.from_spec(ScheduleSpec(prediction="epsilon", timesteps=1000))
    network, label = Network(), Label(torch.tensor([1.0, 2.0]))
    denoise = guided(network, label, _by(0.0, (0.0, 0.5)), schedule=schedule)
    for t in (500, 501):
        denoise(_x_t(), torch.tensor([t, t]))
    assert network.batches == [[0.0, 0.0], [1.0, 2.0]]


def test_one_call_cannot_be_guided_for_some_rows_only():
    schedule = Schedule.from_spec(ScheduleSpec(timesteps=1000))
    denoise = guided(Network(), Label(torch.ones(2)), _by(2.0, (0.0, 0.5)), schedule=schedule)
    with pytest.raises(ValueError, match="both sides of the guidance interval"):
        denoise(_x_t(), T)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8), (0.9, 0.95)])
@pytest.mark.parametrize("steps", [9, (999, 920, 500, 20)])
def test_the_rows_of_a_sample_are_those_that_the_network_sees(scale, interval, steps):
    schedule = Schedule.from_spec(ScheduleSpec(name="cosine", prediction="epsilon", timesteps=1000))
    spec = SamplerSpec(
        name="dpm++2m",
        steps=steps,
        spacing="trailing",
        shift=2,
        guidance_scale=scale,
        guidance_interval=interval,
    )
    network = Network()
    denoise = guided(network, Label(torch.ones(1)), spec, schedule=schedule)
    sample(spec, denoise, x_T=_x_t((1, 2, 3, 2, 2)), schedule=schedule, noise=lambda step: torch.zeros(()))
    assert rows_per_sample(spec, schedule) == sum(len(rows) for rows in network.batches)


@pytest.mark.parametrize("steps", ["0", "[]", "[999, 999]", "[400, 999]", "[3, -1]", "ten", "2.5"])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(RecipeError, match=r"decoder\.sampler\.steps=.*: "):
        load_recipe("pocket", sets=[f"cascade.decoder.sampler.steps={steps}"])


@pytest.mark.parametrize("interval", ["[0.6, 0.4]", "[-0.1, 0.5]", "[0.5, 1.1]"])
@pytest.mark.parametrize("name", ["guidance_interval", "embedding_interval"])
def test_an_interval_that_is_none_is_refused(name, interval):
    with pytest.raises(RecipeError, match=name):
        load_recipe("pocket", sets=[f"cascade.decoder.sampler.{name}={interval}"])


def test_only_steps_of_the_interval_are_told_louder_each_row_for_itself():
    network = Network()
    spec = SamplerSpec(embedding_scale=3.0, embedding_interval=(0.5, 0.7))
    out = emphatic(network, spec, timesteps=1000)(_x_t(), T, Label(torch.tensor([1.0, 2.0])))
    assert network.batches == [[1.0, 6.0]], "step 300 lies below the interval, 700 on its edge"
    assert torch.equal(out, Network()(_x_t(), T, Label(torch.tensor([1.0, 6.0]))))


def test_a_scale_of_one_is_the_network_itself():
    network = Network()
    assert emphatic(network, SamplerSpec(), timesteps=1000) is network


def test_being_told_louder_costs_no_row_and_leaves_guidance_its_null_half():
    schedule = Schedule.from_spec(ScheduleSpec(prediction="x0"))
    spec = SamplerSpec(guidance_scale=2.0, embedding_scale=3.0)
    network = Network()
    told = emphatic(network, spec, timesteps=1000)
    guided(told, Label(torch.ones(2)), spec, schedule=schedule)(_x_t(), T)
    assert network.batches == [[3.0, 3.0, 0.0, 0.0]]
    assert rows_per_sample(spec, schedule) == 2 * spec.calls
