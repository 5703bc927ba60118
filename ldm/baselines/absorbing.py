"""Absorbing diffusion over codes (Austin 2021; Unleashing Transformers, Bond-Taylor 2022): codes are masked one by one,
and a transformer that sees all the others fills them in."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from ldm.baselines.attending import Transformer
from ldm.baselines.codes import AttendingSettings, CodeFamily
from ldm.baselines.family import Facts, Form
from ldm.baselines.logistics import gumbel
from ldm.data.draws import Draws


class Settings(AttendingSettings):
    steps: int = Field(32, gt=0)  # of sampling


class Model(CodeFamily):
    """-log p(c) <= E_t [ L / t sum_(i masked) -log p(c_i | others) ], t of L codes masked, t uniform in 1..L."""

    facts = Facts(
        name="Absorbing diffusion", paper="Bond-Taylor 2022", group="autoregressive", likelihood="none",
        passes="one a step", free_form=True, cannot="It bounds the likelihood of its codes, not that of a picture.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(settings, form)
        self.steps, self.temperature, self.length = settings.steps, settings.temperature, self.side**2
        self.prior = Transformer(
            settings.codes, self.length, form.classes, settings.inner, settings.layers, settings.heads, causal=False
        )

    def prior_nats(self, index: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        flat = index.flatten(1)
        masked = 1 + (draws.stratified("how many") * self.length).long()
        rank = draws.uniform("order", (self.length,)).argsort(1).argsort(1)
        hidden = rank < masked[:, None]
        logits = self.prior(flat.masked_fill(hidden, self.prior.codes), label)
        each = F.cross_entropy(logits.transpose(1, 2), flat, reduction="none")
        return (each * hidden).sum(1) * self.length / masked

    def draw_codes(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        """All are masked; in each step some places, in an order left to chance, are drawn by what is said of them."""
        device = self.prior.places.device
        index = torch.full((count, self.length), self.prior.codes, device=device)
        order = torch.rand(count, self.length, generator=generator).argsort(1).argsort(1).to(device)
        bounds = torch.linspace(0, self.length, min(self.steps, self.length) + 1).round().long().tolist()
        for begin, end in pairwise(bounds):
            logits = self.prior(index, label) / self.temperature
            drawn = (logits + gumbel(logits.shape, generator).to(device)).argmax(2)
            index = torch.where((order >= begin) & (order < end), drawn, index)
        return index.view(count, self.side, self.side)
