"""Whether samples are copies: how near they are to the pictures of the training, beside how near pictures are that
nothing was trained on.

What this cannot say: near in features is not equal in pixels; a crop, a mirror image or a new colour may pass unseen;
with few held-out pictures only many copies stand out; and a copy of a training picture that is not among those looked
at is taken for new.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.metrics.interval import Estimate, share
from ldm.metrics.manifold import ROWS, distances

NEARER = 0.01  # of the held-out pictures lie nearer to the training than the bound of a copy


@dataclass(frozen=True)
class Copies:
    """`nearest` [n]: for each sample the place of the training picture nearest to it, `distance` [n] how far it is.
    `bound`: below it a sample counts as a copy; `rate`: the share of those.
    `authentic`: the share of samples farther from their nearest training picture than that one is from the next of its
    own (Alaa 2022); about a half for new data.
    `z`: below -2, samples lie nearer to the training than held-out pictures do (Meehan 2020)."""

    nearest: Tensor
    distance: Tensor
    bound: float
    rate: Estimate
    authentic: Estimate
    z: float


def copies(made: Tensor, training: Tensor, held_out: Tensor) -> Copies:
    """Features of samples [n,d], of the training [m,d], and of pictures [k,d] that were kept from it."""
    near, place = nearest(made, training)
    apart = nearest(held_out, training)[0]
    bound = float(apart.quantile(NEARER))
    own = torch.full((len(training),), math.nan, dtype=torch.float64)
    asked = torch.unique(place)
    own[asked] = torch.cat(
        [distances(rows, training).kthvalue(2, dim=1).values for rows in torch.split(training[asked], ROWS)]
    )
    n = len(made)
    return Copies(
        place, near, bound,
        share(int((near < bound).sum()), n),
        share(int((near > own[place]).sum()), n),
        rank_sum(near, apart),
    )  # fmt: skip


def nearest(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the distance to the nearest of the others, and its place."""
    found = [distances(part, others).min(1) for part in torch.split(x, ROWS)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def rank_sum(x: Tensor, y: Tensor) -> float:
    """Mann and Whitney's z (1947): below zero where values of x are smaller than those of y."""
    n, m = len(x), len(y)
    ordered = y.double().sort().values
    below = torch.searchsorted(ordered, x.double(), right=False)
    upto = torch.searchsorted(ordered, x.double(), right=True)
    u = float((below + upto).double().sum() / 2)
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
