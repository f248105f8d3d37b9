import pytest
import torch

from mavcli.diffusion.process import (
    add_noise,
    log_variance,
    min_snr_weight,
    posterior_mean_variance,
    read_output,
    squared_error,
    to_epsilon,
    to_v,
    to_x0,
    training_loss,
    variational_bound,
)
from mavcli.diffusion.schedule import Schedule
from mavcli.specs import ScheduleSpec

PREDICTIONS = ["epsilon", "x0", "v"]
T = torch.tensor([0, 1, 400, 999])


def _noisy(schedule, *, t=T, shape=(3, 2, 2, 2), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(len(t), *shape, generator=generator, dtype=dtype) * 2 - 1
    noise = torch.randn(len(t), *shape, generator=generator, dtype=dtype)
    return x0, noise, add_noise(schedule, x0, t=t, noise=noise)


def _value(schedule, x0, noise, *, t=T):
    """What a perfect network of this schedule's prediction says."""
    return {"epsilon": noise, "x0": x0, "v": to_v(schedule, x0, epsilon=noise, t=t)}[schedule.spec.prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_truth_is_read_back_from_every_prediction(name, prediction):
    schedule = Schedule.from_spec(ScheduleSpec(name=name, prediction=prediction))
    x0, noise, x_t = _noisy(schedule)
    read = read_output(schedule, _value(schedule, x0, noise), x_t=x_t, t=T)
    torch.testing.assert_close(read.x0, x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(read.epsilon, noise, rtol=0, atol=1e-9)
    assert read.variance_fraction is None


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_conversions_are_those_of_diffusers(prediction):
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule.from_spec(ScheduleSpec(prediction=prediction))
    x0, noise, x_t = _noisy(schedule, dtype=torch.float32)
    scheduler = diffusers.DDPMScheduler()
    scheduler.alphas_cumprod = schedule.alphas_cumprod.float()
    torch.testing.assert_close(scheduler.add_noise(x0, noise, T), x_t, rtol=1e-5, atol=1e-5)
    wanted = scheduler.get_velocity(x0, noise, T)
    torch.testing.assert_close(to_v(schedule, x0, epsilon=noise, t=T), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x0_and_epsilon_always_add_up_to_x_t(prediction):
    schedule = Schedule.from_spec(ScheduleSpec(prediction=prediction))
    _, _, x_t = _noisy(schedule)
    output = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(3), dtype=x_t.dtype)
    for clip in (None, 0.5):
        read = read_output(schedule, output, x_t=x_t, t=T, clip_x0=clip)
        torch.testing.assert_close(add_noise(schedule, read.x0, t=T, noise=read.epsilon), x_t)
        assert (read.x0.abs().max() <= 0.5) == (clip is not None)
    x0 = to_x0(schedule, output, x_t=x_t, t=T, prediction=prediction)
    epsilon = to_epsilon(schedule, output, x_t=x_t, t=T, prediction=prediction)
    torch.testing.assert_close(add_noise(schedule, x0, t=T, noise=epsilon), x_t)


@pytest.mark.parametrize(("shape", "channel_dim"), [((2, 3, 4, 4), 2), ((6,), 1)])
def test_a_learned_range_is_the_second_half_of_the_channels(shape, channel_dim):
    schedule = Schedule.from_spec(ScheduleSpec(variance="learned_range"))
    x0, noise, x_t = _noisy(schedule, shape=shape)
    variance = torch.linspace(-1, 1, x0.numel(), dtype=x0.dtype).reshape(x0.shape)
    output = torch.cat([noise, variance], dim=channel_dim)
    read = read_output(schedule, output, x_t=x_t, t=T, channel_dim=channel_dim)
    torch.testing.assert_close(read.x0, x0, rtol=0, atol=1e-9)
    assert (read.variance_fraction.min(), read.variance_fraction.max()) == (0, 1)


@pytest.mark.parametrize(("variance", "channels"), [("fixed_small", 6), ("learned_range", 3)])
def test_an_output_of_the_wrong_width_is_refused(variance, channels):
    schedule = Schedule.from_spec(ScheduleSpec(variance=variance))
    x_t = torch.zeros(2, 1, 3, 2, 2)
    with pytest.raises(ValueError, match=f"variance `{variance}` needs"):
        read_output(schedule, torch.zeros(2, 1, channels, 2, 2), x_t=x_t, t=torch.tensor([1, 2]))


def test_the_posterior_is_bayes_rule():
    schedule = Schedule.from_spec(ScheduleSpec()).keep([10, 300, 700])
    t = torch.tensor([300, 700])
    x0, _, x_t = _noisy(schedule, t=t)
    mean, variance, log_var = posterior_mean_variance(schedule, x0, x_t=x_t, t=t)
    before, _ = schedule.alpha_sigma(torch.tensor([10, 300]), x_t)
    now, _ = schedule.alpha_sigma(t, x_t)
    # prior N(before x0, 1 - before^2), likelihood x_t = (now / before) x_before + noise
    gain = now / before
    precision = 1 / (1 - before**2) + gain**2 / (1 - gain**2)
    torch.testing.assert_close(variance, 1 / precision)
    torch.testing.assert_close(mean, (before * x0 / (1 - before**2) + gain * x_t / (1 - gain**2)) / precision)
    torch.testing.assert_close(log_var, variance.log())


def test_a_learned_variance_lies_between_the_kept_steps_extremes():
    schedule = Schedule.from_spec(ScheduleSpec(variance="learned_range"))
    kept = schedule.keep([100, 500, 900])
    t, x = torch.tensor([500]), torch.zeros(1, 2, dtype=torch.float64)
    ends = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    small, large = log_variance(kept, ends, t=t, like=x)[0]
    assert small.exp() == pytest.approx(kept.posterior_variance[1].item())
    assert large.exp() == pytest.approx(kept.betas[1].item())
    # the same network output is another variance where other steps are kept
    assert large > log_variance(schedule, ends, t=t, like=x)[0, 1] + 1
    with pytest.raises(ValueError, match="variance fraction"):
        log_variance(kept, None, t=t, like=x)


def test_a_fixed_large_variance_is_beta_but_at_the_first_step():
    schedule = Schedule.from_spec(ScheduleSpec(variance="fixed_large"))
    variance = log_variance(schedule, None, t=T, like=torch.zeros(4, 1, dtype=torch.float64)).exp().flatten()
    torch.testing.assert_close(variance[1:], schedule.betas[T[1:]])
    torch.testing.assert_close(variance[0], schedule.posterior_variance[1])


@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss_and_another_one_has(prediction, weighting):
    schedule = Schedule.from_spec(ScheduleSpec(prediction=prediction))
    x0, noise, x_t = _noisy(schedule)
    truth = _value(schedule, x0, noise)
    given = {"x0": x0, "x_t": x_t, "noise": noise, "t": T, "weighting": weighting}
    assert torch.equal(training_loss(schedule, truth, **given), torch.zeros(4, dtype=x0.dtype))
    assert (training_loss(schedule, truth + 0.1, **given) > 0).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_uniform_weighting_is_the_plain_error_of_each_sample(prediction):
    schedule = Schedule.from_spec(ScheduleSpec(prediction=prediction))
    x0, noise, x_t = _noisy(schedule)
    error = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=x0.dtype)
    output = _value(schedule, x0, noise) + error.reshape(4, 1, 1, 1, 1)
    torch.testing.assert_close(training_loss(schedule, output, x0=x0, x_t=x_t, noise=noise, t=T), error**2)


@pytest.mark.parametrize(("snr_min", "snr_max"), [(0.0, 5.0), (1.0, 5.0), (1.0, 1.0), (0.0, 1e9)])
def test_min_snr_weighs_one_mistake_alike_in_every_prediction_space(snr_min, snr_max):
    x0_mistake = 0.01
    losses = []
    for prediction in PREDICTIONS:
        schedule = Schedule.from_spec(ScheduleSpec(prediction=prediction))
        x0, noise, x_t = _noisy(schedule)
        wrong = x0 + x0_mistake
        epsilon = to_epsilon(schedule, wrong, x_t=x_t, t=T, prediction="x0")
        output = _value(schedule, wrong, epsilon)
        loss = training_loss(
            schedule,
            output,
            x0=x0,
            x_t=x_t,
            noise=noise,
            t=T,
            weighting="min_snr",
            snr_min=snr_min,
            snr_max=snr_max,
        )
        losses.append(loss)
        torch.testing.assert_close(loss, schedule.snr(T).clamp(snr_min, snr_max) * x0_mistake**2)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[2], losses[1])


def test_motion_weight_counts_what_changes_between_frames_alone():
    def loss(error, weight):
        return squared_error(error, motion_weight=weight)

    generator = torch.Generator().manual_seed(0)
    still = torch.randn(2, 1, 3, 4, 4, generator=generator).expand(2, 8, 3, 4, 4)
    apart = torch.randn(2, 4096, 3, 4, 4, generator=generator)
    opposite = torch.tensor([1.0, -1.0]).repeat(4).reshape(1, 8, 1, 1, 1).expand(2, 8, 3, 4, 4)
    torch.testing.assert_close(loss(still, 5.0), loss(still, 0.0))
    torch.testing.assert_close(loss(apart, 2.0), 3 * loss(apart, 0.0), rtol=0.01, atol=0)
    torch.testing.assert_close(loss(opposite, 2.0), 5 * loss(opposite, 0.0))
    torch.testing.assert_close(loss(still[:, :1], 5.0), loss(still[:, :1], 0.0))
    embedding = torch.randn(2, 16, generator=generator)
    torch.testing.assert_close(loss(embedding, 5.0), loss(embedding, 0.0))


def test_with_motion_weight_the_mean_of_what_may_be_stays_the_best_guess():
    generator = torch.Generator().manual_seed(1)
    futures = torch.randn(
        2, 6, 3, 2, 2, generator=generator, dtype=torch.float64
    )  # one x_t may come from both

    def loss(guess):
        return squared_error(guess - futures, motion_weight=3.0).mean()

    best = futures.mean(0, keepdim=True).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(best), best)
    torch.testing.assert_close(gradient, torch.zeros_like(best))
    for _ in range(20):
        assert loss(best + 0.01 * torch.randn(best.shape, generator=generator)) > loss(best)


def test_min_snr_weights_have_their_known_forms():
    for prediction, wanted in [
        ("x0", lambda snr: snr.clamp(max=5)),
        ("epsilon", lambda snr: (5 / snr).clamp(max=1)),
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
    ]:
        schedule = Schedule.from_spec(ScheduleSpec(prediction=prediction))
        torch.testing.assert_close(min_snr_weight(schedule, T), wanted(schedule.snr(T)))


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_the_bound_is_zero_at_the_true_posterior_alone(fraction):
    schedule = Schedule.from_spec(ScheduleSpec(variance="learned_range"))
    t = torch.tensor([1, 50, 400])
    x0, _, x_t = _noisy(schedule, t=t)
    given = {"x0": x0, "x_t": x_t, "t": t, "fraction": torch.full_like(x0, fraction)}
    exact = variational_bound(schedule, x0, **given)
    if fraction == 0:
        torch.testing.assert_close(exact, torch.zeros_like(exact), rtol=0, atol=1e-12)
    else:
        assert (exact > 1e-7).all()
    assert (variational_bound(schedule, x0 + 0.1, **given) > exact).all()


def test_the_bound_is_the_kl_in_bits_per_dimension():
    schedule = Schedule.from_spec(ScheduleSpec(variance="learned_range"))
    t = torch.tensor([1, 50, 400])
    x0, _, x_t = _noisy(schedule, t=t)
    fraction, guess = torch.rand(x0.shape, generator=torch.Generator().manual_seed(2)).to(x0), x0 * 0.9
    true_mean, _, true_log_var = posterior_mean_variance(schedule, x0, x_t=x_t, t=t)
    mean, _, _ = posterior_mean_variance(schedule, guess, x_t=x_t, t=t)
    log_var = log_variance(schedule, fraction, t=t, like=x0)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(
        normal(true_mean, (0.5 * true_log_var).exp()), normal(mean, (0.5 * log_var).exp())
    )
    bits = kl.flatten(1).mean(1) / torch.log(torch.tensor(2.0, dtype=x0.dtype))
    torch.testing.assert_close(
        variational_bound(schedule, guess, x0=x0, x_t=x_t, t=t, fraction=fraction), bits
    )


@pytest.mark.parametrize("guess", [-1.3, -1.0, 0.1, 0.999])
def test_the_first_step_is_a_distribution_over_the_8_bit_values(guess):
    schedule = Schedule.from_spec(ScheduleSpec(name="linear"))
    x0 = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(256, 1)
    same = torch.full_like(x0, guess)
    t = torch.zeros(256, dtype=torch.int64)
    bits = variational_bound(schedule, same, x0=x0, x_t=same, t=t, fraction=None)
    assert (2**-bits).sum() == pytest.approx(1, abs=1e-4)
    assert abs(x0[bits.argmin()].item() - max(guess, -1)) <= 1 / 255


def test_the_hybrid_loss_adds_a_thousandth_of_the_whole_bound_and_freezes_the_mean():
    schedule = Schedule.from_spec(ScheduleSpec(variance="learned_range"))
    x0, noise, x_t = _noisy(schedule)
    output = torch.randn(4, 3, 4, 2, 2, generator=torch.Generator().manual_seed(5), dtype=x0.dtype)
    output.requires_grad_(True)
    given = {"x0": x0, "x_t": x_t, "noise": noise, "t": T}
    loss = training_loss(schedule, output, **given)
    simple = training_loss(schedule, output, **given, vlb_weight=0)
    guess = to_x0(schedule, output[:, :, :2], x_t=x_t, t=T, prediction="epsilon")
    fraction = (output[:, :, 2:] + 1) / 2
    bound = variational_bound(schedule, guess, x0=x0, x_t=x_t, t=T, fraction=fraction)
    torch.testing.assert_close(loss, simple + 0.001 * 1000 * bound)
    (of_loss,) = torch.autograd.grad(loss.sum(), output)
    (of_simple,) = torch.autograd.grad(simple.sum(), output)
    assert torch.equal(of_loss[:, :, :2], of_simple[:, :, :2])
    assert torch.equal(of_simple[:, :, 2:], torch.zeros_like(x0))
    assert (of_loss[:, :, 2:].abs() > 0).any()
    assert torch.isfinite(of_loss).all()


def test_a_half_precision_output_is_read_and_judged_in_the_batchs_precision():
    schedule = Schedule.from_spec(ScheduleSpec())
    x0, noise, x_t = _noisy(schedule, dtype=torch.float32)
    loss = training_loss(schedule, noise.bfloat16(), x0=x0, x_t=x_t, noise=noise, t=T)
    assert loss.dtype == torch.float32
    read = read_output(schedule, noise.bfloat16(), x_t=x_t, t=T)
    assert read.x0.dtype == read.epsilon.dtype == torch.float32
    assert (loss > 0).all()
