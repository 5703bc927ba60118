"""Flow matching (Lipman 2023): a velocity learned along straight lines from data to noise."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ldm.baselines.family import Facts, Form, Losses
from ldm.baselines.paths import PathFamily
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    width: int = Field(64, gt=0)
    layers: int = Field(1, gt=0)  # residual blocks on each size
    steps: int = Field(12, gt=0)  # of the integration: four passes each
    drawn: int = Field(8, gt=0)  # the same for samples


class Model(PathFamily):
    """x_t = (1 - t) x + t e, and the network tells v = e - x on average: E |v(x_t,t) - (e - x)|^2 is least there."""

    facts = Facts(
        name="Flow matching", paper="Lipman 2023", group="diffusion", likelihood="exact", passes="4 a step",
        free_form=True, cannot="Its likelihood takes an integration with derivatives, and a picture many passes.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(form, settings.width, settings.layers, settings.steps, settings.drawn)

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        t = draws.stratified("time")
        e, wide, x = draws.normal("noise", self.form.shape), t[:, None, None, None], self.shaken(x, draws)
        error = (self.said((1 - wide) * x + wide * e, t, label) - (e - x)).square().flatten(1).mean(1)
        return error, {"error": error.detach()}

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.said(x, t, label)
