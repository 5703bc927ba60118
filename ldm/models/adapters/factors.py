"""Matrices as products of two thin ones, up [out, r] and down [r, in * kernel], with the least error for their rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import Code, LdmError

_NOTHING = 1e-6  # singular values below this share of the largest are rounding


@dataclass(frozen=True, eq=False)
class Factors:
    """up . down, and how much it leaves out: |M - up . down|^2 beside |M|^2."""

    up: Tensor
    down: Tensor
    left_out: float
    square: float

    @property
    def rank(self) -> int:
        return len(self.down)


def joined(pairs: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """sum_i w_i up_i . down_i as one product, without an error: the ranks add up."""
    return torch.cat([w * up for up, _, w in pairs], dim=1), torch.cat([down for _, down, _ in pairs])


def nearest(matrix: Tensor, rank: int | None = None, keep: float = 1.0) -> Factors:
    """The product of this rank that is nearest to a matrix; of no given rank the smallest that keeps the share `keep`
    of |M|^2.

    Its singular vectors are those of the smaller of M M' and M' M, in fp64: a matrix of 1280 x 11520 costs one of
    1280 x 1280, and values down to 1e-8 of the largest are told from zero.
    """
    m = matrix.double()
    if not bool(torch.isfinite(m).all()):
        what, why = "A change is not finite.", "A NaN or infinity in a factor has no nearest product of low rank."
        raise LdmError(Code.NUMERIC, what, why, "Use another version of the file.")
    tall = m.shape[0] > m.shape[1]
    squares, vectors = torch.linalg.eigh(m.T @ m if tall else m @ m.T)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    count = _count(squares, rank, keep)
    basis, scale = vectors[:, :count], squares[:count].pow(0.25)  # each factor gets the root of the singular value
    up, down = (
        ((m @ basis) / scale, scale[:, None] * basis.T) if tall else (basis * scale, (basis.T @ m) / scale[:, None])
    )
    total = float(squares.sum())
    return Factors(up.float(), down.float(), float(squares[count:].sum()), total)


def shortened(up: Tensor, down: Tensor, rank: int | None = None, keep: float = 1.0) -> Factors:
    """As `nearest` of up . down, without that product: by the triangles of both."""
    (q_up, r_up), (q_down, r_down) = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().T)
    small = nearest(r_up @ r_down.T, rank, keep)
    return Factors(
        (q_up @ small.up.double()).float(), (small.down.double() @ q_down.T).float(), small.left_out, small.square
    )


def _count(squares: Tensor, rank: int | None, keep: float) -> int:
    real = int((squares > squares[0] * _NOTHING**2).sum()) if float(squares[0]) > 0 else 0
    if rank is not None:
        return min(rank, real)
    kept = squares.cumsum(0) / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
    return min(real, 1 + int((kept < keep).sum()))
