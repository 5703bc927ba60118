"""Forecasts: what is counted is what is there, small measures lead to large ones, and what does not fit is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.forecast import RUNS, compare
from ldm.config import loads
from ldm.models.cost import Allocations
from tests import components
from train import measure
from train.config import RunFile
from train.run import forecasted, opened

UNIT = 64 * 128 * 4  # bytes of one activation of `chain`


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    components.vae().save_config(folder)
    return folder / "config.json"


def settings(vae: Path, out: Path, *overrides: str, task: str = "") -> RunFile:
    text = f"""
task: {task or f"{{type: autoencoder, vae: {vae}}}"}
data: {{path: scenes, count: 64, size: 16}}
run: {{out: {out}, steps: 100, batch: 16, preview: 0, evaluate: 0, device: cpu}}
"""
    return loads(text, RunFile, overrides)


def chain(layers: int = 6) -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(nn.Linear(128, 128), nn.SiLU()) for _ in range(layers)])


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept_for_the_backward_pass_is_counted(recompute: bool) -> None:
    """Of each layer its sum and its activation are kept; recomputed, its input alone."""
    net, x = chain(), torch.randn(64, 128)
    counted = Allocations()
    with counted:
        h = x
        for layer in net:
            h = checkpoint(layer, h, use_reentrant=False) if recompute else layer(h)
        forward = counted.now
        h.square().mean().backward()
    gradients = sum(p.numel() * 4 for p in net.parameters())
    assert forward == (6 if recompute else 12) * UNIT
    assert forward < counted.most <= forward + gradients + 4 * UNIT
    del h
    assert counted.now == pytest.approx(gradients, abs=64)


def test_the_parts_of_a_forecast(vae: Path, tmp_path: Path) -> None:
    file = settings(vae, tmp_path / "run")
    made = forecasted(file)
    assert not (tmp_path / "run").exists()
    weights = sum(p.numel() * 4 for p in components.vae().parameters())
    memory = made.memory
    assert memory.gradients == memory.averages == pytest.approx(weights, rel=0.05)  # and the outer 1x1 convolutions
    assert memory.optimiser == pytest.approx(2 * memory.gradients, rel=0.01)
    assert memory.activations is not None
    assert memory.total == sum(
        (memory.weights, memory.gradients, memory.optimiser, memory.averages, memory.activations, memory.pictures)
    )
    assert made.fits
    assert made.shapes == {"image": (16, 3, 16, 16)}
    assert made.step_seconds is not None
    assert made.total_seconds == pytest.approx(100 * made.step_seconds)
    assert json.loads(json.dumps(made.as_dict()))["memory"]["total"] == memory.total
    with opened(settings(vae, tmp_path / "run", "run.steps=2")) as run:
        run.fit()
    files = sum(p.stat().st_size for p in (tmp_path / "run" / "state" / "2").glob("*.safetensors"))
    assert made.checkpoint == pytest.approx(files, rel=0.15)  # headers are told apart by thousands of bytes


def test_steps_that_are_done_take_no_time(vae: Path, tmp_path: Path) -> None:
    with opened(settings(vae, tmp_path / "run", "run.steps=4", "run.save=4")) as run:
        run.fit()
    made = forecasted(settings(vae, tmp_path / "run"))
    assert made.steps == 96
    assert made.step_seconds is not None
    assert made.total_seconds == pytest.approx(96 * made.step_seconds)


def test_a_few_examples_tell_of_many(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted up to four examples, led on to 16, beside what was counted for 16."""
    whole = forecasted(settings(vae, tmp_path / "run"))
    sizes = measure.Meter.sizes
    monkeypatch.setattr(measure.Meter, "sizes", lambda meter: [size for size in sizes(meter) if size <= 4])
    few = forecasted(settings(vae, tmp_path / "run"))
    assert (whole.measured, few.measured) == (16, 4)
    assert few.in_use == pytest.approx(whole.in_use, rel=0.1)
    assert "led on to 16" in few.how


def test_smaller_pieces_and_recomputed_activations_take_less(vae: Path, tmp_path: Path) -> None:
    def in_use(*overrides: str) -> int:
        return forecasted(settings(vae, tmp_path / "run", "data.size=32", *overrides)).in_use or 0

    whole = in_use()
    assert 0 < in_use("run.micro=8") < 0.65 * whole
    assert 0 < in_use("run.checkpointing=true") < 0.9 * whole


def test_a_critic_that_comes_late_is_in_the_time_and_the_memory(vae: Path, tmp_path: Path) -> None:
    critic = f"{{type: autoencoder, vae: {vae}, critic: {{start: 0.5, channels: 8, layers: 2}}}}"
    plain = forecasted(settings(vae, tmp_path / "run"))
    made = forecasted(settings(vae, tmp_path / "run", task=critic))
    assert set(made.phases) == {"autoencoder", "critic"}
    assert plain.step_seconds is not None and made.step_seconds is not None and made.total_seconds is not None
    assert made.memory.optimiser > plain.memory.optimiser
    assert made.total_seconds < 0.97 * 100 * made.step_seconds  # half of the steps go without it


def test_what_does_not_fit_is_not_tried(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "free_memory", lambda device: 1000)
    made = forecasted(settings(vae, tmp_path / "run"))
    assert made.memory.activations is None
    assert made.step_seconds is None and made.total_seconds is None
    assert not made.fits
    assert made.memory.optimiser == 2 * made.memory.gradients
    assert "not enough" in made.how


@pytest.mark.torture
@pytest.mark.parametrize("name", RUNS)
def test_forecasts_beside_real_runs(name: str) -> None:
    """Processor time, so that other tests do not disturb."""
    ratio = compare(name, busy=True)["ratio"]
    assert 0.75 <= ratio["bytes"] <= 1.25
    assert 0.75 <= ratio["seconds"] <= 1.25
