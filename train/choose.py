"""A model with an average of the weights whose length was chosen when the run was over (`optim.snapshots`)."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.errors import Code, LdmError
from ldm.store.write import refuse_existing, staged
from train.average import chosen
from train.checkpoint import candidates
from train.config import RunFile
from train.draws import Draws
from train.folder import RunFolder
from train.networks import Networks
from train.opening import data_of, glance, processes_of, setting_of
from train.tasks import build


def choose(file: RunFile, width: float, out: Path) -> Path:
    """Writes into the new folder `out` what the run of a file would have written, had its average been `width` wide.

    The run folder is only read: a run that goes on in it is not disturbed.
    """
    run = file.run
    _check_folders(run.out, out)
    averages = chosen(run.out, width)
    processes = processes_of(file)
    _, loader = data_of(file, processes)
    task = build(file.task, setting_of(file, loader))
    networks = Networks(task.networks(), task.frozen(), processes)
    state = RunFolder(run.out, file, writer=False).resume(model=networks.tensors())
    assert state is not None
    networks.load({**state.model, **averages})  # what has no average is that of the newest checkpoint
    networks.train(False)
    with torch.no_grad():
        one = glance(loader, 1).to(processes.device)
        task.validate(Draws(run.seed, one.places, 1, "validation"), one)  # which refuses weights of other captions
        with staged(out) as stage:
            task.save(stage)
    return out


def _check_folders(run: Path, out: Path) -> None:
    """Asked first, so that nothing is built in vain."""
    refuse_existing(out)
    if not candidates(run):
        raise LdmError(
            Code.FILE,
            f"{run} holds no run whose averages could be chosen from.",
            "There is no checkpoint in it.",
            "Name the run file and the overrides that the run was trained with, or train it first.",
        )
