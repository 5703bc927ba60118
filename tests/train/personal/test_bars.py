"""The benchmark of `ldm personalize` says which bars are reached, and fails where one is missed."""

from __future__ import annotations

import pytest

from benchmarks import personal

GOOD = {"seconds": 541.0, "clip": {"hits": 0.93, "drift": 0.2, "near_copies": 0.04, "real_near_copies": 0.03}}


@pytest.mark.parametrize(
    ("figure", "value"), [("seconds", 601.0), ("hits", 0.89), ("drift", 0.26), ("near_copies", 0.06)]
)
def test_each_bar_is_told_and_held(figure: str, value: float) -> None:
    assert all(personal.bars(GOOD).values())
    missed = {**GOOD, "clip": {**GOOD["clip"], figure: value}, "seconds": value if figure == "seconds" else 541.0}  # type: ignore[dict-item]
    assert [name for name, reached in personal.bars(missed).items() if not reached] == [figure]
    said = list(personal.told("3", missed))
    assert len(said) == 4 and [line for line in said if "MISSED" in line] == [next(l for l in said if figure in l)]
    assert any(line.startswith(f"3: {figure} {value:g}, at ") for line in said)


def test_near_copies_are_held_against_real_drawings_where_more_of_those_are_near() -> None:
    row = {**GOOD, "clip": {**GOOD["clip"], "near_copies": 0.4, "real_near_copies": 0.5}}  # type: ignore[dict-item]
    assert personal.bars(row)["near_copies"]
    assert not personal.bars({**row, "clip": {**row["clip"], "real_near_copies": 0.3}})["near_copies"]  # type: ignore[dict-item]
