"""Cells of a comparison: one family and one seed each, with a folder of its own and a file that says it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.baselines.family import facts_of
from ldm.config import find, load
from ldm.errors import Code, LdmError
from ldm.store.configs import config_path
from train.compare.wish import Wish
from train.config import RunFile

GROUPS = ("simple", "vae", "gan", "flow", "autoregressive", "energy", "diffusion")
RESULT, CRASH, SAMPLES, RUN = "cell.json", "crash.json", "samples.safetensors", "run"


@dataclass(frozen=True)
class Cell:
    """`family` is the name of a configuration: several may be of one family with other options."""

    family: str
    seed: int
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured; None while there is work left."""
        return _read(self.folder / RESULT)

    @property
    def told(self) -> dict[str, Any] | None:
        """The result; or, of a cell whose process ended before there was one, what it said last. It is tried again."""
        return self.result or _read(self.folder / CRASH)


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
    found = [(GROUPS.index(facts_of(module_of(p.stem)).group), p.stem) for p in folder.glob("*.yaml")]
    return [name for _, name in sorted(found)]


def module_of(family: str) -> str:
    """Which family the run file of a configuration is of."""
    task = base_file(family).task
    assert task.type == "family"
    return task.family


def base_file(family: str) -> RunFile:
    """The run file of a family: a name of configs/family, or a path."""
    path = family if "/" in family or Path(family).suffix in (".yaml", ".yml") else f"family/{family}"
    file = load(find(path), RunFile, [])
    if file.task.type != "family":
        why = f"Its task is {file.task.type}; only the task family can be compared."
        raise LdmError(Code.USAGE, f"{path} is the run file of no family.", why, "Name one of configs/family.")
    return file


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
