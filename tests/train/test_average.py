"""Averages of weights: what they weigh, and that one of any length can be made after the run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ldm.errors import Code, LdmError
from tests.train import toys
from train.average import Average, chosen, exponent_of, mixture, power, store, warmed


def test_the_usual_average_warms_up() -> None:
    decay = warmed(0.9)
    assert [decay(n) for n in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert decay(10**6) == 0.9
    p = nn.Parameter(torch.tensor([1.0]))
    average = Average({"p": p}, decay)
    with torch.no_grad():
        p.fill_(2.0)
    average.update()
    assert float(average.tensors["p"]) == pytest.approx(0.1 * 1 + 0.9 * 2)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_exponent_gives_the_width(width: float) -> None:
    """The profile (g + 1) s^g on [0,1] has this standard deviation."""
    g = exponent_of(width)
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)
    assert math.sqrt(square - mean**2) == pytest.approx(width, rel=1e-6)


def walk(steps: int, *widths: float) -> tuple[np.ndarray, dict[float, Average], nn.Parameter]:
    """A random walk of two numbers, and its averages."""
    values = np.random.default_rng(0).normal(size=(steps, 2)).cumsum(0)
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    return values, {width: Average({"p": p}, power(width)) for width in widths}, p


@pytest.mark.parametrize("width", [0.05, 0.15])
def test_the_power_average_weighs_time_by_a_power(width: float) -> None:
    """Against the sum itself, with weights (t/T)^(g+1) - ((t-1)/T)^(g+1), near s^g for many steps."""
    values, averages, p = walk(400, width)
    for value in values:
        with torch.no_grad():
            p.copy_(torch.from_numpy(value))
        averages[width].update()
    t = np.arange(1, 401) / 400
    weights = np.diff(t ** (exponent_of(width) + 1), prepend=0.0)
    wanted = (weights[:, None] * values).sum(0)
    assert abs(averages[width].tensors["p"].numpy() - wanted).max() < 0.02 * abs(values).max()


def test_an_average_of_another_length_is_made_of_stored_ones(tmp_path: Path) -> None:
    """Two lengths are stored eight times; a third, at the end and before, comes out within a hundredth of the range."""
    values, averages, p = walk(800, 0.05, 0.10, 0.07)
    kept = {width: averages[width] for width in (0.05, 0.10)}
    wanted = {}
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            p.copy_(torch.from_numpy(value))
        for average in averages.values():
            average.update()
        if step % 100 == 0:
            store(tmp_path, step, kept)
            wanted[step] = averages[0.07].tensors["p"].numpy().copy()
    spread = np.ptp(values)
    assert abs(chosen(tmp_path, 0.07)["p"].numpy() - wanted[800]).max() < 0.01 * spread
    assert abs(chosen(tmp_path, 0.07, 600)["p"].numpy() - wanted[600]).max() < 0.01 * spread
    assert abs(chosen(tmp_path, 0.10)["p"].numpy() - averages[0.10].tensors["p"].numpy()).max() < 1e-4 * spread
    assert abs(wanted[800] - averages[0.10].tensors["p"].numpy()).max() > 0.02 * spread


def test_the_weights_of_a_mixture_are_exact_for_what_is_stored() -> None:
    weights = mixture([100.0, 200.0, 200.0], [0.1, 0.1, 0.05], 200.0, 0.05)
    assert abs(weights - np.array([0.0, 0.0, 1.0])).max() < 1e-6


def test_a_run_stores_its_averages_with_each_checkpoint(tmp_path: Path) -> None:
    trainer = toys.trained(toys.Toy(), tmp_path, toys.optim(snapshots=[0.05, 0.15]), steps=6, save=2)
    assert sorted(path.name for path in (tmp_path / "averages").iterdir()) == [f"{n}.safetensors" for n in (2, 4, 6)]
    found, wanted = chosen(tmp_path, 0.15), trainer.learners[0].powers[0.15].tensors
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    assert set(found) == set(trainer.params)


def test_stored_averages_are_those_of_the_run_as_it_went(tmp_path: Path) -> None:
    """What was stored of steps that are done again goes; what a crash kept from being stored comes."""
    settings, folder = toys.optim(snapshots=[0.05]), tmp_path / "averages"
    whole = toys.trained(toys.Toy(), tmp_path, settings, steps=4, save=2)
    (folder / "6.safetensors").write_bytes((folder / "4.safetensors").read_bytes())
    (folder / ".8.safetensors.tmp-1").touch()
    (folder / "4.safetensors").unlink()
    toys.trained(toys.Toy(), tmp_path, settings, steps=4, save=2)
    assert sorted(path.name for path in folder.iterdir()) == ["2.safetensors", "4.safetensors"]
    found, wanted = chosen(tmp_path, 0.05), whole.learners[0].powers[0.05].tensors
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


def test_nothing_stored_is_said(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="holds no averages") as error:
        chosen(tmp_path, 0.1)
    assert error.value.code is Code.FILE


@pytest.mark.parametrize("width", [0.0, 0.4, -1.0])
def test_a_width_that_no_profile_has_is_refused(width: float) -> None:
    with pytest.raises(LdmError, match="width"):
        power(width)
