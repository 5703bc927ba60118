"""Noise levels, and the only place where the four kinds of network output are converted into each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class Level:
    """A noise level: x = alpha * clean + sigma * noise, and t is what the network is told.

    All fields are [B]: requests at different steps may share a call. `index` of `count` is the place in the run.
    The three of t, alpha and sigma travel together, because some spacings round t and not sigma. `index` and `count`
    stay on the CPU: whoever asks how far a run is must not wait for a card.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    index: Tensor
    count: Tensor

    def noisy(self, clean: Tensor, noise: Tensor) -> Tensor:
        """x = alpha * clean + sigma * noise."""
        return _over(self.alpha, clean) * clean + _over(self.sigma, clean) * noise

    def clean(self, output: Tensor, x: Tensor, kind: Kind) -> Tensor:
        """The clean latent that a network of this kind means by `output` at x."""
        alpha, sigma = _over(self.alpha, x), _over(self.sigma, x)
        if kind == "sample":
            return output
        if kind == "epsilon":  # x = a c + s e
            return (x - sigma * output) / alpha
        if kind == "v_prediction":  # v = a e - s c, with a^2 + s^2 = 1  (Salimans & Ho 2022)
            return alpha * x - sigma * output
        return x - sigma * output  # flow: u = e - c, with a + s = 1  (Lipman 2023)

    def output(self, clean: Tensor, x: Tensor, kind: Kind) -> Tensor:
        """What a network of this kind would have put out to mean `clean` at x; the inverse of `clean`."""
        alpha, sigma = _over(self.alpha, x), _over(self.sigma, x)
        if kind == "sample":
            return clean
        if kind == "epsilon":
            return (x - alpha * clean) / sigma
        if kind == "v_prediction":
            return (alpha * x - clean) / sigma
        return (x - clean) / sigma

    @property
    def progress(self) -> Tensor:
        """The part of the run that is done before this evaluation, in [0, 1)."""
        return self.index / self.count

    def expand(self, batch: int) -> Level:
        """The same level for a batch."""
        return Level(*(getattr(self, n).expand(batch) for n in ("t", "alpha", "sigma", "index", "count")))

    def repeat(self, times: int) -> Level:
        """The level for a batch stacked `times` over (several conditions in one call)."""
        return Level(*(getattr(self, n).repeat(times) for n in ("t", "alpha", "sigma", "index", "count")))


def _over(value: Tensor, x: Tensor) -> Tensor:
    """[B] as [B,1,1,1], in the type of x."""
    return value.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
