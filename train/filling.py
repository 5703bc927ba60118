"""What it takes to fill a cache, and batches as they will come out of it: for a forecast, which writes nothing.

A few pictures and captions are encoded and timed, in pieces as large as those in which a cache is filled. Batches then
carry these rows over and over: what a step costs depends on their shapes alone. No cache is opened, so the figures are
those of an empty one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.data.batch import Batch
from ldm.data.buckets import frame
from ldm.data.cache import Cache, Row
from ldm.data.latents import CAPTIONS, PICTURES, Latents, ways
from ldm.data.loader import Loader
from ldm.data.source import Source
from train.caching import kept_texts
from train.opening import glance
from train.processes import Processes

T = TypeVar("T", Tensor, list[str])


@dataclass(frozen=True)
class Filling:
    """Rows of latents and of text states that this process makes for an empty cache; seconds and bytes of them all."""

    latents: int
    texts: int
    seconds: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a cache, tensors [k,...] by name, and the seconds that one of them takes."""

    tensors: Mapping[str, Tensor]
    seconds: float

    @property
    def bytes(self) -> int:
        """Of one row."""
        return sum(t[0].numel() * t.element_size() for t in self.tensors.values())

    def repeated(self, count: int) -> dict[str, Tensor]:
        """So many rows: these, from the first again where they are too few."""
        return {name: t[torch.arange(count) % len(t)] for name, t in self.tensors.items()}


class Sample:
    """The first few pictures and captions of a set, as a cache would keep them."""

    def __init__(self, task: Any, source: Source, loader: Loader, processes: Processes) -> None:
        self.source, self.settings = source, loader.settings
        device = processes.device

        def encode(images: Tensor) -> Row:
            return dict(task.cached_latents(images.to(device)))

        kept = Latents(Cache(Path(os.devnull)), source, self.settings, encode, "")  # refuses what the run would refuse
        task.vae.model.to(device)
        some = glance(loader, PICTURES).examples.tolist()
        began = time.perf_counter()
        images = torch.stack([kept.picture(example, flip=False) for example in some])
        reading = (time.perf_counter() - began) / len(some)
        self.height, self.width = images.shape[-2:]
        self.latent_rows = _timed(encode, images, reading)
        self.text_rows: Rows | None = None
        words = kept_texts(task, loader)
        if words:
            task.captions.model.to(device)
            self.text_rows = _timed(lambda texts: dict(task.cached_text(texts)), words[:CAPTIONS])
        latents = len(ways(self.settings)) * len(range(processes.rank, len(source), processes.world))
        texts = len(range(processes.rank, len(words), processes.world))
        parts = [(latents, self.latent_rows), (texts, self.text_rows)]
        self.filling = Filling(
            latents,
            texts,
            sum(count * rows.seconds for count, rows in parts if rows is not None),
            sum(count * rows.bytes for count, rows in parts if rows is not None),
        )

    def latents(self, examples: Sequence[int], flips: Sequence[bool]) -> dict[str, Tensor]:
        """For a `Loader`, in place of what the cache would give: rows of the size in which these examples are shown."""
        width, height = frame(self.settings, *self.source.size(examples[0]))
        rows = self.latent_rows.repeated(len(examples))
        if (width, height) == (self.width, self.height):
            return rows
        scale = height / self.height, width / self.width
        sizes = {name: [round(s * f) for s, f in zip(t.shape[-2:], scale, strict=True)] for name, t in rows.items()}
        return {name: interpolate(t, size=sizes[name]) for name, t in rows.items()}

    def batches(self, loader: Loader) -> Callable[[int], Iterator[Batch]]:
        """Those of a loader that was given `latents`, with text states where the run keeps them."""
        rows = self.text_rows
        if rows is None:
            return loader.batches

        def with_states(first: int) -> Iterator[Batch]:
            for batch in loader.batches(first):
                yield replace(batch, extra={**batch.extra, **rows.repeated(len(batch))}) if batch.text else batch

        return with_states


@torch.no_grad()
def _timed(encode: Callable[[T], Row], some: T, reading: float = 0.0) -> Rows:
    """Encodes some things at once, after one of them alone, since the first call of a network takes longer. The better
    of two: on a busy machine chance only adds."""
    encode(some[:1])
    best, made = math.inf, dict[str, Tensor]()
    for _ in range(2):
        began = time.perf_counter()
        made = {name: tensor.cpu() for name, tensor in encode(some).items()}
        best = min(best, time.perf_counter() - began)
    return Rows(made, reading + best / len(some))
