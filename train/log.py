"""The log of a run: figures are gathered over a few steps, written as one line of JSON, and passed on to who listens.

Lines of `log.jsonl` have a step (how many are done) and one of these:
  {"step", "time", "figures": {name: mean over the steps since the last line}, "lr", "seconds" a step, "skipped" so far}
  {"step", "time", "validation": {name: value}, "seconds"}
  {"step", "time", "previews": [file names below the run folder], "seconds"}
  {"step", "time", "start": {...}}     once for each start of the run: machine, versions, processes
  {"step", "time", "end": {...}}       when model/ is written
`time` is the clock's, in seconds since 1970; nothing that is computed depends on it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.folder import RunFolder, read_log
from train.trackers import Trackers
from train.trainer import Step

Listener = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Log:
    """`listeners` get each line as it is written (bars, `--json`); `start` is told once, before the first figures."""

    folder: RunFolder
    start: Mapping[str, Any]
    listeners: Sequence[Listener] = ()
    trackers: Trackers | None = None
    _sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _seconds: list[float] = field(default_factory=list)
    _begun: bool = False

    def begin(self, step: int) -> None:
        """Before the first step of this start, when `step` are done."""
        if not self._begun:
            self._begun = True
            self._write(step, start=dict(self.start))

    def add(self, step: Step) -> None:
        """Gathers one step. Figures of a step that was skipped may not be finite, and are left out."""
        self._seconds.append(step.seconds)
        for name, value in step.figures.items():
            if math.isfinite(value):
                self._sums[name].append(value)

    def flush(self, step: int, skipped: int) -> None:
        """Writes what was gathered since the last time; `skipped` updates were left out since step 0."""
        if not self._seconds:
            return
        figures = {name: sum(values) / len(values) for name, values in self._sums.items() if values}
        rates = [name for name in figures if name.rpartition("/")[2] == "lr"]
        told: dict[str, Any] = {"figures": {n: v for n, v in figures.items() if n not in rates}}
        if rates:
            told["lr"] = self._sums[rates[0]][-1]
        told["seconds"] = sum(self._seconds) / len(self._seconds)
        self._sums.clear()
        self._seconds.clear()
        self._write(step, **told, skipped=skipped)

    def validation(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        self._write(step, validation=dict(figures), seconds=seconds)

    def previews(self, step: int, files: Sequence[Path], seconds: float) -> None:
        names = [path.relative_to(self.folder.path).as_posix() for path in files]
        self._write(step, previews=names, seconds=seconds)

    def end(self, step: int, **told: Any) -> None:
        self._write(step, end=told)

    def close(self) -> None:
        if self.trackers is not None:
            self.trackers.close()

    def _write(self, step: int, **told: Any) -> None:
        record = {"step": step, "time": round(time.time(), 3), **told}
        self.folder.log(record)
        for listener in self.listeners:
            listener(record)
        if self.trackers is not None and (figures := tracked(record)):
            self.trackers.log(figures, step)


def tracked(record: Mapping[str, Any]) -> dict[str, float]:
    """A line as flat figures for trackers: those of training by their names, of validation below `validation/`."""
    figures = dict(record.get("figures", {}))
    figures |= {f"validation/{name}": value for name, value in record.get("validation", {}).items()}
    if "figures" in record:
        figures |= {name: record[name] for name in ("lr", "skipped") if name in record}
        figures["seconds per step"] = record["seconds"]
    return figures


def ended(folder: Path) -> int | None:
    """The step at which `model/` was last written; None where it never was, or where more has been trained since."""
    if not (folder / "model").exists():
        return None
    last = None
    for record in read_log(folder / "log.jsonl"):
        if "end" in record:
            last = int(record["step"])
        elif last is not None and record["step"] > last:
            last = None
    return last
