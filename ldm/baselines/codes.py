"""Pictures as codes (van den Oord 2017), and what all models of codes share: first the codes, then their prior."""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Residual, norm
from ldm.baselines.family import Family, Form, Losses, Part
from ldm.config import Strict
from ldm.data.draws import Draws


class CodeSettings(Strict):
    """Of the codes; a family adds what its prior needs."""

    codes: int = Field(256, gt=1)
    numbers: int = Field(8, gt=0)  # of a code
    width: int = Field(64, gt=0)
    grid: int = Field(8, gt=1)  # places a side of the codes
    commit: float = Field(0.25, ge=0)
    codes_until: float = Field(0.4, gt=0, lt=1)  # share of the run in which codes are learned; the prior follows


class AttendingSettings(CodeSettings):
    """Of a transformer as the prior."""

    layers: int = Field(6, gt=0)
    heads: int = Field(4, gt=0)
    inner: int = Field(192, gt=0)  # width of the prior
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.inner % self.heads:
            raise ValueError(f"inner ({self.inner}) must be a multiple of heads ({self.heads})")
        return self


class Codebook(nn.Module):
    """Each place becomes the nearest of the codes, all of length 1: so none is too far away to be used (Yu 2022)."""

    def __init__(self, codes: int, numbers: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(codes, numbers))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of z [n,d,h,w]: the codes' vectors with z's gradient, their numbers [n,h,w], and |sg(z) - e|^2, |z - sg(e)|^2
        as [n,2]."""
        z = F.normalize(z, dim=1)
        table = F.normalize(self.table, dim=1)
        index = torch.einsum("ndhw,kd->nkhw", z, table).argmax(1)
        code = table[index].permute(0, 3, 1, 2)
        pulls = torch.stack(
            [(z.detach() - code).square().flatten(1).mean(1), (z - code.detach()).square().flatten(1).mean(1)], 1
        )
        return z + (code - z).detach(), index, pulls

    @torch.no_grad()
    def fill(self, z: Tensor) -> None:
        """Codes become features [n,d,h,w], of places far from each other, each a little aside."""
        rows = F.normalize(z, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        spread = torch.linspace(0, len(rows) - 1, len(self.table)).long()
        self.table.copy_(F.normalize(rows[spread] + 0.05 * F.normalize(self.table, dim=1), dim=1))

    def vectors(self, index: Tensor) -> Tensor:
        return F.normalize(self.table, dim=1)[index].permute(0, 3, 1, 2)


def halved(side: int, grid: int) -> int:
    """How often pictures are halved until about `grid` places a side are left; once at the least."""
    return max(1, (side // grid).bit_length() - 1)


class Coder(nn.Module):
    """Pictures [n,C,H,W] to features [n,numbers,h,w] of `side` places, and back; half of the channels at full size,
    where each costs the most."""

    def __init__(self, form: Form, width: int, numbers: int, grid: int) -> None:
        super().__init__()
        halvings = halved(form.side, grid)
        self.side = form.side >> halvings
        widths = [max(1, width // 2), *[width] * halvings]
        self.enter = nn.Conv2d(form.channels, widths[0], 3, padding=1)
        self.leave = nn.Conv2d(widths[0], form.channels, 3, padding=1)
        pairs = [*pairwise(widths), (width, width)]
        self.down = nn.ModuleList(Residual(narrow, wide) for narrow, wide in pairs)
        self.up = nn.ModuleList(Residual(wide, narrow) for narrow, wide in reversed(pairs))
        self.towards, self.back = nn.Conv2d(width, numbers, 1), nn.Conv2d(numbers, width, 1)
        self.norm = norm(widths[0])

    def features(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        for i, block in enumerate(self.down):
            y = block(F.avg_pool2d(y, 2) if i else y)
        out: Tensor = self.towards(y)
        return out

    def picture(self, features: Tensor) -> Tensor:
        y = self.back(features)
        for i, block in enumerate(self.up):
            y = block(F.interpolate(y, scale_factor=2.0) if i else y)
        out: Tensor = self.leave(F.silu(self.norm(y)))
        return out


def _used(index: Tensor) -> Tensor:
    """[n]: how many different codes each picture has."""
    flat = index.flatten(1).sort(1).values
    return (flat.diff(dim=1) != 0).sum(1).float() + 1


class CodeFamily(Family):
    """Part "codes": |x - D(e)|^2 + |sg(z) - e|^2 + commit |z - sg(e)|^2. Part "prior": -log p(codes), which subclasses
    give. What is told as bits is of codes, not of pictures: no likelihood."""

    first = 512

    def __init__(self, settings: CodeSettings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        self.coder = Coder(form, settings.width, settings.numbers, settings.grid)
        self.book, self.side = Codebook(settings.codes, settings.numbers), self.coder.side

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """Codes begin as features of pictures."""
        self.book.fill(self.coder.features(x))

    def parts(self) -> list[Part]:
        own = [*self.coder.parameters(), *self.book.parameters()]
        others = [p for p in self.parameters() if not any(p is q for q in own)]
        until = self.settings.codes_until
        # The prior learns from the coder as it is, so no average of it may take its place.
        return [Part("codes", own, end=until, average=False), Part("prior", others, start=until)]

    def codes(self, x: Tensor) -> Tensor:
        """[n,h,w] of pictures."""
        index: Tensor = self.book(self.coder.features(x))[1]
        return index

    def decode(self, index: Tensor, label: Tensor | None = None) -> Tensor:
        return self.coder.picture(self.book.vectors(index)).clamp(-1, 1)

    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.codes(x)

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        if part == "codes":
            code, index, pulls = self.book(self.coder.features(x))
            error = (self.coder.picture(code) - x).square().flatten(1).mean(1)
            told = {"error": error.detach(), "codes used": _used(index)}
            return error + pulls[:, 0] + self.settings.commit * pulls[:, 1], told
        with torch.no_grad():
            index = self.codes(x)
        nats = self.prior_nats(index, label, draws) / index[0].numel()
        return nats, {"nats a code": nats.detach()}

    def prior_nats(self, index: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        """[n]: -log p of codes [n,h,w], or a bound of it."""
        raise NotImplementedError

    def draw_codes(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        """[count,h,w]."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        return self.decode(self.draw_codes(count, label, generator))
