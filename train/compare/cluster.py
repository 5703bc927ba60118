"""Cells on a Ray cluster: one task each, on machines that see the folder of the comparison under the same path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from train.compare.cells import Cell, cells
from train.compare.children import command, run
from train.compare.lab import Progress, ended, give_up, prepare, published, remember
from train.compare.wish import Wish
from train.signals import Stop, Stopped

LOOK = 1.0  # seconds between two looks at the tasks
RETRIES = 2  # of a task whose machine went away; what it had saved is gone on from
HERE = "local"


def compare_on(address: str, cpus: int, wish: Wish, progress: Progress, stop: Stop) -> Path:
    """`address` is "auto", that of a cluster, or "local" for a cluster of this machine's own; `cpus` for each cell."""
    ray = _ray()
    wish = remember(wish, stop)
    prepare(wish, progress, stop)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        where = None if address == HERE else address
        ray.init(address=where, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = f"{str(error).splitlines()[0][:160]}."
        fix = "Start one with `ray start --head`, or write --ray local."
        raise LdmError(Code.RESOURCE, f"No Ray cluster answers at {address}.", why, fix) from error
    try:
        task = ray.remote(num_cpus=cpus, max_retries=RETRIES)(_one)
        left = [cell for cell in cells(wish) if cell.result is None]
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(cpus)}
        waiting = {task.remote(command(wish.out.resolve(), cell), own): cell for cell in left}
        while waiting:
            if stop.wanted:
                for reference in waiting:
                    ray.cancel(reference, force=False)
                raise Stopped(stop.code)
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK)
            for reference in ready:
                _ended(wish, waiting.pop(reference), reference, ray, progress, stop)
    finally:
        ray.shutdown()
    return published(wish, stop)


def _one(order: list[str], own: Mapping[str, str]) -> tuple[int, str]:
    """Runs where the task was placed: a cell in a process of its own, as on one machine."""
    return run(order, Stop(), own)


def _ended(wish: Wish, cell: Cell, reference: Any, ray: Any, progress: Progress, stop: Stop) -> None:
    try:
        status, said = ray.get(reference)
    except ray.exceptions.RayError as error:
        status, said = 1, str(error)
    if status == int(Code.BUSY):
        progress.tell(f"{cell.family}, seed {cell.seed}: another process is at it")
        return
    if status:
        give_up(cell, said, status)
    ended(wish, cell, progress, stop)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError as error:
        what, why = "--ray cannot be used.", "Ray is not installed."
        raise LdmError(Code.USAGE, what, why, "Run pip install 'ldm[ray]'.") from error
    return ray
