"""VQ-VAE-2 (Razavi 2019): few codes say what is there, more codes say how it looks, given the first."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Residual, Told, norm
from ldm.baselines.code_prior import CodePrior
from ldm.baselines.codes import Codebook, halved
from ldm.baselines.family import Facts, Family, Form, Losses, Part
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    codes: int = Field(256, gt=1)  # of each book
    numbers: int = Field(8, gt=0)  # of a code
    width: int = Field(64, gt=0)
    grid: int = Field(8, gt=1)  # places a side of the fine codes; the coarse ones have half as many
    layers: int = Field(6, gt=0)  # of each prior
    commit: float = Field(0.25, ge=0)
    codes_until: float = Field(0.4, gt=0, lt=1)  # share of the run in which codes are learned; the priors follow


class Coder(nn.Module):
    """A picture to coarse codes, to fine codes of twice the side that are told of the first, and back."""

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        width, numbers = settings.width, settings.numbers
        self.enter = nn.Conv2d(form.channels, width, 3, padding=1)
        halvings = halved(form.side, settings.grid)
        self.side = form.side >> halvings
        self.fine = nn.ModuleList(Residual(width, width) for _ in range(halvings))
        self.coarse = nn.Sequential(Residual(width, width), Residual(width, width))
        self.to_top, self.to_bottom = nn.Conv2d(width, numbers, 1), nn.Conv2d(2 * width, numbers, 1)
        self.top, self.bottom = Codebook(settings.codes, numbers), Codebook(settings.codes, numbers)
        self.of_top = nn.Sequential(nn.Conv2d(numbers, width, 1), Residual(width, width))
        self.of_bottom = nn.Conv2d(numbers, width, 1)
        widths = [*[width] * halvings, max(1, width // 2)]  # the last at full size, where each channel costs the most
        self.back, self.up = Residual(2 * width, width), nn.ModuleList(Residual(a, b) for a, b in pairwise(widths))
        self.norm, self.leave = norm(widths[-1]), nn.Conv2d(widths[-1], form.channels, 3, padding=1)

    def raised(self, top: Tensor) -> Tensor:
        """What the top codes [n,numbers,h,w] say of each place of the bottom: [n,width,2h,2w]."""
        return F.interpolate(self.of_top(top), scale_factor=2.0)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the fine and of the coarse codes' places."""
        fine = self.enter(x)
        for block in self.fine:
            fine = block(F.avg_pool2d(fine, 2))
        return fine, self.coarse(F.avg_pool2d(fine, 2))

    def coded(self, x: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Vectors, numbers and pulls of the top codes, and of the bottom ones."""
        fine, coarse = self.features(x)
        top = self.top(self.to_top(coarse))
        bottom = self.bottom(self.to_bottom(torch.cat([fine, self.raised(top[0])], 1)))
        return top, bottom

    def picture(self, top: Tensor, bottom: Tensor) -> Tensor:
        y = self.back(torch.cat([self.raised(top), self.of_bottom(bottom)], 1))
        for block in self.up:
            y = block(F.interpolate(y, scale_factor=2.0))
        out: Tensor = self.leave(F.silu(self.norm(y)))
        return out


class Model(Family):
    """p(top) p(bottom | top), each a gated PixelCNN, over codes that are learned first."""

    facts = Facts(
        name="VQ-VAE-2", paper="Razavi 2019", group="vae", likelihood="none", passes="one a code", free_form=True,
        cannot="It tells the likelihood of its codes, not that of a picture; what the codes leave out is lost.",
    )  # fmt: skip
    first = 512

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form, width = settings, form, settings.width
        self.coder, self.told = Coder(settings, form), Told(form.classes, width)
        self.prior_top = CodePrior(settings.codes, width, width, settings.layers)
        self.prior_bottom = CodePrior(settings.codes, width, width, settings.layers)
        self.tell = nn.Sequential(nn.Conv2d(settings.numbers, width, 3, padding=1), Residual(width, width))

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """Codes begin as features of pictures."""
        coder = self.coder
        fine, coarse = coder.features(x)
        coder.top.fill(coder.to_top(coarse))
        top = coder.top(coder.to_top(coarse))[0]
        coder.bottom.fill(coder.to_bottom(torch.cat([fine, coder.raised(top)], 1)))

    def parts(self) -> list[Part]:
        own, until = list(self.coder.parameters()), self.settings.codes_until
        others = [p for p in self.parameters() if not any(p is q for q in own)]
        # The priors learn from the coder as it is, so no average of it may take its place.
        return [Part("codes", own, end=until, average=False), Part("priors", others, start=until)]

    def beside(self, top: Tensor, label: Tensor | None) -> Tensor:
        """[n,width,h,w]: what the bottom codes are told, of top codes [n,h/2,w/2]."""
        vectors = self.coder.top.vectors(top)
        raised = F.interpolate(self.tell(vectors), scale_factor=2.0)
        told: Tensor = raised + self.told(label, len(top))[:, :, None, None]
        return told

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        if part == "codes":
            top, bottom = self.coder.coded(x)
            error = (self.coder.picture(top[0], bottom[0]) - x).square().flatten(1).mean(1)
            pulls = top[2] + bottom[2]
            return error + pulls[:, 0] + self.settings.commit * pulls[:, 1], {"error": error.detach()}
        with torch.no_grad():
            (_, top_index, _), (_, bottom_index, _) = self.coder.coded(x)
        above = self.prior_top.nats(top_index, self.told(label, len(x))) / top_index[0].numel()
        below = self.prior_bottom.nats(bottom_index, self.beside(top_index, label)) / bottom_index[0].numel()
        return above + below, {"nats a top code": above.detach(), "nats a bottom code": below.detach()}

    def decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        return self.coder.picture(self.coder.top.vectors(top), self.coder.bottom.vectors(bottom)).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        side = self.coder.side
        top = self.prior_top.draw(side // 2, self.told(label, count), generator)
        return self.decode(top, self.prior_bottom.draw(side, self.beside(top, label), generator))
