"""Score matching through a stochastic equation (Song 2021): the variance-preserving one, in continuous time."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ldm.baselines.family import Facts, Form, Losses
from ldm.baselines.paths import PathFamily
from ldm.config import Strict
from ldm.data.draws import Draws

LEAST, MOST = 0.1, 20.0  # beta at t = 0 and t = 1, as in the paper


class Settings(Strict):
    width: int = Field(64, gt=0)
    layers: int = Field(1, gt=0)  # residual blocks on each size
    steps: int = Field(16, gt=0)  # of the integration: four passes each
    drawn: int = Field(8, gt=0)  # the same for samples


class Model(PathFamily):
    """dx = -beta/2 x dt + sqrt(beta) dw, so x_t = alpha x + sigma e and score = -e / sigma; what carries samples as the
    noise would is -beta/2 (x + score).

    The network tells v = alpha e - sigma x (Salimans & Ho 2022), so e = sigma x_t + alpha v. One that told e itself
    would have to copy x_t at t = 1 to a thousandth, or colours run away. Times are drawn as squares, t = u^2, and the
    network is told u: there is more of the picture than of the noise at t < 0.15 alone.
    """

    facts = Facts(
        name="Score SDE", paper="Song 2021", group="diffusion", likelihood="exact", passes="4 a step", free_form=True,
        cannot="Its likelihood takes an integration with derivatives, and a picture many passes.",
    )  # fmt: skip

    nearest = 1e-5  # where sigma is an eighth of a shade; a wider one would be a blur, and cost bits

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(form, settings.width, settings.layers, settings.steps, settings.drawn)

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        t = self.nearest + (1 - self.nearest) * draws.stratified("time") ** 2
        alpha, sigma = levels(t)
        e, x = draws.normal("noise", self.form.shape), self.shaken(x, draws)
        v = alpha * e - sigma * x
        error = (self.said(alpha * x + sigma * e, t.sqrt(), label) - v).square().flatten(1).mean(1)
        return error, {"error": error.detach()}

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """-beta/2 (x - e / sigma) = beta/2 alpha/sigma v."""
        beta = (LEAST + t * (MOST - LEAST))[:, None, None, None]
        alpha, sigma = levels(t)
        return 0.5 * beta * alpha / sigma * self.said(x, t.sqrt(), label)


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = exp(-1/2 integral of beta), and sigma, [n,1,1,1]."""
    log_alpha = -0.25 * t**2 * (MOST - LEAST) - 0.5 * t * LEAST
    return log_alpha.exp()[:, None, None, None], (-torch.expm1(2 * log_alpha)).sqrt()[:, None, None, None]
