"""A mixture of normal distributions (Dempster 1977) with independent pixels, its likelihood climbed by gradients."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import row_of
from ldm.baselines.densities import DensityFamily
from ldm.baselines.family import Facts, Form
from ldm.baselines.logistics import gumbel
from ldm.baselines.shades import dequantised, requantised
from ldm.config import Strict


class Settings(Strict):
    components: int = Field(64, gt=0)


class Model(DensityFamily):
    """p(y) = sum_k w_k N(y; mu_k, diag s_k^2); each class has its own weights w."""

    facts = Facts(
        name="GMM", paper="Dempster 1977", group="simple", likelihood="exact", passes="1", free_form=False,
        cannot="A component knows one picture and how much each pixel varies, not how pixels vary together.",
    )  # fmt: skip
    first = 2048

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(form)
        k = settings.components
        self.weights = nn.Parameter(torch.zeros(form.classes + 1, k))
        self.mean = nn.Parameter(torch.rand(k, form.dims))
        self.log_deviation = nn.Parameter(torch.full((k, form.dims), -1.5))

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """Means are pictures, far from each other (k-means++, Arthur 2007, taking the farthest); ten rounds of k-means
        follow, and deviations are those of the pictures nearest to each."""
        y, k = dequantised(x, torch.full_like(x, 0.5)).flatten(1), len(self.mean)
        chosen, apart = [0], (y - y[0]).square().sum(1)
        while len(chosen) < min(k, len(y)):
            chosen.append(int(apart.argmax()))
            apart = torch.minimum(apart, (y - y[chosen[-1]]).square().sum(1))
        means = y[torch.tensor(chosen)].clone()
        for _ in range(10):
            near = torch.cdist(y, means).argmin(1)
            for one in torch.unique(near):
                means[one] = y[near == one].mean(0)
        spread = y.std(0, correction=min(1, len(y) - 1)).clamp(min=0.02)
        self.log_deviation.copy_(spread.log().expand(k, -1))
        for one, count in enumerate(torch.bincount(near, minlength=len(means))):
            if count > 2:
                own = y[near == one].std(0)
                self.log_deviation[one] = (0.5 * own + 0.5 * spread).clamp(min=0.02).log()
        self.mean[: len(means)] = means

    def _each(self, y: Tensor, label: Tensor | None) -> Tensor:
        """[n,K]: log w_k + log N(y; mu_k, s_k), the square written out as matrix products; from a centre, for it is a
        small difference where deviations are."""
        told = row_of(label, len(y), y.device)
        centre, narrow = self.mean.detach().mean(0), (-2 * self.log_deviation).exp()
        y, mean = y - centre, self.mean - centre
        square = (y**2) @ narrow.T - 2 * y @ (mean * narrow).T + (mean**2 * narrow).sum(1)
        norm = self.log_deviation.sum(1) + 0.5 * self.form.dims * math.log(2 * math.pi)
        return self.weights[told].log_softmax(1) - 0.5 * square - norm

    def log_density(self, y: Tensor, label: Tensor | None) -> Tensor:
        return torch.logsumexp(self._each(y.flatten(1), label), 1)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        device = self.mean.device
        told = row_of(label, count, device)
        weights = self.weights[told].log_softmax(1)
        one = (weights + gumbel(weights.shape, generator).to(device)).argmax(1)
        noise = torch.randn(count, self.form.dims, generator=generator).to(device)
        y = self.mean[one] + self.log_deviation[one].exp() * noise
        return requantised(y.clamp(0, 1)).view(-1, *self.form.shape)
