"""The whole comparison: data and judges first, then cell by cell, then the page. What is done is never done again."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.store.write import staged
from train.compare.cells import Cell, cells
from train.compare.counting import measured
from train.compare.reference import extractor_of, pictures_of
from train.compare.wish import Wish, Yardsticks
from train.lock import Lock
from train.signals import Stop, Stopped

log = logging.getLogger("train.compare")
WISH = "wish.json"
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
PATIENCE = 1.0  # seconds between two tries for a lock
Tell = Callable[[str], None]


@dataclass
class Progress:
    """What happens, for whoever shows it."""

    tell: Tell = field(default=lambda text: None)
    done: Callable[[Cell, Mapping[str, Any]], None] = field(default=lambda cell, told: None)


def compare(wish: Wish, progress: Progress, stop: Stop) -> Path:
    """Runs all cells that nobody has run, and writes the page. Several processes may do the same at once."""
    from train.compare.page import write_pages

    remember(wish)
    prepare(wish, progress, stop)
    for cell in cells(wish):
        if cell.result is None:
            _run(wish, cell, progress, stop)
        if (told := cell.result) is not None:
            progress.done(cell, told)
            write_pages(wish)
    return write_pages(wish)


def remember(wish: Wish) -> None:
    """Writes the wish into its folder; another one there is an error."""
    path = wish.out / WISH
    wish.out.mkdir(parents=True, exist_ok=True)
    _write_once(path, wish)
    check_same(wish, read_wish(wish.out))


def _write_once(path: Path, record: Yardsticks) -> None:
    """If nobody else has, who may do so at this moment."""
    if path.is_file():
        return
    try:
        with staged(path) as stage:
            stage.write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
    except LdmError:
        if not path.is_file():
            raise


def remember_yardsticks(yard: Yardsticks) -> None:
    """Writes them into their folder; others there are an error."""
    path = yard.out / "yardsticks.json"
    yard.out.mkdir(parents=True, exist_ok=True)
    _write_once(path, yard)
    check_same(yard, Yardsticks(**{**json.loads(path.read_text("utf-8")), "out": yard.out}))


def read_wish(folder: Path) -> Wish:
    return Wish(**{**json.loads((folder / WISH).read_text("utf-8")), "out": folder})


def check_same(wish: Yardsticks, before: Yardsticks) -> None:
    """Families and seeds may be added to; whatever else changes a figure may not."""
    free = {"out", "families", "seeds"}
    now, then = wish.model_dump(exclude=free), before.model_dump(exclude=free)
    if apart := [key for key in now if now[key] != then[key]]:
        key = apart[0]
        raise LdmError(
            Code.USAGE,
            f"{wish.out} holds another comparison.",
            f"Its {key} is {then[key]}, and now it is {now[key]}; figures of both could not stand in one table.",
            "Choose another --out, or give the same options again.",
        )


def prepare(wish: Yardsticks, progress: Progress, stop: Stop) -> None:
    """Pictures and judge, which all cells share; whoever comes second waits for the first."""
    with _turn(wish.out, stop):
        progress.tell("reading the data set")
        kept = pictures_of(wish)
        extractor = extractor_of(wish, kept, stop)
        named = f", {len(kept.classes)} classes" if kept.classes else ""
        progress.tell(
            f"{len(kept.training):,} training and {len(kept.held_out):,} held-out pictures{named}; "
            f"features by {extractor.name}"
        )


@contextmanager
def _turn(folder: Path, stop: Stop) -> Iterator[None]:
    """The lock of a folder, waited for."""
    while True:
        try:
            lock = Lock(folder).__enter__()
            break
        except LdmError as error:
            if error.code != Code.BUSY:
                raise
        stop.check()
        time.sleep(PATIENCE)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _run(wish: Wish, cell: Cell, progress: Progress, stop: Stop) -> None:
    """In a process of its own. One that somebody else runs is left to them."""
    progress.tell(f"{cell.family}, seed {cell.seed}")
    with tempfile.TemporaryFile("w+", errors="replace") as said_to:
        status = _waited(subprocess.Popen(command(wish.out, cell), env=environment(), stderr=said_to), stop)
        said_to.seek(0)
        said = said_to.readlines()
    stop.check()
    if status in (130, 143):
        raise Stopped(status)
    if status == int(Code.BUSY):
        progress.tell(f"{cell.family}, seed {cell.seed}: another process is at it")
        return
    if status:
        give_up(cell, "".join(said[-12:]), status)


def command(out: Path, cell: Cell) -> list[str]:
    """What runs a cell."""
    return [sys.executable, "-m", "train.compare.cell", str(out), cell.family, str(cell.seed)]


def environment() -> dict[str, str]:
    """Ours, without what a launcher says of its processes: a cell is not one of them."""
    return {key: value for key, value in os.environ.items() if key not in _LAUNCHED}


def _waited(child: subprocess.Popen[bytes], stop: Stop) -> int:
    """Its exit status. Whoever stops us means the cell: it is asked to save, and waited for."""
    asked = False
    while True:
        try:
            return child.wait(0.5)
        except subprocess.TimeoutExpired:
            if stop.wanted and not asked:
                asked = True
                child.terminate()


def give_up(cell: Cell, said: str, status: int) -> None:
    """A cell that ended otherwise than by its own word says so, and the others go on."""
    last = said.strip().splitlines()[-1] if said.strip() else f"its process ended with {status}"
    told = {"family": cell.family, "seed": cell.seed, "failed": last}
    log.warning("%s, seed %s: %s", cell.family, cell.seed, said.strip() or last)
    with staged(cell.folder / "cell.json") as stage:
        stage.write_text(json.dumps(told, indent=2) + "\n", "utf-8")


@dataclass(frozen=True)
class Cost:
    """Seconds that are left, by what they go to; None where they could not be told."""

    training: float
    drawing: float  # at most: the cap of every cell
    cells: int


def cost_of(wish: Wish) -> Cost:
    left = [cell for cell in cells(wish) if cell.result is None]
    if wish.budget.kind == "seconds":
        training = wish.budget.count * len(left)
    else:
        training = 0.0
        for family in dict.fromkeys(cell.family for cell in left):
            mine = [cell for cell in left if cell.family == family]
            training += len(mine) * _steps(wish, mine[0]) * measured(wish, mine[0])
    return Cost(training, wish.cap * len(left), len(left))


def _steps(wish: Wish, cell: Cell) -> float:
    from train.compare.cells import file_of

    batch = file_of(wish, cell, 1).run.batch
    return wish.budget.count if wish.budget.kind == "steps" else wish.budget.count / batch
