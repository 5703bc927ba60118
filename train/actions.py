"""What a run does beside its steps, every so many of them: log, validation at fixed noise, previews, the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from train.config import RunSettings
from train.log import Log
from train.signals import polled
from train.trainer import Action, Trainer

log = logging.getLogger("train.actions")


class _Asked(Exception):  # noqa: N818  (no error: somebody wants the run to stop)
    pass


def actions(run: RunSettings, record: Log, report: Callable[[], None]) -> list[Action]:
    """All that a run file asks for, in the order in which they are done at a step that is due for several."""
    seed = run.seed

    def gather(trainer: Trainer, step: int) -> None:
        assert trainer.last is not None
        record.begin(step - 1)
        record.add(trainer.last)

    def evaluate(trainer: Trainer, step: int) -> None:
        began = time.perf_counter()
        figures = trainer.validate() if trainer.validation else {}
        if figures:
            record.validation(step, figures, time.perf_counter() - began)

    def preview(trainer: Trainer, step: int) -> None:
        if trainer.processes.main or trainer.networks.split:
            show(trainer, step, seed, record)

    return [
        Action(1, gather),
        Action(run.log, lambda trainer, step: record.flush(step, _skipped(trainer))),
        Action(run.evaluate, evaluate),
        Action(run.preview, preview),
        Action(run.save, lambda trainer, step: report()),
    ]


def show(trainer: Trainer, step: int, seed: int, record: Log) -> None:
    """Previews as PNG sheets; given up when the run is to stop, since sampling a large model takes minutes."""
    began = time.perf_counter()
    try:
        with _interruptible(trainer):
            sheets = trainer.preview(seed)
    except _Asked:
        log.info("the previews of step %d are left out: the run stops", step)
        return
    files = [trainer.folder.preview(step, name, pictures) for name, pictures in sheets.items()]
    kept = [path for path in files if path is not None]
    if kept:
        record.previews(step, kept, time.perf_counter() - began)


def _skipped(trainer: Trainer) -> int:
    """Updates that were left out since step 0, over all starts of the run."""
    return sum(learner.skipped for learner in trainer.learners)


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Every network asks before it runs whether the run is to stop. Split ones cannot: all processes run them together;
    compiled ones neither: a hook would be compiled with them."""
    if trainer.networks.split or trainer.run.compile:
        yield
        return
    wanted = polled(trainer.stop)

    def ask(module: Any, given: Any) -> None:
        if wanted():
            raise _Asked

    networks = [*trainer.networks.trained.values(), *trainer.networks.frozen.values()]
    parts = [part for network in networks for part in (network, *network.children())]  # `vae.decode` calls a child
    hooks = [part.register_forward_pre_hook(ask) for part in dict.fromkeys(parts)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
