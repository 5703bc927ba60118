"""Runs share calls: each hears what it would have heard alone, comes and goes when it likes, and fails alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction
from ldm.models.gathering import Ended, Gathering, Run, gathered
from ldm.models.latent import Cond, Network
from ldm.models.unet import UNet
from tests import components


class Counted:
    """A network that keeps how many rows each of its calls had."""

    def __init__(self, network: Network) -> None:
        self.network, self.rows = network, list[int]()

    def __call__(self, x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
        self.rows.append(len(x) * len(conds))
        return self.network(x, level, conds)


@pytest.fixture(scope="module")
def unet() -> UNet:
    return UNet(components.unet().eval(), "epsilon")


def level(t: float) -> Level:
    one = torch.tensor([t])
    return Level(one, 1 - one / 2000, one / 1000, torch.tensor([0]), torch.tensor([4]))


def walk(network: Network, seed: int, steps: int, batch: int = 1, size: int = 8) -> Iterator[Tensor]:
    """A run of some steps with words of its own."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, size, size, generator=drawn)
    words = [Cond(text=torch.randn(1, 77, components.TEXT, generator=drawn)) for _ in range(2)]
    for step in range(steps):
        null, told = network(x, level(900.0 - 100 * step - 7 * seed), words)
        x = 0.9 * x + 0.1 * (told.clean - 0.5 * null.clean)
        yield x


def together(gathering: Gathering[Tensor], turns: int = 50) -> dict[Run[Tensor], list[Tensor]]:
    """What each run says, until all have ended."""
    said: dict[Run[Tensor], list[Tensor]] = {run: [] for run in gathering.runs}

    def heard(run: Run[Tensor], told: Tensor | Ended) -> None:
        if isinstance(told, Ended):
            assert told.error is None, told.error
        else:
            said[run].append(told)

    for _ in range(turns):
        gathering.turn(heard)
    assert not gathering.runs
    return said


def test_each_run_hears_what_it_would_have_heard_alone(unet: UNet) -> None:
    counted = Counted(unet)
    asked = [(1, 3, 1), (2, 4, 1), (3, 2, 2)]
    gathering = Gathering[Tensor](most=16)
    gathering.runs = [Run(walk(gathered(counted, 0), *one)) for one in asked]
    said = together(gathering)
    for one, told in zip(asked, said.values(), strict=True):
        alone = list(walk(unet, *one))
        assert len(told) == len(alone)
        for ours, theirs in zip(told, alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert counted.rows == [8, 8, 4, 2]  # two conditions of four latents, then those that are left


def test_a_call_has_no_more_rows_than_allowed(unet: UNet) -> None:
    counted = Counted(unet)
    gathering = Gathering[Tensor](most=4)
    gathering.runs = [Run(walk(gathered(counted, 0), seed, 2)) for seed in range(5)]
    together(gathering)
    assert counted.rows == [4, 4, 2] * 2


def test_what_does_not_fit_together_is_called_apart(unet: UNet) -> None:
    counted = Counted(unet)
    gathering = Gathering[Tensor](most=16)
    gathering.runs = [Run(walk(gathered(counted, 0), 1, 1, size=8)), Run(walk(gathered(counted, 0), 2, 1, size=16))]
    together(gathering)
    assert counted.rows == [2, 2]


def test_a_run_joins_others_on_their_way(unet: UNet) -> None:
    counted = Counted(unet)
    gathering = Gathering[Tensor](most=16)
    first = Run(walk(gathered(counted, 0), 1, 4))
    gathering.runs.append(first)
    heard: list[tuple[Any, Any]] = []
    for turn in range(20):
        if turn == 2:
            gathering.runs.append(Run(walk(gathered(counted, 0), 2, 4)))
        gathering.turn(lambda run, told: heard.append((run, told)))
    assert counted.rows == [2, 2, 4, 4, 2, 2]
    ours = [told for run, told in heard if run is first and not isinstance(told, Ended)]
    for one, other in zip(ours, walk(unet, 1, 4), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_an_error_ends_its_run_and_no_other(unet: UNet) -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.zeros(1)
        raise ValueError("no more of this")

    gathering = Gathering[Tensor](most=16)
    bad = Run(broken())
    gathering.runs = [bad, Run(walk(gathered(unet, 0), 1, 2))]
    ends: dict[Any, Exception | None] = {}
    for _ in range(10):
        gathering.turn(lambda run, told: ends.update({run: told.error}) if isinstance(told, Ended) else None)
    assert isinstance(ends.pop(bad), ValueError) and list(ends.values()) == [None]


def test_an_error_of_the_network_is_told_to_all_who_called_it() -> None:
    def fails(x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
        raise RuntimeError("out of memory")

    gathering = Gathering[Tensor](most=16)
    gathering.runs = [Run(walk(gathered(fails, 0), seed, 2)) for seed in (1, 2)]
    ends: list[str] = []
    for _ in range(3):
        gathering.turn(lambda run, told: ends.append(str(told.error)) if isinstance(told, Ended) else None)
    assert ends == ["out of memory"] * 2


def test_a_run_that_leaves_lets_go_of_what_it_holds(unet: UNet) -> None:
    let_go = []

    def holding() -> Iterator[Tensor]:
        try:
            yield from walk(gathered(unet, 0), 1, 5)
        finally:
            let_go.append(True)

    gathering = Gathering[Tensor](most=16)
    leaving = Run(holding())
    gathering.runs = [leaving]
    for _ in range(2):
        gathering.turn(lambda run, told: None)
    gathering.leave(leaving)
    gathering.leave(leaving)
    assert let_go == [True] and not gathering.runs


def test_outside_of_a_run_a_gathered_network_is_the_network(unet: UNet) -> None:
    for one, other in zip(walk(gathered(unet, 0), 1, 2), walk(unet, 1, 2), strict=True):
        assert torch.equal(one, other)


def test_what_fits_alone_does_not_fail_because_others_came(unet: UNet) -> None:
    rows = list[int]()

    def small(x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
        rows.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return unet(x, level, conds)

    gathering = Gathering[Tensor](most=16)
    gathering.runs = [Run(walk(gathered(small, 0), seed, 1)) for seed in range(5)]
    said = together(gathering)
    assert rows == [5, 2, 3, 1, 2]
    for seed, told in enumerate(said.values()):
        torch.testing.assert_close(told[0], next(walk(unet, seed, 1)), atol=1e-5, rtol=1e-5)
