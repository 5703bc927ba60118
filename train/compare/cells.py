"""Cells of a comparison: one family and one seed each, with a folder of its own and a file that says it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.baselines.family import Facts, facts_of, model_of
from ldm.config import find, load
from ldm.errors import Code, LdmError
from ldm.store.configs import config_path
from train.compare.wish import Wish
from train.config import RunFile
from train.tasks.settings import FamilySettings

GROUPS = ("simple", "vae", "gan", "flow", "autoregressive", "energy", "diffusion")
RESULT, CRASH, SAMPLES, RUN = "cell.json", "crash.json", "samples.safetensors", "run"


@dataclass(frozen=True)
class Cell:
    """`family` is the name of a configuration: several may be of one family with other options."""

    family: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Of its row."""
        return Path(self.family).stem

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured; None while there is work left."""
        return _read(self.folder / RESULT)

    @property
    def told(self) -> dict[str, Any] | None:
        """The result; or, of a cell whose process ended before there was one, what it said last. It is tried again."""
        return self.result or _read(self.folder / CRASH)

    def given_up_since(self, moment: float) -> bool:
        """Whether a process of it ended without a result after that moment (`time.time()`)."""
        crash = self.folder / CRASH
        return crash.is_file() and crash.stat().st_mtime >= moment


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def cells(wish: Wish) -> Iterator[Cell]:
    """Seed by seed, so that a comparison that is stopped has every family as often."""
    for seed in range(wish.seeds):
        for family in wish.families:
            yield cell_in(wish.out, family, seed)


def cell_in(out: Path, family: str, seed: int) -> Cell:
    """Its folder is called by the configuration and the seed."""
    return Cell(family, seed, out / "cells" / f"{Path(family).stem}-{seed}")


def shipped_families() -> list[str]:
    """Names of the configurations that ship, group by group: simple ones first, diffusion last."""
    folder = config_path("family")
    found = [(GROUPS.index(facts_of_file(p.stem).group), p.stem) for p in folder.glob("*.yaml")]
    return [name for _, name in sorted(found)]


def facts_of_file(family: str) -> Facts:
    """Of the family that the run file of a configuration is of, as its options make it."""
    task = task_of(family)
    try:
        return facts_of(task.family, task.options)
    except LdmError:  # options that are not understood: its cells say so
        return facts_of(task.family)


def takes_class(family: str) -> bool:
    """Whether it is told the class of what it learns and draws, where the data set has classes."""
    task = task_of(family)
    return task.conditional and model_of(task.family).conditional


def task_of(family: str) -> FamilySettings:
    """The task section of its run file."""
    task = base_file(family).task
    assert task.type == "family"  # no other is let in
    return task


def base_file(family: str) -> RunFile:
    """The run file of a family: a name of configs/family, or a path."""
    path = family if "/" in family or Path(family).suffix in (".yaml", ".yml") else f"family/{family}"
    file = load(find(path), RunFile, [])
    if file.task.type != "family":
        why = f"Its task is {file.task.type}; only the task family can be compared."
        raise LdmError(Code.USAGE, f"{path} is the run file of no family.", why, "Name one of configs/family.")
    return file


def training_of(family: str) -> dict[str, Any]:
    """What its run file says of the training, but for what a comparison decides: cells of one row must agree in it."""
    told = base_file(family).model_dump(mode="json", exclude_unset=True)
    run = {key: value for key, value in told["run"].items() if key in ("batch", "micro", "precision")}
    return {"task": told["task"], "optim": told.get("optim", {}), "run": run}


def check_settings(wish: Wish) -> None:
    """Cells that were trained by other settings than those of today's run files are not gone on with."""
    for cell in cells(wish):
        before = (cell.result or {}).get("settings")
        now = training_of(cell.family)
        if before is None or before == now:
            continue
        section = next(key for key in now if before.get(key) != now[key])
        raise LdmError(
            Code.DIFFERENT,
            f"{cell.folder} was trained by another run file of {cell.family}.",
            f"Its {section} was {json.dumps(before.get(section))}, and now it is {json.dumps(now[section])}.",
            "Delete that folder to train it again, mend the run file, or choose another --out.",
        )


def file_of(wish: Wish, cell: Cell, steps: int) -> RunFile:
    """The family's own run file, on the wish's data and for so many steps. Nothing but training takes time in it."""
    told = base_file(cell.family).model_dump()
    run = told["run"] | {
        "out": cell.folder / RUN,
        "seed": cell.seed,
        "steps": steps,
        "save": max(100, steps // 4),
        "preview": 0,
        "evaluate": 0,
        "log": max(1, steps // 200),
    }
    return RunFile(**{**told, "data": wish.section, "run": run})
