"""How many processes train together, on which devices, and the few things that they tell each other.

Each process works on its own share of every batch. Gradients are summed once at the end of a turn, in one flat buffer,
so a turn of several micro-batches costs one exchange, and phases that alternate never wait for each other's hooks.
`accelerate launch` starts the processes and finds the device; without it there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from train.checkpoint import PARTS, State


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. Whatever exchanges something is called by all of them, in the same order."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str | None = None, patience: timedelta = timedelta(minutes=30)) -> Processes:
        """Joins the processes that `accelerate launch` or `torchrun` started; a second call finds them joined.

        `device` chooses among what is there; None: the best. Of several processes each takes the accelerator of its own
        number on its machine.
        """
        asked = _device(device)
        together = int(os.environ.get("WORLD_SIZE", "1")) > 1
        cpu = asked.type == "cpu" if asked is not None else not torch.accelerator.is_available()
        state = PartialState(cpu=cpu, timeout=patience) if together else PartialState(cpu=cpu)
        chosen = state.device if asked is None or (together and asked.type == state.device.type) else asked
        chosen = torch.device("cpu") if chosen.type == "cpu" else chosen  # it has no number
        return cls(state.process_index, state.num_processes, chosen)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """How many examples of a batch are this process's."""
        if batch % self.world:
            raise LdmError(
                Code.USAGE,
                f"run.batch={batch} cannot be divided among {self.world} processes.",
                "Every process takes the same number of examples of each batch.",
                f"Set run.batch to a multiple of {self.world}, such as {-(-batch // self.world) * self.world}.",
            )
        return batch // self.world

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place; the same bits on each of them."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over processes. Without others they stay here: not every device has 64 bits."""
        if self.world == 1:
            return list(numbers)
        return self.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def worst(self, flag: int) -> int:
        """The greatest of all processes' flags."""
        if self.world == 1:
            return flag
        told = torch.tensor([flag], device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors of all processes by those of the main one."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def tell(self, text: str | None) -> str:
        """The main process's text, on all of them."""
        if self.world == 1:
            return text or ""
        data = torch.tensor(list((text or "").encode()), dtype=torch.uint8, device=self.device)
        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, 0)
        data = data if self.main else torch.empty(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def patient(self) -> Any:
        """The same processes, waiting for each other for days: for work whose shares take hours that nobody knows
        beforehand. Made before that work, while all are at the same place."""
        return None if self.world == 1 else dist.new_group(backend="gloo", timeout=timedelta(days=7))

    def hear(self, text: str, group: Any = None) -> list[str]:
        """The text of each process, in the order of their ranks, on all of them; in a `patient` group by the CPU."""
        if self.world == 1:
            return [text]
        device = self.device if group is None else torch.device("cpu")
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
        sizes = gather(torch.tensor([len(data)], device=device), group).tolist()
        padded = data.new_zeros(1, max(1, *sizes))
        padded[0, : len(data)] = data
        rows = gather(padded, group)
        return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]

    def from_main(self, state: State | None) -> State | None:
        """The main process's state, on all of them: one reads the disk, and nobody can disagree about it."""
        if self.world == 1:
            return state
        parts = {} if state is None else {part: state.part(part) for part in PARTS}
        heads = {p: {n: [list(t.shape), str(t.dtype)] for n, t in tensors.items()} for p, tensors in parts.items()}
        told = json.loads(self.tell(json.dumps([state.step, state.meta, heads] if state is not None else None)))
        if told is None:
            return None
        step, meta, heads = told
        received: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        for part, names in heads.items():
            for name, (shape, dtype) in names.items():
                kind = getattr(torch, dtype.removeprefix("torch."))
                empty = torch.empty(shape, dtype=kind, device=self.device)
                tensor = empty if state is None else state.part(part)[name].to(self.device).contiguous()
                dist.broadcast(tensor, 0)
                received[part][name] = tensor.cpu()
        return State(step, **received, meta=meta)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            self.sum(torch.zeros(1, device=self.device))

    def sum_gradients(self, params: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Sums gradients, and figures [k], over processes in one exchange. A parameter that nobody's loss depended on
        keeps no gradient, so that it is no more decayed or moved by momentum than with one process."""
        if self.world == 1:
            return figures
        present = torch.tensor([p.grad is not None for p in params], dtype=torch.float32, device=figures.device)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in params]
        flat = self.sum(torch.cat([figures.float(), present, *parts]))
        figures, present, *grads = flat.split_with_sizes([len(figures), len(params), *(p.numel() for p in params)])
        for p, grad, somebody in zip(params, grads, present.tolist(), strict=True):
            if not somebody:
                p.grad = None
            else:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad  # laid out as the parameter is
                p.grad.copy_(grad.view_as(p))
        return figures

    def alike(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these tensors have the same bits on all processes (as far as a sum of their words tells)."""
        if self.world == 1:
            return True
        words = [_words(tensor).sum(dtype=torch.int64) for tensor in tensors]
        told = gather(torch.stack(words)[None] if words else torch.zeros(1, 1, device=self.device))
        return bool((told == told[0]).all())


def gather(tensor: Tensor, group: Any = None) -> Tensor:
    """[n,...] of each process as [world * n,...], in the order of their ranks; without gradients.

    The order of examples is that of `Batch.places`: gather these too where it matters.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous(), group=group)
    return torch.cat(parts)


def _device(name: str | None) -> torch.device | None:
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LdmError(
            Code.RESOURCE,
            f"run.device={name} cannot be used.",
            f"torch says: {str(error).splitlines()[0]}",
            "Leave run.device out for the best device that is there, or write cpu, cuda, cuda:1 or mps.",
        ) from None
    return device


def _words(tensor: Tensor) -> Tensor:
    """The bits of a tensor as whole numbers of the same size."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().reshape(-1).view(kind)


def leave() -> None:
    """Leaves the others at the end of a process: a thread that still listens to them while the interpreter ends may
    abort it."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
