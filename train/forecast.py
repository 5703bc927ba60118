"""What a run will cost, before it runs: memory by what takes it, room on the disk, and time.

Nothing is looked up in tables. The task, built as the run would build it, takes a few real turns on the first batch,
with as many examples as a moment allows (1, 2, 4, ... up to the whole micro-batch). What its operations hold is added
up as they run (`Allocations`), time is taken, and both are led on in a straight line from the two largest sizes. A task
is more than a network that could be sent to the meta device: its loss reads captions, asks critics, decides by values.

An allocator holds more than what is in use: pieces that were given back, and are of the wrong size for the next. That
share is measured too, and depends on the machine (docs/results/forecast.json).
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from ldm.data.batch import Batch
from train.filling import Filling
from train.machine import crowded, free_memory
from train.measure import Late, Meter, in_bytes, wait
from train.trainer import Trainer

CHEAP = 2.0  # a step up to so many seconds is measured as it is: several of them, with the loader
REPEATS = 3
LOADER = "loader"  # what is waited for before the turns of a step


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
    snapshots: int  # bytes of the averages that are kept at each save, all together
    saved: int  # bytes of what is made of it, `model/`
    disk: int  # bytes that the run folder grows to
    disk_free: int
    step_seconds: float | None  # of a step late in the run, when every phase takes part
    turns: Mapping[str, float]  # seconds of one turn of each phase, and of the loader for a step
    total_seconds: float | None  # of the steps that are left; a cache is filled before them
    cache: Filling | None  # None: the run keeps none
    how: str  # how time and memory were found
    measured: int  # examples of the largest turn that was taken
    in_use: int | None  # bytes that came and went in it, led on to a micro-batch: without what an allocator holds on to
    beside: str = ""  # other programs that disturbed the measure

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


def forecast(trainer: Trainer, facts: Mapping[str, Any], done: int = 0, filling: Filling | None = None) -> Forecast:
    """Measures a trainer that has not begun; nothing is written. `facts` are the loader's, `done` steps that a run
    folder holds already, `filling` is of the cache that its batches seem to come from. The trainer is not good for
    training afterwards."""
    run, device = trainer.run, trainer.processes.device
    free, beside = free_memory(device), crowded(device)
    feed = trainer.batches(0)
    try:
        batch = next(feed).to(device)
        meter = Meter(trainer, batch)
        late = meter.late()
        early = meter.early(late)
        step, turns, how = _pace(meter, feed, late)
    finally:
        getattr(feed, "close", lambda: None)()
    memory = _memory(trainer, meter, late, facts)
    state = trainer.state()
    checkpoint = sum(in_bytes(part.values()) for part in (state.model, state.ema, state.optimizer))
    snapshots = _snapshots(trainer)
    saved = _saved(trainer, memory)
    disk = checkpoint * (run.keep + 1) + snapshots + saved  # a new one is whole before an old one goes
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
        snapshots=snapshots,
        saved=saved,
        disk=disk,
        disk_free=shutil.disk_usage(_there(run.out)).free,
        step_seconds=step,
        turns=turns,
        total_seconds=total,
        cache=filling,
        how=how,
        measured=late.measured,
        in_use=None if late.peak is None else round(late.peak),
        beside=beside,
    )


def _pace(meter: Meter, feed: Iterator[Batch], late: Late) -> tuple[float | None, Mapping[str, float], str]:
    """Seconds of a step, with what the loader adds; of the turn of each phase; and in words how they were found."""
    trainer = meter.trainer
    if late.seconds is None:
        return None, {}, "nothing was run: the memory that is free is not enough for one example"
    whole = late.measured >= min(len(meter.batch), 2 * meter.micro)
    if late.seconds > CHEAP or not whole:
        some = "1 example" if late.measured == 1 else f"up to {late.measured} examples"
        how = "real turns" if whole else f"turns of {some}, led on to {len(meter.batch)}"
        return late.seconds, late.turns, f"{how}; without the loader, previews and checkpoints"
    step, taken = max(1, trainer.run.steps - 1), defaultdict[str, list[float]](list)
    meter.let_in()

    def passed(since: float) -> float:
        wait(trainer.processes.device)
        return time.perf_counter() - since

    before = time.perf_counter()
    for batch in islice(feed, REPEATS):
        batch = batch.to(trainer.processes.device)
        taken[LOADER].append(passed(before))
        for learner in trainer.learners:
            before = time.perf_counter()
            meter.turn(learner, batch, step)
            taken[learner.phase.name].append(passed(before))
        before = time.perf_counter()
    turns = {name: sorted(each)[len(each) // 2] for name, each in taken.items()}
    each = turns[LOADER] + sum(turns[learner.phase.name] / learner.phase.every for learner in trainer.learners)
    return each, turns, f"the medians of the turns of {REPEATS} real steps; without previews and checkpoints"


def _memory(trainer: Trainer, meter: Meter, late: Late, facts: Mapping[str, Any]) -> Memory:
    """The parts. Gradients are within the peak of a turn, and told apart from the rest of it."""
    networks = [*trainer.networks.trained.values(), *trainer.networks.frozen.values()]
    trained = max(sum(p.numel() * p.element_size() for p in l.params.values()) for l in trainer.learners)
    optimiser = sum(in_bytes(l.optimiser.tensors().values()) for l in trainer.learners)
    averages = sum(in_bytes(a.tensors.values()) for l in trainer.learners for a in l.averages().values())
    held = bool(facts.get("in_memory"))
    pictures = int(float(facts.get("megabytes", 0.0)) * 1e6) if held else 0
    activations = None
    if late.peak is not None:
        lost = (late.slack - 1.0) * (late.peak + optimiser)
        activations = round(max(late.peak + lost - trained, 0))
    elif not optimiser:
        optimiser = 2 * trained
    return Memory(_weights(networks), trained, optimiser, averages, activations, pictures)


def _snapshots(trainer: Trainer) -> int:
    """Bytes of `averages/` at the end: one set of weights for each width at each save, and none is ever pruned."""
    each = in_bytes(t for l in trainer.learners for power in l.powers.values() for t in power.tensors.values())
    return each * -(-trainer.run.steps // trainer.run.save)  # the last step is saved whatever its number


def _saved(trainer: Trainer, memory: Memory) -> int:
    """Bytes of `model/`: all networks, unless the task says how many `copies` of what it trains it writes instead."""
    copies: int = getattr(trainer.task, "copies", 0)
    return copies * _weights([*trainer.networks.trained.values()]) if copies else memory.weights


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
    return in_bytes(tensors)


def _there(path: Path) -> Path:
    """The nearest folder above that exists already."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())
