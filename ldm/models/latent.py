"""What a network is told (`Cond`, `Control`) and what it answers (`Prediction`), and the types of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.level import Level
from ldm.diffusion.sample import Denoiser, Prediction
from ldm.models.nets.known import ours

__all__ = ["Cond", "Control", "Denoiser", "Network", "Prediction"]


@dataclass(frozen=True, eq=False)
class Control:
    """One spatial control: a network, its hint picture, how strongly and during which part of the run it acts.

    `span` is a pair of fractions of the run; as in the stock pipelines it counts evaluations (`Level.index / count`).
    Two conditions share a control when they hold the same object.
    `mask` [B,1,h,w] in [0,1] at latent size limits where it acts. `guess` lets deep layers act more than shallow ones.
    """

    network: nn.Module
    hint: Tensor  # [B,3,H,W] in [0,1], at picture size
    weight: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)
    mask: Tensor | None = None
    guess: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", ours(self.network))

    def weight_at(self, level: Level) -> float:
        """The weight at this level, 0 outside the span (the same rule as stock: whole step inside the span)."""
        i, n = int(level.index[0]), int(level.count[0])
        outside = i / n < self.span[0] or (i + 1) / n > self.span[1]
        return 0.0 if outside else self.weight


@dataclass(frozen=True)
class Cond:
    """Everything a network is told besides (x, level), already encoded. New kinds of condition are new named fields."""

    text: Tensor | None = None  # [B,L,D] hidden states of the text tower(s)
    pooled: Tensor | None = None  # [B,P] pooled text of XL
    sizes: Tensor | None = None  # [B,6] (or [B,5], refiner) time ids of XL
    label: Tensor | None = None  # [B] class labels
    guidance: Tensor | None = None  # [B] guidance scale told to a guidance-distilled network
    channels: Tensor | None = None  # [B,C,h,w] extra input channels (9-channel inpainting: mask and masked picture)
    controls: tuple[Control, ...] = ()
    perturb: frozenset[str] = field(default_factory=frozenset)  # names of attention layers to replace by identity

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Cond:
        """The same condition on a device; floating tensors change type, labels keep theirs."""
        moved: dict[str, Any] = {
            f.name: v.to(device, dtype if v.is_floating_point() else v.dtype)
            for f in fields(self)
            if isinstance(v := getattr(self, f.name), Tensor)
        }
        controls = tuple(
            replace(c, hint=c.hint.to(device, dtype), mask=None if c.mask is None else c.mask.to(device, dtype))
            for c in self.controls
        )
        return replace(self, **moved, controls=controls)


Network = Callable[[Tensor, Level, Sequence[Cond]], list[Prediction]]
