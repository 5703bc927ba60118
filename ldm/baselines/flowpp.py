"""Flow++ (Ho 2019): couplings by mixtures of logistic distributions, and noise within a shade that is learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ldm.baselines.bijections import (
    ActNorm,
    Bijection,
    Coupling,
    Rotation,
    Through,
    checkerboard,
    normal_log_density,
)
from ldm.baselines.blocks import Stack
from ldm.baselines.family import Facts, Form
from ldm.baselines.flows import FlowFamily
from ldm.baselines.realnvp import scales
from ldm.baselines.shades import SHADES, density_bits, shades
from ldm.config import Strict
from ldm.data.draws import Draws

_HALVINGS = 40  # of an interval of a few hundred, in which an inverse is looked for: beyond the digits of fp32


class Settings(Strict):
    width: int = Field(48, gt=0)
    blocks: int = Field(1, gt=0)
    mixture: int = Field(8, gt=0)
    depth: int = Field(2, gt=0)  # couplings of each kind on a scale
    scales: int = Field(3, gt=0)


class MixtureCoupling(Bijection):
    """z_2 = logit(F(x_2)) exp(s) + t, F the distribution function of a mixture of logistics told by x_1 (eq. 9)."""

    keep: Tensor

    def __init__(self, keep: Tensor, network: nn.Module, mixture: int) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.network, self.mixture = network, mixture
        self.bound = nn.Parameter(torch.zeros(()))

    def _told(self, kept: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """s, t [n,C,H,W]; log weights, means and log scales [n,K,C,H,W]."""
        n, c, *places = kept.shape
        said = self.network(kept, h).view(n, 2 + 3 * self.mixture, c, *places)
        s, t = torch.tanh(said[:, 0]) * self.bound.exp(), said[:, 1]
        weights, means, scales = said[:, 2:].chunk(3, 1)
        return s, t, weights.log_softmax(1), means + self._spread(means), scales.clamp(min=-6)

    def _spread(self, like: Tensor) -> Tensor:
        """Means begin apart, or all of the mixture would stay one."""
        at = torch.linspace(-1.5, 1.5, self.mixture, device=like.device, dtype=like.dtype)
        return at.view(1, -1, *[1] * (like.ndim - 2))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        s, t, weights, means, scales = self._told(x * self.keep, h)
        upto, beyond, density = _mixture(x, weights, means, scales)
        z = (upto - beyond) * s.exp() + t
        change = density - upto - beyond + s  # d logit(F) / dx = f / (F (1 - F))
        moved = 1 - self.keep
        return x * self.keep + z * moved, (change * moved).flatten(1).sum(1)

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        """F rises, so halving an interval finds its inverse."""
        s, t, weights, means, scales = self._told(z * self.keep, h)
        want = (z - t) * (-s).exp()
        reach = 50 * scales.exp().amax(1) + 50
        low, high = means.amin(1) - reach, means.amax(1) + reach
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            upto, beyond = _upto(middle, weights, means, scales)
            under = upto - beyond < want
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return z * self.keep + (low + high) / 2 * (1 - self.keep)


def _upto(x: Tensor, weights: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """log F(x) and log(1 - F(x))."""
    apart = (x[:, None] - means) * (-scales).exp()
    return torch.logsumexp(weights + F.logsigmoid(apart), 1), torch.logsumexp(weights + F.logsigmoid(-apart), 1)


def _mixture(x: Tensor, weights: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log F(x), log(1 - F(x)) and log f(x) of a mixture of logistic distributions."""
    apart = (x[:, None] - means) * (-scales).exp()
    upto, beyond = _upto(x, weights, means, scales)
    density = torch.logsumexp(weights + F.logsigmoid(apart) + F.logsigmoid(-apart) - scales, 1)
    return upto, beyond, density


class Within(nn.Module):
    """Noise u in [0,1) within a shade, as a small flow that is told the picture: q(u|x) (sec. 3.1)."""

    def __init__(self, form: Form, width: int) -> None:
        super().__init__()
        self.look = Stack(form.channels, width, width, 1)
        nn.init.normal_(self.look.leave.weight, std=0.02)
        self.layers = nn.ModuleList(
            Coupling(checkerboard(form.side, i % 2 == 0), Beside(form.channels, width)) for i in range(4)
        )

    def forward(self, x: Tensor, noise: Tensor) -> Through:
        """u and log q(u|x), from standard normal noise."""
        seen = self.look(x)
        log_q, u = normal_log_density(noise), noise
        for layer in self.layers:
            u, change = layer(u, seen)
            log_q = log_q - change
        log_q = log_q - (F.logsigmoid(u) + F.logsigmoid(-u)).flatten(1).sum(1)
        return torch.sigmoid(u).clamp(max=1 - 2**-20), log_q


class Beside(nn.Module):
    """A coupling's network that is told features of every place."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.net = Stack(channels + width, width, 2 * channels, 1)

    def forward(self, kept: Tensor, seen: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([kept, seen], 1))
        return out


class Model(FlowFamily):
    """bits(x) <= E_q(u|x) [-log p(x + u) + log q(u|x)]."""

    facts = Facts(
        name="Flow++", paper="Ho 2019", group="flow", likelihood="bound", passes="1", free_form=False,
        cannot="Its latent is as large as the picture; drawing inverts each coupling by a search.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(form, settings.width)
        self.within = Within(form, settings.width)

        def coupling(keep: Tensor, channels: int) -> list[Bijection]:
            numbers = channels * (2 + 3 * settings.mixture)
            network = Stack(channels, settings.width, numbers, settings.blocks, settings.width)
            return [ActNorm(channels), Rotation(channels), MixtureCoupling(keep, network, settings.mixture)]

        self.layers = scales(form, settings.scales, settings.depth, coupling)

    def bits(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        u, log_q = self.within(x, draws.normal("within a shade", self.form.shape))
        nats = log_q - self.log_density((shades(x) + u) / SHADES, label)
        return density_bits(nats, self.form.dims)
