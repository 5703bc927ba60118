"""What a run yields: steps to watch, and results to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from ldm.images import Picture
from pipelines.recipe import Recipe

Stage = Literal["prepare", "sample", "refine", "hires", "decode", "done"]


@dataclass(frozen=True, eq=False)
class Result:
    """A finished picture and its recipe; `index` is its place in the request, `seed` the seed that makes it alone."""

    picture: Picture
    recipe: Recipe
    seed: int
    index: int


@dataclass(frozen=True, eq=False)
class Step:
    """One evaluation (or one change of stage) of a run. Nothing is decoded unless somebody asks."""

    stage: Stage
    index: int  # evaluations done in this stage
    count: int  # evaluations of this stage
    pictures: tuple[int, int]  # these of the request are being made: first, and one past the last
    total: int  # pictures of the whole request
    done: tuple[Result, ...] = ()
    notes: tuple[str, ...] = ()
    clean: Tensor | None = None  # [B,C,h,w]: the latent that the network expects at the end
    _preview: Callable[[Tensor], list[np.ndarray]] | None = field(default=None, repr=False)
    _finish: Callable[[Tensor], tuple[Result, ...]] | None = field(default=None, repr=False)

    def preview(self) -> list[np.ndarray]:
        """Rough pictures [H,W,3] in 0..1 of what is expected, cheap enough for every step."""
        return self._preview(self.clean) if self._preview is not None and self.clean is not None else []

    def partial(self) -> tuple[Result, ...]:
        """What is expected now, decoded in full, for whoever stops here; recipes say partial until all is done."""
        return self._finish(self.clean) if self._finish is not None and self.clean is not None else ()
