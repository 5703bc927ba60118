"""What a crash cannot break is made of these: names that are given and taken in one act, and the owner of a file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ldm.errors import Code, LdmError
from ldm.store.write import remove, sync
from train.lock import alive


def put(stage: Path, goal: Path) -> None:
    """Gives `stage` the name of `goal`, on the disk. What bore it before goes last, and gets it back if this fails."""
    aside = goal.with_name(f".tmp-old-{goal.name}-{os.getpid()}")
    remove(aside)
    before = os.path.lexists(goal)
    if before:
        goal.replace(aside)
    try:
        stage.replace(goal)
    except OSError:
        if before:
            aside.replace(goal)
        raise
    sync(goal.parent)
    with contextlib.suppress(OSError):  # what is left of it is swept with other leftovers
        remove(aside)


def discard(path: Path) -> None:
    """Takes the final name away first: a removal that is cut short leaves nothing that looks like a checkpoint."""
    aside = path.with_name(f".tmp-old-{path.name}-{os.getpid()}")
    remove(aside)
    path.replace(aside)
    remove(aside)


def sweep(run_folder: Path, alone: bool = False) -> None:
    """Removes what unfinished saves left behind: those of dead processes, or all of them if we hold the run's lock."""
    for folder in (Path(run_folder) / "state", Path(run_folder)):
        for path in sorted(folder.glob(".tmp-*")) if folder.is_dir() else ():
            pid = path.name.rpartition("-")[2]
            if alone or not pid.isdigit() or int(pid) == os.getpid() or not alive(int(pid)):
                with contextlib.suppress(OSError):
                    remove(path)


def check_owner(path: Path) -> None:
    """A folder or file of another user is refused: who plants a checkpoint decides what a run becomes.

    Some file systems give every file to one user (SMB, FUSE, a squashed root). So where the number is not ours, we ask
    what number a file of ours would get there.
    """
    owner = path.lstat().st_uid if path.is_file() else path.stat().st_uid
    if owner == os.geteuid():
        return
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=path if path.is_dir() else path.parent) as probe:
        if os.fstat(probe.fileno()).st_uid == owner:
            return
    raise LdmError(
        Code.REFUSED,
        f"{path} belongs to another user (number {owner}).",
        "A run is resumed only from what you wrote yourself.",
        "Choose another run.out, or make it yours if you trust its content (`chown -R`).",
    )
