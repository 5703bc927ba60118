"""Which rows of a comparison are ranked, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.metrics.interval import Estimate
from ldm.metrics.manifold import covered_by_chance
from train.compare.table import Row, estimate_of
from train.compare.wish import Wish

FOOLED = 0.1  # of the precision and coverage of real pictures: below both, samples are like none of them
Scale = Mapping[str, Any] | None  # what held-out pictures reach


def unranked(wish: Wish, table: Sequence[Row], scale: Scale) -> dict[str, str]:
    """Reasons, by the names of rows: those that are not comparable, and those that fool the judge."""
    found, like = dict[str, str](), comparable(wish, table)
    for row in table:
        if row not in like:
            found[row.name] = "" if row.drawn is None else f"only {row.drawn} samples: not ranked"
        elif fooled(row, scale):
            found[row.name] = "like no picture: not ranked"
    return found


def comparable(wish: Wish, table: Sequence[Row]) -> list[Row]:
    """Rows whose cells drew all samples: figures of fewer are of another protocol."""
    return [row for row in table if row.drawn is not None and row.drawn >= wish.samples]


def reached(scale: Scale) -> dict[str, Estimate]:
    """By real pictures, those held out."""
    return {} if scale is None else {name: estimate_of(one) for name, one in scale["figures"].items()}


def fooled(row: Row, scale: Scale) -> bool:
    """Whether hardly a sample is like a real picture, and hardly a real picture has a sample near."""
    real, covered = reached(scale).get("precision"), real_coverage(row, scale)
    told = [(row.figure("precision"), None if real is None else real.value), (row.figure("coverage"), covered)]
    return all(one is not None and goal is not None and one.value < FOOLED * goal for one, goal in told)


def real_coverage(row: Row, scale: Scale) -> float | None:
    """What as many real pictures as a row drew would cover, from what those that were held out do: more cover more."""
    told = None if scale is None else scale["figures"].get("coverage")
    if told is None or row.drawn is None:
        return None
    made, real = int(told["protocol"]["made"]), int(told["protocol"]["real"])
    return min(1.0, float(told["value"]) * covered_by_chance(row.drawn, real) / covered_by_chance(made, real))


def by_distance(table: Sequence[Row], reasons: Mapping[str, str]) -> list[Row]:
    """The nearest to the data first; after all others those that are not ranked."""
    return sorted(table, key=lambda row: (row.name in reasons, _distance(row)))


def _distance(row: Row) -> float:
    kid = row.figure("kid")
    return float("inf") if kid is None else kid.value
