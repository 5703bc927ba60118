"""The networks of a task as the trainer handles them: on a device, by the names of their tensors, whole or split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from train import sharding
from train.config import RunSettings
from train.processes import Processes


class Networks:
    """What is trained, and what is only used. Tensors are called `network.path.of.the.tensor`."""

    def __init__(self, trained: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], processes: Processes) -> None:
        self.trained = {name: network.to(processes.device) for name, network in trained.items()}
        self.frozen = {name: network.to(processes.device) for name, network in frozen.items()}
        self.processes = processes
        self.split = False  # whether parameters are split over processes
        for network in self.frozen.values():
            network.eval().requires_grad_(False)
        self.train()
        processes.spread(self.tensors().values())  # all begin with the same weights, whoever drew them

    def prepare(self, run: RunSettings) -> None:
        """What a run asks for besides: recomputed activations, split weights, compiled code."""
        if run.checkpointing and not sum([_checkpoint(network) for network in self.trained.values()]):
            raise LdmError(
                Code.USAGE,
                "run.checkpointing has nothing to act on.",
                f"None of the networks ({', '.join(self.trained)}) can recompute its activations.",
                "Leave run.checkpointing out; a smaller run.micro saves memory too.",
            )
        if run.sharding == "full" and self.processes.world > 1:
            self.split = True
            for network in self.trained.values():
                sharding.shard(network, self.processes.world, self.processes.device)
        if run.compile:
            for network in self.trained.values():
                _compile(network)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{path}": p for name, network in self.trained.items() for path, p in network.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, as they lie."""
        return {f"{name}.{key}": t for name, network in self.trained.items() for key, t in network.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over whole tensors; all are there, which `RunFolder.resume` has checked."""
        with torch.no_grad():
            for name, mine in self.tensors().items():
                mine.copy_(sharding.placed(tensors[name], mine))

    def train(self, mode: bool = True) -> None:
        for network in self.trained.values():
            network.train(mode)

    def buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Each buffer of fractions with a copy of what it holds, which comes back when a turn is not taken. Whole
        numbers stay: a task marks with them what it does once a step, however often the step is begun."""
        return [(b, b.clone()) for network in self.trained.values() for b in network.buffers() if b.is_floating_point()]

    def synchronise(self, now: bool) -> None:
        for network in self.trained.values():
            sharding.synchronise(network, now)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the main process can save the networks with stock code."""
        with sharding.unsharded(self.trained, self.processes.main):
            yield


def _checkpoint(network: nn.Module) -> int:
    """Asks every part of a network that can to recompute its activations in the backward pass; how many there are."""
    if hasattr(network, "recompute"):
        network.recompute()  # type: ignore[operator]
        return 1
    if hasattr(network, "set_grad_checkpointing"):  # open_clip
        network.set_grad_checkpointing(True)  # type: ignore[operator]
        return 1
    return sum(_checkpoint(child) for child in network.children())


def _compile(network: nn.Module) -> None:
    """Compiles a network and, for tasks that use it in parts (`encode` and `decode`), each part that has a forward pass
    of its own. What is never called costs nothing."""
    for child in network.children():
        if not isinstance(child, nn.ModuleList | nn.ModuleDict):
            child.compile()
    network.compile()
