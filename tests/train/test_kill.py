"""Killed at any moment, a run goes on as if nothing had been: at most one interval is lost, and no bit is different."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.train.children import fitted, live, trainer
from tests.train.states import differences, names
from train.checkpoint import candidates, newest_state, verify
from train.folder import read_log
from train.signals import Stop
from train.trainer import Action


@pytest.fixture(scope="module")
def nursery() -> Iterator[ForkServerContext]:
    """Children of a process that has everything imported: a new life costs milliseconds, not seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.children"])
    yield context


def born(nursery: ForkServerContext, run: Path, steps: int, save: int) -> tuple[BaseProcess, Iterator[int]]:
    """A child that trains, and the steps that it tells."""
    here, there = nursery.Pipe(duplex=False)
    child = nursery.Process(target=live, args=(str(run), steps, save, there))
    child.start()
    there.close()

    def told() -> Iterator[int]:
        try:
            while here.poll(120):
                yield here.recv()
        except EOFError:
            return

    return child, told()


def test_killed_again_and_again_it_loses_one_interval_at_most(
    nursery: ForkServerContext, tmp_path: Path, torture: int
) -> None:
    """5 lives, 50 under torture. A save takes longer than a step here, so most of them end within one."""
    kills, save, chance, within = min(5 * torture, 50), 2, random.Random(11), 0
    steps, done = 7 * kills, 0
    for _ in range(kills):
        child, told = born(nursery, tmp_path, steps, save)
        try:
            first = next(told)
            newest = newest_state(tmp_path)
            assert first == (0 if newest is None or done == 0 else done) + 1
            last = first
            for _ in range(chance.randrange(5)):
                last = next(told)
            time.sleep(chance.random() * 0.03)
        finally:
            child.kill()
            child.join()
        assert child.exitcode == -signal.SIGKILL
        last = max([last, *told])
        within += any(name.startswith(".") for name in names(tmp_path))
        for path in candidates(tmp_path):
            verify(path)
        newest = newest_state(tmp_path)
        done = 0 if newest is None else verify(newest).step
        assert last - save <= done <= last + 1, "more than one interval is lost"
    assert within >= kills // 10, "hardly any of them died while saving"
    child, told = born(nursery, tmp_path, steps, save)
    assert list(told)[-1] == steps
    child.join()
    assert child.exitcode == 0
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    log = [record["step"] for record in read_log(tmp_path / "log.jsonl")]
    assert log == list(range(1, steps + 1))
    whole = fitted(tmp_path / "whole", steps, steps)
    assert differences(fitted(tmp_path, steps, save), whole) == []


@pytest.mark.parametrize("at", [1, 7, 10], ids=["first step", "within an epoch", "end of an epoch"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, at: int) -> None:
    steps = 17
    stop = Stop()

    def ask(_: object, step: int) -> None:
        if step == at:
            stop.ask(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path / "cut", steps, 100, [Action(1, ask)], stop).fit()
    assert caught.value.code == 143
    assert names(tmp_path / "cut") == [str(at)]
    found = fitted(tmp_path / "cut", steps, 100)
    whole = fitted(tmp_path / "whole", steps, 100)
    assert differences(found, whole) == []
    assert found.step == steps
    models = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("cut", "whole")]
    assert models[0] == models[1]


def test_a_signal_from_outside_saves_within_a_step(nursery: ForkServerContext, tmp_path: Path) -> None:
    child, told = born(nursery, tmp_path, 100_000, 100_000)
    for _ in range(3):
        next(told)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    last = max([3, *told])
    child.join(60)
    assert child.exitcode == 143
    newest = newest_state(tmp_path)
    assert newest is not None
    assert verify(newest).step == last
