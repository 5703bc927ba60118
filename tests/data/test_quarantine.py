"""Each fault is told once; a run stops when more than a tenth is certain, not because the first were unlucky."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.data.quarantine import Quarantine
from ldm.errors import Code, LdmError


def stopped_after(bad: set[int], order: list[int]) -> int | None:
    """How many pictures a run has tried when it stops; None: it goes on."""
    told: list[str] = []
    quarantine = Quarantine(len(order), "the set", told.append)
    for count, index in enumerate(order, 1):
        try:
            quarantine.take([] if index in bad else [index], {index: f"{index}.png: cut"} if index in bad else {})
        except LdmError as error:
            assert error.code is Code.FILE
            return count
    assert len(told) == len(bad)
    return None


@pytest.mark.parametrize("share", [0.0, 0.02, 0.08])
def test_few_faults_do_not_stop_a_run(share: float, torture: int) -> None:
    rng = np.random.default_rng(0)
    runs = 50 * torture
    stops = 0
    for _ in range(runs):
        order = rng.permutation(400).tolist()
        stops += stopped_after(set(rng.choice(400, round(share * 400), replace=False).tolist()), order) is not None
    assert stops <= 0.02 * runs


@pytest.mark.parametrize(("share", "soon"), [(0.11, 400), (0.3, 120), (1.0, 3)])
def test_many_faults_stop_it_the_sooner_the_more_they_are(share: float, soon: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        bad = set(rng.choice(400, round(share * 400), replace=False).tolist())
        tried = stopped_after(bad, rng.permutation(400).tolist())
        assert tried is not None and tried <= soon


def test_the_error_lists_the_first_five() -> None:
    quarantine = Quarantine(20, "the set", lambda text: None)
    with pytest.raises(LdmError) as caught:
        quarantine.take(range(20), {n: f"{n}.png: cut" for n in range(7)})
    assert caught.value.why == "; ".join(f"{n}.png: cut" for n in range(5))


def test_a_name_with_a_line_break_is_told_in_one_line() -> None:
    told: list[str] = []
    Quarantine(20, "the set", told.append).take(range(20), {3: "bad\nerror: forged.png: cut"})
    assert told == ["left out: bad error: forged.png: cut"]
