"""A transformer over codes that reads the class first, as DALL-E reads the text first (Ramesh 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldm.baselines.attending import Cache, Transformer
from ldm.baselines.codes import AttendingSettings, CodeFamily
from ldm.baselines.family import Facts, Form
from ldm.baselines.logistics import gumbel
from ldm.data.draws import Draws


class Settings(AttendingSettings):
    """Nothing besides."""


class Model(CodeFamily):
    """p(codes) = prod_i p(c_i | class, c_<i). Keys and values of what was drawn are kept: a code costs one position."""

    facts = Facts(
        name="Transformer over codes", paper="Ramesh 2021", group="autoregressive", likelihood="none",
        passes="one a code", free_form=True,
        cannot="It tells the likelihood of its codes, not of a picture, and draws code after code.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(settings, form)
        self.temperature = settings.temperature
        self.prior = Transformer(
            settings.codes, self.side**2, form.classes, settings.inner, settings.layers, settings.heads, causal=True
        )

    def prior_nats(self, index: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        flat = index.flatten(1)
        return F.cross_entropy(self.prior(flat, label).transpose(1, 2), flat, reduction="none").sum(1)

    def draw_codes(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        cache, x, drawn = Cache(), self.prior.first(label, count), list[Tensor]()
        for place in range(self.side**2):
            logits = self.prior.step(x, cache) / self.temperature
            drawn.append((logits + gumbel(logits.shape, generator).to(logits.device)).argmax(1))
            x = (self.prior.table(drawn[-1]) + self.prior.places[place + 1])[:, None]
        return torch.stack(drawn, 1).view(count, self.side, self.side)
