"""Latents and text states that are computed once and kept between runs, where the run file names a folder for them.

The task says what it can take from a cache (`cached_latents`, `cached_text`); everything else about caches lies in
`ldm/data`. A latent keeps its mean and deviation, so that each step draws anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.data.cache import Cache, fingerprint
from ldm.data.folders import Folder
from ldm.data.hashes import Hashes
from ldm.data.latents import Latents, Texts
from ldm.data.loader import Loader
from ldm.data.mixture import Mixture
from ldm.data.settings import DataSettings
from ldm.data.source import Source
from ldm.errors import Code, LdmError
from train.processes import Processes
from train.task import Task

log = logging.getLogger("train.caching")
Progress = Callable[[int, int], None]


def check(task: Task, name: str) -> None:
    """Refuses a cache for a task that looks at pictures each time."""
    holes = getattr(getattr(task, "denoising", None), "inpaint", False)  # which are cut into pictures, anew each time
    if not hasattr(task, "cached_latents") or holes:
        raise LdmError(
            Code.USAGE,
            f"run.cache does nothing for this task ({name}).",
            "It looks at the pictures themselves at each step, not at latents alone.",
            "Leave run.cache out.",
        )


def latents(
    folder: Path,
    task: Any,
    source: Source,
    data: DataSettings,
    processes: Processes,
    stop: Callable[[], bool],
    progress: Progress,
) -> tuple[Latents, dict[int, str]]:
    """All latents of the set, made where they are missing, and which pictures cannot be read, with the reason. Each
    process encodes its own share, and hears what the others could not read: all must leave out the same."""
    network = task.vae.model.to(processes.device)
    cache = Cache(folder, log.warning)
    hashes = Hashes(folder / "hashes.jsonl")
    for part in source.parts if isinstance(source, Mixture) else [source]:
        if isinstance(part, Folder):
            part.hash_file = hashes.of  # what did not change since the last run is not read again

    def encode(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(task.cached_latents(images.to(processes.device)))

    made = Latents(cache, source, data, encode, fingerprint(network))
    patient = processes.patient()
    filled = made.fill(on_progress=progress, stop=stop, part=(processes.rank, processes.world))
    hashes.save()
    told = processes.hear(json.dumps(filled.failed), patient)  # which waits for all of them
    cache.refresh()
    failed = {int(index): str(why) for text in told for index, why in json.loads(text)}
    return made, dict(sorted(failed.items()))


def kept_texts(task: Any, loader: Loader) -> list[str]:
    """The captions whose states a run keeps: none where the tower learns, nor where captions are put together anew each
    time, since nearly each showing would be another one and the cache would grow with every step."""
    rule = loader.settings
    learns = task.captions.trained or task.captions.learned is not None
    if learns or rule.shuffle_caption or rule.caption_tag_dropout_rate:
        return []
    words = {*loader.captions()}
    return sorted({*words, ""} if words and rule.caption_dropout_rate else words)


def with_texts(
    cache: Cache,
    task: Any,
    loader: Loader,
    processes: Processes,
    stop: Callable[[], bool] = lambda: False,
) -> Callable[[int], Iterator[Batch]]:
    """Batches with "text_states" of the captions that are kept, read by the tower once."""
    told = kept_texts(task, loader)
    if not told:
        return loader.batches
    captions, patient = task.captions, processes.patient()
    captions.model.to(processes.device)
    texts = Texts(
        cache,
        lambda some: task.cached_text(some),
        fingerprint(captions.model, str(captions.words.own.tolist())),
    )

    texts.fill(told[processes.rank :: processes.world], stop=stop)  # a few large files, not one for each batch
    processes.hear("", patient)
    texts.cache.refresh()

    def batches(first: int) -> Iterator[Batch]:
        for batch in loader.batches(first):
            yield replace(batch, extra={**batch.extra, **texts.extra(batch.text)}) if batch.text else batch

    return batches
