"""Runs a loader ahead of training: with threads where pictures stay in memory, else in processes of DataLoader."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ldm.data.batch import Batch
from ldm.data.settings import DataSettings
from ldm.data.source import Source
from ldm.errors import Code, LdmError

MANY_THREADS = 8


@dataclass(frozen=True)
class Feed:
    """A batch, and every example known so far to be unreadable, with the reason."""

    batch: Batch
    failed: dict[int, str]

    def pin_memory(self) -> Feed:
        """In memory that a graphics card can fetch from by itself (called by DataLoader)."""
        batch = self.batch
        return replace(
            self,
            batch=replace(
                batch,
                places=batch.places.pin_memory(),
                examples=batch.examples.pin_memory(),
                image=None if batch.image is None else batch.image.pin_memory(),
                label=None if batch.label is None else batch.label.pin_memory(),
                extra={name: tensor.pin_memory() for name, tensor in batch.extra.items()},
            ),
        )


class Maker(Protocol):
    """What is run ahead: batches by step."""

    source: Source
    settings: DataSettings

    def make(self, step: int, pool: ThreadPoolExecutor | None = None) -> Feed: ...


def feed(maker: Maker, first_step: int, workers: int) -> Iterator[Feed]:
    """The batches of steps first_step, first_step + 1, ..., in order."""
    if workers == 0:
        threads = min(MANY_THREADS, maker.settings.workers or os.cpu_count() or 1)
        if maker.source.quick or threads == 1:
            yield from (maker.make(step) for step in count(first_step))
        with ThreadPoolExecutor(threads, thread_name_prefix="ldm-data") as pool:
            yield from (maker.make(step, pool) for step in count(first_step))
    loader = DataLoader(
        _Steps(maker),
        batch_size=None,
        sampler=_From(first_step),
        num_workers=workers,
        prefetch_factor=maker.settings.prefetch,
        worker_init_fn=_deaf,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # DataLoader draws a seed that nobody uses; not from the global generator
    )
    for found in loader:
        if isinstance(found, _Error):
            raise LdmError(Code(found.code), found.what, found.why, found.fix)
        yield found


@dataclass(frozen=True)
class _Error:
    """An `LdmError` on its way between processes."""

    code: int
    what: str
    why: str
    fix: str


class _Steps(Dataset[Feed | _Error]):
    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __getitem__(self, step: int) -> Feed | _Error:
        try:
            return self.maker.make(step)
        except LdmError as error:
            return _Error(int(error.code), error.what, error.why, error.fix)


class _From(Sampler[int]):
    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


def _deaf(worker: int) -> None:
    """Signals that stop a run are for the process that trains: it saves first, and its workers end with it."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
