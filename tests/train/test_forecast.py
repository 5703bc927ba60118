"""Forecasts: what is counted is what is there, small measures lead to large ones, and what does not fit is said."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from app.training_forecast import in_words
from benchmarks.forecast import RUNS, compare
from ldm.config import loads
from ldm.data.cache import Cache
from ldm.data.examples import open_source
from ldm.data.loader import Loader
from ldm.errors import Code, LdmError
from ldm.models.cost import Allocations
from tests import components
from tests.data import sets
from train import measure
from train.config import RunFile
from train.filling import Sample
from train.processes import Processes
from train.run import forecasted, opened
from train.task import Setting
from train.tasks.diffusion import DiffusionTask
from train.tasks.settings import DiffusionSettings

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
    assert made.snapshots == 0 and made.cache is None
    assert not any(words in line for line in in_words(made, file) for words in ("averages kept", "cache"))
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


@pytest.mark.torture
def test_smaller_pieces_and_recomputed_activations_take_less(vae: Path, tmp_path: Path) -> None:
    def in_use(*overrides: str) -> int:
        return forecasted(settings(vae, tmp_path / "run", "data.size=32", *overrides)).in_use or 0

    whole = in_use()
    assert 0 < in_use("run.micro=8") < 0.65 * whole
    assert 0 < in_use("run.checkpointing=true") < 0.9 * whole


def test_a_critic_that_comes_late_is_in_the_time_and_the_memory(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # what other programs take does not count
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


@pytest.mark.parametrize("steps", [4, 5])
def test_averages_that_are_kept_at_each_save_are_on_the_disk_forecast(steps: int, vae: Path, tmp_path: Path) -> None:
    """Beside what a run leaves: two widths, saved every second step and after the last."""
    fast = ("run.batch=2", f"run.steps={steps}", "run.save=2")
    file = settings(vae, tmp_path / "run", *fast, "optim.snapshots=[0.05,0.1]")
    made = forecasted(file)
    with opened(file) as run:
        run.fit()
    files = list((tmp_path / "run" / "averages").iterdir())
    assert len(files) == {4: 2, 5: 3}[steps]
    assert made.snapshots == pytest.approx(sum(p.stat().st_size for p in files), rel=0.15)
    assert made.disk == made.checkpoint * 3 + made.snapshots + made.memory.weights
    assert any("averages kept" in line for line in in_words(made, file))


def cached(model: Path, out: Path, *overrides: str) -> RunFile:
    text = f"""
task: {{type: diffusion, unet: {model}, vae: {model}, text: {model}, noise: {{kind: epsilon}}}}
data: {{path: scenes, count: 24, size: 16, flip: 0.5, caption_dropout_rate: 0.1}}
run: {{out: {out}, steps: 4, batch: 4, preview: 0, evaluate: 0, device: cpu, cache: {out.parent}/cache}}
"""
    return loads(text, RunFile, overrides)


def test_a_run_with_a_cache_is_measured_without_encoding(tiny_sd1: Path, tmp_path: Path) -> None:
    """And what it takes to fill the cache is told: rows and bytes beside the cache of a real run."""
    file = cached(tiny_sd1, tmp_path / "run")
    made = forecasted(file)
    assert list(tmp_path.iterdir()) == []
    assert made.shapes == {"mean": (4, 4, 8, 8), "std": (4, 4, 8, 8), "text_states": (4, 77, 32), "text": (4,)}
    assert made.cache is not None
    with opened(file) as run:
        run.fit()
    size = Cache(tmp_path / "cache").size()
    assert dict(size.rows) == {"latents": made.cache.latents, "texts": made.cache.texts}
    assert made.cache.latents == 48, "both ways"
    written = sum(p.stat().st_size for p in (tmp_path / "cache").glob("*.safetensors"))
    assert made.cache.bytes == pytest.approx(written, rel=0.1)
    (line,) = [line for line in in_words(made, file) if "filling the cache" in line]
    assert f"48 latents, {made.cache.texts} captions" in line
    assert json.loads(json.dumps(made.as_dict()))["cache"]["latents"] == 48


def test_the_time_to_fill_a_cache_is_that_of_all_examples(tiny_sd1: Path, tmp_path: Path) -> None:
    """A tower that takes a tenth of a second for each piece, and an autoencoder that does."""
    task, loader = build(tiny_sd1, tmp_path)

    def slow(module: nn.Module, args: object) -> None:
        time.sleep(0.1)

    task.vae.model.encoder.register_forward_pre_hook(slow)
    task.captions.model.register_forward_pre_hook(slow)
    made = Sample(task, loader.source, loader, Processes.start("cpu")).filling
    assert made.latents == 48
    wanted = 0.1 * (made.latents / 4 + made.texts / made.texts)
    assert wanted < made.seconds < 2 * wanted


def test_what_a_run_keeps_in_no_cache_is_encoded_in_the_measured_step(tiny_sd1: Path, tmp_path: Path) -> None:
    for override in ("task.train_text=true", "data.shuffle_caption=true"):
        made = forecasted(cached(tiny_sd1, tmp_path / "run", override))
        assert set(made.shapes) == {"mean", "std", "text"}
        assert made.cache is not None
        assert (made.cache.latents, made.cache.texts) == (48, 0)


@pytest.mark.parametrize("size", [(24, 12), (12, 24)])
def test_rows_have_the_size_in_which_examples_are_shown(size: tuple[int, int], tiny_sd1: Path, tmp_path: Path) -> None:
    """In buckets: a batch of the other shape gets latents of its shape, whichever was encoded."""
    sets.folder(tmp_path / "set", 4, size)
    for number in range(4, 8):
        sets.picture(number, size[::-1]).save(tmp_path / "set" / f"{number:02}.png")
        (tmp_path / "set" / f"{number:02}.txt").write_text(f"picture {number}")
    buckets = "data.buckets={sizes: [[24, 12], [12, 24]]}"
    overrides = (f"data.path={tmp_path / 'set'}", buckets, "data.flip=0")
    task, loader = build(tiny_sd1, tmp_path, *overrides)
    sample = Sample(task, loader.source, loader, Processes.start("cpu"))
    for example in range(8):
        width, height = size if example < 4 else size[::-1]
        rows = sample.latents([example] * 3, [False] * 3)
        assert {name: t.shape for name, t in rows.items()} == dict.fromkeys(
            ("mean", "std"), (3, 4, height // 2, width // 2)
        )
        assert bool((rows["std"] > 0).all())


def build(model: Path, out: Path, *overrides: str) -> tuple[DiffusionTask, Loader]:
    """The task and the loader of a run with a cache."""
    file = cached(model, out / "run", *overrides)
    assert isinstance(file.task, DiffusionSettings)
    loader = Loader(open_source(file.data), file.data, file.run.batch)
    return DiffusionTask(file.task, Setting(0, file.data.size, 4, loader.look, loader.captions)), loader


def test_a_cache_that_the_run_would_refuse_is_refused(vae: Path, tiny_sd1: Path, tmp_path: Path) -> None:
    for file in (
        settings(vae, tmp_path / "run", f"run.cache={tmp_path}/cache"),
        cached(tiny_sd1, tmp_path / "run", "data.crop=random"),
    ):
        errors = []
        for ask in (forecasted, lambda file: opened(file).__enter__()):
            with pytest.raises(LdmError) as error:
                ask(file)
            errors.append((error.value.code, error.value.what, error.value.why))
        assert errors[0] == errors[1]
        assert errors[0][0] is Code.USAGE


@pytest.mark.torture
@pytest.mark.parametrize("name", RUNS)
def test_forecasts_beside_real_runs(name: str) -> None:
    """Processor time, so that other tests do not disturb."""
    ratio = compare(name, busy=True)["ratio"]
    assert 0.75 <= ratio["bytes"] <= 1.25
    assert 0.75 <= ratio["seconds"] <= 1.25
