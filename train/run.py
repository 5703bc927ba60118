"""Puts a run together from its file: data, task, trainer, folder, log. The command line and tests start here.

Whatever is wrong is found in the order of what it costs: names of trackers, the data set, the run folder and its lock,
the task. A start that fails before anything was trained leaves no new run folder behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.data.batch import Batch
from ldm.data.loader import Loader
from ldm.data.source import Source
from train import caching, standing, trackers
from train.actions import actions
from train.checkpoint import candidates, read_manifest, warn_of_room
from train.config import RunFile
from train.filling import Sample
from train.folder import RunFolder, flat
from train.forecast import Forecast, forecast
from train.log import Listener, Log, ended
from train.machine import machine
from train.opening import data_of, loader_of, processes_of, setting_of
from train.processes import Processes
from train.report import write_report
from train.signals import Stop, Stopped, polled
from train.task import Task
from train.tasks import build
from train.trainer import Step, Trainer

log = logging.getLogger("train.run")
VALIDATED = 1024  # pictures of a validation loss, at most
Progress = Callable[[str, int, int], None]


@dataclass(eq=False)
class Run:
    """A run that may begin, or go on: `done` steps are in its folder already."""

    file: RunFile
    task: Task
    loader: Loader
    trainer: Trainer
    folder: RunFolder
    record: Log
    done: int
    _began: float = field(default_factory=time.monotonic)

    def steps(self) -> Iterator[Step]:
        """Trains, and writes the report at the end, also when the run is stopped."""
        try:
            yield from self.trainer.steps()
            if self.trainer.processes.main:
                self.record.end(self.trainer.step, seconds=round(time.monotonic() - self._began, 1))
        finally:
            self.record.close()
            self.report()

    def fit(self) -> None:
        for _ in self.steps():
            pass

    def report(self) -> None:
        """`report.html` of what is there so far. It never ends a run."""
        if not self.trainer.processes.main:
            return
        try:
            write_report(self.folder.path)
        except Exception as error:
            log.warning("report.html is not up to date: %s: %s", type(error).__name__, error)

    def told(self) -> dict[str, Any]:
        """What is known before the first step, in numbers."""
        networks = {name: sum(p.numel() for p in n.parameters()) for name, n in self.task.networks().items()}
        return {
            "out": str(self.folder.path),
            "task": self.file.task.type,
            "parameters": {name: count for name, count in networks.items() if count},
            "data": self.loader.facts(),
            "steps": self.file.run.steps,
            "batch": self.file.run.batch,
            "done": self.done,
            "machine": machine(self.trainer.processes.device),
            "processes": self.trainer.processes.world,
        }


def finished(file: RunFile) -> int | None:
    """How many steps a run took whose last one is done and whose model/ is written; None while there is work left."""
    step = ended(file.run.out)
    if step is None or step < file.run.steps:
        return None
    with RunFolder(
        file.run.out, file, writer=processes_of(file).main, begins=False
    ):  # which refuses another configuration
        return step


@contextmanager
def opened(
    file: RunFile,
    *,
    listeners: Sequence[Listener] = (),
    stop: Stop | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Run]:
    """The run of a file, its folder locked while it is open. `listeners` get every line of the log as it is written;
    `progress` hears of caches that are filled."""
    began = time.monotonic()
    trackers.check(file.run.trackers)
    processes = processes_of(file)
    source, loader = data_of(file, processes)
    folder = RunFolder(file.run.out, file, writer=processes.main)
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(Stop())
        stack.enter_context(_tidy(file.run.out, folder))
        done = int(processes.tell(str(steps_done(file.run.out))))
        task = build(file.task, setting_of(file, loader))
        start = _start(file, task, loader, processes)
        if done:
            standing.check(file.run.out, start)
        batches, validation = _feed(file, source, loader, task, processes, stop, progress)
        start |= {"data": loader.facts(), "ready": round(time.monotonic() - began, 1)}
        record = Log(folder, start, listeners, _trackers(file, processes))
        run: Run
        trainer = Trainer(
            task,
            batches,
            file.run,
            file.optim,
            folder,
            validation,
            actions(file.run, record, lambda: run.report()),
            stop,
        )
        run = Run(file, task, loader, trainer, folder, record, done)
        if processes.main:
            warn_of_room(file.run.out, trainer.state())
        yield run


def forecasted(file: RunFile) -> Forecast:
    """What the run of a file will cost here. Nothing is written, and nobody's lock is taken."""
    trackers.check(file.run.trackers)
    processes = processes_of(file)
    source, loader = data_of(file, processes)
    task = build(file.task, setting_of(file, loader))
    folder = RunFolder(file.run.out, file, writer=False)
    batches: Callable[[int], Iterator[Batch]] = loader.batches
    filling = None
    if file.run.cache is not None:
        caching.check(task, file.task.type)
        sample = Sample(task, source, loader, processes)
        loader = loader_of(file, source, processes, sample.latents)
        batches, filling = sample.batches(loader), sample.filling
    trainer = Trainer(task, batches, file.run, file.optim, folder)
    return forecast(trainer, loader.facts(), steps_done(file.run.out), filling)


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint by its manifest, without reading the rest of it."""
    for path in candidates(folder):
        with contextlib.suppress(Exception):
            return read_manifest(path).step
    return 0


def _feed(
    file: RunFile,
    source: Source,
    loader: Loader,
    task: Task,
    processes: Processes,
    stop: Stop,
    progress: Progress,
) -> tuple[Callable[[int], Iterator[Batch]], list[Batch]]:
    """Batches for training, and those of the validation loss; from a cache where the file names a folder for one."""
    if file.run.cache is None:
        return loader.batches, loader.validation(VALIDATED)
    caching.check(task, file.task.type)
    asked = polled(stop)
    made, failed = caching.latents(
        file.run.cache,
        task,
        source,
        file.data,
        processes,
        asked,
        lambda done, total: progress("latents", done, total),
    )
    _leave_together(stop, processes)  # what was encoded is kept; there is nothing else to save yet
    cached = loader_of(file, source, processes, made.extra)
    cached.leave_out(range(len(source)), failed)
    validation = cached.validation(VALIDATED)
    batches = caching.with_texts(made.cache, task, cached, processes, asked)
    _leave_together(stop, processes)
    return batches, validation


def _leave_together(stop: Stop, processes: Processes) -> None:
    """A signal may have reached one process only; the others would wait for it for ever."""
    if code := processes.worst(stop.code):
        raise Stopped(code)


def _start(file: RunFile, task: Task, loader: Loader, processes: Processes) -> dict[str, Any]:
    """The line of the log that says where and on what the run goes."""
    networks = {name: sum(p.numel() for p in n.parameters()) for name, n in task.networks().items()}
    return {
        "machine": machine(processes.device),
        "processes": processes.world,
        "pid": os.getpid(),
        "parameters": {name: count for name, count in networks.items() if count},
        "phases": [phase.name for phase in task.phases()],
        "data": loader.facts(),
        "frozen": standing.frozen(task),
    }


def _trackers(file: RunFile, processes: Processes) -> trackers.Trackers | None:
    if not file.run.trackers or not processes.main:
        return None
    about = {key: value if isinstance(value, int | float | str) else str(value) for key, value in flat(file).items()}
    return trackers.Trackers(file.run.trackers, file.run.out / "trackers", file.run.out.name, about)


@contextmanager
def _tidy(out: Path, folder: RunFolder) -> Iterator[None]:
    """Holds the run folder. After an error before anything was trained, one that was not there before goes again: the
    next start is free to have another configuration."""
    before, config = out.exists(), (out / "config.yaml").exists()
    with folder:
        try:
            yield
        except BaseException:
            if folder.writer and not config and not (out / "state").exists() and not (out / "log.jsonl").exists():
                (out / "config.yaml").unlink(missing_ok=True)
                if not before:
                    (out / ".lock").unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        out.rmdir()
            raise
