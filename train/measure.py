"""Turns of growing size, to learn what a step takes: what operations hold, what an allocator holds beyond, and time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.cost import Allocations
from ldm.models.memory import is_out_of_memory
from train.machine import STATUS, free_memory, peak_memory
from train.tasks.adversary import Guard
from train.trainer import Trainer
from train.turns import Learner, Turns

CLEAR = Path("/proc/self/clear_refs")  # of Linux
PATIENCE = 8.0  # seconds that one measured turn may be expected to take
ROOM = 0.8  # of the free memory: no measured turn is expected to take more
SLACK, MOST_SLACK = 1.2, 4.0  # memory held for memory in use: where it cannot be measured; and at most


@dataclass(frozen=True)
class Measured:
    """One phase's turn with so many examples: the most bytes that came and went, gradients included, and seconds."""

    examples: int
    peak: float
    seconds: float


@dataclass(frozen=True)
class Late:
    """A step when every phase takes part: its highest moment, its time, how many examples were measured at most, and
    how much more than what is in use the allocator held."""

    peak: float | None
    seconds: float | None
    measured: int
    slack: float = SLACK
    turns: Mapping[str, float] = field(default_factory=dict)  # seconds of one turn of each phase


class Meter:
    """Takes turns of growing size."""

    def __init__(self, trainer: Trainer, batch: Batch) -> None:
        self.trainer, self.batch = trainer, batch
        self.micro = trainer.turns.micro
        self.count = -(-len(batch) // self.micro)
        self.held = Held(trainer.processes.device)
        self.guards = [
            m for network in trainer.networks.trained.values() for m in network.modules() if isinstance(m, Guard)
        ]

    @property
    def start(self) -> int:
        """The step from which every phase takes part."""
        starts = [learner.phase.start for learner in self.trainer.learners]
        return max([*starts, *(guard.start for guard in self.guards)])

    def late(self) -> Late:
        """All phases; a critic has been let in."""
        self.let_in()
        return self._step(self.trainer.learners, self._step_number(self.trainer.run.steps - 1))

    def let_in(self) -> None:
        """Critics take part from here on."""
        for guard in self.guards:
            guard.since.fill_(0.0)

    def early(self, late: Late) -> float | None:
        """Seconds of a step before all phases take part."""
        if self.start <= 0 or late.seconds is None:
            return late.seconds
        for guard in self.guards:
            guard.since.fill_(-1.0)
        first = [learner for learner in self.trainer.learners if learner.phase.start == 0]
        return self._step(first, 1).seconds

    def turn(self, learner: Learner, batch: Batch, step: int) -> None:
        """One turn, as the run will take it, with as many examples as `batch` has."""
        run = self.trainer.run.model_copy(update={"batch": len(batch), "micro": self.micro})
        turns = Turns(self.trainer.task, self.trainer.networks, run, self.trainer.optim.clip)
        turns.take(learner, batch, step, lambda: False)
        learner.in_row = 0
        if turns.micro < min(self.micro, len(batch)):
            raise torch.OutOfMemoryError("a smaller micro-batch was needed")

    def _step_number(self, wanted: int) -> int:
        """Near `wanted`, and none of the round ones at which a task looks at the whole batch."""
        return max(1, wanted - (wanted % 10 == 0))

    def _step(self, learners: Sequence[Learner], step: int) -> Late:
        each = [(learner, self._grown(learner, step)) for learner in learners]
        if not all(found for _, found in each):
            return Late(None, None, 0)
        peaks = [line([(m.examples, m.peak) for m in found], self._held(found)) for _, found in each]
        turns = {learner.phase.name: self._whole(found) for learner, found in each}
        seconds = sum(turns[learner.phase.name] / learner.phase.every for learner, _ in each)
        states = sum(in_bytes(learner.optimiser.tensors().values()) for learner in learners)
        used = max(found[-1].peak for _, found in each) + states
        return Late(max(peaks), seconds, min(found[-1].examples for _, found in each), self.held.slack(used), turns)

    def _held(self, found: Sequence[Measured]) -> int:
        """Examples whose memory counts: those of one micro-batch, or of two where gradients wait for the second."""
        return (
            min(len(self.batch), 2 * self.micro)
            if found[-1].examples > self.micro
            else min(len(self.batch), self.micro)
        )

    def _whole(self, found: Sequence[Measured]) -> float:
        """Seconds of the whole share. Of several micro-batches each later one costs what the second did."""
        if found[-1].examples > self.micro and len(found) > 1:
            extra = max(0.0, found[-1].seconds - found[-2].seconds) / (found[-1].examples - self.micro)
            return found[-2].seconds + extra * (len(self.batch) - self.micro)
        return line([(m.examples, m.seconds) for m in found], len(self.batch))

    def sizes(self) -> list[int]:
        """1, 2, 4, ... and the micro-batch; then two of them, where a step has several."""
        sizes = [1]
        while sizes[-1] < self.micro:
            sizes.append(min(2 * sizes[-1], self.micro))
        return [*sizes, min(2 * self.micro, len(self.batch))] if self.count > 1 else sizes

    def _grown(self, learner: Learner, step: int) -> list[Measured]:
        """Measures of growing size, until the next one would take too long or too much."""
        found: list[Measured] = []
        for size in self.sizes():
            if found and (
                line([(m.examples, m.seconds) for m in found], size) > PATIENCE or not self._room(found, size)
            ):
                break
            if not found and not self._room_for_one(learner):
                break
            try:
                found.append(self._measured(learner, self.batch[:size], step))
            except Exception as error:
                if not (is_out_of_memory(error) or (isinstance(error, LdmError) and error.code is Code.RESOURCE)):
                    raise
                break
        return found

    def _measured(self, learner: Learner, batch: Batch, step: int) -> Measured:
        """The first turn makes the optimiser's memory and warms caches; another is added up, and one timed."""
        kept = in_bytes(learner.optimiser.tensors().values())
        began = time.perf_counter()
        allocations = Allocations()
        with allocations:
            self.turn(learner, batch, step)
        wait(self.trainer.processes.device)
        first = time.perf_counter() - began
        new = in_bytes(learner.optimiser.tensors().values()) - kept
        if first > 2 * PATIENCE:  # what the counting costs is little beside such a turn
            return Measured(len(batch), max(allocations.most - new, 0), first)
        if new:
            allocations = Allocations()
            with allocations:
                self.turn(learner, batch, step)
        repeats = 2 if first < PATIENCE / 2 else 1
        taken = [self._timed(learner, batch, step) for _ in range(repeats)]  # a run meets the slower moments as well
        return Measured(len(batch), allocations.most, sum(taken) / repeats)

    def _timed(self, learner: Learner, batch: Batch, step: int) -> float:
        began = time.perf_counter()
        self.turn(learner, batch, step)
        wait(self.trainer.processes.device)
        return time.perf_counter() - began

    def _room(self, found: Sequence[Measured], size: int) -> bool:
        return line([(m.examples, m.peak) for m in found], size) < ROOM * free_memory(self.trainer.processes.device)

    def _room_for_one(self, learner: Learner) -> bool:
        """Gradients and two moments at least are still to come."""
        held = sum(p.numel() * p.element_size() for p in learner.params.values())
        return 3 * held < ROOM * free_memory(self.trainer.processes.device)


class Held:
    """What the allocator of a device holds beyond what it held at first."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif STATUS.exists():
            with contextlib.suppress(OSError):
                CLEAR.write_text("5")  # forgets the highest resident set so far
        self.first = self._now()

    def slack(self, used: float) -> float:
        """Memory held for memory in use, at the highest moment since."""
        if not self.first or not used:
            return SLACK
        return min(max((self._now() - self.first) / used, 1.0), MOST_SLACK)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self.device))
        return peak_memory(self.device) if self.device.type == "cpu" and STATUS.exists() else 0


def line(points: Sequence[tuple[int, float]], at: int) -> float:
    """The straight line through the two last points. Behind them no more than in proportion: a fixed part is not
    negative, and the difference of two measures is noisier than they are."""
    (x1, y1), *_ = points[-2:]
    x2, y2 = points[-1]
    most = y2 * at / x2
    if x1 == x2:
        return max(most, y2)
    straight = y2 + (y2 - y1) / (x2 - x1) * (at - x2)
    return min(max(straight, y2), most) if at >= x2 else max(straight, 0.0)


def in_bytes(tensors: Iterable[Tensor]) -> int:
    """Of some tensors, each storage once."""
    held: dict[int, int] = {}
    for tensor in tensors:
        held[tensor.untyped_storage().data_ptr() or id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(held.values())


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
