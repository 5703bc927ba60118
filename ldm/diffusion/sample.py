"""The sampling loop. All of it: every mode, condition and guidance enters through `denoise` or the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from ldm.diffusion.level import Level


@dataclass(frozen=True)
class Prediction:
    """What a network says: the clean latent [B,C,h,w], and a variance where one was learned."""

    clean: Tensor
    variance: Tensor | None = None


Denoiser = Callable[[Tensor, Level], Prediction]
Generators = Generator | Sequence[Generator] | None


class Stepper(Protocol):
    """The three things that the loop asks of a solver."""

    def levels(self) -> Iterator[Level]: ...
    def scale(self, x: Tensor, level: Level) -> Tensor: ...
    def step(
        self, prediction: Prediction, scaled: Tensor, x: Tensor, level: Level, generator: Generators
    ) -> Tensor: ...


def sample(denoise: Denoiser, solver: Stepper, x: Tensor, generator: Generators = None) -> Iterator[Tensor]:
    """From noise to picture: yields x after each evaluation; the caller draws bars and previews, and may just stop."""
    for level in solver.levels():
        scaled = solver.scale(x, level)
        x = solver.step(denoise(scaled, level), scaled, x, level, generator)
        yield x
