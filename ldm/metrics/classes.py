"""What a classifier sees in samples: how sure it is and how varied they are (Inception score, Salimans 2016), which
classes are there, and in which shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ldm.metrics.interval import Estimate, bootstrap

MISSING = 0.1  # of the share that a class has in the data: below it, the class counts as lost
SURE = 10  # samples of a class that were to be expected: of fewer, none may come by chance


def inception_score(probabilities: Tensor, generator: Generator, rounds: int = 100) -> Estimate:
    """exp(mean KL(p(y|x) || p(y))) of probabilities [n,classes]: from 1 to the number of classes. Of all samples at
    once: split into ten, as is usual, it is smaller where they are few."""
    return bootstrap(_score, probabilities.double(), generator, rounds).within(1)


def _score(p: Tensor) -> float:
    marginal = p.mean(0, keepdim=True)
    return float((torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1).mean().exp())


@dataclass(frozen=True)
class Balance:
    """`shares` [classes] of the samples by their likeliest class; `distance`: half the sum of the differences to those
    of the data (0: the same; 1: nothing in common); `lost`: classes with less than a tenth of their share, where that
    is not chance."""

    shares: tuple[float, ...]
    distance: Estimate
    lost: tuple[int, ...]

    @property
    def covered(self) -> int:
        return len(self.shares) - len(self.lost)


def balance(probabilities: Tensor, real: Tensor, generator: Generator) -> Balance:
    """probabilities [n,classes] of the samples; real [classes]: the shares of the classes in the data."""
    named, want = probabilities.argmax(1), real.double() / real.double().sum()

    def shares_of(some: Tensor) -> Tensor:
        return torch.bincount(some, minlength=len(want)).double() / len(some)

    shares = shares_of(named)
    lost = ((shares < MISSING * want) & (len(named) * want >= SURE)).nonzero().flatten().tolist()
    distance = bootstrap(lambda some: float((shares_of(some) - want).abs().sum() / 2), named, generator).within(0, 1)
    return Balance(tuple(shares.tolist()), distance, tuple(lost))
