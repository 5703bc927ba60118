"""Gated PixelCNN (van den Oord 2016) with a mixture of logistic distributions over shades (Salimans 2017)."""

from __future__ import annotations

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
    side: int = Field(5, gt=1)  # of the convolutions
    mixture: int = Field(5, gt=0)


class Gated(nn.Module):
    """tanh(a + V_a h) * sigmoid(b + V_b h), where a and b are the halves of the channels."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.tell = nn.Linear(told, 2 * width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b = (x + self.tell(h)[:, :, None, None]).chunk(2, 1)
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


class Model(Family):
    """p(x) = prod_i p(x_i | x_1 .. x_i-1) over places in the order of reading, and in a place over its channels:

    each is a mixture of logistic distributions; the means of a channel depend linearly on the channels before it.
    """

    facts = Facts(
        name="PixelCNN", paper="van den Oord 2016", group="autoregressive", likelihood="exact", passes="H W",
        free_form=True, cannot="It has no latent, and draws one place after another: a pass of the network for each.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.form, self.shades = form, LogisticMixture(form.channels, settings.mixture)
        self.told = Told(form.classes, settings.width)
        layers = [Layer(form.channels, settings.width, settings.width, settings.side, True)]
        layers += [
            Layer(settings.width, settings.width, settings.width, settings.side, False)
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
        for row in range(self.form.side):
            for column in range(self.form.side):
                told = self.told_by(x[:, :, : row + 1], label)[:, :, row, column]
                x[:, :, row, column] = self.shades.drawn(told, generator)
        return x
