"""Every solver against the stock scheduler it adapts, and the published table of spacings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import diffusers.schedulers as stock
import pytest
import torch

from ldm.diffusion import schedule
from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction, sample
from ldm.diffusion.solver import SOLVERS, Run, Solver, spacing_table
from ldm.errors import LdmError

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
FLAG = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth nonlinear stand-in for a noise predictor: what matters is that both sides call the same function."""
    return torch.tanh(x * 0.9 + t.float().reshape(-1, 1, 1, 1) / 1500)


def last(steps: Iterator[torch.Tensor]) -> torch.Tensor:
    return list(steps)[-1]


def ours(run: Run, config: dict, kind: str = "epsilon", known: torch.Tensor | None = None) -> torch.Tensor:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(10 + i) for i in range(2)]

    def denoise(x: torch.Tensor, level: Level) -> Prediction:
        level = level.expand(len(x))
        return Prediction(level.clean(network(x, level.t), x, kind))

    solver = Solver(run, config)
    return last(sample(denoise, solver, solver.start(noise, known), generators))


def theirs(
    cls: str, steps: int, config: dict, known: torch.Tensor | None = None, strength: float = 1.0
) -> torch.Tensor:
    scheduler = getattr(stock, cls).from_config(dict(config))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(10 + i) for i in range(2)]
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    if known is None:
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        begin = max(steps - int(steps * strength), 0) * scheduler.order
        times = times[begin:]
        scheduler.set_begin_index(begin) if hasattr(scheduler, "set_begin_index") else None
        x = scheduler.add_noise(known, noise, times[:1].repeat(2))
    for t in times:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        extra = {"generator": generators} if "generator" in scheduler.step.__code__.co_varnames else {}
        x = scheduler.step(network(scaled, t), t, x, return_dict=False, **extra)[0]
    return x


NATIVE = [
    (name, spacing)
    for name, spec in SOLVERS.items()
    for spacing in ("leading", "trailing", "linspace", "karras", "exponential")
    if spacing in spec.spacings
    and spec.space != "flow"
    and (
        FLAG.get(spacing, "timestep_spacing")
        in getattr(stock, spec.scheduler)._get_init_keys(getattr(stock, spec.scheduler))
    )
]


@pytest.mark.parametrize(("name", "spacing"), NATIVE)
def test_equals_the_stock_scheduler(name: str, spacing: str) -> None:
    spec = SOLVERS[name]
    config = {**SD, **spec.config} | ({FLAG[spacing]: True} if spacing in FLAG else {"timestep_spacing": spacing})
    got, want = ours(Run(name, 9, spacing), SD), theirs(spec.scheduler, 9, config)
    assert (got - want).abs().max() <= 2e-4 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++ 2m", "heun", "ddpm", "unipc"])
def test_image_to_image_starts_where_stock_starts(name: str) -> None:
    spec = SOLVERS[name]
    known = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    config = {**SD, **spec.config, "timestep_spacing": "leading" if "times" in spec.space else "linspace"}
    got = ours(Run(name, 10, config["timestep_spacing"], strength=0.6), SD, known=known)
    assert (got - theirs(spec.scheduler, 10, config, known, 0.6)).abs().max() <= 2e-4


def test_flow_euler_equals_stock() -> None:
    got = ours(Run("flow-euler", 8), {"num_train_timesteps": 1000, "shift": 3.0}, kind="flow")
    want = theirs("FlowMatchEulerDiscreteScheduler", 8, {"num_train_timesteps": 1000, "shift": 3.0})
    assert (got - want).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "spacing"), [(n, s) for n, row in spacing_table().items() for s, ok in row.items() if ok]
)
def test_every_cell_of_the_table_runs_and_converges(name: str, spacing: str) -> None:
    """With a perfect denoiser every solver must land on the clean latent, whatever the spacing."""
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    flow = name == "flow-euler"
    sigmas = ((1.0, 0.7, 0.3, 0.1) if flow else (14.0, 5.0, 2.0, 0.8, 0.2)) if spacing == "sigmas" else None
    config = {"num_train_timesteps": 1000} if flow else SD
    solver = Solver(Run(name, 12, spacing, sigmas=sigmas), config)
    generator = [torch.Generator().manual_seed(3)]
    x = solver.start(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)))
    levels = list(solver.levels())
    assert all(a.sigma > b.sigma or name == "heun" for a, b in itertools.pairwise(levels))
    x = last(sample(lambda x, level: Prediction(clean.clone()), solver, x, generator))
    assert (x - clean).abs().max() <= 0.35  # some schedules end at a small sigma, not at 0


@pytest.mark.parametrize(
    ("name", "spacing"), [(n, s) for n, row in spacing_table().items() for s, ok in row.items() if not ok]
)
def test_other_cells_name_what_would_fit(name: str, spacing: str) -> None:
    with pytest.raises(LdmError) as error:
        Solver(Run(name, 12, spacing, sigmas=(9.0, 1.0)), SD if name != "flow-euler" else {"num_train_timesteps": 1000})
    assert spacing in error.value.what
    assert "Choose" in error.value.fix


def test_unknown_solver_names_the_nearest() -> None:
    with pytest.raises(LdmError, match="did you mean 'euler'"):
        Solver(Run("eulr", 5), SD)


@pytest.mark.parametrize("sigmas", [(), (1.0, 2.0), (3.0, 0.0, 0.0), (2.0, 2.0)])
def test_bad_sigma_lists_are_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(LdmError):
        Solver(Run("euler", 5, "sigmas", sigmas=sigmas), SD)


def test_ays_has_the_published_levels() -> None:
    assert schedule.ays(10, "sd")[0] == pytest.approx(14.615)
    assert schedule.ays(10, "sd")[-1] == pytest.approx(0.152)
    assert schedule.ays(10, "xl")[1] == pytest.approx(6.315)


def test_beta_quantiles_against_known_values() -> None:
    """From the closed form of the arcsine law (a = b = 1/2): q(p) = sin^2(pi p / 2)."""
    import numpy as np

    p = np.linspace(0, 1, 11)
    assert np.abs(schedule._beta_quantile(p, 0.5, 0.5) - np.sin(np.pi * p / 2) ** 2).max() <= 1e-6


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.zero_snr])
def test_zero_terminal_snr_starts_from_pure_noise(name: str) -> None:
    solver = Solver(Run(name, 6, "trailing", zero_snr=True), SD)
    first = next(solver.levels())
    assert float(first.alpha) <= 1e-3
    x = solver.start(torch.ones(1, 4, 8, 8))
    x = last(sample(lambda x, level: Prediction(torch.zeros_like(x)), solver, x, [torch.Generator()]))
    assert torch.isfinite(x).all()


def test_solver_without_zero_snr_says_so() -> None:
    with pytest.raises(LdmError, match="zero signal"):
        Solver(Run("heun", 6, zero_snr=True), SD)


def test_refiner_hand_over_splits_one_list() -> None:
    whole = [float(level.t) for level in Solver(Run("euler", 10), SD).levels()]
    base = [float(level.t) for level in Solver(Run("euler", 10, stop=0.8), SD).levels()]
    rest = [float(level.t) for level in Solver(Run("euler", 10, start=0.8), SD).levels()]
    assert base + rest == whole
    assert base
    assert rest


def test_too_many_steps_are_answered_with_the_most_that_work() -> None:
    with pytest.raises(LdmError, match="Use 999 or fewer"):
        Solver(Run("ddim", 1000, "leading"), SD)
    assert Solver(Run("ddim", 999, "leading"), SD).count == 999


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    ("name", "spacing"), [("ddim", "leading"), ("ddim", "trailing"), ("ddim", "linspace"), ("lcm", "trailing")]
)
def test_our_own_make_the_bits_of_stock(name: str, spacing: str, schedule: str, zero_snr: bool) -> None:
    """Handed the very same v, from one noise and the same generators."""
    config = {**SD, "beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr}
    solver = Solver(Run(name, 7, spacing, eta=0.5 if name == "ddim" else 0.0), config)
    stock_one = getattr(stock, SOLVERS[name].scheduler)(
        **config, prediction_type="v_prediction", timestep_spacing=spacing
    )
    stock_one.set_timesteps(7)
    assert torch.equal(solver.scheduler.timesteps, stock_one.timesteps)
    known, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    first = stock_one.timesteps[:1].expand(2)
    assert torch.equal(solver.start(noise, known), stock_one.add_noise(known, noise, first))
    mine = theirs_too = noise
    draws = [[torch.Generator().manual_seed(10 + i) for i in range(2)] for _ in range(2)]
    extra = {"eta": 0.5} if name == "ddim" else {}
    for t in stock_one.timesteps:
        v = network(mine, t)
        mine = solver.scheduler.step(v, t, mine, generator=draws[0], **extra)[0]
        theirs_too = stock_one.step(v, t, theirs_too, generator=draws[1], return_dict=False, **extra)[0]
        assert torch.equal(mine, theirs_too)
