"""Flows of continuous time: dx/dt = v(x,t) carries noise to data, and its divergence carries the density along.

d log p(x_t) / dt = -div v(x_t, t) (Chen 2018). The divergence is estimated by e . (dv/dx) e for a random e of signs,
which is right on average (Hutchinson 1990).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.data.draws import Draws

Velocity = Callable[[Tensor, Tensor], Tensor]  # of x [n,...] at times t [n]


def signs(draws: Draws, shape: tuple[int, ...], name: str = "signs") -> Tensor:
    """[n,*shape] of -1 and 1."""
    return (draws.uniform(name, shape) < 0.5).float() * 2 - 1


def divergence(velocity: Velocity, x: Tensor, t: Tensor, e: Tensor, create: bool = False) -> tuple[Tensor, Tensor]:
    """v(x,t), and e . (dv/dx) e [n]; with `create` there is a way back through both."""
    with torch.enable_grad():
        x = x if create and x.requires_grad else x.detach().requires_grad_()
        v = velocity(x, t)
        (slope,) = torch.autograd.grad((v * e).sum(), x, create_graph=create)
    told = (slope * e).flatten(1).sum(1)
    return (v, told) if create else (v.detach(), told.detach())


def carried(velocity: Velocity, x: Tensor, begin: float, end: float, steps: int) -> Tensor:
    """x at `end`, from x at `begin`, by Runge and Kutta's fourth-order rule."""
    h = (end - begin) / steps
    for i in range(steps):
        t = x.new_full((len(x),), begin + i * h)
        k1 = velocity(x, t)
        k2 = velocity(x + h / 2 * k1, t + h / 2)
        k3 = velocity(x + h / 2 * k2, t + h / 2)
        k4 = velocity(x + h * k3, t + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def carried_with_density(
    velocity: Velocity, x: Tensor, begin: float, end: float, steps: int, e: Tensor, create: bool = False
) -> tuple[Tensor, Tensor]:
    """x at `end`, and log p_begin(x) - log p_end(x_end) [n]: the integral of the divergence from `begin` to `end`."""
    h, total = (end - begin) / steps, x.new_zeros(len(x))
    if create:
        x = x.detach().requires_grad_()
    for i in range(steps):
        t = x.new_full((len(x),), begin + i * h)
        k1, d1 = divergence(velocity, x, t, e, create)
        k2, d2 = divergence(velocity, x + h / 2 * k1, t + h / 2, e, create)
        k3, d3 = divergence(velocity, x + h / 2 * k2, t + h / 2, e, create)
        k4, d4 = divergence(velocity, x + h * k3, t + h, e, create)
        x, total = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return x, total
