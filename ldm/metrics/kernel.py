"""Kernel distance of two sets of features (KID, Binkowski 2018): a maximum mean discrepancy, without a bias in n."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.metrics.interval import Estimate, jackknife


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """k(x,y) = (x.y / d + 1)^3 for each pair of rows."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(made: Tensor, real: Tensor) -> Estimate:
    """MMD^2 = mean_{i!=j} k(x_i,x_j) + mean_{i!=j} k(y_i,y_j) - 2 mean_{i,j} k(x_i,y_j), over all pairs.

    Not over small subsets, as is usual: it varies less, and leaves nothing to chance. Below zero is possible where both
    are the same. The interval is the jackknife's, over both sets.
    """
    x, y = made.double(), real.double()
    n, m = len(x), len(y)
    # Of each row: the sum of its kernel with the others of its set, and with all of the other set.
    xx, yy = _row_sums(x, x) - _diagonal(x), _row_sums(y, y) - _diagonal(y)
    xy, yx = _row_sums(x, y), _row_sums(y, x)
    within_x, within_y, between = xx.sum(), yy.sum(), xy.sum()

    def mmd(a: Tensor, na: int, b: Tensor, nb: int, c: Tensor) -> Tensor:
        return a / (na * (na - 1)) + b / (nb * (nb - 1)) - 2 * c / (na * nb)

    value = float(mmd(within_x, n, within_y, m, between))
    without_x = mmd(within_x - 2 * xx, n - 1, within_y, m, between - xy)
    without_y = mmd(within_x, n, within_y - 2 * yy, m - 1, between - yx)
    return jackknife(value, without_x, without_y)


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([polynomial(part, y).sum(1) for part in torch.split(x, 1024)])


def _diagonal(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1) ** 3
