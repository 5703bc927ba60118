"""The counter-based generator gives the published numbers, and rows that know nothing of their neighbours."""

from __future__ import annotations

import pytest
import torch

import train.draws
from ldm.data.draws import Draws, philox

# Known answers of the authors' own library, Random123: philox4x32 with 10 rounds (counter, key, result).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_the_published_numbers(counter: tuple[int, ...], key: tuple[int, int], wanted: tuple[int, ...]) -> None:
    found = philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(word) for word in found) == wanted


def test_a_row_is_the_same_alone_and_a_short_row_begins_a_long_one() -> None:
    places = torch.tensor([0, 7, 2**40 + 3])
    whole = Draws(1, places, 4).words("x", 9)
    for row, place in enumerate(places):
        assert torch.equal(Draws(1, place[None], 4).words("x", 9)[0], whole[row])
        assert torch.equal(Draws(1, place[None], 4).words("x", 5)[0], whole[row, :5])


def test_seed_name_scope_and_place_are_apart() -> None:
    places = torch.arange(4)
    rows = [Draws(s, places, 4, scope).words(name, 4) for s in (0, 1) for scope in "ab" for name in "xy"]
    assert len({tuple(row.tolist()) for words in rows for row in words}) == 32


def test_uniform_is_uniform() -> None:
    found = Draws(3, torch.arange(20000), 16).uniform("u", (2,))
    assert found.min() >= 0 and found.max() < 1
    counts = torch.histc(found, 10, 0, 1)
    assert (counts - 4000).abs().max() < 5 * 4000**0.5
    below = Draws(3, torch.arange(6000), 16).below("k", 6)
    assert (torch.bincount(below) - 1000).abs().max() < 5 * 1000**0.5


def test_normal_is_normal_in_pairs_and_tails() -> None:
    """Mean, variance, kurtosis, the two of a pair uncorrelated, and each row's numbers its own."""
    x = Draws(5, torch.arange(20000), 16).normal("n", (3,)).double()
    assert x.mean(0).abs().max() < 5 / 20000**0.5
    assert (x.var(0) - 1).abs().max() < 5 * (2 / 20000) ** 0.5
    assert (x.pow(4).mean(0) - 3).abs().max() < 5 * (96 / 20000) ** 0.5
    assert (torch.corrcoef(x.T) - torch.eye(3)).abs().max() < 5 / 20000**0.5
    assert torch.isfinite(x).all() and len(x.unique()) > 59_000


def test_stratified_takes_one_of_each_part() -> None:
    """Of every batch, however it is cut; each row of a batch over all parts; and within a part anywhere."""
    found = torch.cat([Draws(3, places, 8).stratified("t") for places in torch.arange(8000).split(3)])
    assert found.min() >= 0 and found.max() < 1
    parts = (found * 8).floor().long().view(-1, 8)
    assert torch.equal(parts.sort(1).values, torch.arange(8).expand(1000, 8))
    for row in parts.T:
        assert (torch.bincount(row, minlength=8) - 125).abs().max() < 5 * 125**0.5
    within = (found * 8).double() % 1
    assert (torch.histc(within, 10, 0, 1) - 800).abs().max() < 5 * 800**0.5


def test_nothing_may_be_asked_for() -> None:
    """Of captions without a part that could move, no numbers are needed."""
    draws = Draws(3, torch.arange(4), 4)
    assert draws.uniform("u", (0,)).shape == (4, 0)
    assert draws.normal("n", (0,)).shape == (4, 0)


def test_training_draws_by_the_same_rule() -> None:
    assert train.draws.Draws is Draws and train.draws.philox is philox
