"""The order of examples is a function of (seed, place): fair, continued over epochs, and the same from any step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ldm.data.order import BLOCK, Bucketed, Drawn, Mixed, MixedBatches, Order, Single, Stream, Turns


def stream(count: int, first: int = 0, name: str = "s", seed: int = 3) -> Stream:
    return Stream(np.arange(first, first + count), seed, name)


def single(count: int, total: int, first: int = 0, name: str = "s") -> Single:
    return Single(stream(count, first, name), total)


def examples(order: Order, steps: range, total: int) -> list[int]:
    return [e for step in steps for e in order.rows(step, 0, total).examples.tolist()]


ORDERS: dict[str, Order] = {
    "single": single(23, 8),
    "mixed": Mixed([single(23, 8), single(5, 8, 100, "t")], Turns([3, 1], 3), 8),
    "buckets": Bucketed([stream(23), stream(5, 100, "t")], [2, 0], 8, 3, "b"),
    "mixed buckets": MixedBatches(
        [Bucketed([stream(23), stream(5, 50, "t")], [2, 0], 8, 3, "b"), Bucketed([stream(9, 90, "u")], [1], 8, 3, "c")],
        Turns([1, 1], 3),
    ),
}


def test_every_epoch_shows_everything_once_and_in_another_order() -> None:
    order = single(23, 8)
    found = examples(order, range(23), 8)  # eight epochs
    epochs = [found[i : i + 23] for i in range(0, len(found), 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert order.steps() == 23 / 8
    assert [p.epoch for p in order.rows(2, 0, 8).places] == [0] * 7 + [1]


def test_each_example_stands_at_each_place_equally_often() -> None:
    s = stream(6)
    where = np.array([s.at(epoch, np.arange(6)) for epoch in range(600)])
    counts = np.array([[(where[:, place] == e).sum() for e in range(6)] for place in range(6)])
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)


def test_seed_and_name_change_the_order() -> None:
    orders = [stream(30, seed=1), stream(30, seed=2), stream(30, name="other", seed=1)]
    assert len({tuple(s.at(0, np.arange(30))) for s in orders}) == 3
    assert Stream(np.arange(9), 1, "s", shuffle=False).at(5, np.arange(12)).tolist() == [*range(9), 0, 1, 2]


@pytest.mark.parametrize("name", ORDERS)
def test_any_step_and_any_rows_without_what_came_before(name: str) -> None:
    order = ORDERS[name]
    told: dict[int, Drawn] = {step: order.rows(step, 0, 8) for step in range(40)}
    for step in (39, 0, 17, 3, 38):
        for first, end in ((0, 8), (0, 4), (4, 8), (2, 4), (6, 8)):
            rows = order.rows(step, first, end)
            assert rows.examples.tolist() == told[step].examples.tolist()[first:end]
            assert rows.bucket == told[step].bucket
            assert [p.example() for p in rows.places] == rows.examples.tolist()


def test_a_bad_example_is_followed_by_the_next_of_its_stream() -> None:
    for order in ORDERS.values():
        for place in order.rows(5, 0, 8).places:
            after = [place.example(skip) for skip in range(len(place.stream))]
            assert sorted(after) == sorted(place.stream.entries.tolist())


def test_buckets_show_everything_and_fill_up_from_themselves() -> None:
    order = ORDERS["buckets"]
    assert order.steps() == 4
    for epoch in range(3):
        seen: Counter[int] = Counter()
        for step in range(4 * epoch, 4 * epoch + 4):
            drawn = order.rows(step, 0, 8)
            assert {e < 100 for e in drawn.examples.tolist()} == {drawn.bucket == 2}
            seen.update(drawn.examples.tolist())
        assert set(seen) == {*range(23), *range(100, 105)}
        assert sum(n - 1 for e, n in seen.items() if e < 100) == 1  # 24 rows for 23 examples
        assert max(n for e, n in seen.items() if e >= 100) == 2  # 8 rows for 5
    slots = [[order.rows(s, 0, 8).bucket for s in range(e * 4, e * 4 + 4)] for e in range(20)]
    assert len({tuple(row) for row in slots}) > 1


def test_parts_of_a_mix_have_their_shares_exactly() -> None:
    turns = Turns([3.0, 1.0, 0.5], 1)
    assert turns.counts().sum() == BLOCK
    assert np.abs(turns.counts() / BLOCK - np.array([3, 1, 0.5]) / 4.5).max() < 1 / BLOCK
    parts, before = turns.at(np.arange(3 * BLOCK))
    for part in range(3):
        assert np.array_equal(before[parts == part], np.arange((parts == part).sum()))
    assert np.bincount(parts[:BLOCK]).tolist() == turns.counts().tolist()
    some = np.array([7, BLOCK + 3, 2 * BLOCK + 999])
    assert np.array_equal(turns.at(some)[0], parts[some])
    assert np.array_equal(turns.at(some)[1], before[some])
    assert not np.array_equal(parts[:BLOCK], parts[BLOCK : 2 * BLOCK])


def test_tiny_and_equal_shares_have_a_turn() -> None:
    counts = Turns([1e9, 1e-9, 1e-9], 1).counts()
    assert counts.tolist() == [BLOCK - 2, 1, 1]
    many = Turns([1.0] * 3 + [1e-12] * 1000, 1).counts()
    assert many.sum() == BLOCK and many.min() == 1


def test_a_part_of_a_mix_goes_through_its_own_epochs() -> None:
    order = ORDERS["mixed"]
    found = examples(order, range(BLOCK // 8), 8)
    small = [e for e in found if e >= 100]
    assert len(small) == BLOCK // 4
    assert all(sorted(small[i : i + 5]) == [100, 101, 102, 103, 104] for i in range(0, len(small) - 5, 5))


def test_the_golden_order() -> None:
    """The order of a run is part of what makes it the same run after an update: it may not change by accident."""
    assert Stream(np.arange(10), 0, "part 0").at(0, np.arange(10)).tolist() == GOLDEN


GOLDEN = [8, 0, 5, 7, 1, 3, 9, 4, 6, 2]
