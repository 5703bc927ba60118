"""The table of docs/compare.md says what docs/results/cifar10-cpu says: nothing in it is written by hand."""

from __future__ import annotations

from pathlib import Path

from train.compare.lab import read_wish
from train.compare.table import Row, rows

ROOT = Path(__file__).parents[3]
NONE = "–"


def told(row: Row, samples: int) -> list[str]:
    """A line of the table, but for the last column, which is of papers."""
    kid, coverage, rate = row.figure("kid"), row.figure("coverage"), row.per_second
    assert kid is not None and coverage is not None and rate is not None and row.drawn is not None
    kind = "" if row.facts.likelihood == "exact" else "≤ "
    return [
        f"`{row.name}`",
        f"{kid.value:.1f}" + " (few)" * (row.drawn < samples),
        f"{coverage.value:.2f}",
        NONE if row.bits is None else f"{kind}{row.bits.value:.2f}",
        f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}",
    ]


def test_the_table_is_what_was_measured() -> None:
    wish = read_wish(ROOT / "docs/results/cifar10-cpu")
    table = sorted(rows(wish), key=lambda row: row.figure("kid").value)  # type: ignore[union-attr]
    assert len(table) == 24 and all(len(row.good) == wish.seeds == 2 for row in table)
    section = (ROOT / "docs/compare.md").read_text("utf-8").split("## What came out")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    found = [[part.strip() for part in line.strip("|").split("|")][:5] for line in lines]
    assert found == [told(row, wish.samples) for row in table]
