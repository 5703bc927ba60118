"""Spacings: which noise levels a run visits. Sigmas are noise over signal, sigma_t = sqrt((1 - a_t) / a_t), falling."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Spacing = Literal["leading", "trailing", "linspace", "karras", "exponential", "beta", "ays", "sigmas"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

Sigmas = npt.NDArray[np.float64]

# Align Your Steps (Sabour 2024, arXiv 2404.14507), eleven levels: ten steps and the last sigma.
AYS: dict[str, tuple[float, ...]] = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def karras(low: float, high: float, steps: int, rho: float = 7.0) -> Sigmas:
    """sigma_i = (high^(1/rho) + i/(n-1) (low^(1/rho) - high^(1/rho)))^rho  (Karras 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    return np.asarray((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)


def exponential(low: float, high: float, steps: int) -> Sigmas:
    """Evenly spaced in log sigma."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def beta(low: float, high: float, steps: int, a: float = 0.6, b: float = 0.6) -> Sigmas:
    """sigma = low + q (high - low) with quantiles q of the beta distribution, dense at both ends (Lee 2024)."""
    quantiles = _beta_quantile(1 - np.linspace(0, 1, steps), a, b)
    return np.asarray(low + quantiles * (high - low))


def ays(steps: int, family: str) -> Sigmas:
    """The published ten-step list, interpolated in log sigma for other counts; the last of its levels is left out."""
    known = np.log(np.asarray(AYS["xl" if family.startswith("xl") else "sd"])[::-1])
    at = np.linspace(0, 1, steps + 1)
    return np.asarray(np.exp(np.interp(at, np.linspace(0, 1, len(known)), known))[::-1][:steps].copy())


def time_of(sigmas: Sigmas, table: Sigmas) -> npt.NDArray[np.float64]:
    """The (fractional) training times of sigmas, interpolated in log sigma; `table` holds the sigma of each time."""
    times = np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(table), np.arange(len(table)))
    return np.asarray(times)


def _beta_quantile(p: npt.NDArray[np.float64], a: float, b: float) -> npt.NDArray[np.float64]:
    """The inverse of the regularised incomplete beta function.

    With x = sin^2(theta) the density becomes 2 sin^(2a-1) cos^(2b-1), which has no poles; its integral is tabulated by
    the midpoint rule and read backwards. Good to 1e-6, and spares a dependency on scipy.
    """
    edges = np.linspace(0, np.pi / 2, 200_001)
    mid = (edges[1:] + edges[:-1]) / 2
    density = np.sin(mid) ** (2 * a - 1) * np.cos(mid) ** (2 * b - 1)
    cdf = np.concatenate([[0.0], np.cumsum(density)])
    return np.asarray(np.sin(np.interp(p, cdf / cdf[-1], edges)) ** 2)
