"""Muon: momentum, made orthogonal matrix by matrix before each step; small networks learn in far fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """About U V^T of each matrix U S V^T, [N,rows,cols], by five Newton-Schulz rounds (Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """W <- (1 - lr decay) W - lr sqrt(max(1, rows / cols)) orthogonal(g + momentum m), with m <- momentum m + g.

    For weights of two or more dimensions, taken as matrices [out, rest]; those of one shape are worked on together.
    `dtype` is that of the Newton-Schulz rounds: they bear bf16, and are a tenth of a small network's step.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for (rows, cols), params in shapes.items():
                self._update(params, group, group["lr"] * max(1.0, rows / cols) ** 0.5)

    def _update(self, params: list[Tensor], group: dict[str, Any], lr: float) -> None:
        steps = []
        for p in params:
            memory = self.state[p].setdefault("momentum", torch.zeros_like(p))
            memory.mul_(group["momentum"]).add_(p.grad)
            steps.append((p.grad + group["momentum"] * memory).flatten(1))
        for p, update in zip(params, orthogonal(torch.stack(steps).to(self.dtype)), strict=True):
            p.mul_(1.0 - group["lr"] * group["decay"]).sub_(update.to(p.dtype).view_as(p), alpha=lr)
