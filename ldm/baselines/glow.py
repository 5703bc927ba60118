"""Glow (Kingma & Dhariwal 2018): learned 1x1 convolutions between couplings, in place of fixed orders."""

from __future__ import annotations

from pydantic import Field

from ldm.baselines.bijections import ActNorm, Bijection, Chain, Coupling, Logit, Rotation, Squeeze, half_of_channels
from ldm.baselines.blocks import Stack
from ldm.baselines.family import Facts, Form
from ldm.baselines.flows import FlowFamily
from ldm.baselines.realnvp import Scales
from ldm.config import Strict


class Settings(Strict):
    width: int = Field(64, gt=0)
    depth: int = Field(8, gt=0)  # steps of flow on each scale
    scales: int = Field(3, gt=0)


class Model(FlowFamily):
    """On each scale a squeeze, then so many steps of ActNorm, 1x1 convolution and affine coupling by channels."""

    facts = Facts(
        name="Glow", paper="Kingma & Dhariwal 2018", group="flow", likelihood="exact", passes="1", free_form=False,
        cannot="Its latent is as large as the picture, and it needs many layers, for each of them is simple.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(form, settings.width)
        channels, steps = form.channels, list[Bijection]()
        for i in range(settings.scales):
            channels *= 4
            layers: list[Bijection] = [Logit(), Squeeze()] if i == 0 else [Squeeze()]
            for _ in range(settings.depth):
                network = Stack(channels, settings.width, 2 * channels, 1, settings.width)
                layers += [ActNorm(channels), Rotation(channels), Coupling(half_of_channels(channels, True), network)]
            steps.append(Chain(layers))
            channels = channels // 2
        self.layers = Scales(form, steps)
