"""Probabilistic principal components (Tipping & Bishop 1999): one normal distribution, narrow in most directions."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import row_of
from ldm.baselines.densities import DensityFamily
from ldm.baselines.family import Facts, Form
from ldm.baselines.shades import SHADES, dequantised, requantised
from ldm.config import Strict

PICTURES = 4  # for a direction, at least: the smaller eigenvalues of few pictures are far too small
MOST = 0.9  # of all directions, so that what is left over is a mean of several eigenvalues
SHRINK = 50  # pictures that the mean of all counts for, beside those of a class
WITHIN = 1 / (12 * SHADES**2)  # the variance of a number within its shade


class Settings(Strict):
    components: int = Field(128, gt=0)


def leading(y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of the covariance of centred rows y [n,d], and their directions [d,k]; approximately
    (Halko 2011) where they are a small part of many."""
    if 3 * k < min(y.shape):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, singular, directions = torch.svd_lowrank(y, 2 * k, niter=4)
        return singular[:k] ** 2 / max(1, len(y) - 1), directions[:, :k]
    if y.shape[1] <= len(y):
        values, vectors = torch.linalg.eigh(y.T @ y / max(1, len(y) - 1))
        return values.flip(0)[:k].clamp(min=0), vectors.flip(1)[:, :k]
    _, singular, rows = torch.linalg.svd(y, full_matrices=False)
    return singular[:k] ** 2 / max(1, len(y) - 1), rows[:k].T


def directions_for(wanted: int, y: Tensor) -> int:
    """How many directions the rows of y [n,d] can tell."""
    return max(1, min(wanted, len(y) // PICTURES, int(MOST * y.shape[1])))


def principal(y: Tensor, k: int, least: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest eigenvalues and their directions of centred rows, and the mean of the others, `least` or more: from
    what is left of the rows, for the difference of sums would be rounding alone where it is small."""
    values, directions = leading(y, k)
    left = (y - (y @ directions) @ directions.T).square().mean() * len(y) / max(1, len(y) - 1)
    return values, directions, (left * y.shape[1] / (y.shape[1] - k)).clamp(min=least)


def class_means(y: Tensor, label: Tensor | None, classes: int) -> Tensor:
    """[classes+1,d] of rows y [n,d]: of all, then of each class; of few pictures it is drawn towards that of all."""
    means = y.mean(0).repeat(classes + 1, 1)
    for one in [] if label is None else torch.unique(label[label >= 0]):
        own = y[label == one]
        means[one + 1] += (own.mean(0) - means[0]) * len(own) / (len(own) + SHRINK)
    return means


class Model(DensityFamily):
    """y = W z + mu + sigma e with z, e standard normal, so y ~ N(mu, W W^T + sigma^2 I), with a mu for each class.

    It begins as the closed solution for some of the pictures; all of them then move it by its likelihood.
    """

    facts = Facts(
        name="PPCA", paper="Tipping & Bishop 1999", group="simple", likelihood="exact", passes="1", free_form=False,
        cannot="It is one normal distribution: what it draws are blends of everything.",
    )  # fmt: skip
    first = 8192

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(form)
        self.k = min(settings.components, form.dims - 1)
        self.weight = nn.Parameter(torch.randn(form.dims, self.k) * 0.01)
        self.mean = nn.Parameter(torch.full((form.classes + 1, form.dims), 0.5))
        self.log_variance = nn.Parameter(torch.tensor(-4.0))

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """W = U (L - sigma^2)^(1/2) of the largest eigenvalues L; sigma^2 is the mean of the others (eq. 7 and 8)."""
        y = dequantised(x, torch.full_like(x, 0.5)).flatten(1)
        self.mean.copy_(class_means(y, label, self.form.classes))
        k = directions_for(self.k, y)
        values, directions, variance = principal(y - self._means(label, len(y)), k)
        values, variance = values + WITHIN, variance + WITHIN
        self.log_variance.copy_(variance.log())
        self.weight.mul_(0.01)  # what is left over is all but nothing, and may learn
        self.weight[:, :k] = directions * (values - variance).clamp(min=1e-8).sqrt()

    def _means(self, label: Tensor | None, count: int) -> Tensor:
        return self.mean[row_of(label, count, self.mean.device)]

    def log_density(self, y: Tensor, label: Tensor | None) -> Tensor:
        """By M = W^T W + sigma^2 I, which has only k rows (Woodbury 1950)."""
        apart, variance = y.flatten(1) - self._means(label, len(y)), self.log_variance.exp()
        inner = self.weight.T @ self.weight + variance * torch.eye(self.k, device=y.device)
        root = torch.linalg.cholesky(inner)
        within = torch.linalg.solve_triangular(root, self.weight.T @ apart.T, upper=False)
        distance = (apart.square().sum(1) - within.square().sum(0)) / variance
        determinant = (self.form.dims - self.k) * self.log_variance + 2 * root.diagonal().log().sum()
        told: Tensor = -0.5 * (self.form.dims * math.log(2 * math.pi) + determinant + distance)
        return told

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean of p(z|y) = M^-1 W^T (y - mu)."""
        apart = dequantised(x, torch.full_like(x, 0.5)).flatten(1) - self._means(label, len(x))
        inner = self.weight.T @ self.weight + self.log_variance.exp() * torch.eye(self.k, device=x.device)
        z: Tensor = torch.linalg.solve(inner, self.weight.T @ apart.T).T
        return z

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        y = z @ self.weight.T + self._means(label, len(z))
        return requantised(y.clamp(0, 1)).view(-1, *self.form.shape)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, self.k, generator=generator).to(self.weight.device)
        noise = torch.randn(count, self.form.dims, generator=generator).to(self.weight.device)
        y = z @ self.weight.T + self._means(label, count) + (0.5 * self.log_variance).exp() * noise
        return requantised(y.clamp(0, 1)).view(-1, *self.form.shape)
