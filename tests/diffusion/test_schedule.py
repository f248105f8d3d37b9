import json

import numpy as np
import pytest
import torch

from mavcli.diffusion.schedule import Schedule
from mavcli.errors import UsageError
from mavcli.specs import SamplerSpec, ScheduleSpec

TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_tables_are_guided_diffusions(name, shared_data):
    reference = np.load(shared_data / "backbone_references" / "scheduler_sequences.npz")
    whole = Schedule.from_spec(ScheduleSpec(name=name))
    np.testing.assert_allclose(whole.betas, reference[f"tables.{name}.betas"], rtol=1e-12)
    kept = whole.keep(whole.respace(25))
    for table in TABLES:
        ours = getattr(kept, table)
        assert ours.dtype == torch.float64
        np.testing.assert_allclose(
            ours, reference[f"tables.{name}.respaced25.{table}"], rtol=1e-9, err_msg=table
        )


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_the_trained_process_is_diffusers_one(ours, theirs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, beta_start=1e-4, beta_end=0.02)
    schedule = Schedule.from_spec(ScheduleSpec(name=ours))
    # diffusers' tables are float32
    torch.testing.assert_close(schedule.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=2e-4, atol=0)


def test_linspace_picks_the_steps_that_guided_diffusion_picks(shared_data):
    cases = json.loads((shared_data / "backbone_references" / "scheduler_cases.json").read_text())
    schedule = Schedule.from_spec(ScheduleSpec())
    for name in ("7", "25", "50", "250", "1000"):
        wanted = cases["respacing_of_1000"][name]
        picked = schedule.respace(int(name), "linspace")
        if isinstance(wanted, dict):
            assert (picked[:20], picked[-20:], sum(picked)) == (
                wanted["first"],
                wanted["last"],
                wanted["sum"],
            )
        else:
            assert picked == wanted
    assert schedule.respace(25, "leading") == cases["respacing_of_1000"]["ddim25"]
    assert schedule.respace(50, "leading") == cases["respacing_of_1000"]["ddim50"]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 3, 7, 30, 333, 1000])
def test_the_spacings_are_those_of_diffusers(spacing, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    picked = Schedule.from_spec(ScheduleSpec()).respace(steps, spacing)
    assert picked == scheduler.timesteps.tolist()[::-1]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("timesteps", [1, 2, 10, 64])
def test_every_number_of_steps_up_to_the_trained_one_can_be_sampled(spacing, timesteps):
    schedule = Schedule.from_spec(ScheduleSpec(timesteps=timesteps))
    for steps in range(1, timesteps + 1):
        kept = schedule.keep(schedule.respace(steps, spacing))
        assert len(kept) == steps
        for table in TABLES:
            assert torch.isfinite(getattr(kept, table)).all(), table


def test_a_sampler_visits_the_steps_that_it_names_or_as_many_as_it_says():
    schedule = Schedule.from_spec(ScheduleSpec())
    named = SamplerSpec(steps=(999, 930, 400), spacing="trailing", shift=4)
    assert schedule.visited(named) == [400, 930, 999]
    counted = SamplerSpec(steps=3, spacing="trailing", shift=4)
    assert schedule.visited(counted) == schedule.respace(3, "trailing", shift=4)
    with pytest.raises(UsageError, match="step 999 of a process of 10"):
        Schedule.from_spec(ScheduleSpec(timesteps=10)).visited(named)


def test_a_single_step_starts_where_the_noise_is():
    assert Schedule.from_spec(ScheduleSpec()).respace(1, "leading") == [999]


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_were_trained_are_refused(steps):
    with pytest.raises(UsageError, match=r"process of 1000"):
        Schedule.from_spec(ScheduleSpec()).respace(steps)


def test_a_linear_process_that_is_too_short_is_refused():
    with pytest.raises(UsageError, match="must be below 1"):
        Schedule.from_spec(ScheduleSpec(name="linear", timesteps=20))
    assert Schedule.from_spec(ScheduleSpec(name="linear", timesteps=21)).betas.max() < 1


def test_a_shorter_linear_process_ends_in_about_the_same_noise():
    long = Schedule.from_spec(ScheduleSpec(name="linear", timesteps=1000)).alphas_cumprod[-1]
    short = Schedule.from_spec(ScheduleSpec(name="linear", timesteps=100)).alphas_cumprod[-1]
    assert short == pytest.approx(long, rel=1)


def test_keeping_every_step_changes_nothing():
    schedule = Schedule.from_spec(ScheduleSpec(timesteps=50))
    kept = schedule.keep(range(50))
    for table in TABLES:
        torch.testing.assert_close(getattr(kept, table), getattr(schedule, table), rtol=1e-9, atol=0)


def test_a_trained_step_means_the_same_noise_on_a_kept_subset():
    schedule = Schedule.from_spec(ScheduleSpec())
    kept = schedule.keep([3, 500, 998])
    t = torch.tensor([998, 3])
    x = torch.zeros(2, 1, 3)
    for ours, wanted in zip(kept.alpha_sigma(t, x), schedule.alpha_sigma(t, x), strict=True):
        assert torch.equal(ours, wanted)
    assert torch.equal(kept.snr(t), schedule.snr(t))


@pytest.mark.parametrize("t", [-1, 1000, 4])
def test_a_step_that_a_schedule_does_not_hold_is_refused(t):
    kept = Schedule.from_spec(ScheduleSpec()).keep([3, 500])
    with pytest.raises(ValueError, match="diffusion step"):
        kept.alpha_sigma(torch.tensor([3, t]), torch.zeros(2, 1))


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_step_out_of_the_trained_process_is_refused(t):
    with pytest.raises(ValueError, match=r"out of \[0, 1000\)"):
        Schedule.from_spec(ScheduleSpec()).snr(torch.tensor([t]))


@pytest.mark.parametrize("timesteps", [[], [5, 5], [6, 5]])
def test_kept_steps_must_increase(timesteps):
    with pytest.raises(ValueError, match="strictly increasing"):
        Schedule.from_spec(ScheduleSpec()).keep(timesteps)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 5, 4, 4)])
def test_alpha_and_sigma_fit_the_batch_and_its_dtype(shape):
    schedule = Schedule.from_spec(ScheduleSpec())
    x = torch.zeros(shape, dtype=torch.float32)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0, 999]), x)
    assert alpha.shape == sigma.shape == (2, *[1] * (len(shape) - 1))
    assert alpha.dtype == sigma.dtype == torch.float32
    assert alpha[0] > 0.99 > 0.01 > alpha[1]
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_snr_is_the_ratio_of_signal_to_noise_power():
    schedule = Schedule.from_spec(ScheduleSpec())
    t = torch.tensor([0, 400, 999])
    alpha, sigma = schedule.alpha_sigma(t, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(schedule.snr(t), alpha**2 / sigma**2)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square(name):
    schedule = Schedule.from_spec(ScheduleSpec(name=name))
    t = torch.arange(50, 700)
    shifted = schedule.shifted(t, 3.0)
    # to the nearest step: off by less than the way to the next one
    off = (schedule.snr(shifted) / (schedule.snr(t) / 9)).log().abs()
    step = (schedule.snr(shifted - 1) / schedule.snr(shifted + 1)).log()
    assert (off <= step).all()
    assert torch.equal(schedule.shifted(t, 1.0), t)
    assert schedule.shifted(torch.tensor([999]), 3.0).item() == 999, "nothing is noisier than the noisiest"


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
@pytest.mark.parametrize("steps", [2, 12, 250, 1000])
@pytest.mark.parametrize("shift", [4.0, 0.5])
def test_shifted_steps_are_as_many_and_lie_nearer_to_an_end(spacing, steps, shift):
    schedule = Schedule.from_spec(ScheduleSpec())
    plain, shifted = schedule.respace(steps, spacing), schedule.respace(steps, spacing, shift=shift)
    assert len(set(shifted)) == steps and shifted == sorted(shifted)
    assert shifted[0] >= 0 and shifted[-1] <= 999
    if steps < 1000 and plain != [0, 999]:
        assert sum(shifted) > sum(plain) if shift > 1 else sum(shifted) < sum(plain)
    assert schedule.respace(steps, spacing, shift=1.0) == plain
