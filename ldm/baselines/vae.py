"""Variational autoencoder (Kingma & Welling 2014), with a weight on its divergence (Higgins 2017)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import Down, Told, Up, row_of, widening
from ldm.baselines.family import Facts, Family, Form, Losses
from ldm.baselines.ppca import WITHIN, class_means, directions_for, principal
from ldm.baselines.shades import bits, discrete_logistic
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    latents: int = Field(128, gt=0)
    width: int = Field(64, gt=0)
    line: bool = True  # False: convolutions alone, as the paper has it
    beta: float = Field(1.0, ge=0)  # 1: the bound itself; more: latents that are used apart, and blurrier pictures


class Model(Family):
    """-log p(x) <= E_q(z|x) [-log p(x|z)] + KL(q(z|x) || N(0,1)), with p(x|z) a logistic distribution over shades whose
    mean and width the decoder tells; of convolutions alone the mean, for widths would soon tell what z should.

    Encoder and decoder are each a linear map with a convolutional network beside it. Of a linear model the best is
    known in closed form, the principal components (Lucas 2019): there it begins, and learns what is not linear. It
    helps pictures in a short training; clusters are learned better without, for the map fits one cloud to all of them.
    """

    facts = Facts(
        name="VAE", paper="Kingma & Welling 2014", group="vae", likelihood="bound", passes="1", free_form=True,
        cannot="Its likelihood is a bound, and its pictures are means: what the latent does not tell is blurred.",
    )  # fmt: skip
    first = 8192

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.form, self.beta, self.straight = form, settings.beta, settings.line
        widths = widening(settings.width, form.side)
        self.corner = (widths[-1], 4, 4)
        told = settings.width
        self.told = Told(form.classes, told)
        said = (1 + settings.line) * form.channels  # of convolutions alone the mean, and one width for each colour
        self.encoder, self.decoder = Down(form.channels, widths, told), Up(widths, said, told)
        flat = widths[-1] * 16
        self.towards, self.back = nn.Linear(flat, 2 * settings.latents), nn.Linear(settings.latents, flat)
        self.centre: Tensor  # mu, of all and of each class
        self.line: Tensor  # W^T
        self.values: Tensor  # L, below
        self.deviation: Tensor  # of q(z|x), in which convolutions tell what they add to its mean
        self.rest: Tensor  # sigma, in which they tell what they add to the picture
        self.register_buffer("centre", torch.zeros(form.classes + 1, form.dims))
        self.register_buffer("line", torch.zeros(settings.latents, form.dims))
        self.register_buffer("values", torch.ones(settings.latents))
        self.register_buffer("deviation", torch.ones(settings.latents))
        self.register_buffer("rest", torch.ones(()))
        self.log_scale = nn.Parameter(torch.full((form.channels, 1, 1), -2.0))

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """x ~ N(mu, W W^T + sigma^2) with W = U (L - sigma^2)^(1/2) of the largest eigenvalues L; then q(z|x) is normal
        with the mean L^-1 W^T (x - mu) and the variance sigma^2 / L (Tipping & Bishop 1999); mu is that of the class.

        With one mu for all, z would tell the class, and the decoder would take no notice of the one that is asked for.
        """
        if not self.straight:
            return
        for layer in (self.towards, self.decoder.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        x = x.flatten(1)
        self.centre.copy_(class_means(x, label, self.form.classes))
        k = directions_for(len(self.line), x)
        apart = x - self._centre(label, len(x))  # of numbers in [-1,1], which are spread twice as far
        values, directions, variance = principal(apart, k, 4 * WITHIN)
        values = torch.maximum(values, variance)
        self.values[:k] = values
        self.line[:k] = (directions * (values - variance).sqrt()).T
        self.deviation[:k] = (variance / values).sqrt()
        self.rest.copy_(variance.sqrt())
        _, log_deviation = self.towards.bias.chunk(2)
        log_deviation[:k] = self.deviation[:k].log()
        self.log_scale.fill_(0.5 * variance.log() + math.log(math.sqrt(3) / math.pi))  # a logistic of that variance

    def _centre(self, label: Tensor | None, count: int) -> Tensor:
        return self.centre[row_of(label, count, self.centre.device)]

    def posterior(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of q(z|x), [n,latents] each."""
        mean, log_deviation = self.towards(self.encoder(x, self.told(label, len(x))).flatten(1)).chunk(2, 1)
        mean = self.deviation * mean + (x.flatten(1) - self._centre(label, len(x))) @ self.line.T / self.values
        return mean, log_deviation.clamp(-8, 4)

    def likely(self, z: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log scale of p(x|z), of the shape of x."""
        said = self.decoder(self.back(z).view(-1, *self.corner), self.told(label, len(z)))
        if not self.straight:
            return said, self.log_scale.expand_as(said)
        picture, log_scale = said.chunk(2, 1)
        line = (self._centre(label, len(z)) + z @ self.line).view_as(picture)
        return self.rest * picture + line, self.log_scale + log_scale

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean picture of p(x|z), in [-1,1] but for what training left over."""
        return self.likely(z, label)[0]

    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.posterior(x, label)[0]

    def _costs(self, x: Tensor, label: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor]:
        """Nats [n] of the picture given its latent, and of the latent."""
        mean, log_deviation = self.posterior(x, label)
        z = mean + log_deviation.exp() * draws.normal("latent", tuple(mean.shape[1:]))
        picture, log_scale = self.likely(z, label)
        nats = -discrete_logistic(x, picture.float(), log_scale.float()).flatten(1).sum(1)
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
