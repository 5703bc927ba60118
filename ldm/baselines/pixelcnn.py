"""Gated PixelCNN (van den Oord 2016) with a mixture of logistic distributions over shades (Salimans 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Told
from ldm.baselines.family import Facts, Family, Form, Losses
from ldm.baselines.logistics import LogisticMixture
from ldm.baselines.shades import bits, picture, shades
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    width: int = Field(64, gt=0)
    layers: int = Field(8, gt=0)
    kernel: int = Field(5, gt=1)  # side of the convolutions
    mixture: int = Field(5, gt=0)


class Gated(nn.Module):
    """tanh(a + V_a h) * sigmoid(b + V_b h), where a and b are the halves of the channels; h [n,told], or [n,told,H,W]
    where each place is told something of its own."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.tell = nn.Linear(told, 2 * width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if h.ndim == 2:
            h = h[:, :, None, None]
        a, b = (x + F.conv2d(h, self.tell.weight[:, :, None, None], self.tell.bias)).chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)


class Layer(nn.Module):
    """Two stacks: the vertical one has seen the rows up to this one, the horizontal one what lies left in this row.

    The horizontal one is told of the rows above by the vertical one moved down by one. The first layer looks at the
    picture itself, so its horizontal convolution leaves the place itself out.
    """

    def __init__(self, narrow: int, width: int, told: int, side: int, first: bool) -> None:
        super().__init__()
        self.first, self.reach = first, side // 2
        self.vertical = nn.Conv2d(narrow, 2 * width, (self.reach + 1, 2 * self.reach + 1))
        self.horizontal = nn.Conv2d(narrow, 2 * width, (1, self.reach + 1))
        self.down, self.out = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.gate_v, self.gate_h = Gated(width, told), Gated(width, told)

    def forward(self, v: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        r = self.reach
        seen = self.vertical(F.pad(v, (r, r, r, 0)))
        above = F.pad(seen, (0, 0, 1, 0))[:, :, :-1]
        left = F.pad(y, (r + 1, 0))[..., :-1] if self.first else F.pad(y, (r, 0))
        told = self.out(self.gate_h(self.horizontal(left) + self.down(above), h))
        return self.gate_v(seen, h), told if self.first else y + told


def read_on(layers: Sequence[Layer], x: Tensor, h: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
    """Fills x [n,C,side,side] in, place by place: draw(told [n,width,1,1]) gives what lies there, [n,C].

    Of the vertical stack only the newest row is computed, of the horizontal one only the newest place; what came before
    is kept. It is the same as the whole stacks anew at each place, to rounding.
    """
    n, _, side, _ = x.shape
    reach, width = layers[0].reach, layers[0].out.in_channels
    rows = [x, *(x.new_zeros(n, width, side, side) for _ in layers[1:])]  # what each vertical convolution sees
    above = [layer.down(x.new_zeros(n, 2 * width, 1, side)) for layer in layers]
    for row in range(side):
        line = [x[:, :, row : row + 1], *(x.new_zeros(n, width, 1, side) for _ in layers[1:])]
        for column in range(side):
            y, here = x.new_zeros(()), h if h.ndim == 2 else h[:, :, row : row + 1, column : column + 1]
            for i, layer in enumerate(layers):
                end = column if layer.first else column + 1
                seen = line[i][..., max(0, end - reach - 1) : end]
                seen = F.pad(seen, (reach + 1 - seen.shape[-1], 0))
                told = layer.out(layer.gate_h(layer.horizontal(seen) + above[i][..., column : column + 1], here))
                y = told if layer.first else y + told
                if i + 1 < len(layers):
                    line[i + 1][..., column] = y[..., 0]
            x[:, :, row, column] = draw(y)
        for i, layer in enumerate(layers):
            seen = rows[i][:, :, max(0, row - reach) : row + 1]
            seen = layer.vertical(F.pad(seen, (reach, reach, reach + 1 - seen.shape[2], 0)))
            above[i] = layer.down(seen)
            if i + 1 < len(layers):
                told = layer.gate_v(seen, h if h.ndim == 2 else h[:, :, row : row + 1])
                rows[i + 1][:, :, row] = told[:, :, 0]


class Model(Family):
    """p(x) = prod_i p(x_i | x_1 .. x_i-1) over places in the order of reading, and in a place over its channels:

    each is a mixture of logistic distributions; the means of a channel depend linearly on the channels before it.
    """

    facts = Facts(
        name="PixelCNN", paper="van den Oord 2016", group="autoregressive", likelihood="exact", passes="one a place",
        free_form=True, cannot="It has no latent, and draws one place after another: a small pass for each.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.form, self.shades = form, LogisticMixture(form.channels, settings.mixture)
        self.told = Told(form.classes, settings.width)
        layers = [Layer(form.channels, settings.width, settings.width, settings.kernel, True)]
        layers += [
            Layer(settings.width, settings.width, settings.width, settings.kernel, False)
            for _ in range(settings.layers - 1)
        ]
        self.layers = nn.ModuleList(layers)
        self.leave = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(settings.width, settings.width, 1),
            nn.ReLU(),
            nn.Conv2d(settings.width, self.shades.numbers, 1),
        )

    def told_by(self, x: Tensor, label: Tensor | None) -> Tensor:
        """[n,numbers,H,W]: what the places before say of each place."""
        h, v, y = self.told(label, len(x)), x, x
        for layer in self.layers:
            v, y = layer(v, y, h)
        out: Tensor = self.leave(y)
        return out

    def log_probability(self, x: Tensor, label: Tensor | None) -> Tensor:
        """[n]: of whole shades x [n,C,H,W] in [-1,1]."""
        return self.shades.log_probability(self.told_by(x, label), x)

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        told = bits(-self.log_probability(picture(shades(x)), label), self.form.dims)
        return told, {"bits": told.detach()}

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        return bits(-self.log_probability(picture(shades(x)), label), self.form.dims)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        device = self.told.table.weight.device
        x = torch.zeros(count, *self.form.shape, device=device)
        layers = cast("Sequence[Layer]", self.layers)
        read_on(layers, x, self.told(label, count), lambda y: self.shades.drawn(self.leave(y)[..., 0, 0], generator))
        return x
