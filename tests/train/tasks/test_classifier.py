"""The small classifier of caption words: it learns, and what it writes can be looked with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ldm.errors import LdmError
from ldm.store.write import write_weights
from tests.components import seeded
from tests.train.tasks.clips import make
from tests.train.tasks.making import apart, batch, descend, gradients, scenes, setting, turn
from train.tasks.classifier import ClassifierTask, common_words
from train.tasks.perceptual import open_perceptual
from train.tasks.settings import ClassifierSettings


def made() -> ClassifierTask:
    return ClassifierTask(ClassifierSettings(type="classifier", widths=[8, 16]), setting())


def test_learns_one_batch_and_is_looked_with(tmp_path: Path) -> None:
    task, x = made(), batch(6)
    losses = descend(task, x, steps=40)
    assert losses[-1] < 0.5 * losses[0]
    assert float(task.validate(turn(6, x.places).draws, x)["found"].mean()) > 0.9
    task.save(tmp_path / "model")
    measure = open_perceptual(tmp_path / "model")
    assert x.image is not None
    with torch.no_grad():
        for found, wanted in zip(measure.tower(x.image), task.net(x.image), strict=True):
            assert torch.equal(found, wanted)
    assert not any(p.requires_grad for p in measure.parameters())


def test_micro_batches_are_exact() -> None:
    whole = scenes(6)
    (loss, wanted, _), (other, found, _) = (gradients(made(), whole, size) for size in (6, 2))
    assert apart(found, wanted) <= 1e-5 and other == pytest.approx(loss, rel=1e-5)


def test_words_are_those_that_tell_pictures_apart() -> None:
    captions = ["a red circle", "a blue circle", "a red square", "a Blue, square!", "a unicorn"]
    assert common_words(captions, 10) == ["blue", "circle", "red", "square"]
    assert common_words(captions, 3) == ["blue", "circle", "red"]
    with pytest.raises(LdmError, match="no words"):
        common_words(["same here", "same here"], 10)


def test_a_folder_that_cannot_be_looked_with_is_refused(tmp_path: Path) -> None:
    made().save(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(LdmError, match="nothing to look with"):
        open_perceptual(tmp_path / "other")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"widths": [8, 24]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LdmError, match="tensors differ"):
        open_perceptual(tmp_path / "model")


def test_a_clip_of_ours_can_be_looked_with(tmp_path: Path) -> None:
    make(tmp_path).save(tmp_path / "clip")
    measure, x = open_perceptual(tmp_path / "clip"), batch(4)
    assert x.image is not None
    with seeded(1), torch.no_grad():
        noisy = [float(measure(x.image + s * torch.randn_like(x.image), x.image).sum()) for s in (0.0, 0.05, 0.5)]
    assert noisy[0] < 1e-6 < noisy[1] < noisy[2]


def test_lpips_weights_can_be_looked_with(tmp_path: Path) -> None:
    from tests.models.test_perceptual import TAPS, heads_of, torchvision_names, trunk_of

    trunk = trunk_of("alex")
    tensors = torchvision_names(trunk, heads_of(trunk, TAPS["alex"]), TAPS["alex"])
    write_weights(tmp_path / "lpips.safetensors", tensors)
    measure = open_perceptual(tmp_path / "lpips.safetensors")
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert float(measure(x, x).max()) == 0 and float(measure(x, -x).min()) > 0
