"""What the page says in words: of who is nearest, who is fast, who failed, and what was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.baselines.family import facts_of
from ldm.metrics.measured import NEARER_NOTE
from train.compare.table import Row
from train.compare.verdict import in_words
from train.compare.wish import Wish, budget

WISH = Wish(data={"path": "photos"}, out=Path("out"), families=("vae",), budget=budget("2min"), seeds=2, samples=500)


def cell(kid: float, coverage: float, seconds: float, drawn: int = 500, **more: Any) -> dict[str, Any]:
    protocol = {"extractor": "pixels", "resize": "none", "made": drawn, "real": 2000, "reference": "one"}
    figures = {
        name: {"value": value, "low": value - 0.1, "high": value + 0.1, "protocol": protocol}
        for name, value in (("kid", kid), ("coverage", coverage))
    }
    return {"seed": 0, "drawn": drawn, "draw_seconds": seconds, "figures": figures, "protocol": protocol, **more}


def row(family: str, *cells: dict[str, Any]) -> Row:
    return Row(family, facts_of(family), cells, 2)


def said(*table: Row) -> str:
    return "\n".join(in_words(WISH, table))


def test_the_nearest_the_fastest_of_the_near_and_the_widest_are_named() -> None:
    text = said(
        row("ddpm", cell(10, 0.6, 0.5), cell(10.1, 0.6, 0.5)),
        row("dcgan", cell(14, 0.3, 0.001), cell(14.1, 0.3, 0.001)),
        row("vae", cell(90, 0.1, 0.0001), cell(90, 0.1, 0.0001)),
    )
    assert "by the kernel distance (KID) is ddpm, clearly." in text
    assert "1.5 times its distance dcgan draws fastest, 1,000 pictures a second" in text
    assert "covered by ddpm: 60 % of the real ones" in text
    assert "Raw pixels say little" in text and "of 2,000 pictures that were trained on" in text


def test_one_seed_makes_nothing_clear() -> None:
    text = said(row("ddpm", cell(10, 0.6, 0.5)), row("dcgan", cell(14, 0.3, 0.001)))
    assert "clearly" not in text and "another seed may say otherwise" in text


def test_a_family_that_is_level_is_named() -> None:
    text = said(row("ddpm", cell(10, 0.6, 0.5)), row("dcgan", cell(10.05, 0.3, 0.001)))
    assert "is ddpm; dcgan cannot be told from it" in text


def test_seeds_that_failed_and_samples_that_may_be_copies_are_told_of() -> None:
    broken = {"seed": 1, "failed": "the loss is none"}
    copied = cell(12, 0.3, 0.001, notes=[NEARER_NOTE])
    text = said(row("ddpm", cell(10, 0.6, 0.5), broken), row("dcgan", copied))
    assert "Seeds that came to nothing are in no figure: ddpm (1 of 2)." in text
    assert "nearest training pictures of dcgan" in text


def test_where_all_are_capped_nobody_is_ranked_and_no_table_is_called_empty() -> None:
    text = said(row("ddpm", cell(10, 0.6, 0.5, drawn=300)))
    assert "No family drew 500 samples within 300 seconds" in text and "No cell has been measured" not in text
    assert said(row("ddpm")) == "No cell has been measured yet."
