"""A hierarchical variational autoencoder whose latents are of every size (very deep VAE, Child 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Residual, Told, norm, sizes
from ldm.baselines.family import Facts, Family, Form, Losses
from ldm.baselines.logistics import LogisticMixture
from ldm.baselines.shades import bits, picture, shades
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    width: int = Field(48, gt=0)
    latents: int = Field(8, gt=0)  # channels of each latent
    blocks: int = Field(3, gt=0)  # latents of each size
    full: bool = True  # latents of full size too; without them a short run learns more than noise
    mixture: int = Field(5, gt=0)


def _doubling(width: int) -> nn.ConvTranspose2d:
    """Twice the side; it begins as a copy of each place to its four, which may then become unlike."""
    layer = nn.ConvTranspose2d(width, width, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width)[:, :, None, None].expand(-1, -1, 2, 2))
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Rung(nn.Module):
    """One latent: p(z|h) of what is above, q(z|h,e) of the picture's features as well; then h goes on, told of z."""

    def __init__(self, width: int, latents: int, told: int, depth: int) -> None:
        super().__init__()
        self.prior, self.posterior = Residual(width, width, told), Residual(2 * width, width, told)
        self.says_prior = nn.Conv2d(width, 2 * latents + width, 1)
        self.says_posterior = nn.Conv2d(width, 2 * latents, 1)
        self.tell, self.after = nn.Conv2d(latents, width, 1), Residual(width, width, told)
        self.latents, self.width = latents, width
        nn.init.zeros_(self.says_prior.weight)
        nn.init.zeros_(self.says_prior.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.tell.weight.mul_(depth**-0.5)  # many rungs add up to what one would be
            self.says_posterior.weight[latents:] = 0  # q begins narrower than p, and tells something from the start:
            self.says_posterior.bias[latents:] = -1  # type: ignore[index]  # else z is noise that h learns to ignore

    def forward(self, h: Tensor, told: Tensor, noise: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """h after this rung, and KL(q || p) [n] in nats; without `seen` z comes from p, and the divergence is 0."""
        said = self.says_prior(self.prior(h, told))
        mean_p, log_p, more = torch.split(said, [self.latents, self.latents, self.width], 1)
        log_p = log_p.clamp(-6, 4)
        if seen is None:
            z, divergence = mean_p + log_p.exp() * noise, h.new_zeros(len(h))
        else:
            mean_q, log_q = self.says_posterior(self.posterior(torch.cat([h, seen], 1), told)).chunk(2, 1)
            log_q = log_q.clamp(-6, 4)
            z = mean_q + log_q.exp() * noise
            each = log_p - log_q - 0.5 + 0.5 * ((2 * log_q).exp() + (mean_q - mean_p) ** 2) * (-2 * log_p).exp()
            divergence = each.flatten(1).sum(1)
        h = h + more + self.tell(z)
        return self.after(h, told), divergence


class Model(Family):
    """-log p(x) <= E_q [-log p(x|z)] + sum_i KL(q(z_i | z_<i, x) || p(z_i | z_<i)), from 4x4 up to the picture."""

    facts = Facts(
        name="VD-VAE", paper="Child 2021", group="vae", likelihood="bound", passes="1", free_form=True,
        cannot="Its likelihood is a bound; the finest latents hold most of the bits and little of what is seen.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        width, told, self.form = settings.width, settings.width, form
        self.latents, self.count = settings.latents, sizes(form.side)
        self.told, self.shades = Told(form.classes, told), LogisticMixture(form.channels, settings.mixture)
        self.enter = nn.Conv2d(form.channels, width, 3, padding=1)
        self.up = nn.ModuleList(Residual(width, width, told) for _ in range(self.count))
        each = [settings.blocks] * (self.count - 1) + [settings.blocks * settings.full]
        self.rungs = nn.ModuleList(
            nn.ModuleList(Rung(width, settings.latents, told, sum(each)) for _ in range(blocks)) for blocks in each
        )
        self.doublings = nn.ModuleList(_doubling(width) for _ in range(self.count - 1))
        self.last = Residual(width, width, told)
        self.start = nn.Parameter(torch.zeros(1, width, 4, 4))
        self.places = nn.ParameterList(
            nn.Parameter(torch.randn(1, width, 4 << i, 4 << i) * 0.1) for i in range(self.count)
        )
        self.norm, self.leave = norm(width), nn.Conv2d(width, self.shades.numbers, 1)

    def _seen(self, x: Tensor, told: Tensor) -> list[Tensor]:
        """Features of every size, the smallest first."""
        h, seen = self.enter(x), []
        for i, block in enumerate(self.up):
            h = block(F.avg_pool2d(h, 2) if i else h, told)
            seen.append(h)
        return seen[::-1]

    def _down(self, told: Tensor, noise: list[Tensor], seen: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """What is said of each place, and all divergences; one noise [n,latents,h,w] a rung."""
        h, total, place = self.start.expand(len(told), -1, -1, -1), told.new_zeros(len(told)), 0
        for size, rungs in enumerate(self.rungs):
            h = (self.doublings[size - 1](h) if size else h) + self.places[size]
            assert isinstance(rungs, nn.ModuleList)
            for rung in rungs:
                h, divergence = rung(h, told, noise[place], None if seen is None else seen[size])
                total, place = total + divergence, place + 1
        said: Tensor = self.leave(F.silu(self.norm(self.last(h, told))))
        return said, total

    def _shapes(self) -> list[tuple[int, int, int]]:
        counts = [len(rungs) for rungs in self.rungs]  # type: ignore[arg-type]
        return [(self.latents, 4 << i, 4 << i) for i, count in enumerate(counts) for _ in range(count)]

    def _costs(self, x: Tensor, label: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor]:
        told, x = self.told(label, len(x)), picture(shades(x))
        noise = [draws.normal(f"latent {i}", shape) for i, shape in enumerate(self._shapes())]
        said, divergence = self._down(told, noise, self._seen(x, told))
        return -self.shades.log_probability(said, x), divergence

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        nats, divergence = self._costs(x, label, draws)
        told = bits(nats + divergence, self.form.dims)
        return told, {"bits": told.detach(), "divergence": bits(divergence, self.form.dims).detach()}

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        nats, divergence = self._costs(x, label, draws)
        return bits(nats + divergence, self.form.dims)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        device = self.start.device
        noise = [torch.randn(count, *shape, generator=generator).to(device) for shape in self._shapes()]
        said, _ = self._down(self.told(label, count), noise, None)
        return self.shades.drawn(said, generator)
