"""How far a figure may be from what more samples would tell: bootstrap (Efron 1979), jackknife (Tukey 1958),
and intervals of a share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Generator, Tensor

LEVEL = 0.95  # of every interval
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that it varies in from one set of samples to the next."""

    value: float
    low: float
    high: float

    def within(self, least: float, most: float = math.inf) -> Estimate:
        """Of a figure that can be no less and no more: a normal interval does not know."""
        return Estimate(self.value, max(least, self.low), min(most, self.high))

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def bootstrap(statistic: Callable[[Tensor], float], rows: Tensor, generator: Generator, rounds: int = 100) -> Estimate:
    """value +- z * the deviation of the statistic over rows [n,...] that are drawn again with repetition.

    Not the quantiles of what is drawn: a statistic with a bias in n, as the Fréchet distance, has it twice there.
    """
    n, value = len(rows), statistic(rows)
    again = [statistic(rows[torch.randint(n, (n,), generator=generator)]) for _ in range(rounds)]
    return around(value, torch.tensor(again, dtype=torch.float64).std().item())


def jackknife(value: float, without: Tensor, *more: Tensor) -> Estimate:
    """From the values [n] of the statistic without each of its rows in turn; variances of several samples add up:

    s^2 = (n - 1) / n * sum_i (value_-i - mean)^2
    """
    return around(value, math.sqrt(sum(left_out_variance(left) for left in (without, *more))))


def left_out_variance(without: Tensor) -> float:
    """Of a statistic, from its values [n] without each of its rows in turn."""
    n, left = len(without), without.double()
    return (n - 1) / n * (left - left.mean()).square().sum().item()


def around(value: float, deviation: float) -> Estimate:
    """The interval of a normal error."""
    reach = NormalDist().inv_cdf(0.5 + LEVEL / 2) * deviation
    return Estimate(value, value - reach, value + reach)


def student(freedom: int) -> float:
    """Student's t at 97.5 %: of few numbers a normal interval would be far too narrow."""
    return _T.get(freedom, 1.96 + 2.5 / freedom)


def share(hits: int, n: int) -> Estimate:
    """A share of n independent trials, with Wilson's interval (1927), which stays within 0..1."""
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    p, wide = hits / n, 1 + z * z / n
    middle, reach = (p + z * z / (2 * n)) / wide, z / wide * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return Estimate(p, max(0.0, middle - reach), min(1.0, middle + reach))


def exact_share(hits: int, n: int) -> Estimate:
    """A share of n independent trials, with the interval of Clopper and Pearson (1934), which never promises too much:
    the shares p for which neither P(X >= hits) nor P(X <= hits) is below (1 - level) / 2. X is binomial in n and p."""
    tail = (1 - LEVEL) / 2
    low = _share_of(lambda p: 1 - _at_most(hits - 1, n, p) >= tail) if hits else 0.0
    high = _share_of(lambda p: _at_most(hits, n, p) <= tail) if hits < n else 1.0
    return Estimate(hits / n, low, high)


def _at_most(hits: int, n: int, p: float) -> float:
    """P(X <= hits)."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(hits + 1))


def _share_of(holds: Callable[[float], bool]) -> float:
    """The least p of 0..1 for which something holds, that holds for all greater ones; by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
