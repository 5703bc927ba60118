"""Small real tasks for tests of the trainer (a regression, a GAN with a lazy regulariser, a contrastive pair), and
several processes of one machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.nn import functional as F

from ldm.data.batch import Batch
from ldm.store.weights import load_weights
from ldm.store.write import write_weights
from tests.components import seeded
from train.checkpoint import State
from train.config import OptimSettings, RunSettings
from train.draws import Draws
from train.processes import gather
from train.task import Phase, Turn
from train.trainer import Trainer

SIDE = 6


def feed(total: int, rank: int = 0, world: int = 1) -> Callable[[int], Iterator[Batch]]:
    """Pictures that are a function of their place; process r has the r-th part of each batch."""

    def batches(first: int) -> Iterator[Batch]:
        step = first
        while True:
            share = total // world
            places = step * total + rank * share + torch.arange(share)
            yield batch(places, total)
            step += 1

    return batches


def batch(places: Tensor, total: int) -> Batch:
    draws = Draws(7, places, total, "pictures")
    return Batch(places, places % 50, draws.normal("image", (3, SIDE, SIDE)))


class Toy:
    """Takes noise off pictures, with a small network that has a convolution, a norm, and a bias."""

    exact = True
    exception = ""

    def __init__(self, channels_last: bool = False, dropout: float = 0.0) -> None:
        with seeded(0):
            self.net: nn.Module = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.GroupNorm(2, 8),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Conv2d(8, 3, 3, padding=1),
            )
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.sizes: list[int] = []

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def phases(self) -> list[Phase]:
        return [Phase("denoise", list(self.net.parameters()), average=True)]

    def context(self, turn: Turn, micros: Sequence[Batch]) -> Any:
        return None

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        self.sizes.append(len(batch))
        image = batch.image
        assert image is not None
        noise = turn.draws.normal("noise", tuple(image.shape[1:]))
        each = (self.net(image + noise) - noise).square().flatten(1).mean(1)
        return turn.mean(each), {"size": turn.mean(image.abs().flatten(1).mean(1))}

    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        image = batch.image
        assert image is not None
        noise = draws.normal("noise", tuple(image.shape[1:]))
        return {"loss": (self.net(image + noise) - noise).square().flatten(1).mean(1)}

    def preview(self, seed: int) -> dict[str, Tensor]:
        places = torch.arange(2)
        return {"pictures": self.net(Draws(seed, places, 2).normal("noise", (3, SIDE, SIDE)))}

    def save(self, folder: Path) -> None:
        folder.mkdir()
        write_weights(folder / "model.safetensors", self.net.state_dict())


class Gan(Toy):
    """A generator and a critic that starts late, and a penalty of its own every fourth step (Karras et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(1):
            self.critic: nn.Module = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(32, 1)
            )

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net, "critic": self.critic}

    def phases(self) -> list[Phase]:
        critic = list(self.critic.parameters())
        return [
            Phase("generator", list(self.net.parameters()), average=True),
            Phase("critic", critic, rate=2.0, start=3),
            Phase("penalty", critic, rate=0.5, every=4, start=3),
        ]

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        image = batch.image
        assert image is not None
        if turn.phase == "penalty":
            image = image.requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(image).sum(), image, create_graph=True)
            return turn.mean(slope.square().flatten(1).sum(1)), {}
        fake = self.net(turn.draws.normal("noise", tuple(image.shape[1:])))
        if turn.phase == "generator":
            return turn.mean(F.softplus(-self.critic(fake))[:, 0]), {}
        return turn.mean((F.softplus(self.critic(fake)) + F.softplus(-self.critic(image)))[:, 0]), {}


class Contrast(Toy):
    """Each picture is to be told from all others of the whole batch by a noisy copy of itself."""

    def features(self, turn: Turn, batch: Batch) -> tuple[Tensor, Tensor]:
        image = batch.image
        assert image is not None
        draws = Draws(turn.draws.seed, batch.places, turn.total, "copy")
        noisy = image + 0.5 * draws.normal("noise", tuple(image.shape[1:]))
        a, b = (F.normalize(self.net(x).flatten(1), dim=1) for x in (image, noisy))
        return a, b

    def context(self, turn: Turn, micros: Sequence[Batch]) -> Any:
        own = [(micro.places, *self.features(turn, micro)) for micro in micros]
        places, a, b = (gather(torch.cat(parts)) for parts in zip(*own, strict=True))
        order = places.argsort()
        return places[order], a[order], b[order]

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        places, a, b = (t.clone() for t in turn.context)
        rows = torch.searchsorted(places, batch.places)
        a[rows], b[rows] = self.features(turn, batch)
        whole = F.cross_entropy(10 * a @ b.T, torch.arange(len(places)))
        # Its gradient by this part's features is what is wanted; the parts' values must add up to the whole loss.
        return whole + (len(batch) / turn.total - 1.0) * whole.detach(), {}


def run(folder: Path, **changes: Any) -> RunSettings:
    return RunSettings(out=folder, **({"steps": 10, "batch": 8, "device": "cpu", "save": 1000} | changes))


def optim(**changes: Any) -> OptimSettings:
    return OptimSettings(**({"lr": 1e-2, "ema": 0.9} | changes))


def trained(task: Toy, folder: Path, optim: OptimSettings, **changes: Any) -> Trainer:
    """A trainer after all its steps, in this process."""
    settings = run(folder, **changes)
    trainer = Trainer(task, feed(settings.batch), settings, optim, folder)
    trainer.fit()
    return trainer


def plain() -> Any:
    """Convolutions whose rounding is the same for a picture alone and for one of many, on every processor: oneDNN takes
    other ways for other batches, and a loss with a kink in it makes that a thousand times as much in ten steps."""
    return torch.backends.mkldnn.flags(enabled=False)  # type: ignore[no-untyped-call]


def together(world: int, what: Callable[..., None], *given: Any) -> None:
    """Calls `what(rank, world, *given)` in several processes that know of each other, and waits for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    method = "spawn" if torch.cuda.is_available() else "fork"  # a graphics card does not survive a fork
    start_processes(_joined, (world, port, what, given), nprocs=world, start_method=method)


def _joined(rank: int, world: int, port: int, what: Callable[..., None], given: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    PartialState._reset_state()
    torch.set_num_threads(1)
    what(rank, world, *given)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def kept(trainer: Trainer) -> State:
    """The state of a trainer as it is now: `state` gives the very tensors that are trained."""
    now = trainer.state()
    parts = [{name: t.clone() for name, t in now.part(part).items()} for part in ("model", "ema", "optimizer")]
    return State(now.step, *parts, meta=now.meta)


def saved(folder: Path, part: str = "model") -> dict[str, Tensor]:
    """A part of the newest checkpoint of a run."""
    newest = max((folder / "state").iterdir(), key=lambda path: int(path.name))
    weights = load_weights(newest / f"{part}.safetensors")
    return {name: weights[name].clone() for name in weights}


def furthest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The greatest difference, relative to the greatest value of each tensor."""
    assert set(a) == set(b)
    return max(float((a[n] - b[n]).abs().max() / b[n].abs().max().clamp(min=1e-12)) for n in a if b[n].numel())
