"""From a run file to what every use of it begins with: processes, the data set, its loader, what a task is told."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import torch

from ldm.data.batch import Batch
from ldm.data.buckets import bucket_sizes
from ldm.data.examples import open_source
from ldm.data.loader import Loader
from ldm.data.source import Source
from ldm.errors import Code, LdmError
from train.config import RunFile
from train.processes import Processes
from train.task import Setting

log = logging.getLogger("train.opening")
# Whether a task needs captions: True: an error if there are none; None: taken where they are; False: never read.
WORDS: Mapping[str, bool | None] = {
    "autoencoder": False,
    "decoder": False,
    "classifier": True,
    "clip": True,
    "diffusion": True,
    "lora": True,
    "inversion": True,
}


def processes_of(file: RunFile) -> Processes:
    """Joined with the others of a launch; threads as the file says."""
    if file.run.threads is not None:
        torch.set_num_threads(file.run.threads)
    return Processes.start(file.run.device)


def data_of(file: RunFile, processes: Processes) -> tuple[Source, Loader]:
    """The data set, and the loader of this process's share."""
    source = open_source(file.data)
    if file.refuses_masks:
        _refuse_masks(source)
    return source, loader_of(file, source, processes)


def _refuse_masks(source: Source) -> None:
    """An error that names the first."""
    for place in range(len(source)):
        with contextlib.suppress(LdmError):  # one that cannot be read lies there, too
            if source.mask(place) is None:
                continue
        raise LdmError(
            Code.USAGE,
            f"{source.name(place)} has a mask beside it, and data.mask is none.",
            "The mask would do nothing, and what it hides would be learned.",
            "Set data.mask=beside, or move the masks elsewhere.",
        )


def loader_of(file: RunFile, source: Source, processes: Processes, latents: Any = None) -> Loader:
    """`latents` takes the place of pictures where a cache has them."""
    processes.share(file.run.batch)  # refuses a batch that cannot be divided
    return Loader(
        source,
        file.data,
        file.run.batch,
        file.run.seed,
        processes.rank,
        processes.world,
        words=WORDS.get(file.task.type),
        latents=latents,
        warn=log.warning,
    )


def setting_of(file: RunFile, loader: Loader) -> Setting:
    """What a task is told of the run besides its own section."""
    run, data = file.run, file.data
    classes = tuple(loader.source.labels)
    return Setting(
        run.seed, data.size, run.steps, loader.look, loader.captions, run.out.name, classes, bucket_sizes(data)
    )


def glance(loader: Loader, count: int) -> Batch:
    """At most so many examples that can be read: the first batch of a look, past what cannot."""
    for wider in (count, 8 * count, 64 * count):
        for batch in loader.look(wider):
            return batch[:count]
    raise LdmError(
        Code.FILE,
        f"None of the first {64 * count} examples can be read.",
        "What a run costs and whether its weights fit is tried on an example.",
        "Let ldm data check list what is wrong with the data set.",
    )
