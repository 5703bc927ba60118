"""Fréchet distance of two sets of features, each taken for a normal distribution (FID, Heusel 2017), at the number of
samples there is and, extrapolated, at ever more (Chong 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from ldm.metrics.interval import Estimate, around, bootstrap

ORDERS, SIZES = 4, 8  # of the extrapolation: orders of the samples, and subsets of each
SMALLEST = 0.25  # of the samples: the smallest subset


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d,d] (divided by n - 1) of features, in fp64."""

    mean: Tensor
    cov: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        x = features.double()
        mean = x.mean(0)
        return cls(mean, (x - mean).T @ (x - mean) / (len(x) - 1), len(x))

    @cached_property
    def root(self) -> Tensor:
        """S^(1/2), symmetric."""
        values, vectors = torch.linalg.eigh(self.cov)
        root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
        return root


def frechet(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); the more samples, the less of it is chance.

    S_a S_b has the eigenvalues of S_b^(1/2) S_a S_b^(1/2), which is symmetric: no complex root is ever taken.
    """
    cross = torch.linalg.eigvalsh(b.root @ a.cov @ b.root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def frechet_distance(features: Tensor, reference: Moments, generator: Generator, rounds: int = 30) -> Estimate:
    """FID of features [n,d], with the interval in which it varies between sets of n samples."""
    return bootstrap(lambda rows: frechet(Moments.of(rows), reference), features, generator, rounds).within(0)


def frechet_infinity(features: Tensor, reference: Moments, generator: Generator, at_n: Estimate) -> Estimate:
    """What FID tends to: FID(n) = FID_inf + slope / n, fitted over subsets of growing size, the mean of a few orders of
    the samples. To the interval of FID itself comes how much these orders differ."""
    found = torch.tensor([_intercept(features, reference, generator) for _ in range(ORDERS)], dtype=torch.float64)
    own = (at_n.high - at_n.value) / (around(0.0, 1.0).high)
    return around(float(found.mean()), (own**2 + float(found.var()) / ORDERS) ** 0.5)


def _intercept(features: Tensor, reference: Moments, generator: Generator) -> float:
    n = len(features)
    order = features[torch.randperm(n, generator=generator)]
    counts = torch.linspace(SMALLEST * n, n, SIZES).round().long().tolist()
    values = torch.tensor([frechet(Moments.of(order[:count]), reference) for count in counts], dtype=torch.float64)
    terms = torch.stack([torch.ones(SIZES), 1 / torch.tensor(counts)], 1).double()
    return float(torch.linalg.lstsq(terms, values[:, None]).solution[0, 0])
