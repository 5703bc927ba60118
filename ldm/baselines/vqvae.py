"""VQ-VAE (van den Oord 2017): codes, and a gated PixelCNN as their prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Told
from ldm.baselines.codes import CodeFamily, CodeSettings
from ldm.baselines.family import Facts, Form
from ldm.baselines.logistics import gumbel
from ldm.baselines.pixelcnn import Layer, read_on
from ldm.data.draws import Draws


class Settings(CodeSettings):
    layers: int = Field(6, gt=0)  # of the prior


class Model(CodeFamily):
    """p(codes) = prod_i p(c_i | c_<i, class), in the order of reading."""

    facts = Facts(
        name="VQ-VAE", paper="van den Oord 2017", group="vae", likelihood="none", passes="codes", free_form=True,
        cannot="It tells the likelihood of its codes, not that of a picture; what the codes leave out is lost.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__(settings, form)
        width = settings.width
        self.told, self.embed = Told(form.classes, width), nn.Embedding(settings.codes, width)
        self.layers = nn.ModuleList(Layer(width, width, width, 3, i == 0) for i in range(settings.layers))
        self.leave = nn.Sequential(nn.ReLU(), nn.Conv2d(width, settings.codes, 1))

    def logits(self, index: Tensor, label: Tensor | None) -> Tensor:
        """[n,codes,h,w]: what the codes before say of each place."""
        h = self.told(label, len(index))
        v = y = self.embed(index).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, y = layer(v, y, h)
        out: Tensor = self.leave(y)
        return out

    def prior_nats(self, index: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        return F.cross_entropy(self.logits(index, label), index, reduction="none").flatten(1).sum(1)

    def draw_codes(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        drawn, weight = list[Tensor](), self.embed.weight

        def draw(y: Tensor) -> Tensor:
            logits = self.leave(y)[..., 0, 0]
            drawn.append((logits + gumbel(logits.shape, generator).to(logits.device)).argmax(1))
            vector: Tensor = self.embed(drawn[-1])
            return vector

        x = torch.zeros(count, weight.shape[1], self.side, self.side, device=weight.device)
        read_on(cast("Sequence[Layer]", self.layers), x, self.told(label, count), draw)
        return torch.stack(drawn, 1).view(count, self.side, self.side)
