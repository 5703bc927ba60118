"""RealNVP (Dinh 2017): affine couplings on several scales, by a checkerboard and by channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from ldm.baselines.bijections import (
    ActNorm,
    Bijection,
    Chain,
    Coupling,
    Logit,
    Squeeze,
    Through,
    checkerboard,
    half_of_channels,
)
from ldm.baselines.blocks import Stack
from ldm.baselines.family import Facts, Form
from ldm.baselines.flows import FlowFamily
from ldm.config import Strict


class Settings(Strict):
    width: int = Field(48, gt=0)
    blocks: int = Field(2, gt=0)  # residual blocks of a coupling's network
    scales: int = Field(3, gt=0)


class Scales(Bijection):
    """One scale, then half of the channels leave and the others go on: z is all that left, one after another.

    `steps[i]` are the layers before the i-th leaving; they squeeze, so the last leaves whole.
    """

    def __init__(self, form: Form, steps: list[Bijection]) -> None:
        super().__init__()
        self.form, self.steps = form, torch.nn.ModuleList(steps)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Through:
        left, total = list[Tensor](), x.new_zeros(len(x))
        for i, step in enumerate(self.steps):
            x, change = step(x, h)
            total = total + change
            if i + 1 < len(self.steps):
                gone, x = x.chunk(2, 1)
                left.append(gone.flatten(1))
        return torch.cat([*left, x.flatten(1)], 1), total

    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        x: Tensor
        channels, side, count = self.form.channels, self.form.side, len(self.steps)
        shapes = []
        for i in range(count):
            channels, side = channels * 4, side // 2
            last = i + 1 == count
            shapes.append((channels if last else channels // 2, side, side))
            channels = channels // 2
        pieces = torch.split(z, [c * s * s for c, s, _ in shapes], 1)
        x = pieces[-1].view(-1, *shapes[-1])
        for i in reversed(range(count)):
            if i + 1 < count:
                x = torch.cat([pieces[i].view(-1, *shapes[i]), x], 1)
            step = self.steps[i]
            assert isinstance(step, Bijection)
            x = step.inverse(x, h)
        return x


def scales(form: Form, count: int, depth: int, coupling: Callable[[Tensor, int], list[Bijection]]) -> Scales:
    """On each scale so many couplings by a checkerboard, a squeeze, and as many by channels."""
    channels, side, steps = form.channels, form.side, list[Bijection]()
    for i in range(count):
        layers: list[Bijection] = [Logit()] if i == 0 else []
        for j in range(depth):
            layers += coupling(checkerboard(side, j % 2 == 0), channels)
        layers.append(Squeeze())
        channels, side = channels * 4, side // 2
        for j in range(depth):
            layers += coupling(half_of_channels(channels, j % 2 == 0), channels)
        steps.append(Chain(layers))
        channels = channels // 2
    return Scales(form, steps)


class Model(FlowFamily):
    """On each scale three couplings by a checkerboard, a squeeze, and three by channels."""

    facts = Facts(
        name="RealNVP", paper="Dinh 2017", group="flow", likelihood="exact", passes="1", free_form=False,
        cannot="Its latent is as large as the picture, and half of the numbers are left alone by each layer.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(form, settings.width)

        def coupling(keep: Tensor, channels: int) -> list[Bijection]:
            network = Stack(channels, settings.width, 2 * channels, settings.blocks, settings.width)
            return [ActNorm(channels), Coupling(keep, network)]

        self.layers = scales(form, settings.scales, 3, coupling)
