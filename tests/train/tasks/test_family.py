"""Families as tasks of the one trainer: exact in micro-batches, told classes, saved and loaded again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.baselines.family import facts_of, families, model_of
from ldm.baselines.stored import load_family
from ldm.errors import LdmError
from tests.baselines.test_families import SMALL
from tests.thin import thinned
from tests.train.tasks.making import apart, batch, descend, setting, turn
from train.tasks.family import FamilyTask
from train.tasks.settings import FamilySettings


def made(name: str, classes: tuple[str, ...] = ()) -> FamilyTask:
    settings = FamilySettings(type="family", family=name, options=SMALL.get(name, {}))
    asked = replace(setting(size=8), classes=classes)
    if classes:
        look = asked.look
        asked = replace(asked, look=lambda n: (labelled(b, len(classes)) for b in look(n)))
    return FamilyTask(settings, asked)


def labelled(some, classes: int):  # type: ignore[no-untyped-def]
    return replace(some, label=some.places % classes)


@pytest.mark.parametrize("name", thinned([n for n in families() if model_of(n).exact], 2))
def test_micro_batches_are_exact(name: str) -> None:
    whole = batch(6, size=8)
    found = []
    for size in (6, 2):
        task = made(name)
        grads: dict[str, torch.Tensor] = {}
        for phase in task.phases():
            for p in task.model.parameters():
                p.grad = None
            for micro in whole.split(size):
                task.loss(replace(turn(6, micro.places), phase=phase.name), micro)[0].backward()
            grads |= {
                f"{phase.name}.{n}": p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None
            }
        found.append(grads)
    assert apart(found[1], found[0]) <= 1e-4


@pytest.mark.parametrize("name", thinned(families(), 2))
def test_what_is_saved_draws_the_same_pictures(name: str, tmp_path: Path) -> None:
    task = made(name, ("cat", "dog"))
    task.save(tmp_path / "model")
    stored = load_family(tmp_path / "model")
    assert (stored.family, stored.classes) == (name, ("cat", "dog"))
    label = torch.tensor([0, 1, 1])
    ours, theirs = (m.sample(3, label, torch.Generator().manual_seed(2)) for m in (task.model.eval(), stored.model))
    assert torch.equal(ours, theirs)
    assert task.preview(0)["samples"].shape == (16, 3, 8, 8)


@pytest.mark.parametrize("name", thinned((n for n in families() if facts_of(n).group not in ("gan", "energy")), 2))
def test_a_family_learns_one_batch(name: str) -> None:
    task, x = made(name), batch(6, size=8)
    losses = descend(task, x, steps=60)
    assert sum(losses[-5:]) / 5 < 0.96 * sum(losses[:3]) / 3
    told = task.validate(turn(6, x.places).draws, x)
    assert all(value.shape == (6,) for value in told.values())


def test_shares_of_the_run_become_steps() -> None:
    phases = made("dcgan").phases()
    assert [(p.name, p.start, p.end, p.average) for p in phases] == [
        ("critic", 0, None, False),
        ("maker", 0, None, True),
    ]


def test_a_folder_that_is_no_family_is_refused(tmp_path: Path) -> None:
    made("vae").save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "options": {**told["options"], "latents": 9}}))
    with pytest.raises(LdmError, match="tensors differ"):
        load_family(tmp_path / "model")
    config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(LdmError, match="no model of a family"):
        load_family(tmp_path / "model")
