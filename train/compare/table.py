"""Rows of the comparison: the cells of a family put together over its seeds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ldm.baselines.family import Facts
from ldm.metrics.interval import Estimate, student
from ldm.metrics.protocol import Figure, Protocol, check_comparable
from train.compare.cells import Cell, cells, facts_of_file, takes_class
from train.compare.wish import Wish

FIGURES = (
    "fid", "fid_infinity", "kid", "inception_score", "precision", "recall", "density", "coverage", "spectrum_db",
    "class_distance", "accuracy_score", "copies", "authentic",
)  # fmt: skip
UNBOUNDED = frozenset({"kid", "fid_infinity"})  # without a bias: below zero for some samples of the data itself
TIMES = frozenset({"train_seconds", "step_seconds", "draw_seconds", "growth"})
SHARES = frozenset({"precision", "recall", "coverage", "accuracy_score", "copies", "authentic", "class_distance"})


# Of real pictures, which all seeds are measured on, or against them: more seeds leave as much open in these.
SHARED = frozenset({"recall", "coverage", "accuracy_score", "kid"})


@dataclass(frozen=True)
class Row:
    """One configuration: what its family is, and the results of its cells."""

    name: str
    facts: Facts
    done: tuple[Mapping[str, Any], ...]
    wanted: int  # cells, done or not
    takes_class: bool = True

    @property
    def drawn(self) -> int | None:
        """How many samples its cells drew; the least, where they differ."""
        found = [int(told["drawn"]) for told in self.good if "drawn" in told]
        return min(found) if found else None

    @property
    def measured(self) -> int:
        """Cells with a result, be it that they diverged; one that ended without is tried again."""
        return sum("status" not in told for told in self.done)

    @property
    def good(self) -> list[Mapping[str, Any]]:
        return [told for told in self.done if "failed" not in told]

    def figure(self, name: str) -> Estimate | None:
        """Over the seeds: the mean, and the wider of what samples and seeds leave open."""
        found = [told["figures"][name] for told in self.good if name in told.get("figures", {})]
        told = over_seeds([estimate_of(one) for one in found], name in SHARED)
        if told is None or name in UNBOUNDED:
            return told
        return told.within(0, 1 if name in SHARES else math.inf)

    @property
    def bits(self) -> Estimate | None:
        found = [told["bits_per_dim"] for told in self.good if "bits_per_dim" in told]
        return over_seeds([estimate_of(one) for one in found], shared=True)

    def mean(self, name: str) -> float | None:
        """Of what takes time, only over cells whose steps were counted by the clock, where there are such: the others
        took as many on whatever machine, however busy."""
        counted = [told for told in self.good if "pace" in told.get("plan", {})] if name in TIMES else []
        found = [float(told[name]) for told in counted or self.good if told.get(name) is not None]
        return fmean(found) if found else None

    @property
    def per_second(self) -> float | None:
        """Pictures drawn in a second."""
        seconds = self.mean("draw_seconds")
        return None if not seconds else 1 / seconds

    @property
    def notes(self) -> list[str]:
        """What went wrong or is worth knowing, each once, with the seeds that it was so in."""
        found: dict[str, list[int]] = {}
        for told in self.done:
            words = [*told.get("notes", [])]
            words += [told[key] for key in ("failed", "capped") if key in told]
            for word in words:
                found.setdefault(word, []).append(told["seed"])
        everywhere = len(self.done)
        return [
            word if len(seeds) == everywhere else f"{word} (seed {', '.join(map(str, seeds))})"
            for word, seeds in found.items()
        ]


def estimate_of(told: Mapping[str, Any]) -> Estimate:
    return Estimate(told["value"], told["low"], told["high"])


def over_seeds(found: Sequence[Estimate], shared: bool = False) -> Estimate | None:
    """Their mean, and the wider of Student's interval over seeds and what their samples leave open, to either side.
    Where all seeds `shared` the same pictures, more seeds make that no less."""
    if len(found) < 2:
        return found[0] if found else None
    value, less = fmean(one.value for one in found), 1 if shared else math.sqrt(len(found))
    below = fmean(one.value - one.low for one in found) / less
    above = fmean(one.high - one.value for one in found) / less
    between = stdev([one.value for one in found]) / math.sqrt(len(found)) * student(len(found) - 1)
    return Estimate(value, value - max(below, between), value + max(above, between))


def rows(wish: Wish) -> list[Row]:
    """In the order of the wish."""
    by_name: dict[str, list[Cell]] = {}
    for cell in cells(wish):
        by_name.setdefault(cell.family, []).append(cell)
    table = [
        Row(
            Path(name).stem,
            facts_of_file(name),
            tuple(told for cell in own if (told := cell.told)),
            len(own),
            takes_class(name),
        )
        for name, own in by_name.items()
    ]
    _check_alike(table)
    return table


def _check_alike(table: Sequence[Row]) -> None:
    """Figures of unlike protocols do not stand in one table, but for the number of samples, of which rows tell."""
    for name in FIGURES:
        told = [cell["figures"][name] for row in table for cell in row.good if name in cell.get("figures", {})]
        protocols = [Protocol(**{**one["protocol"], "made": 0}) for one in told]
        check_comparable([Figure(name, estimate_of(one), by) for one, by in zip(told, protocols, strict=True)])
    bits = [cell["bits_per_dim"] for row in table for cell in row.good if "bits_per_dim" in cell]
    of = [(one, Protocol("", "", 0, one["pictures"], one["reference"])) for one in bits if "reference" in one]
    check_comparable([Figure("bits per dimension", estimate_of(one), by) for one, by in of])


def as_csv(table: Iterable[Row]) -> str:
    """A line a cell and figure: family, seed, figure, value, low, high, and the protocol."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    protocol = ("extractor", "resize", "made", "real", "reference")
    writer.writerow(["family", "seed", "figure", "value", "low", "high", *protocol])
    for row in table:
        for told in row.done:
            for name, one in told.get("figures", {}).items():
                by = [one["protocol"][key] for key in protocol]
                writer.writerow([row.name, told["seed"], name, one["value"], one["low"], one["high"], *by])
            if bits := told.get("bits_per_dim"):
                name = f"bits_per_dim_{bits['kind']}"
                of = ["", "", "", bits["pictures"], bits.get("reference", "")]
                writer.writerow([row.name, told["seed"], name, bits["value"], bits["low"], bits["high"], *of])
            for name in ("train_seconds", "draw_seconds", "step_seconds", "growth", "parameters", "memory", "images"):
                if name in told:
                    writer.writerow([row.name, told["seed"], name, told[name], *[""] * 7])
    return out.getvalue()
