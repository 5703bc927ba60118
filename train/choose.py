"""A model with an average of the weights whose length was chosen when the run was over (`optim.snapshots`)."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ldm.data.buckets import bucket_sizes
from ldm.data.examples import open_source
from ldm.data.loader import Loader
from ldm.errors import Code, LdmError
from ldm.store.write import staged
from train.average import chosen
from train.checkpoint import candidates
from train.config import RunFile
from train.draws import Draws
from train.folder import RunFolder
from train.networks import Networks
from train.processes import Processes
from train.run import WORDS
from train.task import Setting
from train.tasks import build


def choose(file: RunFile, width: float, out: Path) -> Path:
    """Writes into the new folder `out` what the run of a file would have written, had its average been `width` wide.

    The run folder is only read: a run that goes on in it is not disturbed.
    """
    run, data = file.run, file.data
    _check_folders(run.out, out)
    averages = chosen(run.out, width)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    loader = Loader(open_source(data), data, run.batch, run.seed, words=WORDS.get(file.task.type))
    setting = Setting(run.seed, data.size, run.steps, loader.look, loader.captions, run.out.name, bucket_sizes(data))
    task = build(file.task, setting)
    networks = Networks(task.networks(), task.frozen(), Processes.start(run.device))
    state = RunFolder(run.out, file, writer=False).resume(model=networks.tensors())
    assert state is not None
    networks.load({**state.model, **averages})  # what has no average is that of the newest checkpoint
    networks.train(False)
    with torch.no_grad():
        one = next(loader.look(1)).to(networks.processes.device)
        task.validate(Draws(run.seed, one.places, 1, "validation"), one)  # which refuses weights of other captions
        with staged(out) as stage:
            task.save(stage)
    return out


def _check_folders(run: Path, out: Path) -> None:
    """Asked first, so that nothing is built in vain."""
    if os.path.lexists(out):
        raise LdmError(Code.FILE, f"{out} exists already.", "Nothing is ever overwritten.", "Choose another --out.")
    if not candidates(run):
        raise LdmError(
            Code.FILE,
            f"{run} holds no run whose averages could be chosen from.",
            "There is no checkpoint in it.",
            "Name the run file and the overrides that the run was trained with, or train it first.",
        )
