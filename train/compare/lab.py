"""The whole comparison: data and judges first, then cell by cell, then the page. What is done is never done again."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.metrics.extractors import Extractor
from train.compare.cells import CRASH, RESULT, Cell, cells, check_settings
from train.compare.children import command, run
from train.compare.counting import rough_seconds, steps_of
from train.compare.reference import (
    PICTURES,
    Pictures,
    check_judge,
    check_pictures,
    check_unchanged,
    extractor_of,
    judge_seconds,
    pictures_of,
    reference_of,
)
from train.compare.scale import measure_scale, scale_of
from train.compare.wish import Wish, Yardsticks
from train.lock import Lock
from train.report import rewrite
from train.signals import Stop, Stopped

log = logging.getLogger("train.compare")
WISH = "wish.json"
PATIENCE = 1.0  # seconds between two tries for a lock
Tell = Callable[[str], None]


@dataclass
class Progress:
    """What happens, for whoever shows it."""

    tell: Tell = field(default=lambda text: None)
    done: Callable[[Cell, Mapping[str, Any]], None] = field(default=lambda cell, told: None)


def compare(wish: Wish, progress: Progress, stop: Stop) -> Path:
    """Runs all cells that nobody has run, and writes the page. Several processes may do the same at once."""
    wish = remember(wish, stop)
    prepare(wish, progress, stop)
    if any(cell.result is None for cell in cells(wish)):
        check_unchanged(wish)
    others = []  # which another process is at
    for cell in cells(wish):
        began = time.time()
        if cell.result is None and not _run(wish, cell, progress, stop):
            others.append((cell, began))
    for cell, began in others:
        while not settled(cell, began, stop) and not _run(wish, cell, progress, stop):
            pass
    return published(wish, stop)


def settled(cell: Cell, began: float, stop: Stop) -> bool:
    """Waits for whoever is at the cell. Whether it has a result now, or was given up since that moment: else its
    process, or the one that waited for it, was killed, and it is left undone."""
    with _turn(cell.folder, stop):
        pass
    time.sleep(2 * PATIENCE)  # a process that has just ended may yet be told of
    return cell.result is not None or cell.given_up_since(began)


def ended(wish: Wish, cell: Cell, progress: Progress, stop: Stop) -> None:
    """Tells of a cell that was run, and brings the page up to date."""
    if (told := cell.told) is not None:
        progress.done(cell, told)
        published(wish, stop)


def published(wish: Wish, stop: Stop) -> Path:
    """The page of all cells there are, written by one process at a time: the last one has read them all."""
    from train.compare.page import write_pages

    with _turn(wish.out, stop):
        return write_pages(wish)


def remember(wish: Wish, stop: Stop) -> Wish:
    """Writes the wish into its folder, or adds its families and seeds to the one that is there; what else differs is an
    error. Returns what now lies there."""
    wish.out.mkdir(parents=True, exist_ok=True)
    with _turn(wish.out, stop):
        wish = merged(wish)
        rewrite(wish.out / WISH, wish.model_dump_json(indent=2) + "\n", "Free some space.")
    return wish


def merged(wish: Wish) -> Wish:
    """With the families and seeds that its folder has already; nothing is written."""
    if (wish.out / WISH).is_file() and _binds(before := read_wish(wish.out), wish):
        check_same(wish, before)
        families = (*before.families, *(f for f in wish.families if f not in before.families))
        stems = [Path(family).stem for family in families]
        if twice := [family for family in wish.families if stems.count(Path(family).stem) > 1]:
            what, why = f"{wish.out} has a family that is called {Path(twice[0]).stem} already.", "A row has one name."
            raise LdmError(Code.USAGE, what, why, f"Give {twice[0]} another file name, or choose another --out.")
        wish = wish.model_copy(update={"families": families, "seeds": max(wish.seeds, before.seeds)})
    check_settings(wish)
    check_judge(wish)
    return wish


def remember_yardsticks(yard: Yardsticks, stop: Stop) -> None:
    """Writes them into their folder; others there are an error."""
    check_judge(yard)
    path = yard.out / "yardsticks.json"
    yard.out.mkdir(parents=True, exist_ok=True)
    with _turn(yard.out, stop):
        if (yard.out / WISH).is_file():  # the folder of a comparison, whose pictures and judge are taken
            check_same(yard, read_wish(yard.out))
        if path.is_file():
            before = Yardsticks(**{**json.loads(path.read_text("utf-8")), "out": yard.out})
            if _binds(before, yard):
                check_same(yard, before)
        rewrite(path, yard.model_dump_json(indent=2) + "\n", "Free some space.")


def _binds(before: Yardsticks, now: Yardsticks) -> bool:
    """What was once wished for and came to nothing binds nobody: other options would fit all that is there."""
    begun = (before.out / PICTURES).is_file() or any(before.out.glob(f"cells/*/{RESULT}"))
    return begun or not _apart(before, now)


def read_wish(folder: Path) -> Wish:
    return Wish(**{**json.loads((folder / WISH).read_text("utf-8")), "out": folder})


def check_same(wish: Yardsticks, before: Yardsticks) -> None:
    """Families and seeds may be added to; whatever else changes a figure may not."""
    for key, (then, now) in _apart(before, wish).items():
        fix = "Choose another --out, or give the same options again."
        if key == "data":
            fix = "Choose another --out; or give the same data again, by the same path and from the same folder."
        raise LdmError(
            Code.USAGE,
            f"{wish.out} holds another comparison.",
            f"There {_option(key)} is {_shown(then)}, and now it is {_shown(now)}; figures of both could not "
            "stand in one table.",
            fix,
        )


def _apart(before: Yardsticks, now: Yardsticks) -> dict[str, tuple[Any, Any]]:
    """What differs, by its name, but for what may be added to: as it was, and as it is."""
    fixed = [key for key in type(now).model_fields if key not in ("out", "families", "seeds")]
    both = {key: (getattr(before, key), getattr(now, key)) for key in fixed}
    return {key: (then, told) for key, (then, told) in both.items() if then != told}


def _option(key: str) -> str:
    return "DATA" if key == "data" else "--" + key.replace("_", "-")


def _shown(value: Any) -> str:
    """A data set by its path, where that is all there is to tell."""
    if value is None:
        return "not given"
    return str(value["path"] if isinstance(value, dict) and set(value) == {"path"} else value)


def prepare(wish: Yardsticks, progress: Progress, stop: Stop) -> tuple[Pictures, Extractor]:
    """Pictures, judge and what it sees of them, which all cells share; whoever comes second waits for the first."""
    with _turn(wish.out, stop):
        progress.tell("reading the data set")
        kept = pictures_of(wish)
        extractor = extractor_of(wish, kept, stop)
        if scale_of(wish.out) is None:
            measure_scale(wish.out, kept, reference_of(wish, kept, extractor))
        named = f", {len(kept.classes)} classes" if kept.classes else ""
        progress.tell(
            f"{len(kept.training):,} training and {len(kept.held_out):,} held-out pictures{named}; "
            f"features by {extractor.name}"
        )
    return kept, extractor


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


def _run(wish: Wish, cell: Cell, progress: Progress, stop: Stop) -> bool:
    """In a process of its own. One that somebody else runs is left to them; whether it was run here."""
    progress.tell(f"{cell.name}, seed {cell.seed}")
    status, said = run(command(wish.out, cell), stop)
    stop.check()
    if status in (130, 143):
        raise Stopped(status)
    if status == int(Code.BUSY):
        progress.tell(f"{cell.name}, seed {cell.seed}: another process is at it")
        return False
    if status:
        give_up(cell, said, status)
    ended(wish, cell, progress, stop)
    return True


def give_up(cell: Cell, said: str, status: int) -> None:
    """A cell that ended without a result says why, for the page; the next start tries it again."""
    if cell.result is not None:
        return
    last = said.strip().splitlines()[-1].strip() if said.strip() else f"its process ended with {status}"
    if status < 0:  # whatever it said last was no reason
        last = f"it was ended by signal {-status}"
        last += ", as the system does where memory is short" * (status == -signal.SIGKILL)
    told = {
        "family": cell.family, "seed": cell.seed, "status": status,
        "failed": f"it ended before it was done: {last}",
    }  # fmt: skip
    log.warning("%s, seed %s: %s", cell.family, cell.seed, said.strip()[-2000:] or last)
    cell.folder.mkdir(parents=True, exist_ok=True)
    rewrite(cell.folder / CRASH, json.dumps(told, indent=2) + "\n", "Free some space.")


@dataclass(frozen=True)
class Cost:
    """Seconds that are left, by what takes them; None where that could not be timed. Starting and measuring
    come on top: half a minute or so a cell, more with more samples, and where a likelihood is integrated."""

    judge: float | None  # training who looks, once for all cells
    training: float | None
    drawing: float  # at most: the cap of every cell
    cells: int


def cost_of(wish: Wish, stop: Stop, tell: Tell = lambda text: None) -> Cost:
    """A budget of time is known; one of steps or pictures is timed roughly, a family at a time."""
    left = [cell for cell in cells(wish) if cell.result is None]
    check_pictures(wish)
    training: float | None = wish.budget.count * len(left) if wish.budget.kind == "seconds" else 0.0
    if wish.budget.kind != "seconds":
        if left:
            tell("timing a step of each family")
        for family in dict.fromkeys(cell.family for cell in left):
            mine = [cell for cell in left if cell.family == family]
            stop.check()
            try:
                each = steps_of(wish, mine[0]) * rough_seconds(wish, mine[0])
            except LdmError as error:
                log.warning("%s cannot be timed: %s", family, error)
                each = None
            training = None if training is None or each is None else training + len(mine) * each
    return Cost(judge_seconds(wish) if left else 0.0, training, wish.cap * len(left), len(left))
