import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from mavcli.diffusion.process import Prediction, add_noise, read_output
from mavcli.diffusion.samplers import ddim, ddpm, dpm_solver_pp_2m, sample
from mavcli.diffusion.schedule import Schedule
from mavcli.specs import SamplerSpec, ScheduleSpec

SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "ddim eta 1": partial(ddim, eta=1.0), "dpm++2m": dpm_solver_pp_2m}
DIFFUSERS_PREDICTION = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = (2, 3, 4, 4)


def _network(x, t):
    """A fixed nonlinear function of x and t, so that a wrong x, t or order of steps shows."""
    return 0.1 * x + 0.01 * t.to(x).reshape(-1, 1, 1, 1) / 1000 + 0.3 * torch.sin(3 * x)


def _denoiser(schedule, network=_network, *, clip_x0=None):
    def denoise(x_t, t):
        return read_output(schedule, network(x_t, t), x_t=x_t, t=t, clip_x0=clip_x0, channel_dim=1)

    return denoise


def _noise(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(SHAPE, generator=generator, dtype=dtype)


def _no_noise(step):
    raise AssertionError(f"noise was drawn at step {step}")


def _assert_same(ours, theirs, *, tolerance):
    """Equal up to `tolerance` of max(1, |x|), which reaches 1e4 on an unclipped cosine process."""
    size = max(1.0, theirs.abs().max().item())
    assert (ours - theirs).abs().max().item() / size < tolerance


def _diffusers_result(scheduler, *, x_T, seed, **step_options):
    generator = torch.Generator().manual_seed(seed)
    x = x_T
    for timestep in scheduler.timesteps:
        output = _network(x, torch.full((len(x),), int(timestep)))
        x = scheduler.step(output, timestep, x, generator=generator, **step_options).prev_sample
    return x


def _with_tables(scheduler, schedule):
    """diffusers' own tables are float32, which would hide errors of 1e-4: it gets ours, proven elsewhere."""
    scheduler.betas = schedule.betas
    scheduler.alphas = 1 - schedule.betas
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    return scheduler


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddpm_is_diffusers_ddpm(name, prediction, variance, clip):
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule.from_spec(ScheduleSpec(name=name, prediction=prediction, variance=variance))
    timesteps = [0, 100, 350, 600, 930, 999]
    scheduler = diffusers.DDPMScheduler(
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        variance_type=variance,
        clip_sample=clip is not None,
    )
    _with_tables(scheduler, schedule).set_timesteps(timesteps=timesteps[::-1])
    x_T = _noise(0)(0)
    ours = ddpm(
        _denoiser(schedule, clip_x0=clip), x_T, schedule=schedule, timesteps=timesteps, noise=_noise(1)
    )
    _assert_same(ours, _diffusers_result(scheduler, x_T=x_T, seed=1), tolerance=1e-10)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_is_diffusers_ddim(name, prediction, clip, eta, spacing):
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule.from_spec(ScheduleSpec(name=name, prediction=prediction))
    scheduler = diffusers.DDIMScheduler(
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        clip_sample=clip is not None,
        timestep_spacing=spacing,
    )
    _with_tables(scheduler, schedule).set_timesteps(8)
    x_T = _noise(0)(0)
    ours = sample(
        SamplerSpec(name="ddim", steps=8, eta=eta, spacing=spacing),
        _denoiser(schedule, clip_x0=clip),
        x_T=x_T,
        schedule=schedule,
        noise=_noise(1) if eta else _no_noise,
    )
    theirs = _diffusers_result(scheduler, x_T=x_T, seed=1, eta=eta, use_clipped_model_output=clip is not None)
    _assert_same(ours, theirs, tolerance=1e-10)


@pytest.mark.parametrize("timesteps", [[999], [20, 999], [0, 300, 999], list(range(0, 1000, 37))])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_dpm_solver_is_diffusers_dpm_solver(name, prediction, timesteps):
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule.from_spec(ScheduleSpec(name=name, prediction=prediction))
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=DIFFUSERS_PREDICTION[prediction], final_sigmas_type="zero"
    )
    _with_tables(scheduler, schedule).set_timesteps(timesteps=timesteps[::-1])
    x_T = _noise(0)(0)
    ours = dpm_solver_pp_2m(_denoiser(schedule), x_T, schedule=schedule, timesteps=timesteps, noise=_no_noise)
    # diffusers keeps its sigmas in float32 whatever the tables
    _assert_same(ours, _diffusers_result(scheduler, x_T=x_T, seed=1).double(), tolerance=1e-5)


def _reference_cases():
    """Names only, since the reference data may be absent: every family, schedule, variance and prediction."""
    names = []
    for schedule in ("linear", "cosine"):
        for prediction in ("epsilon", "sample"):
            for variance, clips in [("fixed_small", "10"), ("fixed_large", "1"), ("learned_range", "10")]:
                names += [f"gd_{schedule}_{variance}_{prediction}_ddpm_clip{clip}" for clip in clips]
            for kind in ("ddim", "ddim_eta1"):
                names += [f"gd_{schedule}_fixed_small_{prediction}_{kind}_clip{clip}" for clip in "10"]
    for prediction in ("epsilon", "sample"):
        for variance in ("fixed_small", "learned_range"):
            for schedule in ("linear", "squaredcos_cap_v2"):
                names += [f"karlo_{schedule}_{variance}_{prediction}_{kind}" for kind in ("ddpm", "ddim")]
        for variance in ("fixed_small_log", "learned_range"):
            names += [f"unclip_{variance}_{prediction}_{steps}" for steps in (5, 7, 10)]
    return names


def test_every_reference_case_is_compared(shared_data):
    cases = json.loads((shared_data / "backbone_references" / "scheduler_cases.json").read_text())["cases"]
    assert sorted(_reference_cases()) == sorted(case["name"] for case in cases)


def _clip(case):
    clip = case["clip"]
    if isinstance(clip, bool):
        return 1.0 if clip else None
    return float((json.loads(clip) if isinstance(clip, str) else clip)[1])


@pytest.mark.parametrize("name", _reference_cases())
def test_every_step_is_that_of_the_reference_implementation(name, shared_data):
    folder = shared_data / "backbone_references"
    cases = json.loads((folder / "scheduler_cases.json").read_text())["cases"]
    (case,) = (case for case in cases if case["name"] == name)
    with np.load(folder / "scheduler_sequences.npz") as sequences:
        noises, wanted = (torch.from_numpy(sequences[f"{name}.{part}"]) for part in ("noise", "x"))
    schedule = Schedule.from_spec(
        ScheduleSpec(
            name="linear" if case["schedule"] == "linear" else "cosine",
            prediction="x0" if case["prediction"] == "sample" else "epsilon",
            variance=case["variance"].removesuffix("_log"),
        )
    )
    seen = []

    def network(x, t):
        seen.append(x)
        output = 0.1 * x + 0.01 * t.to(x).reshape(-1, 1, 1, 1) / 1000
        return torch.cat([output, 0.5 * torch.sin(x)], dim=1) if "learned" in case["variance"] else output

    is_ddim = case["sampler"] == "ddim"
    result = sample(
        SamplerSpec(
            name=case["sampler"],
            steps=len(case["timesteps"]),
            spacing="leading" if is_ddim else "linspace",
            eta=case.get("eta") or 0.0,
        ),
        _denoiser(schedule, network, clip_x0=_clip(case)),
        x_T=noises[0],
        schedule=schedule,
        noise=lambda step: noises[step + 1],
    )
    tolerance = 2e-6
    if is_ddim:
        tolerance = 1e-5  # the reference takes 1 - abar in float32, which loses 4e-6 near the end
    if case["family"].startswith("diffusers"):
        tolerance = 7e-4  # how far UnCLIPScheduler's float32 tables are off
    steps = [*seen[1:], result]
    assert len(steps) == len(wanted)
    for ours, theirs in zip(steps, wanted, strict=True):
        _assert_same(ours, theirs, tolerance=tolerance)


def _gaussian_denoiser(schedule, deviation):
    """The exact answer where the data is normal with this deviation."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha_sigma(t, x_t)
        x0 = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * x_t
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_a_normal_distribution_have_its_deviation(sampler):
    schedule = Schedule.from_spec(ScheduleSpec())
    generator = torch.Generator().manual_seed(4)

    def draw(step):
        return torch.randn(4, 5000, generator=generator)

    timesteps = schedule.respace(1000)  # over long steps the posterior's variance is too small
    x = SAMPLERS[sampler](
        _gaussian_denoiser(schedule, 0.5), draw(0), schedule=schedule, timesteps=timesteps, noise=draw
    )
    assert x.std().item() == pytest.approx(0.5, abs=0.01)
    assert x.mean().item() == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize(("sampler", "least", "most"), [("ddim", 3, 5), ("dpm++2m", 12, 40)])
def test_four_times_the_steps_shrink_the_error_as_the_order_of_the_solver_says(sampler, least, most):
    schedule = Schedule.from_spec(ScheduleSpec())
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([999]), x_T)
    deviation = 0.5
    exact = x_T * deviation / (alpha**2 * deviation**2 + sigma**2).sqrt()  # of the probability flow
    few, many = (
        SAMPLERS[sampler](
            _gaussian_denoiser(schedule, deviation),
            x_T,
            schedule=schedule,
            timesteps=schedule.respace(steps),
            noise=_no_noise,
        )
        for steps in (100, 400)
    )
    assert least < ((few - exact).abs().max() / (many - exact).abs().max()).item() < most


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_known_of_x0_comes_back_bit_for_bit(sampler, steps):
    schedule = Schedule.from_spec(ScheduleSpec())
    known = _noise(8, torch.float32)(0)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, :, ::2] = True
    plain, projected = (
        SAMPLERS[sampler](
            _denoiser(schedule, clip_x0=1.0),
            _noise(0, torch.float32)(0),
            schedule=schedule,
            timesteps=schedule.respace(steps),
            noise=_noise(1, torch.float32),
            project=project,
        )
        for project in (None, lambda x0, step: torch.where(mask, known, x0))
    )
    assert torch.equal(projected[mask], known[mask])
    # this network is pointwise, so nothing reaches the unknown values
    torch.testing.assert_close(projected[~mask], plain[~mask])
    assert not torch.equal(plain[mask], known[mask])


def test_what_is_known_of_x0_stays_on_the_straight_path_from_its_noise():
    schedule = Schedule.from_spec(ScheduleSpec())
    x_T, known = _noise(0)(0), _noise(8)(0).clamp(-1, 1)
    seen = []

    def network(x, t):
        seen.append((x, t))
        return _network(x, t)

    ddim(
        _denoiser(schedule, network),
        x_T,
        schedule=schedule,
        timesteps=schedule.respace(5),
        noise=_no_noise,
        project=lambda x0, step: known,
    )
    alpha, sigma = schedule.alpha_sigma(seen[0][1], x_T)
    epsilon = (x_T - alpha * known) / sigma
    for x_t, t in seen[1:]:
        torch.testing.assert_close(x_t, add_noise(schedule, known, t=t, noise=epsilon))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_is_denoised_reported_and_given_noise_once_in_order(sampler):
    schedule = Schedule.from_spec(ScheduleSpec())
    visited, drawn, reported, projected = [], [], [], []

    def denoise(x_t, t):
        assert t.shape == (2,) and t.dtype == torch.int64
        visited.append(t[0].item())
        return Prediction(torch.zeros_like(x_t), x_t)

    def draw(step):
        drawn.append(step)
        return torch.zeros(SHAPE)

    def project(x0, step):
        projected.append(step)
        return x0

    SAMPLERS[sampler](
        denoise,
        torch.zeros(SHAPE),
        schedule=schedule,
        timesteps=[3, 70, 500, 800],
        noise=draw,
        progress=lambda done, steps: reported.append((done, steps)),
        project=project,
    )
    assert visited == [800, 500, 70, 3]
    assert drawn == ([0, 1, 2] if sampler in ("ddpm", "ddim eta 1") else [])
    assert reported == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert projected == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++2m"])
def test_a_spec_names_its_sampler(name):
    schedule = Schedule.from_spec(ScheduleSpec())
    x_T = _noise(0)(0)
    direct = SAMPLERS[name](
        _denoiser(schedule), x_T, schedule=schedule, timesteps=schedule.respace(6), noise=_noise(1)
    )
    by_spec = sample(
        SamplerSpec(name=name, steps=6), _denoiser(schedule), x_T=x_T, schedule=schedule, noise=_noise(1)
    )
    assert torch.equal(direct, by_spec)
    assert math.isfinite(direct.abs().max().item())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(sampler):
    schedule = Schedule.from_spec(ScheduleSpec())
    x_T, draws = _noise(0, torch.float32)(0), [_noise(step, torch.float32)(0) for step in range(6)]
    timesteps = schedule.respace(6)
    run = partial(SAMPLERS[sampler], _denoiser(schedule), schedule=schedule, timesteps=timesteps)
    together = run(x_T, noise=lambda step: draws[step])
    alone = run(x_T[1:], noise=lambda step: draws[step][1:])
    assert torch.equal(together[1:], alone)
