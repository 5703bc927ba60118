"""What goes wrong while training: numbers that are not finite, memory that runs out, a signal, a full disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from tests.train import toys
from tests.train.states import differences
from train.signals import Stop, Stopped
from train.task import Turn
from train.trainer import Trainer


class Faulty(toys.Gan):
    """Calls `fault(turn, batch)` in every loss; what it returns is multiplied into it. Batches are counted in a buffer,
    as statistics of a network are."""

    def __init__(self, fault: Callable[[Turn, Batch], float]) -> None:
        super().__init__()
        self.fault = fault
        self.net.register_buffer("seen", torch.zeros(()))

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, figures = super().loss(turn, batch)
        factor = self.fault(turn, batch)
        self.net.get_buffer("seen").add_(1.0 if turn.phase == "generator" else 0.0).mul_(factor)
        return loss * factor, figures


def at(steps: Sequence[int], value: float, phase: str = "generator") -> Callable[[Turn, Batch], float]:
    return lambda turn, batch: value if turn.phase == phase and turn.step in steps else 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(value: float, tmp_path: Path) -> None:
    """Four in a row, then a good one, then four again: the run goes on; the other phases take their turns."""
    bad = (1, 2, 3, 4, 6, 7, 8, 9)
    settings = toys.run(tmp_path, steps=11)
    trainer = Trainer(Faulty(at(bad, value)), toys.feed(8), settings, toys.optim(), tmp_path)
    seen, before = [], toys.kept(trainer)
    for step in trainer.steps():
        now = toys.kept(trainer)
        still = all(torch.equal(now.model[n], before.model[n]) for n in now.model if n.startswith("net."))
        assert still == step.skipped == (step.step - 1 in bad)
        seen.append(step.skipped)
        before = now
    assert sum(seen) == 8
    assert [learner.skipped for learner in trainer.learners] == [8, 0, 0]
    assert all(torch.isfinite(t).all() for part in ("model", "ema", "optimizer") for t in now.part(part).values())
    assert float(now.model["net.seen"]) == 3  # a turn that is not taken leaves no trace in buffers


def test_five_in_a_row_stop_the_run_and_name_the_last_good_step(tmp_path: Path) -> None:
    task = Faulty(at(range(6, 99), math.nan))
    with pytest.raises(LdmError) as error:
        toys.trained(task, tmp_path, toys.optim(), steps=20, save=2)
    assert error.value.code is Code.NUMERIC
    assert "5 times in a row" in error.value.what
    assert "step 11" in error.value.what
    assert "last good step is 6" in error.value.why
    assert all(
        torch.isfinite(t).all() for part in ("model", "ema", "optimizer") for t in toys.saved(tmp_path, part).values()
    )


def test_a_gradient_that_is_not_finite_counts_as_much_as_a_loss(tmp_path: Path) -> None:
    """sqrt has an infinite slope at 0: the loss is finite, its gradient is not."""

    class Root(toys.Toy):
        def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            loss, figures = super().loss(turn, batch)
            return (loss + ((loss - loss).sqrt() if turn.step == 2 else 0.0)), figures

    settings = toys.run(tmp_path, steps=4)
    steps = list(Trainer(Root(), toys.feed(8), settings, toys.optim(), tmp_path).steps())
    assert [step.skipped for step in steps] == [False, False, True, False]
    assert math.isfinite(steps[2].figures["loss"])
    assert not math.isfinite(steps[2].figures["norm"])


def test_counts_of_skips_survive_a_restart(tmp_path: Path) -> None:
    bad = at((1, 2, 4, 5), math.nan)
    whole = toys.trained(Faulty(bad), tmp_path / "whole", toys.optim(), steps=6).state()
    for step in Trainer(
        Faulty(bad), toys.feed(8), toys.run(tmp_path, steps=6, save=3), toys.optim(), tmp_path / "cut"
    ).steps():
        if step.step == 3:
            break
    assert differences(toys.trained(Faulty(bad), tmp_path / "cut", toys.optim(), steps=6).state(), whole) == []


def test_an_overflow_of_fp16_halves_the_scale_and_ends_nothing(tmp_path: Path) -> None:
    """65536 times a loss of 1000 is past the largest fp16 for some steps: the scale falls until it fits."""

    class Steep(toys.Toy):
        def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            loss, figures = super().loss(turn, batch)
            return loss * 1e6, figures

    settings = toys.run(tmp_path, steps=30, precision="fp16")
    trainer = Trainer(Steep(), toys.feed(8), settings, toys.optim(), tmp_path)
    skips = [step.skipped for step in trainer.steps()]
    scale = trainer.learners[0].scale
    assert sum(skips) >= 5
    assert skips == sorted(skips, reverse=True), "once it fits, it fits"
    assert scale is not None
    assert scale.value == 2.0**16 / 2 ** sum(skips)
    assert not skips[-1]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("context", torch.OutOfMemoryError("no memory")),
        ("loss", MemoryError()),
        ("second", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")),
    ],
)
def test_memory_that_runs_out_halves_the_micro_batch_and_nothing_else(
    where: str, error: Exception, tmp_path: Path
) -> None:
    class Hungry(toys.Contrast):
        def context(self, turn: Turn, micros: Sequence[Batch]) -> Any:
            if where == "context" and turn.step == 2 and len(micros[0]) > 2:
                raise error
            return super().context(turn, micros)

        def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            first = int(batch.places[0]) % 8 == 0
            if turn.step == 2 and len(batch) > 2 and (where == "loss" or (where == "second" and not first)):
                raise error
            return super().loss(turn, batch)

    plain = toys.optim(kind="sgd", lr=0.02)
    whole = toys.trained(toys.Contrast(), tmp_path / "whole", plain, steps=5).state().model
    settings = toys.run(tmp_path, steps=5, micro=4 if where == "second" else None)
    trainer = Trainer(Hungry(), toys.feed(8), settings, plain, tmp_path / "hungry")
    micros = [step.micro for step in trainer.steps()]
    assert micros == [settings.micro or 8] * 2 + [2] * 3
    assert toys.furthest(trainer.state().model, whole) < 1e-5


def test_memory_for_not_even_one_example_is_a_clear_error(tmp_path: Path) -> None:
    def fault(turn: Turn, batch: Batch) -> float:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    with pytest.raises(LdmError) as error:
        toys.trained(Faulty(fault), tmp_path, toys.optim())
    assert error.value.code is Code.RESOURCE
    assert "one example" in error.value.what
    assert "GB" in error.value.why
    assert "9 GiB" in error.value.why
    assert "run.checkpointing" in error.value.fix


def test_memory_for_the_gradients_is_a_clear_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last micro-batch, where a smaller one would not help."""

    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("train.turns.get_total_norm", full)
    with pytest.raises(LdmError) as error:
        toys.trained(toys.Toy(), tmp_path, toys.optim())
    assert error.value.code is Code.RESOURCE
    assert "sum of gradients" in error.value.what


@pytest.mark.torture
def test_memory_that_runs_out_while_looking_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Validation takes halves of a batch, which give the same figures; a preview is left out."""

    class Hungry(toys.Toy):
        def validate(self, draws: Any, batch: Batch) -> dict[str, Tensor]:
            self.sizes.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError("no memory")
            return super().validate(draws, batch)

        def preview(self, seed: int) -> dict[str, Tensor]:
            raise MemoryError

    def made(task: toys.Toy) -> Trainer:
        images = [toys.batch(7 * i + torch.arange(7), 14) for i in range(2)]
        return Trainer(task, toys.feed(8), toys.run(tmp_path), toys.optim(), tmp_path, images)

    hungry = Hungry()
    trainer = made(hungry)
    loss, wanted = trainer.validate()["loss"], made(toys.Toy()).validate()["loss"]
    assert abs(loss / wanted - 1) < 1e-6
    assert hungry.sizes == [7, 4, 2, 2, 3] * 2
    assert trainer.preview() == {}
    assert "previews of step 0 are left out" in caplog.text
    assert trainer.networks.trained["net"].training


def test_another_error_is_not_taken_for_missing_memory(tmp_path: Path) -> None:
    def fault(turn: Turn, batch: Batch) -> float:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        toys.trained(Faulty(fault), tmp_path, toys.optim())


@pytest.mark.parametrize("phase", ["generator", "critic", "penalty", "between"])
def test_a_wish_to_stop_saves_within_a_step_and_resumes_exactly(
    phase: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the first turn of a step the step is given up, later it is finished: either way nothing is half done."""
    whole = toys.trained(Faulty(at((), 1.0)), tmp_path / "whole", toys.optim(), steps=9, micro=3).state()
    stop = Stop()

    def ask(turn: Turn, batch: Batch) -> float:
        if (turn.phase, turn.step) == (phase, 7):
            stop.ask()
        return 1.0

    settings = toys.run(tmp_path, steps=9, micro=3)
    trainer = Trainer(Faulty(ask), toys.feed(8), settings, toys.optim(), tmp_path / "cut", stop=stop)
    with pytest.raises(Stopped) as left:
        for step in trainer.steps():
            if phase == "between" and step.step == 7:
                stop.ask()
    assert left.value.code == 143
    assert "Go on with: " in caplog.text
    done = 7 if phase in ("generator", "between") else 8
    assert [path.name for path in (tmp_path / "cut" / "state").iterdir()] == [str(done)]
    resumed = toys.trained(Faulty(at((), 1.0)), tmp_path / "cut", toys.optim(), steps=9, micro=3)
    assert differences(resumed.state(), whole) == []


def test_a_wish_to_stop_ends_a_validation_and_gives_no_half_figures(tmp_path: Path) -> None:
    stop = Stop()

    class Slow(toys.Toy):
        def validate(self, draws: Any, batch: Batch) -> dict[str, Tensor]:
            self.sizes.append(len(batch))
            if len(self.sizes) == 2:
                stop.ask()
            return super().validate(draws, batch)

    images = [toys.batch(4 * i + torch.arange(4), 16) for i in range(4)]
    task = Slow()
    trainer = Trainer(task, toys.feed(8), toys.run(tmp_path), toys.optim(), tmp_path, images, stop=stop)
    assert trainer.validate() == {}
    assert len(task.sizes) == 2
    assert trainer.networks.trained["net"].training


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is asked how much room is left; it says none, once."""
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    asked: list[int] = []

    def told(path: Path) -> Any:
        asked.append(1)
        return usage(1, 1, 0 if len(asked) <= 2 else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", told)
    trainer = toys.trained(toys.Toy(), tmp_path, toys.optim(), steps=4, save=2)
    assert trainer.saved == 4
    assert "Training goes on" in caplog.text
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["4"]


def test_a_wish_to_stop_on_a_full_disk_still_tells_how_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    free = 10**12
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, free))
    stop = Stop()
    trainer = Trainer(toys.Toy(), toys.feed(8), toys.run(tmp_path, steps=9, save=2), toys.optim(), tmp_path, stop=stop)
    with pytest.raises(Stopped) as left:
        for step in trainer.steps():
            if step.step == 3:
                free = 0
                stop.ask()
    assert left.value.code == 143
    assert "only step 2 is saved. Go on with: " in caplog.text
    assert "Training goes on" not in caplog.text
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["2"]


def test_precision_may_change_between_starts(tmp_path: Path) -> None:
    """As the message after five updates that were not finite advises; fp16 begins with a new loss scale."""
    for steps, precision in ((2, "fp32"), (4, "fp16"), (6, "fp32")):
        trainer = toys.trained(toys.Toy(), tmp_path, toys.optim(), steps=steps, precision=precision)
        assert trainer.step == steps
        assert (trainer.learners[0].scale is not None) == (precision == "fp16")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A task that spoils its own weights is found when it is to be saved, and the last good checkpoint stays."""
    task = toys.Toy()

    def spoil(trainer: Trainer, step: int) -> None:
        if step == 3:
            with torch.no_grad():
                next(task.net.parameters()).fill_(math.nan)

    from train.trainer import Action

    settings = toys.run(tmp_path, steps=6, save=2)
    with pytest.raises(LdmError) as error:
        Trainer(task, toys.feed(8), settings, toys.optim(), tmp_path, (), [Action(1, spoil)]).fit()
    assert error.value.code is Code.NUMERIC
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["2"]
