"""Latent consistency (Song 2023; Luo 2023): one function that leads from every level of a path to its clean end."""

from __future__ import annotations

from torch import Tensor

from ldm.diffusion.level import Level

SCALING, DATA = 10.0, 0.5  # of LCMScheduler, which samples what is trained here


def boundary(level: Level) -> tuple[Tensor, Tensor]:
    """c_skip, c_out [B] = d^2 / ((10 t)^2 + d^2), 10 t / sqrt((10 t)^2 + d^2), d = 0.5: f is the identity at t = 0."""
    scaled = level.t.float() * SCALING
    square = scaled**2 + DATA**2
    return DATA**2 / square, scaled / square.sqrt()


def consistent(clean: Tensor, x: Tensor, level: Level) -> Tensor:
    """f(x, t) = c_skip x + c_out clean, from the clean latent that the network means at x."""
    skip, out = (c.to(x.dtype).view(-1, *(1,) * (x.dim() - 1)) for c in boundary(level))
    return skip * x + out * clean


def ddim_step(clean: Tensor, x: Tensor, level: Level, later: Level) -> Tensor:
    """x at another level of the same path: alpha' clean + sigma' noise, the noise that (x, clean) mean (Song 2021)."""
    return later.noisy(clean, level.output(clean, x, "epsilon"))
