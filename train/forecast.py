"""What a run will cost, before it runs: memory by what takes it, room on the disk, and time.

Nothing is looked up in tables. The task, built as the run would build it, takes a few real turns on the first batch, with
as many examples as a moment allows (1, 2, 4, ... up to the whole micro-batch). What its operations hold is added up as
they run (`Allocations`), time is taken, and both are led on in a straight line from the two largest sizes. A task is more
than a network that could be sent to the meta device: its loss reads captions, asks critics, and decides by values.

An allocator holds more than what is in use: pieces that were given back, and are of the wrong size for the next. That
share is measured too, and depends on the machine (docs/results/forecast.json).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.models.cost import Allocations
from train.machine import free_memory
from train.tasks.adversary import Guard
from train.trainer import Trainer
from train.turns import Learner, Turns, is_out_of_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
PATIENCE = 6.0  # seconds that one measured turn may be expected to take
CHEAP = 2.0  # a step up to so many seconds is measured as it is: several of them, with the loader
REPEATS = 3
ROOM = 0.8  # of the free memory: no measured turn is expected to take more
SLACK, MOST_SLACK = 1.2, 2.0  # memory held for memory in use: where it cannot be measured; and at most


@dataclass(frozen=True)
class Memory:
    """Bytes at the highest moment of a step; `activations` is all that comes and goes with a micro-batch."""

    weights: int  # of all networks, trained or not
    gradients: int
    optimiser: int
    averages: int
    activations: int | None  # None: not even one example fits, or nothing could be measured
    pictures: int  # decoded ones that the loader keeps

    @property
    def total(self) -> int:
        return sum(value or 0 for value in asdict(self).values())


@dataclass(frozen=True)
class Forecast:
    """All that `ldm train FILE --dry-run` tells. Times are in seconds; None where memory does not allow a measure."""

    shapes: Mapping[str, Sequence[int]]  # of one micro-batch, by what it holds
    data: Mapping[str, Any]
    networks: Mapping[str, tuple[int, bool]]  # parameters, and whether they are trained
    phases: Mapping[str, int]  # parameters that each moves
    micros: int  # micro-batches of a step, in each process
    steps: int
    memory: Memory
    free: int  # memory of the device that is free now, with what the dry run took given back
    device: str
    checkpoint: int  # bytes of one
    disk: int  # bytes that the run folder grows to
    disk_free: int
    step_seconds: float | None  # of a step late in the run, when every phase takes part
    total_seconds: float | None
    how: str  # how time and memory were found

    @property
    def fits(self) -> bool:
        return self.memory.activations is not None and self.memory.total <= self.free

    def as_dict(self) -> dict[str, Any]:
        told = asdict(self)
        told["memory"]["total"], told["fits"] = self.memory.total, self.fits
        told["networks"] = {
            name: {"parameters": count, "trained": trained} for name, (count, trained) in self.networks.items()
        }
        return told


@dataclass(frozen=True)
class _Measured:
    """One phase's turn with so many examples: the most bytes that came and went, gradients included, and seconds."""

    examples: int
    peak: float
    seconds: float


def forecast(trainer: Trainer, facts: Mapping[str, Any], done: int = 0) -> Forecast:
    """Measures a trainer that has not begun; nothing is written. `facts` are the loader's, `done` steps that a run
    folder holds already. The trainer is not good for training afterwards."""
    run, device = trainer.run, trainer.processes.device
    free = free_memory(device)
    feed = trainer.batches(0)
    try:
        batch = next(feed).to(device)
        meter = _Meter(trainer, batch)
        late = meter.late()
        early = meter.early(late)
        step, how = _pace(meter, feed, late)
    finally:
        getattr(feed, "close", lambda: None)()
    memory = _memory(trainer, meter, late, facts)
    state = trainer.state()
    checkpoint = sum(_bytes(part.values()) for part in (state.model, state.ema, state.optimizer))
    disk = checkpoint * (run.keep + 1) + memory.weights  # a new one is whole before an old one goes; and model/
    total = None
    if step is not None and early is not None and late.seconds:
        before = min(run.steps, max(0, meter.start))
        scale = step / late.seconds
        total = sum(
            max(0, end - max(first, done)) * each * scale
            for first, end, each in ((0, before, early), (before, run.steps, late.seconds))
        )
    return Forecast(
        shapes=_shapes(batch[: meter.micro]),
        data=facts,
        networks=_networks(trainer),
        phases={l.phase.name: sum(p.numel() for p in l.params.values()) for l in trainer.learners},
        micros=meter.count,
        steps=run.steps - min(done, run.steps),
        memory=memory,
        free=free + memory.weights + memory.averages,  # which lie there already
        device=str(device),
        checkpoint=checkpoint,
        disk=disk,
        disk_free=shutil.disk_usage(_there(run.out)).free,
        step_seconds=step,
        total_seconds=total,
        how=how,
    )


@dataclass(frozen=True)
class _Late:
    """A step when every phase takes part: its highest moment, its time, how many examples were measured at most, and
    how much more than what is in use the allocator held."""

    peak: float | None
    seconds: float | None
    measured: int
    slack: float = SLACK


class _Meter:
    """Takes turns of growing size."""

    def __init__(self, trainer: Trainer, batch: Batch) -> None:
        self.trainer, self.batch = trainer, batch
        self.micro = trainer.turns.micro
        self.count = -(-len(batch) // self.micro)
        self.held = _Held(trainer.processes.device)
        self.guards = [
            m for network in trainer.networks.trained.values() for m in network.modules() if isinstance(m, Guard)
        ]

    @property
    def start(self) -> int:
        """The step from which every phase takes part."""
        starts = [learner.phase.start for learner in self.trainer.learners]
        return max([*starts, *(guard.start for guard in self.guards)])

    def late(self) -> _Late:
        """All phases; a critic has been let in."""
        for guard in self.guards:
            guard.since.fill_(0.0)
        return self._step(self.trainer.learners, self._step_number(self.trainer.run.steps - 1))

    def early(self, late: _Late) -> float | None:
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

    def _step(self, learners: Sequence[Learner], step: int) -> _Late:
        each = [(learner, self._grown(learner, step)) for learner in learners]
        if not all(found for _, found in each):
            return _Late(None, None, 0)
        peaks = [_line([(m.examples, m.peak) for m in found], self._held(found)) for _, found in each]
        seconds = sum(self._whole(found) / learner.phase.every for learner, found in each)
        states = sum(_bytes(learner.optimiser.tensors().values()) for learner in learners)
        used = max(found[-1].peak for _, found in each) + states
        return _Late(max(peaks), seconds, min(found[-1].examples for _, found in each), self.held.slack(used))

    def _held(self, found: Sequence[_Measured]) -> int:
        """Examples whose memory counts: those of one micro-batch, or of two where gradients wait for the second."""
        return (
            min(len(self.batch), 2 * self.micro)
            if found[-1].examples > self.micro
            else min(len(self.batch), self.micro)
        )

    def _whole(self, found: Sequence[_Measured]) -> float:
        """Seconds of the whole share. Of several micro-batches each later one costs what the second did."""
        if found[-1].examples > self.micro and len(found) > 1:
            extra = max(0.0, found[-1].seconds - found[-2].seconds) / (found[-1].examples - self.micro)
            return found[-2].seconds + extra * (len(self.batch) - self.micro)
        return _line([(m.examples, m.seconds) for m in found], len(self.batch))

    def _sizes(self) -> list[int]:
        """1, 2, 4, ... and the micro-batch; then two of them, where a step has several."""
        sizes = [1]
        while sizes[-1] < self.micro:
            sizes.append(min(2 * sizes[-1], self.micro))
        return [*sizes, min(2 * self.micro, len(self.batch))] if self.count > 1 else sizes

    def _grown(self, learner: Learner, step: int) -> list[_Measured]:
        """Measures of growing size, until the next one would take too long or too much."""
        found: list[_Measured] = []
        for size in self._sizes():
            if found and (
                _line([(m.examples, m.seconds) for m in found], size) > PATIENCE or not self._room(found, size)
            ):
                break
            if not found and not self._room_for_one(learner):
                break
            try:
                found.append(self._measured(learner, self.batch[:size], step))
            except Exception as error:
                if not is_out_of_memory(error) and not is_out_of_memory(error.__cause__ or error):
                    raise
                break
        return found

    def _measured(self, learner: Learner, batch: Batch, step: int) -> _Measured:
        """The first turn makes the optimiser's memory and warms caches; another is added up, and one timed."""
        kept = _bytes(learner.optimiser.tensors().values())
        began = time.perf_counter()
        allocations = Allocations()
        with allocations:
            self.turn(learner, batch, step)
        _wait(self.trainer.processes.device)
        first = time.perf_counter() - began
        new = _bytes(learner.optimiser.tensors().values()) - kept
        if first > PATIENCE / 2:  # what the counting costs is little beside such a turn
            return _Measured(len(batch), max(allocations.most - new, 0), first)
        if new:
            allocations = Allocations()
            with allocations:
                self.turn(learner, batch, step)
        began = time.perf_counter()
        self.turn(learner, batch, step)
        _wait(self.trainer.processes.device)
        return _Measured(len(batch), allocations.most, time.perf_counter() - began)

    def _room(self, found: Sequence[_Measured], size: int) -> bool:
        return _line([(m.examples, m.peak) for m in found], size) < ROOM * free_memory(self.trainer.processes.device)

    def _room_for_one(self, learner: Learner) -> bool:
        """Gradients and two moments at least are still to come."""
        held = sum(p.numel() * p.element_size() for p in learner.params.values())
        return 3 * held < ROOM * free_memory(self.trainer.processes.device)


class _Held:
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
        if self.device.type != "cpu" or not STATUS.exists():
            return 0
        lines = STATUS.read_text("utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _pace(meter: _Meter, feed: Iterator[Batch], late: _Late) -> tuple[float | None, str]:
    """Seconds of a step, with what the loader adds, and in words how they were found."""
    trainer = meter.trainer
    if late.seconds is None:
        return None, "nothing was run: the memory that is free is not enough for one example"
    if late.seconds > CHEAP or late.measured < min(len(meter.batch), 2 * meter.micro):
        how = f"turns of up to {late.measured} examples, led on to {len(meter.batch)}"
        return late.seconds, f"{how}; without the loader, previews and checkpoints"
    step, taken = max(1, trainer.run.steps - 1), []
    for guard in meter.guards:
        guard.since.fill_(0.0)
    for batch in islice(feed, REPEATS):
        began = time.perf_counter()
        batch = batch.to(trainer.processes.device)
        for learner in trainer.learners:
            if learner.phase.every == 1:
                meter.turn(learner, batch, step)
        _wait(trainer.processes.device)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2], f"the median of {len(taken)} real steps; without previews and checkpoints"


def _memory(trainer: Trainer, meter: _Meter, late: _Late, facts: Mapping[str, Any]) -> Memory:
    """The parts. Gradients are within the peak of a turn, and told apart from the rest of it."""
    networks = [*trainer.networks.trained.values(), *trainer.networks.frozen.values()]
    trained = max(sum(p.numel() * p.element_size() for p in l.params.values()) for l in trainer.learners)
    optimiser = sum(_bytes(l.optimiser.tensors().values()) for l in trainer.learners)
    averages = sum(_bytes(a.tensors.values()) for l in trainer.learners for a in l.averages().values())
    held = bool(facts.get("in_memory"))
    pictures = int(float(facts.get("megabytes", 0.0)) * 1e6) if held else 0
    activations = None
    if late.peak is not None:
        lost = (late.slack - 1.0) * (late.peak + optimiser)
        activations = round(max(late.peak + lost - trained, 0))
    elif not optimiser:
        optimiser = 2 * trained
    return Memory(_weights(networks), trained, optimiser, averages, activations, pictures)


def _line(points: Sequence[tuple[int, float]], at: int) -> float:
    """The straight line through the two last points; through one, in proportion."""
    (x1, y1), *_ = points[-2:]
    x2, y2 = points[-1]
    if x1 == x2:
        return y2 * max(1.0, at / x2)
    return max(y2 if at >= x2 else 0.0, y2 + (y2 - y1) / (x2 - x1) * (at - x2))


def _networks(trainer: Trainer) -> dict[str, tuple[int, bool]]:
    found = {}
    for networks, trained in ((trainer.networks.trained, True), (trainer.networks.frozen, False)):
        for name, network in networks.items():
            count = sum(p.numel() for p in network.parameters())
            if count:
                found[name] = (count, trained)
    return found


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    found = {} if batch.image is None else {"image": tuple(batch.image.shape)}
    found |= {name: tuple(tensor.shape) for name, tensor in batch.extra.items()}
    return found | ({"text": (len(batch.text),)} if batch.text else {})


def _weights(networks: Sequence[nn.Module]) -> int:
    tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    return _bytes(tensors)


def _bytes(tensors: Any) -> int:
    """Of some tensors, each storage once."""
    held: dict[int, int] = {}
    for tensor in tensors:
        assert isinstance(tensor, Tensor)
        held[tensor.untyped_storage().data_ptr() or id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(held.values())


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _there(path: Path) -> Path:
    """The nearest folder above that exists already."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())
