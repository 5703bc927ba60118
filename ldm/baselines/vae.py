"""Variational autoencoder (Kingma & Welling 2014), with a weight on its divergence (Higgins 2017)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Down, Told, Up, widening
from ldm.baselines.family import Facts, Family, Form, Losses
from ldm.baselines.shades import bits, discrete_logistic
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    latents: int = Field(128, gt=0)
    width: int = Field(64, gt=0)
    beta: float = Field(1.0, ge=0)  # 1: the bound itself; more: latents that are used apart, and blurrier pictures


class Model(Family):
    """-log p(x) <= E_q(z|x) [-log p(x|z)] + KL(q(z|x) || N(0,1)), with p(x|z) a logistic distribution over shades whose
    width is learned for each channel."""

    facts = Facts(
        name="VAE", paper="Kingma & Welling 2014", group="vae", likelihood="bound", passes="1", free_form=True,
        cannot="Its likelihood is a bound, and its pictures are means: what the latent does not tell is blurred.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.form, self.beta = form, settings.beta
        widths = widening(settings.width, form.side)
        self.corner = (widths[-1], 4, 4)
        told = settings.width
        self.told = Told(form.classes, told)
        self.encoder, self.decoder = Down(form.channels, widths, told), Up(widths, form.channels, told)
        flat = widths[-1] * 16
        self.towards, self.back = nn.Linear(flat, 2 * settings.latents), nn.Linear(settings.latents, flat)
        self.log_scale = nn.Parameter(torch.full((form.channels, 1, 1), -2.0))

    def posterior(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of q(z|x), [n,latents] each."""
        mean, log_deviation = self.towards(self.encoder(x, self.told(label, len(x))).flatten(1)).chunk(2, 1)
        return mean, log_deviation.clamp(-8, 4)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean picture of p(x|z), in [-1,1] but for what training left over."""
        picture: Tensor = self.decoder(self.back(z).view(-1, *self.corner), self.told(label, len(z)))
        return picture

    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.posterior(x, label)[0]

    def _costs(self, x: Tensor, label: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor]:
        """Nats [n] of the picture given its latent, and of the latent."""
        mean, log_deviation = self.posterior(x, label)
        z = mean + log_deviation.exp() * draws.normal("latent", tuple(mean.shape[1:]))
        picture = self.decode(z, label)
        nats = -discrete_logistic(x, picture.float(), self.log_scale).flatten(1).sum(1)
        divergence = 0.5 * (mean**2 + (2 * log_deviation).exp() - 1 - 2 * log_deviation).sum(1)
        return nats, divergence

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        nats, divergence = self._costs(x, label, draws)
        told = {"bits": bits(nats + divergence, self.form.dims), "divergence": divergence}
        return (nats + self.beta * divergence) / self.form.dims, told

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        nats, divergence = self._costs(x, label, draws)
        return bits(nats + divergence, self.form.dims)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, self.back.in_features, generator=generator).to(self.log_scale.device)
        return self.decode(z, label).clamp(-1, 1)
