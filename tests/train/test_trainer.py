"""The trainer: micro-batches add up, phases keep to themselves, and a run that is cut in two is the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.nets.base import Part
from ldm.models.nets.known import ours
from ldm.store.weights import load_weights
from tests import components
from tests.train import toys
from tests.train.states import differences
from train.config import OptimSettings
from train.folder import RunFolder
from train.muon import Muon
from train.task import Phase, Turn
from train.trainer import Action, Trainer

PLAIN = {"kind": "sgd", "betas": (0.0, 0.99), "decay": "constant", "clip": 0.0}


def gradients(task: toys.Toy, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """What one step of plain gradient descent takes off, at rate 10."""
    before = {name: p.detach().clone() for name, p in task.net.named_parameters()}
    toys.trained(task, folder, toys.optim(**PLAIN | {"lr": 10.0, "ema": 0.0}), steps=1, **changes)
    return {name: (before[name] - p.detach()) / 10 for name, p in task.net.named_parameters()}


@pytest.mark.parametrize("task", [toys.Toy, toys.Contrast])
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_micro_batches_give_the_gradients_of_one_batch(task: type[toys.Toy], micro: int, tmp_path: Path) -> None:
    whole = gradients(task(), tmp_path / "whole")
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-3
    assert toys.furthest(gradients(task(), tmp_path / "parts", micro=micro), whole) < 1e-5


@pytest.mark.parametrize("task", [toys.Toy, toys.Contrast, toys.Gan])
def test_micro_batches_end_where_one_batch_ends(task: type[toys.Toy], tmp_path: Path) -> None:
    settings = toys.optim(kind="sgd", lr=0.02)
    ends = [toys.trained(task(), tmp_path / str(micro), settings, micro=micro).state().model for micro in (None, 3)]
    start = Trainer(task(), toys.feed(8), toys.run(tmp_path / "start"), settings, tmp_path / "start").state().model
    assert toys.furthest(ends[1], ends[0]) < 1e-5
    assert toys.furthest(start, ends[0]) > 1e-2


def test_a_contrastive_loss_without_its_context_would_differ(tmp_path: Path) -> None:
    """The test above can fail: told only of its own part, a micro-batch pulls elsewhere."""

    class Blind(toys.Contrast):
        def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            loss, _ = super().loss(replace(turn, context=(batch.places, *self.features(turn, batch))), batch)
            return loss * len(batch) / turn.total, {}

    whole = gradients(Blind(), tmp_path / "whole")
    assert toys.furthest(gradients(Blind(), tmp_path / "parts", micro=4), whole) > 1e-2


def test_figures_are_of_the_whole_batch(tmp_path: Path) -> None:
    def last(micro: int | None) -> dict[str, float]:
        trainer = toys.trained(toys.Toy(), tmp_path / str(micro), toys.optim(), steps=3, micro=micro)
        assert trainer.last is not None
        return dict(trainer.last.figures)

    one, parts = last(None), last(3)
    assert set(one) == {"loss", "size", "norm", "lr"}
    assert all(abs(one[name] - parts[name]) < 1e-5 for name in one)


def test_phases_come_when_they_are_due_and_touch_only_their_own(tmp_path: Path) -> None:
    settings = toys.run(tmp_path, steps=9)
    trainer = Trainer(toys.Gan(), toys.feed(8), settings, toys.optim(), tmp_path)
    take, turns = trainer.turns.take, []

    def watched(learner: Any, *rest: Any) -> dict[str, float]:
        before = {name: p.detach().clone() for name, p in trainer.params.items()}
        figures = take(learner, *rest)
        moved = {name for name, p in trainer.params.items() if not torch.equal(before[name], p)}
        turns.append((trainer.step, learner.phase.name))
        unmoved = {"critic.3.bias"} if learner.phase.name == "penalty" else set()  # no slope depends on it
        assert moved == set(learner.params) - unmoved, "a phase moved another's parameters, or not its own"
        assert all(p.grad is None for p in trainer.params.values())
        return figures

    trainer.turns.take = watched  # type: ignore[method-assign]
    trainer.fit()
    assert [step for step, name in turns if name == "generator"] == list(range(9))
    assert [step for step, name in turns if name == "critic"] == list(range(3, 9))
    assert [step for step, name in turns if name == "penalty"] == [3, 7]


@pytest.mark.parametrize(
    ("task", "changes", "kind"),
    [
        (toys.Gan, {}, {}),
        (toys.Gan, {"micro": 3}, {"kind": "muon"}),
        (toys.Gan, {}, {"kind": "sgd"}),
        (toys.Toy, {"precision": "bf16"}, {"snapshots": [0.05, 0.1]}),
        (toys.Toy, {"precision": "fp16"}, {}),
        (toys.Gan, {}, {"kind": "schedule_free", "ema": 0.999}),
    ],
    ids=["gan", "gan-muon-micro", "gan-sgd", "bf16-snapshots", "fp16", "gan-schedule-free"],
)
def test_a_run_cut_in_two_is_the_same_run(
    task: type[toys.Toy], changes: dict[str, Any], kind: dict[str, Any], tmp_path: Path
) -> None:
    """Bit for bit: weights, averages, optimisers, counters; in new objects, as a new process has them."""
    settings = toys.optim(warmup=3, **kind)
    whole = toys.trained(task(), tmp_path / "whole", settings, steps=9, **changes).state()
    for cut in (1, 4, 8):
        folder = tmp_path / str(cut)
        begun(task(), folder, settings, cut, steps=9, **changes)
        assert differences(toys.trained(task(), folder, settings, steps=9, **changes).state(), whole) == []


def begun(task: toys.Toy, folder: Path, settings: OptimSettings, cut: int, **changes: Any) -> None:
    """Trains until step `cut`, and forgets all but the folder."""
    run = toys.run(folder, save=cut, **changes)
    for step in Trainer(task, toys.feed(8), run, settings, folder).steps():
        if step.step == cut:
            return


def test_weights_of_another_layout_and_dropout_resume_exactly(tmp_path: Path) -> None:
    """`channels_last`: a fused optimiser walks over memory. Dropout: torch's own generator, seeded by the place."""
    whole = toys.trained(toys.Toy(True, 0.5), tmp_path / "whole", toys.optim(), steps=6).state()
    torch.manual_seed(99)
    begun(toys.Toy(True, 0.5), tmp_path / "cut", toys.optim(), 2, steps=6)
    torch.manual_seed(100)
    assert differences(toys.trained(toys.Toy(True, 0.5), tmp_path / "cut", toys.optim(), steps=6).state(), whole) == []


def test_the_average_is_what_is_looked_at_and_saved(tmp_path: Path) -> None:
    """a <- d a + (1 - d) p, d = min(0.9, (1 + n) / (10 + n)); in for validation, preview and saving, and out again."""
    settings, images = toys.run(tmp_path, steps=5), [toys.batch(torch.arange(4), 4)]
    trainer = Trainer(toys.Toy(), toys.feed(8), settings, toys.optim(), tmp_path, images)
    wanted = {name: p.detach().clone() for name, p in trainer.params.items()}
    for n, _ in enumerate(trainer.steps()):
        d = min(0.9, (1 + n) / (10 + n))
        wanted = {name: d * a + (1 - d) * trainer.params[name].detach() for name, a in wanted.items()}
    raw = toys.kept(trainer)
    assert max(float((trainer.averages()[n] - a).abs().max()) for n, a in wanted.items()) < 1e-6
    written = load_weights(tmp_path / "model" / "model.safetensors")
    assert max(float((written[n.removeprefix("net.")] - a).abs().max()) for n, a in wanted.items()) < 1e-6
    with trainer.averaged():
        assert not trainer.networks.trained["net"].training
        assert all(torch.equal(p, written[n.removeprefix("net.")]) for n, p in trainer.params.items())
        loss, pictures = trainer.validate(), trainer.preview(3)
        with pytest.raises(RuntimeError):
            trainer.state()
    assert trainer.networks.trained["net"].training
    assert differences(trainer.state(), raw) == []
    assert trainer.validate() == loss
    assert torch.equal(trainer.preview(3)["pictures"], pictures["pictures"])
    with torch.no_grad():  # and not what the raw weights give
        raw_loss = trainer.task.validate(toys.Draws(0, images[0].places, 4, "validation"), images[0])["loss"].mean()
    assert abs(loss["loss"] - float(raw_loss)) > 1e-4


@pytest.mark.parametrize("kind", [{}, {"kind": "schedule_free", "ema": 0.999}], ids=["average", "schedule-free"])
def test_looking_changes_no_bit(kind: dict[str, Any], tmp_path: Path) -> None:
    """Validation, previews and saving between the steps, with dropout, which asks whether it is looked at."""
    whole = toys.trained(toys.Toy(dropout=0.5), tmp_path / "blind", toys.optim(**kind), steps=5).state()

    def look(trainer: Trainer, step: int) -> None:
        assert trainer.validate() and trainer.preview(step)
        trainer.save(tmp_path / f"model-{step}")

    settings, images = toys.run(tmp_path / "seen", steps=5), [toys.batch(torch.arange(4), 4)]
    task = toys.Toy(dropout=0.5)
    trainer = Trainer(task, toys.feed(8), settings, toys.optim(**kind), settings.out, images, [Action(1, look)])
    trainer.fit()
    assert differences(trainer.state(), whole) == []


def test_clipping_bounds_a_step(tmp_path: Path) -> None:
    start = {name: p.detach() for name, p in toys.Toy().net.named_parameters()}
    task = toys.Toy()
    settings = toys.optim(**PLAIN | {"lr": 1.0, "clip": 0.01, "ema": 0.0})
    trainer = toys.trained(task, tmp_path, settings, steps=1)
    moved = sum(float((p.detach() - start[name]).square().sum()) for name, p in task.net.named_parameters()) ** 0.5
    assert trainer.last is not None
    assert trainer.last.figures["norm"] > 0.1
    assert abs(moved - 0.01) < 1e-4


def test_actions_come_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    seen: dict[int, list[int]] = {0: [], 2: [], 4: []}
    actions = [Action(every, lambda trainer, step, every=every: seen[every].append(step)) for every in seen]  # type: ignore[misc]
    settings = toys.run(tmp_path, steps=5)
    Trainer(toys.Toy(), toys.feed(8), settings, toys.optim(), tmp_path, (), actions).fit()
    assert seen == {0: [], 2: [2, 4, 5], 4: [4, 5]}


def test_a_finished_run_stays_as_it_is_and_can_be_made_longer(tmp_path: Path) -> None:
    first = toys.kept(toys.trained(toys.Toy(), tmp_path, toys.optim(decay="constant"), steps=4))
    again = toys.trained(toys.Toy(), tmp_path, toys.optim(decay="constant"), steps=4)
    assert again.last is None
    assert differences(again.state(), first) == []
    longer = toys.trained(toys.Toy(), tmp_path, toys.optim(decay="constant"), steps=6).state()
    assert (
        differences(longer, toys.trained(toys.Toy(), tmp_path / "b", toys.optim(decay="constant"), steps=6).state())
        == []
    )


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    toys.trained(toys.Toy(), tmp_path, toys.optim(), steps=1)
    task = toys.Toy()
    task.net = nn.Conv2d(3, 3, 3, padding=1)
    with pytest.raises(LdmError, match="another architecture") as error:
        toys.trained(task, tmp_path, toys.optim(), steps=2)
    assert error.value.code is Code.MODEL


def test_a_step_takes_what_the_batch_promises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 examples"):
        Trainer(toys.Toy(), toys.feed(6), toys.run(tmp_path), toys.optim(), tmp_path).fit()


class Unet(toys.Toy):
    """A real U-Net, for what depends on the classes of diffusers."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.net = unet

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        latent = turn.draws.normal("latent", (4, 8, 8))
        output = self.net(latent, torch.zeros(len(batch)), turn.draws.normal("text", (5, 32)))
        return turn.mean((output - latent).square().flatten(1).mean(1)), {}


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_memory_and_precision_change_little(changes: dict[str, Any], tmp_path: Path) -> None:
    unet, same = (ours(components.unet()).requires_grad_() for _ in range(2))
    plain = gradients(Unet(same), tmp_path / "plain", batch=2)
    other = gradients(Unet(unet), tmp_path / "other", batch=2, **changes)
    assert any(isinstance(m, Part) and m.recomputed for m in unet.modules()) == ("checkpointing" in changes)
    a, b = (torch.cat([g.flatten() for g in part.values()]) for part in (other, plain))
    error = float((a - b).norm() / b.norm())
    assert error < (1e-6 if "checkpointing" in changes else 0.05)
    assert "checkpointing" in changes or error > 1e-5, "the precision did nothing"


@pytest.mark.parametrize(("precision", "rough"), [("fp32", False), ("fp16", False), ("bf16", True)])
def test_in_bf16_muon_rounds_coarsely(precision: str, rough: bool, tmp_path: Path) -> None:
    unet = ours(components.unet()).requires_grad_()
    settings = toys.optim(kind="muon")
    trainer = Trainer(Unet(unet), toys.feed(8), toys.run(tmp_path, precision=precision), settings, tmp_path)
    (learner,) = trainer.learners
    (muon,) = (part for part, _ in learner.optimiser._parts if isinstance(part, Muon))
    assert muon.dtype == (torch.bfloat16 if rough else torch.float32)


def test_checkpointing_with_nothing_to_act_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="nothing to act on"):
        toys.trained(toys.Toy(), tmp_path, toys.optim(), checkpointing=True)


def test_compiling_is_asked_of_networks_and_of_their_halves(tmp_path: Path) -> None:
    task = toys.Toy()
    Trainer(task, toys.feed(8), toys.run(tmp_path, compile=True), toys.optim(), tmp_path)
    assert all(module._compiled_call_impl is not None for module in (task.net, *task.net.children()))


@pytest.mark.torture
def test_compiled_networks_learn_the_same(tmp_path: Path) -> None:
    plain = gradients(toys.Toy(), tmp_path / "plain")
    assert toys.furthest(gradients(toys.Toy(), tmp_path / "compiled", compile=True), plain) < 1e-5


def test_a_network_run_without_gradients_first_still_learns(tmp_path: Path) -> None:
    """Under autocast a cast made without gradients must not be used where they are needed."""

    class Twice(toys.Toy):
        def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            with torch.no_grad():
                self.net(batch.image)
            return super().loss(turn, batch)

    found = gradients(Twice(), tmp_path, precision="bf16")
    assert all(float(g.abs().max()) > 0 for g in found.values())


def test_two_names_for_one_phase_are_a_mistake(tmp_path: Path) -> None:
    class Double(toys.Toy):
        def phases(self) -> list[Phase]:
            return [*super().phases(), *super().phases()]

    with pytest.raises(ValueError, match="one name"):
        Trainer(Double(), toys.feed(8), toys.run(tmp_path), toys.optim(), tmp_path)


def test_a_feed_is_closed_and_a_given_folder_stays_locked(tmp_path: Path) -> None:
    closed = []

    def batches(first: int) -> Iterator[Batch]:
        try:
            yield from toys.feed(8)(first)
        finally:
            closed.append(first)

    settings = toys.run(tmp_path, steps=2)
    with RunFolder(tmp_path) as folder:
        Trainer(toys.Toy(), batches, settings, toys.optim(), folder).fit()
        with pytest.raises(LdmError) as error, RunFolder(tmp_path):
            pass
        assert error.value.code is Code.BUSY
    assert closed == [0]


def test_the_loss_goes_down(tmp_path: Path) -> None:
    settings = toys.run(tmp_path, steps=60)
    losses: Sequence[float] = [
        step.figures["loss"] for step in Trainer(toys.Toy(), toys.feed(8), settings, toys.optim(), tmp_path).steps()
    ]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
