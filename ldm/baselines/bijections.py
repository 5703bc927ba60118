"""Invertible layers with the logarithm of their Jacobian determinant: what normalising flows are made of.

Each takes x [n,C,H,W] to (z, log|det dz/dx| [n]), and `inverse` takes z back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Through = tuple[Tensor, Tensor]


class Bijection(nn.Module):
    """h is what the layer is told besides: the embedding of a class [n,d], or None."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        raise NotImplementedError

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Chain(Bijection):
    """One after another: log-determinants add up."""

    def __init__(self, layers: Sequence[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, change = layer(x, h)
            total = total + change
        return x, total

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        for layer in reversed(self.layers):
            assert isinstance(layer, Bijection)
            z = layer.inverse(z, h)
        return z


class Logit(Bijection):
    """x in [0,1) to the real line: logit(a + (1 - 2a) x) (Dinh 2017, with a = 0.05)."""

    def __init__(self, edge: float = 0.05) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        inner = self.edge + (1 - 2 * self.edge) * x
        z = torch.logit(inner)
        slope = torch.log(torch.tensor(1 - 2 * self.edge)) - inner.log() - (1 - inner).log()
        return z, slope.flatten(1).sum(1)

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        return ((torch.sigmoid(z) - self.edge) / (1 - 2 * self.edge)).clamp(0, 1)


class Squeeze(Bijection):
    """Blocks of 2x2 places become four channels."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        return F.pixel_shuffle(z, 2)


class ActNorm(Bijection):
    """z = (x + shift) exp(log_scale), a channel each; both are set from the first batch, so that z begins with mean 0
    and deviation 1 (Kingma 2018)."""

    ready: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("ready", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        if not self.ready:
            self._set(x)
        places = x[0, 0].numel()
        z = (x + _wide(self.shift, x)) * _wide(self.log_scale, x).exp()
        return z, (self.log_scale.sum() * places).expand(len(x))

    @torch.no_grad()
    def _set(self, x: Tensor) -> None:
        over = [d for d in range(x.ndim) if d != 1]
        self.shift.copy_(-x.mean(over))
        self.log_scale.copy_(-x.std(over).clamp(min=1e-3).log())
        self.ready.fill_(1)

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        return z * (-_wide(self.log_scale, z)).exp() - _wide(self.shift, z)


class Rotation(Bijection):
    """A 1x1 convolution W = P L (U + diag s) whose determinant is prod s (Kingma 2018); it begins as a rotation."""

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        order, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("order", order)
        self.register_buffer("sign", diagonal.sign())
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.lower, self.upper = nn.Parameter(lower), nn.Parameter(upper.triu(1))

    @property
    def weight(self) -> Tensor:
        one = torch.eye(len(self.sign), device=self.sign.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        return self.order @ (self.lower.tril(-1) + one) @ upper

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        places = x[0, 0].numel()
        return _mixed(self.weight, x), (self.log_diagonal.sum() * places).expand(len(x))

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        return _mixed(torch.linalg.inv(self.weight), z)


class Coupling(Bijection):
    """Half of the numbers stay, and tell how the others are stretched and moved: z_2 = (x_2 + t(x_1)) exp(s(x_1)).

    `keep` [C,H,W] (or broadcast) is 1 where numbers stay. log scales are bounded by a learned multiple of tanh.
    """

    keep: Tensor

    def __init__(self, keep: Tensor, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.network, self.bound = network, nn.Parameter(torch.zeros(()))

    def _told(self, kept: Tensor, h: Tensor | None) -> Through:
        s, t = self.network(kept, h).chunk(2, 1)
        moved = 1 - self.keep
        return torch.tanh(s) * self.bound.exp() * moved, t * moved

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        s, t = self._told(x * self.keep, h)
        return (x + t) * s.exp(), s.flatten(1).sum(1)

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        s, t = self._told(z * self.keep, h)
        return z * (-s).exp() - t


def checkerboard(side: int, first: bool) -> Tensor:
    """[1,side,side] of 0 and 1."""
    rows = torch.arange(side)
    return ((rows[:, None] + rows) % 2 == int(first)).float()[None]


def half_of_channels(channels: int, first: bool) -> Tensor:
    """[channels,1,1]: 1 for the first or the last half."""
    return ((torch.arange(channels) < channels // 2) == first).float()[:, None, None]


def normal_log_density(z: Tensor) -> Tensor:
    """[n]: of a standard normal distribution."""
    return -0.5 * (z.square() + torch.log(torch.tensor(2 * torch.pi))).flatten(1).sum(1)


def _wide(channel: Tensor, x: Tensor) -> Tensor:
    return channel.view(1, -1, *[1] * (x.ndim - 2))


def _mixed(weight: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,nj...->ni...", weight, x)
