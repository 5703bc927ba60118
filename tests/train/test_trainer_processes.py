"""Several processes are one: the same gradients, the same weights, the same decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.store.weights import load_weights
from tests.components import seeded
from tests.train import toys
from train.processes import Processes, gather
from train.signals import Stop, Stopped
from train.task import Phase, Turn
from train.trainer import Trainer

pytestmark = pytest.mark.loopback
SGD = {"kind": "sgd", "lr": 0.02}


def train(
    rank: int, world: int, folder: Path, task: type[toys.Toy], optim: dict[str, Any], changes: dict[str, Any]
) -> None:
    settings = toys.run(folder, **changes)
    images = [toys.batch(4 * i + torch.arange(4), 12) for i in range(3)]
    trainer = Trainer(task(), toys.feed(8, rank, world), settings, toys.optim(**optim), folder, images)
    trainer.fit()
    loss = torch.tensor(trainer.validate()["loss"], dtype=torch.float64)
    assert (gather(loss[None]) == loss).all()
    if rank == 0:
        (folder / "loss").write_text(repr(float(loss)))


@pytest.mark.parametrize("task", [toys.Toy, toys.Contrast, toys.Gan])
def test_two_processes_end_where_one_ends(task: type[toys.Toy], tmp_path: Path) -> None:
    """Ten steps of SGD; also with micro-batches inside each process, and GAN phases that come and go."""
    train(0, 1, tmp_path / "one", task, SGD, {})
    for micro in (None, 3):
        two = tmp_path / f"two-{micro}"
        toys.together(2, train, two, task, SGD, {"micro": micro})
        for part in ("model", "ema"):
            assert toys.furthest(toys.saved(two, part), toys.saved(tmp_path / "one", part)) < 1e-5
        told = [float((folder / "loss").read_text()) for folder in (two, tmp_path / "one")]
        assert abs(told[0] / told[1] - 1) < 1e-5
    if task is toys.Contrast:  # blind to the other process it ends elsewhere
        toys.together(2, train, tmp_path / "blind", Blind, SGD, {})
        assert toys.furthest(toys.saved(tmp_path / "blind"), toys.saved(tmp_path / "one")) > 1e-3


class Blind(toys.Contrast):
    def context(self, turn: Turn, micros: Sequence[Batch]) -> Any:
        own = [(micro.places, *self.features(turn, micro)) for micro in micros]
        return tuple(torch.cat(parts) for parts in zip(*own, strict=True))

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, figures = super().loss(turn, batch)
        return loss / 2, figures


def step_once(rank: int, world: int, folder: Path, task: type[toys.Toy]) -> None:
    optim = toys.optim(kind="sgd", betas=(0.0, 0.99), lr=10.0, clip=0.0, decay="constant")
    Trainer(task(), toys.feed(8, rank, world), toys.run(folder, steps=1), optim, folder).fit()


@pytest.mark.parametrize("task", [toys.Toy, toys.Contrast])
def test_two_processes_have_the_gradients_of_one(task: type[toys.Toy], tmp_path: Path) -> None:
    step_once(0, 1, tmp_path / "one", task)
    toys.together(2, step_once, tmp_path / "two", task)
    start = {f"net.{name}": p.detach() for name, p in task().net.named_parameters()}
    one, two = ({n: start[n] - w for n, w in toys.saved(tmp_path / name).items()} for name in ("one", "two"))
    assert toys.furthest(two, one) < 1e-5


def test_a_run_changes_hands_between_one_process_and_two(tmp_path: Path) -> None:
    """Begun by two, gone on by one, ended by two: as if by one all along. AdamW, with a head nobody uses."""
    for steps, world in ((3, 2), (6, 1), (9, 2)):
        changes = {"steps": steps}
        if world == 1:
            train(0, 1, tmp_path / "run", Idle, {"decay": "constant", "weight_decay": 0.1}, changes)
        else:
            toys.together(2, train, tmp_path / "run", Idle, {"decay": "constant", "weight_decay": 0.1}, changes)
    train(0, 1, tmp_path / "one", Idle, {"decay": "constant", "weight_decay": 0.1}, {"steps": 9})
    for part in ("model", "ema", "optimizer"):
        assert toys.furthest(toys.saved(tmp_path / "run", part), toys.saved(tmp_path / "one", part)) < 1e-4
    assert not any("idle" in name for name in toys.saved(tmp_path / "run", "optimizer"))


class Idle(toys.Toy):
    """Has a layer that no loss depends on: nobody may decay it, on any number of processes."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(2):
            self.net.add_module("idle", nn.Conv2d(1, 1, 1))

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        network, self.net = self.net, self.net[:5]  # type: ignore[index]
        try:
            return super().loss(turn, batch)
        finally:
            self.net = network

    def validate(self, draws: Any, batch: Batch) -> dict[str, Tensor]:
        network, self.net = self.net, self.net[:5]  # type: ignore[index]
        try:
            return super().validate(draws, batch)
        finally:
            self.net = network

    def phases(self) -> list[Phase]:
        return [Phase("denoise", list(self.net.parameters()), average=True)]


def one_fails(rank: int, world: int, folder: Path) -> None:
    """Only the second process sees a number that is not finite, runs out of memory, and is asked to stop."""
    stop = Stop()

    class Task(toys.Toy):
        def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            loss, figures = super().loss(turn, batch)
            if rank == 1 and turn.step == 2 and len(batch) > 2:
                raise torch.OutOfMemoryError("no memory")
            if rank == 1 and turn.step == 8:
                stop.ask()
            return (loss * math.nan if rank == 1 and turn.step == 5 else loss), figures

    settings = toys.run(folder, steps=20)
    trainer = Trainer(Task(), toys.feed(8, rank, world), settings, toys.optim(**SGD), folder, stop=stop)
    seen = []
    with pytest.raises(Stopped) as left:
        seen.extend(trainer.steps())
    assert left.value.code == 143
    assert [step.skipped for step in seen] == [step.step == 6 for step in seen]
    assert [step.micro for step in seen] == [4, 4, 2, 2, 2, 2, 2, 2]
    assert trainer.learners[0].skipped == 1
    assert trainer.saved == 8


def test_what_one_process_meets_all_decide_alike(tmp_path: Path) -> None:
    toys.together(2, one_fails, tmp_path)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["8"]


def drift(rank: int, world: int, folder: Path) -> None:
    class Task(toys.Toy):
        def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            if turn.step == 3:
                with torch.no_grad():
                    self.net.get_parameter("0.bias").add_(1e-7 * rank)
            return super().loss(turn, batch)

    with pytest.raises(LdmError, match="differ between processes") as error:
        Trainer(Task(), toys.feed(8, rank, world), toys.run(folder), toys.optim(**SGD), folder).fit()
    assert error.value.code is Code.BUG


def test_processes_that_drift_apart_are_found_before_they_are_saved(tmp_path: Path) -> None:
    toys.together(2, drift, tmp_path)
    assert not (tmp_path / "state").exists()


class Blocks(toys.Toy):
    """A network with repeated blocks, as those that are worth splitting have; its sizes do not divide by two."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Stack(self.net)


class Stack(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.blocks = first, nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        with torch.no_grad():
            for index, p in enumerate(self.blocks.parameters()):
                p.copy_(torch.linspace(-0.2, 0.2, p.numel()).view_as(p) * (index + 1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.first(x)
        return out


def split(rank: int, world: int, folder: Path, changes: dict[str, Any]) -> None:
    settings = toys.run(folder, sharding="full", micro=2, **changes)
    trainer = Trainer(
        Blocks(), toys.feed(8, rank, world), settings, toys.optim(), folder, [toys.batch(torch.arange(4), 4)]
    )
    assert all(p.to_local().numel() < p.numel() for p in trainer.params.values() if len(p) > 1)  # type: ignore[operator]
    kind = type(trainer.networks.trained["net"])
    trainer.fit()
    assert set(trainer.validate()) == {"loss"}
    assert trainer.preview()["pictures"].shape == (2, 3, toys.SIDE, toys.SIDE)
    assert type(trainer.networks.trained["net"]) is kind


def test_split_parameters_learn_the_same(tmp_path: Path) -> None:
    """FSDP over two processes, cut in two and resumed there, against one process: AdamW, average and `model/`."""
    toys.trained(Blocks(), tmp_path / "one", toys.optim(decay="cosine"), steps=6)
    changes = {"steps": 6, "save": 2, "keep": 5}
    toys.together(2, split, tmp_path / "two", changes)
    written = [load_weights(tmp_path / name / "model" / "model.safetensors") for name in ("two", "one")]
    assert toys.furthest(dict(written[0]), dict(written[1])) < 1e-4
    first = {part: toys.saved(tmp_path / "two", part) for part in ("model", "ema", "optimizer")}
    for name in ("4", "6"):  # the later part again, from the checkpoint of step 2
        remove(tmp_path / "two" / "state" / name)
    toys.together(2, split, tmp_path / "two", changes)
    for part in first:
        assert toys.furthest(first[part], toys.saved(tmp_path / "one", part)) < 1e-4
        again = toys.saved(tmp_path / "two", part)
        assert set(again) == set(first[part])
        assert all(torch.equal(again[name], tensor) for name, tensor in first[part].items())


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def refuse(rank: int, world: int, folder: Path) -> None:
    for task, optim in ((toys.Gan(), {}), (toys.Toy(), {"kind": "muon"}), (toys.Toy(), {"snapshots": [0.1]})):
        with pytest.raises(LdmError, match="does not go together"):
            Trainer(task, toys.feed(8), toys.run(folder, sharding="full"), toys.optim(**optim), folder)
    with pytest.raises(LdmError, match="cannot be divided among 2 processes") as error:
        Trainer(toys.Toy(), toys.feed(8), toys.run(folder, batch=9), toys.optim(), folder)
    assert "10" in error.value.fix


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    toys.together(2, refuse, tmp_path)


def disagree(rank: int, world: int, folder: Path) -> None:
    task = toys.Toy()
    with torch.no_grad():
        for p in task.net.parameters():
            p.add_(rank)
    trainer = Trainer(task, toys.feed(8, rank, world), toys.run(folder), toys.optim(), folder)
    wanted = dict(toys.Toy().net.named_parameters())
    assert all(torch.equal(p, wanted[name.removeprefix("net.")]) for name, p in trainer.params.items())


def test_all_begin_with_the_weights_of_the_first(tmp_path: Path) -> None:
    toys.together(2, disagree, tmp_path)


def exchange(rank: int, world: int, folder: Path) -> None:
    processes = Processes.start("cpu")
    assert (processes.rank, processes.world, processes.main) == (rank, world, rank == 0)
    assert processes.worst(rank) == world - 1
    assert processes.tell("näme" if rank == 0 else None) == "näme"
    assert gather(torch.full((2, 3), float(rank)))[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert processes.alike([torch.ones(3)])
    assert not processes.alike([torch.ones(3) + rank])
    assert processes.from_main(None) is None


def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    toys.together(3, exchange, tmp_path)


def test_one_process_needs_nobody() -> None:
    processes = Processes.start("cpu")
    assert (processes.rank, processes.world, processes.device) == (0, 1, torch.device("cpu"))
    assert processes.worst(2) == 2
    assert gather(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(LdmError) as error:
        Processes.start("cuda:7")
    assert error.value.code is Code.RESOURCE
    assert "cuda:7" in error.value.what
