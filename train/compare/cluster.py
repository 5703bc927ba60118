"""Cells on a Ray cluster: one task each, on machines that see the folder of the comparison under the same path."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.extras import install
from train.compare.cells import Cell, cells
from train.compare.children import command, run
from train.compare.lab import Progress, ended, give_up, prepare, published, remember, settled
from train.compare.reference import check_unchanged
from train.compare.wish import Wish
from train.signals import Stop, Stopped

LOOK = 1.0  # seconds between two looks at the tasks
SAVING = 300.0  # that cells are waited for after a wish to stop
RETRIES = 2  # of a task whose machine went away; what it had saved is gone on from
HERE = "local"


def compare_on(address: str, cpus: int, wish: Wish, progress: Progress, stop: Stop) -> Path:
    """`address` is "auto", that of a cluster, or "local" for a cluster of this machine's own; `cpus` for each cell."""
    ray = _ray()
    wish = remember(wish, stop)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        where = None if address == HERE else address
        ray.init(address=where, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = f"{str(error).splitlines()[0][:160]}."
        fix = "Start one with `ray start --head`, or write --ray local."
        raise LdmError(Code.RESOURCE, f"No Ray cluster answers at {address}.", why, fix) from error
    try:
        cards = check_room(ray.nodes(), cpus)
        prepare(wish, progress, stop)
        if any(cell.result is None for cell in cells(wish)):
            check_unchanged(wish)
        task = ray.remote(num_cpus=cpus, num_gpus=min(1, cards), max_retries=RETRIES)(_one)
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(cpus)}
        here = str(Path.cwd())  # which paths of the wish may begin at

        def begin(cell: Cell) -> Any:
            return task.remote(command(wish.out.resolve(), cell), own, here)

        left, busy = [cell for cell in cells(wish) if cell.result is None], list[tuple[Cell, float]]()
        waiting = {begin(cell): (cell, time.time()) for cell in left}
        while waiting or busy:
            if not waiting:  # but for those that another process was at
                left = [cell for cell, began in busy if not settled(cell, began, stop)]
                waiting, busy = {begin(cell): (cell, time.time()) for cell in left}, []
                continue
            if stop.wanted:
                for reference in waiting:
                    ray.cancel(reference, force=False)
                ray.wait(list(waiting), num_returns=len(waiting), timeout=SAVING)
                raise Stopped(stop.code)
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK)
            for reference in ready:
                cell, began = waiting.pop(reference)
                if not _ended(wish, cell, reference, ray, progress, stop):
                    busy.append((cell, began))
    finally:
        ray.shutdown()
    return published(wish, stop)


def check_room(nodes: Sequence[Mapping[str, Any]], cpus: int) -> int:
    """An error where no machine has so many processors, for Ray would wait for one without a word; else the number of
    cards, of which each cell has one if there are any."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [one for one in machines if one.get("GPU", 0)] or machines
    most = int(max((one.get("CPU", 0) for one in machines), default=0))
    if cpus > most:
        what, why = f"--ray-cpus {cpus} cannot be had.", f"The largest machine that cells can run on has {most}."
        raise LdmError(Code.USAGE, what, why, f"Give --ray-cpus {max(1, most)} or less.")
    return int(sum(one.get("GPU", 0) for one in machines))


def _one(order: list[str], own: Mapping[str, str], folder: str) -> tuple[int, str]:
    """Runs where the task was placed: a cell in a process of its own, as on one machine."""
    return run(order, Stop(), own, folder if Path(folder).is_dir() else None)


def _ended(wish: Wish, cell: Cell, reference: Any, ray: Any, progress: Progress, stop: Stop) -> bool:
    """Whether it was run by this task; else another process is at it."""
    try:
        status, said = ray.get(reference)
    except ray.exceptions.RayError as error:
        status, said = 1, str(error)
    if status == int(Code.BUSY):
        progress.tell(f"{cell.name}, seed {cell.seed}: another process is at it")
        return False
    if status:
        give_up(cell, said, status)
    ended(wish, cell, progress, stop)
    return True


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError as error:
        what, why = "--ray cannot be used.", "Ray is not installed."
        raise LdmError(Code.USAGE, what, why, f"Run {install('ray')}.") from error
    return ray
