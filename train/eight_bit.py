"""AdamW whose two moments take one byte a weight instead of four (Dettmers 2022, "8-bit optimizers via block-wise
quantization"). Weights and arithmetic stay in fp32; only what is kept between steps is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # values that share a scale: one outlier spoils no more than these
SMALL = 4096  # a tensor with fewer values keeps its moments as they are
DECADES = 7


def codes(signed: bool) -> Tensor:
    """The 256 values in [-1,1] or [0,1] that a byte stands for: as many bits as a value has leading zeros say its
    decade, the rest its place in it, so that large and tiny values are both met to a few percent."""
    found = [0.0, 1.0]
    for decade in range(DECADES):
        places = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, places + 1, dtype=torch.float64)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade + 1 - DECADES)).tolist()
        found += [sign * value for value in middles for sign in ((1, -1) if signed else (1,))]
    return torch.tensor(sorted(found), dtype=torch.float32)


class Moment:
    """A moment as bytes: `codes` [blocks,BLOCK] and the largest value of each block."""

    def __init__(self, signed: bool) -> None:
        self.table = codes(signed)
        self.edges = (self.table[:-1] + self.table[1:]) / 2

    def pack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        blocks = _blocks(values)
        scale = blocks.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        packed = torch.bucketize(blocks / scale[:, None], self.edges.to(values.device)).to(torch.uint8)
        return packed, scale

    def unpack(self, packed: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        values = self.table.to(packed.device)[packed.long()] * scale[:, None]
        return values.flatten()[: like.numel()].view(like.shape)


class AdamW8bit(torch.optim.Optimizer):
    """p <- (1 - lr decay) p - lr m / (sqrt(v) + eps), bias-corrected; m and v are unpacked for one tensor at a time."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.first, self.second = Moment(signed=True), Moment(signed=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad.float(), group)

    def _move(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        count = int(state["step"]) + 1 if "step" in state else 1
        m, v = self._moments(p)
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        size = (v / (1 - beta2**count)).sqrt_().add_(group["eps"])
        p.addcdiv_(m, size, value=-group["lr"] / (1 - beta1**count))
        state["step"] = torch.tensor(float(count))
        self._keep(p, m, v)

    def _moments(self, p: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state[p]
        if "m" in state:
            return state["m"], state["v"]
        if "m_codes" in state:
            m = self.first.unpack(state["m_codes"], state["m_scale"], p)
            return m, self.second.unpack(state["v_codes"], state["v_scale"], p)
        return torch.zeros_like(p, dtype=torch.float32), torch.zeros_like(p, dtype=torch.float32)

    def _keep(self, p: Tensor, m: Tensor, v: Tensor) -> None:
        state = self.state[p]
        if p.numel() < SMALL:
            state["m"], state["v"] = m, v
            return
        state["m_codes"], state["m_scale"] = self.first.pack(m)
        state["v_codes"], state["v_scale"] = self.second.pack(v)


def _blocks(values: Tensor) -> Tensor:
    """[blocks,BLOCK], the last one filled up with zeros."""
    flat = values.flatten()
    short = -len(flat) % BLOCK
    return torch.nn.functional.pad(flat, (0, short)).view(-1, BLOCK)
