"""What a training task is: phases (whose turn it is), one loss, and how its result is looked at and saved.

The trainer knows nothing of pictures, text or GANs; a task knows nothing of processes, precision or checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ldm.data.batch import Batch
from train.draws import Draws


@dataclass(frozen=True, eq=False)
class Phase:
    """One optimiser's turn: it moves `params` and nobody else's, at steps start, start + every, ..., before `end`.

    `rate` multiplies the run's learning rate; `rates` tells, by the name of a parameter in a checkpoint, which move
    faster or slower than the others. With `average` a moving average of the parameters is kept, and everything that is
    looked at or saved uses the average.
    """

    name: str
    params: Sequence[nn.Parameter]
    rate: float = 1.0
    every: int = 1
    start: int = 0
    end: int | None = None
    average: bool = False
    rates: Callable[[str], float] | None = None

    def due(self, step: int) -> bool:
        return step >= self.start and (step - self.start) % self.every == 0 and (self.end is None or step < self.end)


@dataclass(frozen=True, eq=False)
class Turn:
    """One phase's turn at one step, as a loss sees it. `total` counts the examples of the whole batch, over all
    micro-batches and processes; `draws` is seeded for the examples of the micro-batch at hand."""

    phase: str
    step: int
    total: int
    draws: Draws
    context: Any = None  # what `Task.context` returned for the whole batch

    def mean(self, each: Tensor) -> Tensor:
        """This micro-batch's part of the batch's mean, from one number an example [n]: the parts add up to the mean."""
        return each.sum() / self.total


Figures = Mapping[str, Tensor]


class Task(Protocol):
    """`phases` are built once; parameters that no phase names stay as they are."""

    exact: bool  # whether n micro-batches, or n processes, give the gradients of one batch
    exception: str  # why not, in one sentence; empty when `exact`

    def networks(self) -> dict[str, nn.Module]:
        """What is trained, by name: parameters and buffers of these go into a checkpoint."""

    def frozen(self) -> dict[str, nn.Module]:
        """What is used and never changes: moved to the device, never saved in a checkpoint."""

    def phases(self) -> list[Phase]: ...

    def context(self, turn: Turn, micros: Sequence[Batch]) -> Any:
        """What the loss of one micro-batch must know of the whole batch (features of a contrastive loss), computed
        without gradients before the first of them; None for most tasks. Under several processes it gathers."""

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        """This micro-batch's part of the batch's loss (`turn.mean`), and figures for the log that add up likewise."""

    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        """Figures [n] of pictures that are not trained on, at fixed noise (`draws`); the trainer averages them."""

    def preview(self, seed: int) -> dict[str, Tensor]:
        """Pictures to look at, by name: [n,3,H,W] in [-1,1]. The same seed starts from the same noise."""

    def save(self, folder: Path) -> None:
        """Writes the result into a new folder, in the layout that `Pipeline.load` and stock diffusers read."""


@dataclass(frozen=True)
class Setting:
    """What a task is given besides its own section of the run file."""

    seed: int
    size: int  # side of the training pictures in pixels (of a bucket: its square's)
    steps: int  # how long the run is: late starts and schedules are fractions of it
    look: Callable[[int], Iterator[Batch]]  # batches of at most so many training examples in all: no flips, no dropout
    captions: Callable[[], Iterator[str]]  # every caption once, for vocabularies
    name: str = ""  # of the run, for metadata
    classes: tuple[str, ...] = ()  # names of the labels, where the data set has some
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) of every batch there may be; (): the square alone
