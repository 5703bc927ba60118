"""A look at a checkpoint may be stopped, lack memory or room: nothing of the training is lost by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ldm.data.characters import character, draw_character, pose
from ldm.errors import Code, LdmError
from ldm.store.weights import load_weights
from ldm.store.write import write_weights
from train.personal import strengths
from train.personal.learn import Hooks, personalize
from train.personal.settings import Wish
from train.personal.watching import Watching
from train.run import Run
from train.signals import Stop, Stopped
from train.tasks.subject import SubjectTask
from train.trainer import Trainer


@pytest.fixture
def wish(tmp_path: Path, quick_scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Wish:
    monkeypatch.setattr(strengths, "WEIGHTS", (1.0,))
    (tmp_path / "photos").mkdir()
    for how in range(5):
        draw_character(character(1), pose(how), 64).save(tmp_path / "photos" / f"{how}.png")
    return Wish(photos=tmp_path / "photos", token="zwx circle", model=str(quick_scenes), steps=4, checkpoints=2,
                prior=0, batch=2, prompts=("{}", "{} red"), unrelated=("a blue square",),
                out=tmp_path / "out")  # fmt: skip


@pytest.mark.torture
def test_a_stop_while_it_looks_loses_nothing_of_the_training(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = personalize(wish, Hooks(), Stop())
    begun = list[Run]()
    other = wish.model_copy(update={"out": wish.out.parent / "cut"})
    keep = Watching._keep
    for step in (2, 4):
        stop = Stop()

        def stopped(self: Watching, pictures: Any, at: int, group: str, step: int = step, stop: Stop = stop) -> None:
            keep(self, pictures, at, group)
            if at == step:
                stop.ask()

        with monkeypatch.context() as patch:
            patch.setattr(Watching, "_keep", stopped)
            with pytest.raises(Stopped):
                personalize(other, Hooks(begun=begun.append), stop)
    cut = personalize(other, Hooks(begun=begun.append), Stop())
    assert [run.done for run in begun] == [0, 2, 4]
    assert cut.report["checkpoints"] == whole.report["checkpoints"]
    assert cut.files[0].read_bytes() == whole.files[0].read_bytes()


@pytest.mark.torture
def test_a_full_disk_costs_a_look_but_not_the_last_one_and_memory_is_asked_for_less(
    wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, pictures = Trainer.save, SubjectTask.pictures
    full = {2, 4}

    def no_room(self: Trainer, folder: Path) -> None:
        if self.step in full and folder.parent.name == "checkpoints":
            raise LdmError(Code.RESOURCE, f"{folder} could not be written.", "No space left on device.", "Free some.")
        save(self, folder)

    def one_at_once(self: SubjectTask, texts: Sequence[str], *more: Any) -> Any:
        if len(texts) > 1:
            raise MemoryError
        return pictures(self, texts, *more)

    monkeypatch.setattr(Trainer, "save", no_room)
    monkeypatch.setattr(SubjectTask, "pictures", one_at_once)
    with pytest.raises(LdmError, match="could not be written"):
        personalize(wish, Hooks(), Stop())
    assert not list((wish.out / "measures").glob("*")) and not (wish.out / "samples" / "2").exists()
    full.clear()
    begun = list[Run]()
    report = personalize(wish, Hooks(begun=begun.append), Stop()).report
    assert [run.done for run in begun] == [4] and [c["step"] for c in report["checkpoints"]] == [4]
    assert json.loads((wish.out / "report.json").read_text()) == json.loads(json.dumps(report))


@pytest.mark.torture
def test_a_run_that_measured_by_other_rules_is_refused_before_anything_is_read(wish: Wish) -> None:
    personalize(wish, Hooks(), Stop())
    (wish.out / "report.json").unlink()
    base = wish.out / "base.safetensors"
    kept = {name: tensor.clone() for name, tensor in load_weights(base).items()}
    base.unlink()
    write_weights(base, kept, {})
    for path in (wish.out / "measures").iterdir():
        path.write_text('{"step": 2, "measures": {"of": "old"}, "validation": 0.1}')
    with pytest.raises(LdmError, match="another version"):
        personalize(wish, Hooks(), Stop())
