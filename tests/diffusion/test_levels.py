"""Which levels a run visits, and what time the network is told at each: recomputed here from the published formulas.

Every cell of the table solver x spacing, the native ones of diffusers and those that we compute, against numpy alone.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from ldm.diffusion.solver import SOLVERS, Run, Solver, spacing_table

BETAS = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
SIGNAL = np.cumprod(1 - BETAS)
TABLE = np.sqrt((1 - SIGNAL) / SIGNAL)  # noise over signal at each training time
SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
CELLS = [(n, s) for n, row in spacing_table().items() for s, ok in row.items() if ok]
LIST = (14.0, 5.0, 2.0, 0.8, 0.2)
# The times of the ten steps of Align Your Steps, as their authors published them.
AYS = {
    "sd": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
    "xl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
}


def time_of(sigma: np.ndarray) -> np.ndarray:
    """k-diffusion's sigma_to_t: linear in log sigma between two neighbours of the table."""
    logs = np.log(TABLE)
    low = np.clip(np.searchsorted(logs, np.log(sigma), side="right") - 1, 0, len(TABLE) - 2)
    share = (np.log(sigma) - logs[low]) / (logs[low + 1] - logs[low])
    return np.clip(low + share, 0, len(TABLE) - 1)


def karras(steps: int, high: float = TABLE[-1], low: float = TABLE[0]) -> np.ndarray:
    """Karras 2022, equation 5, with rho = 7, as k-diffusion publishes it."""
    root_high, root_low = high ** (1 / 7), low ** (1 / 7)
    return np.array([(root_high + i / (steps - 1) * (root_low - root_high)) ** 7 for i in range(steps)])


def exponential(steps: int, high: float = TABLE[-1], low: float = TABLE[0]) -> np.ndarray:
    """A geometric series."""
    return np.array([high * (low / high) ** (i / (steps - 1)) for i in range(steps)])


def beta_left(x: float, a: float = 0.6, b: float = 0.6) -> float:
    """The regularised incomplete beta function I_x(a, b), by the series of its hypergeometric form."""
    if x > 0.5:
        return 1 - beta_left(1 - x, b, a)
    term, total = 1.0, 1.0 / a
    for k in range(1, 200):
        term *= (k - b) / k * x
        total += term / (a + k)
    return x**a * total * math.gamma(a + b) / (math.gamma(a) * math.gamma(b))


def uniform(name: str, spacing: str, steps: int) -> np.ndarray:
    """Training times of Lin 2023, table 2, as the solver's authors read it: multistep solvers think of steps + 1."""
    multistep = name in ("dpm++ 2m", "dpm++ 2m sde", "unipc", "deis")
    if name == "lcm":  # every 20th time is one that was distilled (Luo 2023)
        return np.array([999 - 20 * (50 * i // steps) for i in range(steps)])
    if spacing == "leading":
        ratio, last = (1000 // (steps + 1), 1) if multistep else (1000 // steps, 0)
        return np.array([1 + ratio * (steps - 1 - i + last) for i in range(steps)])
    if spacing == "trailing":
        return np.array([round(1000 * (steps - i) / steps) - 1 for i in range(steps)])
    parts = steps if multistep or name == "dpm++ single" else steps - 1
    return np.array([999 - 999 * i / parts for i in range(steps)])


def levels(run: Run, config: dict | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t, alpha and sigma of each level, once where Heun's method visits it twice."""
    found = list(Solver(run, SD if config is None else config).levels())
    t, alpha, sigma = (np.array([float(getattr(v, f)) for v in found]) for f in ("t", "alpha", "sigma"))
    if run.solver == "heun":
        assert np.array_equal(t[1::2], t[2::2])
        assert np.array_equal(sigma[1::2], sigma[2::2])
        once = [0, *range(1, len(t), 2)]
        t, alpha, sigma = t[once], alpha[once], sigma[once]
    return t, alpha, sigma


def check_vp(name: str, run: Run, times: np.ndarray | None, sigmas: np.ndarray | None) -> np.ndarray:
    """Times are those wanted, or their roundings; sigma is the wanted one, or that of a (rounded) time."""
    t, alpha, sigma = levels(run)
    wanted = time_of(sigmas) if times is None and sigmas is not None else times
    assert wanted is not None
    assert t.shape == wanted.shape
    whole = [np.rint(wanted)]
    if run.spacing == "exponential" and SOLVERS[name].space == "vp":
        whole.append(np.floor(wanted - 1e-4))  # diffusers cuts the fraction off here, and we equal it
    assert np.min([np.abs(t - w) for w in (wanted, *whole)], axis=0).max() <= 0.02
    assert np.abs(alpha**2 + sigma**2 - 1).max() <= 1e-5
    own = sigmas if sigmas is not None and SOLVERS[name].space != "times" else np.interp(t, np.arange(1000), TABLE)
    assert np.abs(sigma / alpha / own - 1).max() <= 5e-4
    return t


@pytest.mark.parametrize(("name", "spacing"), [c for c in CELLS if c[1] in ("leading", "trailing", "linspace")])
@pytest.mark.parametrize("steps", [4, 7, 20])
def test_uniform(name: str, spacing: str, steps: int) -> None:
    if name == "flow-euler":
        t, alpha, sigma = levels(Run(name, steps, spacing), {"num_train_timesteps": 1000})
        wanted = np.array([1 - 0.999 * i / (steps - 1) for i in range(steps)])
        assert np.abs(t - 1000 * wanted).max() <= 1e-2
        assert np.abs(sigma - wanted).max() <= 1e-5
        assert np.abs(alpha + sigma - 1).max() <= 1e-6
    else:
        check_vp(name, Run(name, steps, spacing), uniform(name, spacing, steps), None)


@pytest.mark.parametrize(("name", "spacing"), [c for c in CELLS if c[1] in ("karras", "exponential")])
@pytest.mark.parametrize("steps", [4, 12])
def test_karras_and_exponential(name: str, spacing: str, steps: int) -> None:
    formula = karras if spacing == "karras" else exponential
    if name == "flow-euler":
        t, alpha, sigma = levels(Run(name, steps, spacing), {"num_train_timesteps": 1000})
        assert np.abs(sigma / formula(steps, 1.0, 0.001) - 1).max() <= 1e-3
        assert np.abs(t - 1000 * sigma).max() <= 1e-2
        assert np.abs(alpha + sigma - 1).max() <= 1e-6
    else:
        check_vp(name, Run(name, steps, spacing), None, formula(steps))


@pytest.mark.parametrize("name", [n for n, s in CELLS if s == "beta"])
@pytest.mark.parametrize("steps", [5, 12])
def test_beta(name: str, steps: int) -> None:
    """The share of the beta distribution below each level falls evenly from 1 to 0."""
    t, alpha, sigma = levels(Run(name, steps, "beta"))
    ratio = sigma / alpha
    place = np.clip((ratio - TABLE[0]) / (TABLE[-1] - TABLE[0]), 0, 1)
    shares = np.array([beta_left(float(x)) for x in place])
    assert np.abs(shares - np.array([1 - i / (steps - 1) for i in range(steps)])).max() <= 2e-3
    check_vp(name, Run(name, steps, "beta"), None, ratio)
    assert t[0] == pytest.approx(999, abs=0.5)


@pytest.mark.parametrize("name", [n for n, s in CELLS if s == "ays"])
@pytest.mark.parametrize("family", AYS)
def test_align_your_steps(name: str, family: str) -> None:
    """The authors publish times and, rounded to three digits, sigmas: the times that we find are theirs."""
    t, _, _ = levels(Run(name, 10, "ays", family=family))
    assert np.abs(t - np.array(AYS[family])).max() <= 2.0


@pytest.mark.parametrize("name", [n for n, s in CELLS if s == "sigmas"])
def test_a_list_of_sigmas_is_taken_as_it_is(name: str) -> None:
    if name == "flow-euler":
        given = (1.0, 0.7, 0.3, 0.1)
        t, alpha, sigma = levels(Run(name, 4, "sigmas", sigmas=given), {"num_train_timesteps": 1000, "shift": 3.0})
        assert np.abs(sigma - np.array(given)).max() <= 1e-6
        assert np.abs(t - 1000 * np.array(given)).max() <= 1e-2
        assert np.abs(alpha - 1 + np.array(given)).max() <= 1e-6
    else:
        check_vp(name, Run(name, 5, "sigmas", sigmas=LIST), None, np.array(LIST))


def test_every_cell_of_the_table_is_looked_at() -> None:
    looked = {"leading", "trailing", "linspace", "karras", "exponential", "beta", "ays", "sigmas"}
    assert {s for _, s in CELLS} <= looked
    assert {n for n, _ in CELLS} == set(SOLVERS)
