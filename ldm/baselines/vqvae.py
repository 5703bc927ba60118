"""VQ-VAE (van den Oord 2017): codes, and a gated PixelCNN as their prior."""

from __future__ import annotations

from pydantic import Field
from torch import Generator, Tensor

from ldm.baselines.blocks import Told
from ldm.baselines.code_prior import CodePrior
from ldm.baselines.codes import CodeFamily, CodeSettings
from ldm.baselines.family import Facts, Form
from ldm.data.draws import Draws


class Settings(CodeSettings):
    layers: int = Field(6, gt=0)  # of the prior


class Model(CodeFamily):
    """p(codes) = prod_i p(c_i | c_<i, class)."""

    facts = Facts(
        name="VQ-VAE", paper="van den Oord 2017", group="vae", likelihood="none", passes="one a code", free_form=True,
        cannot="It tells the likelihood of its codes, not that of a picture; what the codes leave out is lost.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(settings, form)
        self.told = Told(form.classes, settings.width)
        self.prior = CodePrior(settings.codes, settings.width, settings.width, settings.layers)

    def prior_nats(self, index: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        return self.prior.nats(index, self.told(label, len(index)))

    def draw_codes(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        return self.prior.draw(self.side, self.told(label, count), generator)
