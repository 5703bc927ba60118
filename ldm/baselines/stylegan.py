"""A style-based generator (StyleGAN2, Karras 2020) with adaptive augmentation (ADA, Karras 2020b), in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.adversaries import gradient_norms
from ldm.baselines.augment import augmented
from ldm.baselines.blocks import Told, widening
from ldm.baselines.family import Facts, Family, Form, Losses, Part
from ldm.config import Strict
from ldm.data.draws import Draws

ROOT_2 = math.sqrt(2)
MAPPING_RATE = 0.01  # styles that move as fast as all else do not settle


class Settings(Strict):
    latents: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    mapping: int = Field(2, gt=0)  # layers from z to the style w
    gamma: float = Field(0.1, ge=0)  # weight of the slope at real pictures (R1, Mescheder 2018)
    lazy: int = Field(16, gt=0)  # the slope is looked at every so many steps, and counts as much more
    target: float = Field(0.6, ge=0, le=1)  # of mean sign D(real): above it the critic knows the pictures by heart
    rise: int = Field(500_000, gt=0)  # pictures in which the chance of an augmentation could go from 0 to 1


class Equal(nn.Linear):
    """Weights begin as N(0,1) and are scaled as they are used, so all of them learn at one rate, times `rate`."""

    def __init__(self, into: int, out: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__(into, out)
        self.rate = rate
        nn.init.normal_(self.weight, std=1 / rate)
        nn.init.constant_(self.bias, bias / rate)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (self.rate / math.sqrt(self.in_features)), self.bias * self.rate)


class EqualConv(nn.Module):
    """The same of a convolution."""

    def __init__(self, into: int, out: int, side: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, into, side, side)), nn.Parameter(torch.zeros(out))
        self.scale, self.padding = 1 / math.sqrt(into * side * side), side // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class Styled(nn.Module):
    """A convolution whose weights the style scales, each output then brought to length 1:

    w'_oik = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2). The same is had by scaling inputs and outputs, without a kernel of
    its own for each picture.
    """

    def __init__(self, into: int, out: int, style: int, side: int = 3, normed: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, into, side, side)), nn.Parameter(torch.zeros(out))
        self.scale, self.padding, self.normed = 1 / math.sqrt(into * side * side), side // 2, normed
        self.style = Equal(style, into, bias=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s, weight = self.style(w), self.weight * self.scale
        y = F.conv2d(x * s[:, :, None, None], weight, padding=self.padding)
        if self.normed:
            length = (s.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()
            y = y * length[:, :, None, None]
        return y + self.bias[:, None, None]


class Maker(nn.Module):
    """A learned 4x4 beginning; on each size two styled convolutions with noise, and a skip to the picture."""

    def __init__(self, settings: Settings, told: int, widths: list[int], channels: int) -> None:
        super().__init__()
        style, back = settings.latents, widths[::-1]
        into = [settings.latents + told, *[style] * (settings.mapping - 1)]
        self.mapping = nn.ModuleList(Equal(i, style, rate=MAPPING_RATE) for i in into)
        self.start = nn.Parameter(torch.randn(1, back[0], 4, 4))
        first = [back[0], *back[:-1]]
        self.first = nn.ModuleList(Styled(a, b, style) for a, b in zip(first, back, strict=True))
        self.second = nn.ModuleList(Styled(b, b, style) for b in back)
        self.picture = nn.ModuleList(Styled(b, channels, style, 1, normed=False) for b in back)
        self.noise = nn.Parameter(torch.zeros(len(back), 2))

    def style(self, z: Tensor, h: Tensor) -> Tensor:
        x = torch.cat([z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt(), h], 1)
        for layer in self.mapping:
            x = F.leaky_relu(layer(x), 0.2) * ROOT_2
        return x

    def forward(self, w: Tensor, noise: list[Tensor]) -> Tensor:
        x, out = self.start.expand(len(w), -1, -1, -1), w.new_zeros(())
        for i, (first, second, picture) in enumerate(zip(self.first, self.second, self.picture, strict=True)):
            if i:
                x, out = (F.interpolate(t, scale_factor=2.0, mode="bilinear") for t in (x, out))
            x = F.leaky_relu(first(x, w) + self.noise[i, 0] * noise[2 * i], 0.2) * ROOT_2
            x = F.leaky_relu(second(x, w) + self.noise[i, 1] * noise[2 * i + 1], 0.2) * ROOT_2
            out = out + picture(x, w)
        return out


def spread(x: Tensor) -> Tensor:
    """x [n,C,H,W] with one channel more: how much the pictures of a group of four differ, on average (Karras 2018). A
    maker that draws one picture is seen through by it."""
    n, group = len(x), 4 if len(x) % 4 == 0 else len(x)
    apart = x.view(group, n // group, *x.shape[1:]).var(0, unbiased=False).add(1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, apart.repeat(group).view(n, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1)


class Critic(nn.Module):
    """Residual convolutions down to 4x4, and a score by projection on the class."""

    def __init__(self, told: int, widths: list[int], channels: int) -> None:
        super().__init__()
        self.enter = EqualConv(channels, widths[0], 1)
        wider = [*widths[1:], widths[-1]]
        self.first = nn.ModuleList(EqualConv(a, a, 3) for a in widths)
        self.second = nn.ModuleList(EqualConv(a, b, 3) for a, b in zip(widths, wider, strict=True))
        self.skip = nn.ModuleList(EqualConv(a, b, 1) for a, b in zip(widths, wider, strict=True))
        self.mixed = EqualConv(widths[-1] + 1, widths[-1], 3)
        self.leave = Equal(widths[-1] * 16, told)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x = F.leaky_relu(self.enter(x), 0.2) * ROOT_2
        for i, (first, second, skip) in enumerate(zip(self.first, self.second, self.skip, strict=True)):
            y = F.leaky_relu(second(F.leaky_relu(first(x), 0.2) * ROOT_2), 0.2) * ROOT_2
            x = (y + skip(x)) / ROOT_2
            if i + 1 < len(self.first):
                x = F.avg_pool2d(x, 2)
        x = F.leaky_relu(self.mixed(spread(x)), 0.2) * ROOT_2
        score: Tensor = (F.leaky_relu(self.leave(x.flatten(1)), 0.2) * ROOT_2 * h).sum(1) / math.sqrt(h.shape[1])
        return score


class Model(Family):
    """Two parts in turn; to the critic's loss comes now and then its slope at real pictures."""

    facts = Facts(
        name="StyleGAN2-ADA", paper="Karras 2020", group="gan", likelihood="none", passes="1", free_form=True,
        cannot="It has no likelihood and no encoder, and nothing makes it draw every kind of picture.",
    )  # fmt: skip
    exact = False
    exception = "The critic looks at four pictures together, and augmentation follows what it said of a micro-batch."
    chance: Tensor

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        widths = widening(settings.width, form.side)
        told = settings.width
        self.maker, self.critic = Maker(settings, told, widths, form.channels), Critic(told, widths, form.channels)
        self.told_maker, self.told_critic = Told(form.classes, told), Told(form.classes, told)
        self.register_buffer("chance", torch.zeros(()))

    def parts(self) -> list[Part]:
        critic = [*self.critic.parameters(), *self.told_critic.parameters()]
        maker = [*self.maker.parameters(), *self.told_maker.parameters()]
        return [Part("critic", critic, average=False), Part("maker", maker)]

    def _noise_shapes(self) -> list[tuple[int, int, int]]:
        return [(1, 4 << i, 4 << i) for i in range(len(self.maker.first)) for _ in range(2)]

    def make(self, z: Tensor, label: Tensor | None, noise: list[Tensor]) -> Tensor:
        picture: Tensor = self.maker(self.maker.style(z, self.told_maker(label, len(z))), noise)
        return picture

    def judge(self, x: Tensor, label: Tensor | None) -> Tensor:
        score: Tensor = self.critic(x, self.told_critic(label, len(x)))
        return score

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        chance = float(self.chance)
        z = draws.normal("latent", (self.settings.latents,))
        noise = [draws.normal(f"noise {i}", shape) for i, shape in enumerate(self._noise_shapes())]
        if part == "maker":
            made = augmented(self.make(z, label, noise), draws, "made", chance)
            return F.softplus(-self.judge(made, label)), {}
        with torch.no_grad():
            made = self.make(z, label, noise)
        shown = augmented(x, draws, "real", chance)
        real, fake = self.judge(shown, label), self.judge(augmented(made, draws, "made", chance), label)
        loss = F.softplus(-real) + F.softplus(fake)
        if int(draws.places[0]) // draws.total % self.settings.lazy == 0:  # a place is step * total + row
            norms = gradient_norms(lambda y: self.judge(y, label), shown)
            loss = loss + 0.5 * self.settings.gamma * self.settings.lazy * norms**2
        if self.training:
            self._adapt(real.detach())
        told = {"real": real.detach(), "made": fake.detach(), "augmented": torch.full_like(real, chance).detach()}
        return loss, told

    @torch.no_grad()
    def _adapt(self, real: Tensor) -> None:
        """More augmentation while the critic is surer of real pictures than the target says, else less (sec. 3.2)."""
        surer = torch.sign(real.sign().mean() - self.settings.target)
        self.chance.copy_((self.chance + len(real) / self.settings.rise * surer).clamp(0, 0.85))

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        device = self.maker.start.device
        z = torch.randn(count, self.settings.latents, generator=generator).to(device)
        noise = [torch.randn(count, *shape, generator=generator).to(device) for shape in self._noise_shapes()]
        return self.make(z, label, noise).clamp(-1, 1)
