"""What a critic and a maker of pictures want of each other: losses [n] of the critic's scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Costs:
    """`critic(real, made)` and `maker(made)`, of scores [n] each."""

    critic: Callable[[Tensor, Tensor], Tensor]
    maker: Callable[[Tensor], Tensor]


LOSSES = {
    # Goodfellow 2014, the maker's in the form that does not saturate: -log D(real) - log(1 - D(made)); -log D(made).
    "original": Costs(lambda real, made: F.softplus(-real) + F.softplus(made), lambda made: F.softplus(-made)),
    # Mao 2017: real to 1, made to 0; the maker's to 1.
    "least_squares": Costs(lambda real, made: (real - 1) ** 2 + made**2, lambda made: (made - 1) ** 2),
    # Arjovsky 2017: the difference of the means, for critics whose slope is bounded.
    "wasserstein": Costs(lambda real, made: made - real, lambda made: -made),
    # Lim & Ye 2017: nothing is gained beyond a margin of 1.
    "hinge": Costs(lambda real, made: F.relu(1 - real) + F.relu(1 + made), lambda made: -made),
}


def gradient_norms(judge: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[n]: |d score / d x| of each picture, with a way back to the critic's weights."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(judge(x).sum(), x, create_graph=True)
    return (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
