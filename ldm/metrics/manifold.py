"""Quality apart from coverage, by balls around samples: precision and recall (Kynkäänniemi 2019), density and coverage
(Naeem 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.metrics.interval import Estimate, around, share

ROWS = 1024


@dataclass(frozen=True)
class Manifold:
    """precision: made samples that lie in the ball of some real one. recall: real ones in the ball of some made one.
    density: of how many real balls a made sample lies in, by k; above 1 is possible. coverage: real samples whose ball
    holds a made one. A ball reaches to the k-th nearest neighbour in its own set; k is 3 for the first two and 5 for
    the others, as in the papers."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold(made: Tensor, real: Tensor, near: int = 3, dense: int = 5) -> Manifold:
    """made [n,d], real [m,d]. Intervals are those of shares: what chance does to the balls themselves is left out."""
    balls_real, balls_dense, balls_made = reach(real, near), reach(real, dense), reach(made, near)
    inside, held = torch.zeros(len(made), dtype=torch.bool), torch.zeros(len(made))
    found, covered = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(made), ROWS):
        part = slice(start, start + ROWS)
        apart = distances(made[part], real)
        inside[part] = (apart <= balls_real).any(1)
        held[part] = (apart <= balls_dense).sum(1) / dense
        found |= (apart <= balls_made[part, None]).any(0)
        covered |= (apart <= balls_dense).any(0)
    n, m = len(made), len(real)
    return Manifold(
        share(int(inside.sum()), n),
        share(int(found.sum()), m),
        around(float(held.mean()), float(held.std()) / n**0.5),
        share(int(covered.sum()), m),
    )


def covered_by_chance(made: int, real: int, dense: int = 5) -> float:
    """The coverage that as many pictures of the data's own distribution reach: of a real picture's nearest neighbours
    among both, it takes `dense` real ones before the first made one for it to stay uncovered."""
    return 1 - (real / (real + made)) ** dense


def distances(x: Tensor, y: Tensor) -> Tensor:
    """[n,m] Euclidean, in fp64: of equal rows it is 1e-8 of their length at most, and a matrix product is fast."""
    return torch.cdist(x.double(), y.double(), compute_mode="use_mm_for_euclid_dist")


def reach(x: Tensor, k: int) -> Tensor:
    """[n]: how far the k-th nearest other row is."""
    return torch.cat([distances(part, x).kthvalue(k + 1).values for part in torch.split(x, ROWS)])
