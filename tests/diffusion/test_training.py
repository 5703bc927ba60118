"""Training schedules equal diffusers' tables, drawn levels have their densities, the bound is what it integrates to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch import Tensor

from ldm.diffusion.consistency import boundary, consistent, ddim_step
from ldm.diffusion.level import Level
from ldm.diffusion.loss import pseudo_huber, variational_bound
from ldm.diffusion.solver import Run, Solver
from ldm.diffusion.training import Posterior, Schedule, scheduler_config, spread_times

SHAPES = ("linear", "scaled_linear", "cosine")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_tables_are_those_of_diffusers(shape: Any, zero_snr: bool) -> None:
    config = scheduler_config("v_prediction", shape, zero_snr=zero_snr)
    schedule, stock = Schedule.of(config), DDIMScheduler.from_config(config)
    assert set(config) - {"_class_name"} <= set(stock.config)
    level = schedule.at(torch.arange(1000))
    assert (level.alpha**2 - stock.alphas_cumprod).abs().max() < 2e-6
    assert (level.alpha**2 + level.sigma**2 - 1).abs().max() < 1e-6
    assert (float(level.alpha[-1]) == 0) == zero_snr


def test_noise_is_added_as_stock_adds_it_and_velocity_agrees() -> None:
    config = scheduler_config("v_prediction", "scaled_linear")
    stock, t = DDPMScheduler.from_config(config), torch.tensor([0, 10, 500, 999])
    clean, noise = drawn(4, 4, 3, 3), drawn(4, 4, 3, 3, seed=1)
    level = Schedule.of(config).at(t)
    assert (level.noisy(clean, noise) - stock.add_noise(clean, noise, t)).abs().max() < 1e-5
    v = level.alpha.view(-1, 1, 1, 1) * noise - level.sigma.view(-1, 1, 1, 1) * clean
    assert (v - stock.get_velocity(clean, noise, t)).abs().max() < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_trained_at_the_levels_that_it_is_sampled_at(shift: float) -> None:
    config = scheduler_config("flow", "flow", shift=shift)
    stock = FlowMatchEulerDiscreteScheduler.from_config(config)
    level = Schedule.of(config).level((1000 - torch.arange(1000.0)) / 1000)
    assert (level.sigma - stock.sigmas).abs().max() < 1e-6
    assert (level.t - stock.timesteps).abs().max() < 1e-3
    assert (level.alpha + level.sigma - 1).abs().max() == 0
    sampled = next(Solver(Run("flow-euler", 10), config).levels())
    assert float(level.sigma.max()) == pytest.approx(float(sampled.sigma), abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_levels_of_u_cover_all_times_once(shape: Any) -> None:
    schedule = Schedule.of(scheduler_config("epsilon", shape))
    level = schedule.level((torch.arange(1000) + 0.5) / 1000)
    assert level.t.tolist() == list(range(1000))
    assert schedule.level(torch.tensor([1 - 2.0**-24])).t.tolist() == [999]
    assert level.index.device.type == "cpu"


def test_times_have_their_densities() -> None:
    u = (torch.arange(20_000) + 0.5) / 20_000
    assert spread_times(u, "uniform") is not None and (spread_times(u, "uniform") - u).abs().max() == 0
    power = spread_times(u, "power", power=0.5)
    assert float(power.mean()) == pytest.approx(2 / 3, abs=1e-3)  # E u^p = 1 / (1 + p)
    normal = spread_times(u, "logit_normal", mean=0.4, spread=1.3)
    logit = (normal / (1 - normal)).log()
    assert float(logit.mean()) == pytest.approx(0.4, abs=5e-3)
    assert float(logit.std()) == pytest.approx(1.3, abs=5e-3)
    assert bool((normal.diff() > 0).all()), "a quantile keeps the order, so stratified stays stratified"
    assert bool(torch.isfinite(spread_times(torch.tensor([0.0, 1 - 2.0**-24]), "logit_normal")).all())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_posterior_is_the_step_of_ddpm(kind: Any) -> None:
    """The mean that goes with a predicted clean latent is what DDPMScheduler steps to, and so are both variances."""
    config = scheduler_config(kind, "cosine", learned_variance=True)
    stock, schedule = DDPMScheduler.from_config(config), Schedule.of(config)
    x, output = drawn(1, 4, 3, 3), drawn(1, 4, 3, 3, seed=1)
    for t in (1, 7, 400, 999):
        level, posterior = schedule.at(torch.tensor([t])), Posterior.at(schedule, torch.tensor([t]))
        mean = posterior.from_clean * level.clean(output, x, kind) + posterior.from_x * x
        low, high = (float(stock._get_variance(t, torch.tensor(v))) for v in (-1.0, 1.0))
        assert float(posterior.log_variance) == pytest.approx(low, abs=2e-3)  # stock's tables are fp32
        assert float(posterior.log_beta) == pytest.approx(high, abs=2e-3)
        both = torch.cat([output, torch.zeros_like(output)], 1)
        stepped = stock.step(both, t, x, generator=torch.Generator().manual_seed(5)).prev_sample
        deviation = ((posterior.log_variance + posterior.log_beta) / 4).exp()
        apart = (stepped - mean - deviation * drawn(1, 4, 3, 3, seed=5)).abs().max()
        assert apart < 1e-4 * max(1.0, float(mean.abs().max()))


def test_bound_is_the_integral_of_the_divergence() -> None:
    """KL by numerical integration of both densities in one dimension, and by torch's own formula."""
    schedule = Schedule.of(scheduler_config("epsilon", "linear"))
    t = torch.tensor([300])
    level, posterior = schedule.at(t), Posterior.at(schedule, t)
    clean, predicted, x, variance = (torch.full((1, 1, 1, 1), v) for v in (0.4, 0.1, -0.3, 0.2))
    got = float(variational_bound(clean, predicted, x, variance, t, posterior))
    share = 0.6
    log = share * posterior.log_beta + (1 - share) * posterior.log_variance
    means = [float(posterior.from_clean * c + posterior.from_x * x) for c in (0.4, 0.1)]
    q = torch.distributions.Normal(torch.tensor(means[0]).double(), (posterior.log_variance.double() / 2).exp())
    p = torch.distributions.Normal(torch.tensor(means[1]).double(), (log.double() / 2).exp())
    grid = torch.linspace(means[0] - 2, means[0] + 2, 200_001, dtype=torch.float64)
    integral = torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid)
    assert got == pytest.approx(float(integral) / math.log(2), rel=1e-3)
    assert got == pytest.approx(float(torch.distributions.kl_divergence(q, p)) / math.log(2), rel=1e-3)
    first = torch.tensor([0])
    posterior = Posterior.at(schedule, first)
    log = share * posterior.log_beta + (1 - share) * posterior.log_variance
    p = torch.distributions.Normal(torch.tensor(0.1), (log / 2).exp())
    got = float(variational_bound(clean, predicted, x, variance, first, posterior))
    assert got == pytest.approx(-float(p.log_prob(torch.tensor(0.4))) / math.log(2), rel=1e-4)
    assert level.t.item() == 300


def test_bound_teaches_variances_alone_and_is_least_at_the_true_one() -> None:
    schedule = Schedule.of(scheduler_config("epsilon", "cosine"))
    t = torch.arange(0, 1000, 37)
    posterior, clean = Posterior.at(schedule, t), drawn(len(t), 2, 3, 3)
    predicted = clean.clone().requires_grad_()
    variance = torch.full_like(clean, -1.0, requires_grad=True)
    x = drawn(len(t), 2, 3, 3, seed=1)
    each = variational_bound(clean, predicted, x, variance, t, posterior)
    assert each.shape == (len(t),)
    assert each[1:].abs().max() < 1e-6, "the same mean and the smallest variance: no divergence"
    each.sum().backward()
    assert predicted.grad is None
    assert variance.grad is not None
    wider = variational_bound(clean, predicted, x, variance.detach() + 1.0, t, posterior)
    assert bool((wider[1:21] > each[1:21]).all())  # near T beta and beta~ are the same number


def test_boundary_is_that_of_lcm() -> None:
    stock = LCMScheduler()
    schedule = Schedule.of(stock.config)
    level = schedule.at(torch.tensor([0, 19, 999]))
    skip, out = boundary(level)
    for i, t in enumerate((0, 19, 999)):
        wanted = stock.get_scalings_for_boundary_condition_discrete(t)
        assert (float(skip[i]), float(out[i])) == pytest.approx(wanted, rel=1e-6)
    x = drawn(3, 4, 2, 2)
    assert (consistent(drawn(3, 4, 2, 2, seed=1), x, level)[0] - x[0]).abs().max() == 0


def test_ddim_step_is_that_of_stock() -> None:
    config = scheduler_config("epsilon", "scaled_linear")
    stock, schedule = DDIMScheduler.from_config(config), Schedule.of(config)
    stock.set_timesteps(50)
    x, output, t = drawn(1, 4, 3, 3), drawn(1, 4, 3, 3, seed=1), 501
    level, later = schedule.at(torch.tensor([t])), schedule.at(torch.tensor([t - 20]))
    ours = ddim_step(level.clean(output, x, "epsilon"), x, level, later)
    assert (ours - stock.step(output, t, x).prev_sample).abs().max() < 1e-5


def test_pseudo_huber_is_a_square_near_zero_and_absolute_far_off() -> None:
    zero = torch.zeros(2, 3)
    near, far = pseudo_huber(zero + torch.tensor([[1e-4], [10.0]]), zero, 1e-2)
    assert float(near) == pytest.approx(1e-8 / 2e-2, rel=1e-2)
    assert float(far) == pytest.approx(10 - 1e-2, rel=1e-3)
    assert pseudo_huber(zero, zero, 1e-3).abs().max() == 0


def test_level_is_a_level() -> None:
    level = Schedule.of(scheduler_config("epsilon", "linear")).at(torch.tensor([3, 5]))
    assert isinstance(level, Level)
    assert level.alpha.dtype == torch.float32
