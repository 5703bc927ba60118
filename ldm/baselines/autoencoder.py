"""An autoencoder, and a normal distribution over its latents: what is drawn without a model of the latents' shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Down, Up, widening
from ldm.baselines.family import Facts, Family, Form, Losses, Part
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    latents: int = Field(128, gt=0)
    width: int = Field(64, gt=0)


class Model(Family):
    """Two parts: |x - D(E(x))|^2; and N(mu, S) of the latents by its likelihood, S^-1 = L L^T with L triangular."""

    facts = Facts(
        name="Autoencoder", paper="Hinton 2006", group="simple", likelihood="none", passes="1", free_form=True,
        cannot="It has no likelihood of pictures, and its latents are of no known shape: the normal one is a guess.",
    )  # fmt: skip
    conditional = False

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.form = form
        widths = widening(settings.width, form.side)
        self.corner = (widths[-1], 4, 4)
        self.encoder, self.decoder = Down(form.channels, widths), Up(widths, form.channels)
        self.towards = nn.Linear(widths[-1] * 16, settings.latents)
        self.back = nn.Linear(settings.latents, widths[-1] * 16)
        self.mean = nn.Parameter(torch.zeros(settings.latents))
        self.root, self.log_diagonal = (
            nn.Parameter(torch.zeros(settings.latents, settings.latents)),
            nn.Parameter(torch.zeros(settings.latents)),
        )

    def parts(self) -> list[Part]:
        latent = [self.mean, self.root, self.log_diagonal]
        own = [p for p in self.parameters() if not any(p is q for q in latent)]
        return [Part("pictures", own), Part("latents", latent, rate=5.0)]

    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        z: Tensor = self.towards(self.encoder(x).flatten(1))
        return F.layer_norm(z, z.shape[1:])  # of a known scale, which the normal distribution need not run after

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        picture: Tensor = self.decoder(self.back(z).view(-1, *self.corner))
        return picture

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        if part == "pictures":
            error = (self.decode(self.encode(x)) - x).square().flatten(1).mean(1)
            return error, {"error": error.detach()}
        with torch.no_grad():
            z = self.encode(x)
        lower = self.root.tril(-1) + torch.diag(self.log_diagonal.exp())
        return 0.5 * ((z - self.mean) @ lower).square().sum(1) - self.log_diagonal.sum(), {}

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        """z = mu + L^-T e."""
        e = torch.randn(count, len(self.mean), generator=generator).to(self.mean.device)
        lower = self.root.tril(-1) + torch.diag(self.log_diagonal.exp())
        z = self.mean + torch.linalg.solve_triangular(lower, e, upper=False, left=False)
        return self.decode(z).clamp(-1, 1)
