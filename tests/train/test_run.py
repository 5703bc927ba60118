"""A run from its file to its end: log, validation, previews, caches; going on, stopping, and starts that fail."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.config import loads
from ldm.data.cache import Cache
from ldm.errors import Code, LdmError
from ldm.images import open_image
from ldm.store.parts import load_vae
from tests import components
from train import trackers
from train.__main__ import main
from train.config import RunFile
from train.folder import read_log
from train.log import ended, tracked
from train.run import finished, forecasted, opened, steps_done
from train.signals import Stop, Stopped
from train.trainer import Trainer

WORDS = ("a red square", "a blue square", "a green square", "a yellow square")
COLOURS = ((200, 30, 30), (30, 30, 200), (30, 160, 30), (220, 200, 40))


class Usage(NamedTuple):
    """What `shutil.disk_usage` tells."""

    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn squares of 24x20 pixels, each with its words beside it."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(24):
        pixels = np.full((20, 24, 3), 255, np.uint8)
        pixels[4 + i // 12 : 14, i % 12 : i % 12 + 10] = COLOURS[i % 4]
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(WORDS[i % 4])
    return folder


def settings(pictures: Path, tmp_path: Path, *overrides: str) -> RunFile:
    vae = tmp_path / "vae.json"
    if not vae.exists():
        components.vae().save_config(tmp_path)
        (tmp_path / "config.json").rename(vae)
    text = f"""
task: {{type: autoencoder, vae: {vae}}}
data: {{path: {pictures}, size: 16, validation: 4}}
optim: {{lr: 1e-3}}
run: {{out: {tmp_path}/run, steps: 6, batch: 4, log: 2, save: 3, evaluate: 3, preview: 3, device: cpu}}
"""
    return loads(text, RunFile, overrides)


def diffusion(pictures: Path, tmp_path: Path, model: Path, *overrides: str) -> RunFile:
    text = f"""
task: {{type: diffusion, unet: {model}, vae: {model}, text: {model}, noise: {{kind: epsilon}}}}
data: {{path: {pictures}, size: 16, flip: 0.5}}
run: {{out: {tmp_path}/run, steps: 4, batch: 4, log: 1, preview: 0, device: cpu}}
"""
    return loads(text, RunFile, overrides)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_log(folder / "log.jsonl") if kind in record]


def refused(file: RunFile) -> LdmError:
    with pytest.raises(LdmError) as caught, opened(file):
        pass
    return caught.value


def test_a_run_writes_all_that_it_is_asked_for(pictures: Path, tmp_path: Path) -> None:
    file = settings(pictures, tmp_path)
    heard: list[dict[str, Any]] = []
    with opened(file, listeners=[heard.append]) as run:
        run.fit()
        assert run.told()["data"]["training"] == 20
    out = tmp_path / "run"
    assert heard == read_log(out / "log.jsonl")
    assert [record["step"] for record in lines(out, "figures")] == [2, 4, 6]
    for record in lines(out, "figures"):
        assert {"loss", "l1", "kl", "norm"} <= set(record["figures"])
        assert record["seconds"] > 0
        assert record["skipped"] == 0
        assert 0 <= record["lr"] <= 1e-3
    assert [record["step"] for record in lines(out, "validation")] == [3, 6]
    assert lines(out, "previews")[-1]["previews"] == ["previews/6/reconstruction.png"]
    assert open_image(out / "previews" / "6" / "reconstruction.png").pixels.shape == (32, 64, 3)
    assert lines(out, "start")[0]["start"]["machine"]["torch"] == torch.__version__
    assert ended(out) == 6
    assert load_vae(out / "model")[0].config.latent_channels == 4
    assert "previews/6/reconstruction.png" in (out / "report.html").read_text()


def test_figures_of_the_log_are_means_of_their_steps(pictures: Path, tmp_path: Path) -> None:
    seen = []
    with opened(settings(pictures, tmp_path)) as run:
        seen = [dict(step.figures) for step in run.steps()]
    for record, first in zip(lines(tmp_path / "run", "figures"), (0, 2, 4), strict=True):
        wanted = (seen[first]["loss"] + seen[first + 1]["loss"]) / 2
        assert record["figures"]["loss"] == pytest.approx(wanted, rel=1e-12)
        assert record["lr"] == seen[first + 1]["lr"]


def test_validation_sees_the_same_noise_each_time_and_no_training_picture(pictures: Path, tmp_path: Path) -> None:
    with opened(settings(pictures, tmp_path, "optim.lr=1e-30", "run.steps=3", "run.evaluate=1")) as run:
        shown = {int(i) for batch in run.trainer.validation for i in batch.examples}
        feed = run.trainer.batches(0)
        trained = {int(i) for _ in range(10) for i in next(feed).examples}
        run.fit()
    assert len(shown) == 4
    assert not shown & trained
    values = [record["validation"]["loss"] for record in lines(tmp_path / "run", "validation")]
    assert len(values) == 3
    assert max(values) - min(values) < 1e-6


def test_the_same_command_goes_on_and_a_finished_run_says_so(pictures: Path, tmp_path: Path) -> None:
    file = settings(pictures, tmp_path)
    out = tmp_path / "run"
    assert finished(file) is None
    with opened(file) as run:
        for step in run.steps():
            if step.step == 4:  # killed: the checkpoint of step 3 is there, and lines up to 4
                break
    assert finished(file) is None
    assert steps_done(out) == 3
    with opened(file) as run:
        assert run.done == 3
        run.fit()
    assert [record["step"] for record in lines(out, "figures")] == [2, 4, 6]
    assert [record["step"] for record in lines(out, "start")] == [0, 3]
    assert finished(file) == 6
    assert finished(settings(pictures, tmp_path, "run.steps=8")) is None
    with pytest.raises(LdmError) as caught:
        finished(settings(pictures, tmp_path, "run.seed=8"))
    assert "run.seed: was 0, now 8" in caught.value.why
    with opened(settings(pictures, tmp_path, "run.steps=8")) as run:
        run.fit()
    assert finished(settings(pictures, tmp_path, "run.steps=8")) == 8
    assert lines(out, "figures")[-1]["step"] == 8


def test_a_finished_run_keeps_the_configuration_that_its_steps_had(pictures: Path, tmp_path: Path) -> None:
    with opened(settings(pictures, tmp_path)) as run:
        run.fit()
    before = (tmp_path / "run/config.yaml").read_text()
    assert finished(settings(pictures, tmp_path, "run.steps=3", "optim.lr=0.5")) == 6
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_another_frozen_network_is_refused_by_name(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    model = Path(shutil.copytree(tiny_sd1, tmp_path / "model"))
    with opened(diffusion(pictures, tmp_path, model)) as run:
        run.fit()
    further = diffusion(pictures, tmp_path, model, "run.steps=6")
    shutil.rmtree(model / "vae")
    components.vae(seed=9).save_pretrained(model / "vae")  # trained on in its folder
    error = refused(further)
    assert error.code is Code.MODEL and "stands on another vae" in error.what and "run.out" in error.fix
    shutil.rmtree(model / "vae")
    shutil.copytree(tiny_sd1 / "vae", model / "vae")
    with opened(further) as run:
        run.fit()
        assert run.trainer.step == 6


def test_a_data_set_that_shrank_is_told(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_sd1: Path
) -> None:
    own = Path(shutil.copytree(pictures, tmp_path / "own"))
    with opened(diffusion(own, tmp_path, tiny_sd1)) as run:
        run.fit()
    for name in ("00.png", "01.png"):
        (own / name).unlink()
    with opened(diffusion(own, tmp_path, tiny_sd1, "run.steps=5")) as run:
        run.fit()
    assert "had 24 pictures for training at the last start and has 22 now" in caplog.text


def test_a_disk_without_room_for_one_checkpoint_is_told_before_the_first_step(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 1000, 1000))
    with opened(settings(pictures, tmp_path)):
        assert "no checkpoint fits on the disk" in caplog.text and "1,000 are free" in caplog.text


def test_a_stopped_run_is_saved_at_its_step(pictures: Path, tmp_path: Path) -> None:
    stop = Stop()
    with pytest.raises(Stopped) as caught, opened(settings(pictures, tmp_path), stop=stop) as run:
        for step in run.steps():
            if step.step == 2:
                stop.ask(signal.SIGINT)
    assert caught.value.code == 130
    assert steps_done(tmp_path / "run") == 2
    assert "under way" in (tmp_path / "run" / "report.html").read_text()


def test_previews_are_given_up_when_the_run_is_to_stop(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    """Sampling is many calls of the network: the wish comes in the third of them, and none follows."""
    file = diffusion(pictures, tmp_path, tiny_sd1, "run.preview=1")
    stop, calls = Stop(), []

    def count(module: Any, given: Any) -> None:
        if not module.training:
            calls.append(1)
            if len(calls) == 3:
                stop.ask()

    with pytest.raises(Stopped), opened(file, stop=stop) as run:
        run.task.networks()["unet"].register_forward_pre_hook(count)
        run.fit()
    assert len(calls) == 3
    assert steps_done(tmp_path / "run") == 1
    assert not (tmp_path / "run" / "previews").exists()


def test_a_start_that_fails_leaves_nothing_behind(pictures: Path, tmp_path: Path) -> None:
    assert "nothing.json" in refused(settings(pictures, tmp_path, f"task.vae={tmp_path}/nothing.json")).what
    assert not (tmp_path / "run").exists()
    assert refused(settings(tmp_path / "absent", tmp_path)).code is Code.FILE
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    refused(settings(pictures, tmp_path, f"task.vae={tmp_path}/nothing.json"))
    assert not (tmp_path / "run" / "config.yaml").exists()
    with opened(settings(pictures, tmp_path, "run.steps=1")) as run:  # another configuration is free to have it
        run.fit()
        assert refused(settings(pictures, tmp_path, "run.steps=1")).code is Code.BUSY
    assert (tmp_path / "run" / "config.yaml").exists()
    refused(settings(pictures, tmp_path, "run.steps=2", "data.path=elsewhere"))
    assert (tmp_path / "run" / "config.yaml").exists()


def test_cached_latents_and_words_train_the_same_network(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    def weights(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        told: list[tuple[str, int, int]] = []
        file = diffusion(pictures, tmp_path, tiny_sd1, f"run.out={tmp_path}/{name}", *overrides)
        with opened(file, progress=lambda what, done, total: told.append((what, done, total))) as run:
            assert (next(run.trainer.batches(0)).image is None) == bool(overrides)
            run.fit()
            assert told[-1:] == ([("latents", 48, 48)] if overrides else [])
            return {name: p.detach().clone() for name, p in run.trainer.params.items()}

    cache = tmp_path / "cache"
    plain, first, second = weights("a"), weights("b", f"run.cache={cache}"), weights("c", f"run.cache={cache}")
    assert dict(Cache(cache).size().rows) == {"latents": 48, "texts": 4}
    for name, p in plain.items():
        assert float((first[name] - p).abs().max()) < 1e-4
        assert torch.equal(first[name], second[name])


def test_a_cache_that_would_do_nothing_is_refused(pictures: Path, tmp_path: Path) -> None:
    error = refused(settings(pictures, tmp_path, f"run.cache={tmp_path}/cache"))
    assert "autoencoder" in error.what
    assert not (tmp_path / "cache").exists()


def test_trackers_are_told_by_name(pictures: Path, tmp_path: Path) -> None:
    error = refused(settings(pictures, tmp_path, "run.trackers=[tensorbord]"))
    assert "'tensorbord'" in error.what
    assert "Write tensorboard" in error.fix
    missing = next(n for n in ("clearml", "aim", "swanlab", "comet_ml", "dvclive", "mlflow") if not _installed(n))
    error = refused(settings(pictures, tmp_path, f"run.trackers=[{missing}]"))
    assert f"{missing} is not installed" in error.what
    assert "pip install" in error.fix
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_what_the_log_gets(pictures: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened(settings(pictures, tmp_path, "run.trackers=[tensorboard]")) as run:
        run.fit()
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "run"))
    events.Reload()
    wanted = [(r["step"], pytest.approx(r["figures"]["loss"])) for r in lines(tmp_path / "run", "figures")]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == wanted


def test_a_line_of_the_log_as_trackers_take_it() -> None:
    record = {"step": 4, "time": 0.0, "figures": {"loss": 1.0}, "lr": 0.1, "seconds": 2.0, "skipped": 3}
    assert tracked(record) == {"loss": 1.0, "lr": 0.1, "skipped": 3, "seconds per step": 2.0}
    assert tracked({"step": 4, "validation": {"loss": 2.0}, "seconds": 1.0}) == {"validation/loss": 2.0}
    assert tracked({"step": 4, "previews": ["a.png"], "seconds": 1.0}) == {}


def test_started_by_a_launcher(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    settings(pictures, tmp_path)  # writes the architecture
    file.write_text(
        f"task: {{type: autoencoder, vae: {tmp_path}/vae.json}}\ndata: {{path: {pictures}, size: 16}}\n"
        f"run: {{out: {tmp_path}/run, steps: 2, batch: 4, device: cpu}}\n"
    )
    assert main([]) == 2
    assert main([str(file), "run.stepz=3"]) == 2
    assert "did you mean steps?" in capfd.readouterr().err
    assert main([str(file)]) == 0
    assert ended(tmp_path / "run") == 2
    assert main([str(file), "run.seed=4"]) == 2
    assert main([str(file)]) == 0


def test_a_dry_run_writes_nothing(pictures: Path, tmp_path: Path) -> None:
    made = forecasted(settings(pictures, tmp_path, "run.micro=2"))
    assert made.micros == 2
    assert made.shapes["image"] == (2, 3, 16, 16)
    assert not (tmp_path / "run").exists()


def _installed(name: str) -> bool:
    try:
        trackers.check([name])
    except LdmError:
        return False
    return True


def test_validation_stops_when_it_is_asked_to(pictures: Path, tmp_path: Path) -> None:
    stop = Stop()
    with opened(settings(pictures, tmp_path), stop=stop) as run:
        trainer: Trainer = run.trainer
        assert trainer.validate()
        stop.ask()
        assert trainer.validate() == {}
