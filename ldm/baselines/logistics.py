"""A mixture of logistic distributions over shades, in which the channels of a place know each other (Salimans 2017)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from ldm.baselines.shades import discrete_logistic, picture, shades


class LogisticMixture(nn.Module):
    """It has no weights: a network tells it [n,numbers,...] for each place. The mean of a channel depends linearly on
    the channels before it."""

    def __init__(self, channels: int, mixture: int) -> None:
        super().__init__()
        self.channels, self.mixture = channels, mixture
        self.pairs = channels * (channels - 1) // 2
        self.numbers = mixture * (1 + 2 * channels + self.pairs)

    def _parts(self, told: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log weights [n,K,...], means and log scales [n,K,C,...], slopes [n,K,C(C-1)/2,...]."""
        k, c = self.mixture, self.channels
        weights, means, scales, slopes = torch.split(told.float(), [k, k * c, k * c, k * self.pairs], 1)
        n, places = len(told), told.shape[2:]
        return (
            weights.log_softmax(1),
            means.reshape(n, k, c, *places),
            scales.reshape(n, k, c, *places) - 2,
            torch.tanh(slopes.reshape(n, k, self.pairs, *places)),
        )

    def log_probability(self, told: Tensor, x: Tensor) -> Tensor:
        """[n]: of whole shades x [n,C,...] in [-1,1]."""
        weights, means, scales, slopes = self._parts(told)
        moved, place = [], 0
        for c in range(self.channels):
            mean = means[:, :, c]
            for before in range(c):
                mean = mean + slopes[:, :, place] * x[:, None, before]
                place += 1
            moved.append(mean)
        each = discrete_logistic(x[:, None], torch.stack(moved, 2), scales).sum(2)
        return torch.logsumexp(weights + each, 1).flatten(1).sum(1)

    def drawn(self, told: Tensor, generator: Generator) -> Tensor:
        """[n,C,...] of whole shades, each place for itself."""
        weights, means, scales, slopes = self._parts(told)
        one = (weights + gumbel(weights.shape, generator).to(told.device)).argmax(1, keepdim=True)

        def chosen(values: Tensor) -> Tensor:
            index = one[:, :, None].expand(-1, -1, values.shape[2], *values.shape[3:])
            return values.gather(1, index)[:, 0]

        means, scales, slopes = chosen(means), chosen(scales), chosen(slopes)
        u = torch.rand(means.shape, generator=generator).clamp(1e-5, 1 - 1e-5).to(told.device)
        spread = scales.clamp(min=-7).exp() * torch.logit(u)
        made, place = list[Tensor](), 0
        for c in range(self.channels):
            mean = means[:, c]
            for before in made:
                mean = mean + slopes[:, place] * before
                place += 1
            made.append(picture(shades((mean + spread[:, c]).clamp(-1, 1))))
        return torch.stack(made, 1)


def gumbel(shape: torch.Size, generator: Generator) -> Tensor:
    """Added to log weights, it makes the greatest a draw by them."""
    return -torch.log(-torch.log(torch.rand(shape, generator=generator).clamp(1e-7, 1 - 1e-7)))
