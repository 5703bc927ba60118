"""The processes that cells are run in: begun in a session of their own, asked once to stop, waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipelines.device import own_card
from train.compare.cells import Cell
from train.signals import Stop

# What a launcher says of its processes; of which a cell is none, so it is not told of the launcher itself either.
_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHED = (*_GROUP, "TORCHELASTIC_RUN_ID")
LOOK = 0.5  # seconds between two looks whether we are to stop


def alone() -> None:
    """Processes of a launcher share the cells; they are not one training, and do not wait for each other as such. Each
    has a card of its own, if there are several, as if it were the only one."""
    own_card()
    for name in _GROUP:
        os.environ.pop(name, None)


def command(out: Path, cell: Cell) -> list[str]:
    """What runs a cell."""
    return [sys.executable, "-m", "train.compare.cell", str(out), cell.family, str(cell.seed)]


def run(
    order: list[str], stop: Stop, more: Mapping[str, str] | None = None, folder: str | None = None
) -> tuple[int, str]:
    """Its exit status, and what it said on stderr; run in that folder.

    A Ctrl-C of the terminal reaches us alone, and is passed on once: a second signal would end the cell before it has
    saved.
    """
    own = {key: value for key, value in os.environ.items() if key not in _LAUNCHED} | dict(more or {})
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(order, env=own, cwd=folder, stderr=said, start_new_session=True)
        try:
            status = _waited(child, stop)
        except BaseException:  # a task that is cancelled: the cell saves and ends
            child.terminate()
            child.wait()
            raise
        said.seek(0)
        return status, said.read()


def _waited(child: subprocess.Popen[bytes], stop: Stop) -> int:
    asked = False
    while True:
        try:
            return child.wait(LOOK)
        except subprocess.TimeoutExpired:
            if stop.wanted and not asked:
                asked = True
                child.terminate()
