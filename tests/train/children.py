"""A run in miniature with three phases and an average, and the life of a child that trains it until it is killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser would import it, for a second of each child's life

from ldm.data.batch import Batch
from tests.train import toys
from train.checkpoint import State
from train.folder import RunFolder
from train.signals import Stop
from train.trainer import Action, Trainer

EXAMPLES, BATCH = 20, 4  # an epoch is five steps


def batches(first: int) -> Iterator[Batch]:
    """Twenty pictures, in each epoch in an order of its own, which is a function of the step alone."""
    pictures = torch.linspace(-1, 1, EXAMPLES * 3 * toys.SIDE**2).view(EXAMPLES, 3, toys.SIDE, toys.SIDE)
    step = first
    while True:
        epoch, within = divmod(step, EXAMPLES // BATCH)
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))
        examples = order[within * BATCH : (within + 1) * BATCH]
        yield Batch(step * BATCH + torch.arange(BATCH), examples, pictures[examples])
        step += 1


def trainer(run: Path, steps: int, save: int, actions: Sequence[Action] = (), stop: Stop | None = None) -> Trainer:
    settings = toys.run(run, steps=steps, batch=BATCH, save=save)
    return Trainer(toys.Gan(), batches, settings, toys.optim(warmup=3), RunFolder(run), (), actions, stop)


def fitted(run: Path, steps: int, save: int, actions: Sequence[Action] = ()) -> State:
    """The state at the end of a run, or of the rest of one."""
    made = trainer(run, steps, save, actions)
    made.fit()
    return made.state()


def live(run: str, steps: int, save: int, told: Connection) -> None:
    """Trains, and logs and tells each step that is done, until somebody ends it."""
    torch.set_num_threads(1)

    def tell(trainer: Trainer, step: int) -> None:
        trainer.folder.log({"step": step})
        told.send(step)

    fitted(Path(run), steps, save, [Action(1, tell)])
