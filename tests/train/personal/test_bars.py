"""The benchmark of `ldm personalize` says which bars are reached, and fails where one is missed."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks import personal

GOOD = {"seconds": 541.0, "hits": 0.93, "real_hits": 1.0, "drift": 0.2, "near_copies": 0.04, "real_near_copies": 0.3}


@pytest.mark.parametrize(
    ("figure", "value"), [("seconds", 601.0), ("hits", 0.89), ("drift", 0.26), ("near_copies", 0.06)]
)
def test_each_bar_is_told_and_held(figure: str, value: float) -> None:
    assert all(personal.bars(GOOD).values())
    missed = {**GOOD, figure: value}
    assert [name for name, reached in personal.bars(missed).items() if not reached] == [figure]
    said = list(personal.told("3", missed))
    assert len(said) == 4 and [line for line in said if "MISSED" in line] == [next(l for l in said if figure in l)]
    assert any(line.startswith(f"3: {figure} {value:g}, at ") for line in said)


def test_a_drawing_is_not_found_as_itself() -> None:
    own = normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9]]), dim=1)
    others = normalize(torch.tensor([[0.0, 1.0]]), dim=1)
    assert personal.found(own, own, others) == pytest.approx(2 / 3)  # the third is nearer to a stranger
    assert personal.found(own[:2] + 0, own, others) == 1
