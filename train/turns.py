"""A phase's turn: micro-batches, one exchange of gradients, the check that all is finite, and the step.

What can go wrong in a turn is dealt with here, by all processes alike: numbers that are not finite, memory that runs
out, and the wish to stop. A turn that is not taken leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.memory import is_out_of_memory, release
from train.average import Average
from train.config import RunSettings
from train.draws import Draws
from train.networks import Networks
from train.optim import LossScale, Optimiser
from train.sharding import whole
from train.task import Phase, Task, Turn

log = logging.getLogger("train.trainer")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = 5  # turns of one phase in a row that may be skipped


class Outcome(IntEnum):
    """How the micro-batches of a turn went; the worst of all processes counts."""

    FINE = 0
    FULL = 1  # out of memory
    STOPPED = 2


class AbandonedError(Exception):
    """The step was given up because the run is to stop; nothing of it was done."""


@dataclass(eq=False)
class Learner:
    """A phase while it learns. `last` is the number of steps that were done when it last moved its parameters."""

    phase: Phase
    params: dict[str, nn.Parameter]
    optimiser: Optimiser
    scale: LossScale | None = None
    average: Average | None = None
    powers: dict[float, Average] = field(default_factory=dict)
    skipped: int = 0
    in_row: int = 0
    last: int = 0

    def averages(self) -> dict[str, Average]:
        """By the prefix of their tensors' names in a checkpoint."""
        usual = {} if self.average is None else {"": self.average}
        return usual | {f"power {width}/": average for width, average in self.powers.items()}

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint must know of it besides tensors."""
        return {
            "skipped": self.skipped,
            "in_row": self.in_row,
            "last": self.last,
            "averaged": {prefix: average.count for prefix, average in self.averages().items()},
            "scale": None if self.scale is None else self.scale.numbers(),
            "optimiser": self.optimiser.numbers(),
        }

    def load(self, numbers: dict[str, Any], optimiser: dict[str, Tensor]) -> None:
        self.skipped, self.in_row, self.last = numbers["skipped"], numbers["in_row"], numbers["last"]
        for prefix, average in self.averages().items():
            average.count = numbers["averaged"][prefix]
        if self.scale is not None and numbers["scale"] is not None:  # None: the run was not in fp16 until now
            self.scale.load(numbers["scale"])
        self.optimiser.load(optimiser, numbers["optimiser"])


class Turns:
    """Takes the turns of a run's phases. `micro` is the size of micro-batches, as large as memory is known to hold."""

    def __init__(self, task: Task, networks: Networks, run: RunSettings, clip: float) -> None:
        self.task, self.networks, self.run, self.clip = task, networks, run, clip
        self.processes = networks.processes
        share = self.processes.share(run.batch)
        self.micro = min(run.micro or share, share)
        self._all = networks.parameters()

    def take(self, learner: Learner, batch: Batch, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        """One turn of one phase at `step`; figures of the whole batch, `skipped` among them: 1 if it was not taken."""
        for name, p in self._all.items():
            p.requires_grad_(name in learner.params)
        buffers = self.networks.buffers()
        try:
            outcome, sums, names = self._accumulated(learner, batch, step, stop)
            while outcome is not Outcome.FINE:
                learner.optimiser.zero()
                _restore(buffers)
                if outcome is Outcome.STOPPED:
                    raise AbandonedError
                self._halve()
                outcome, sums, names = self._accumulated(learner, batch, step, stop)
            try:
                return self._move(learner, sums, names, step, buffers)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise self._too_large(error, "the sum of gradients and the optimiser") from error
        finally:
            learner.optimiser.zero()

    def _accumulated(
        self, learner: Learner, batch: Batch, step: int, stop: Callable[[], bool]
    ) -> tuple[Outcome, Tensor, list[str]]:
        """Gradients of this process's share, the sums of its figures, and how it went on all processes."""
        sums: dict[str, Tensor] = {}
        outcome = Outcome(self.processes.worst(Outcome.STOPPED if stop() else Outcome.FINE))
        if outcome is Outcome.FINE:
            try:
                outcome = self._micros(learner, batch, step, stop, sums)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._check_ladder(error)
                outcome = Outcome.FULL
            outcome = Outcome(self.processes.worst(outcome))
        names = sorted(sums)
        return outcome, torch.stack([sums[name] for name in names]) if names else torch.empty(0), names

    def _micros(
        self, learner: Learner, batch: Batch, step: int, stop: Callable[[], bool], sums: dict[str, Tensor]
    ) -> Outcome:
        name = learner.phase.name
        draws = Draws(self.run.seed, batch.places, self.run.batch, name)
        micros = batch.split(self.micro)
        turn = Turn(name, step, self.run.batch, draws)
        turn = replace(turn, context=self._context(turn, micros))
        for index, micro in enumerate(micros):
            if stop() and not self.networks.split:  # split ones exchange weights in every pass: all stop, or none
                return Outcome.STOPPED
            self.networks.synchronise(index == len(micros) - 1)
            with self._seeded(f"{name}/{step}/{index}"), self.autocast():
                loss, figures = self.task.loss(replace(turn, draws=replace(draws, places=micro.places)), micro)
            (loss if learner.scale is None else loss * learner.scale.value).backward()  # type: ignore[no-untyped-call]
            for key, value in {"loss": loss, **figures}.items():
                told = value.detach().float().to(self.processes.device)
                sums[key] = sums[key] + told if key in sums else told
        return Outcome.FINE

    def _context(self, turn: Turn, micros: Sequence[Batch]) -> Any:
        try:
            with torch.no_grad(), self._seeded(f"{turn.phase}/{turn.step}"), self.autocast():
                return self.task.context(turn, micros)
        except Exception as error:
            if self.processes.world > 1 and is_out_of_memory(error):  # the others wait for what we were to tell
                raise self._too_large(error, f"micro-batches of {self.micro} examples") from error
            raise

    def _move(
        self,
        learner: Learner,
        sums: Tensor,
        names: Sequence[str],
        step: int,
        buffers: Sequence[tuple[Tensor, Tensor]],
    ) -> dict[str, float]:
        """Sums over processes, and steps if all is finite. Every process sees the same numbers, so all decide alike."""
        params = list(learner.params.values())
        if self.networks.split:
            sums = self.processes.sum(sums)  # gradients are summed by the backward pass itself
        else:
            sums = self.processes.sum_gradients(params, sums)
        grads = [p.grad for p in params if p.grad is not None]
        if learner.scale is not None:
            torch._foreach_mul_(grads, 1.0 / learner.scale.value)
        norm = get_total_norm(grads) if grads else sums.new_zeros(())
        *values, length = torch.cat([sums, whole(norm).float().reshape(1)]).tolist()
        figures = dict(zip(names, values, strict=True)) | {"norm": length}
        finite = math.isfinite(figures["loss"]) and math.isfinite(length)
        overflow = learner.scale is not None and learner.scale.value > 1 and math.isfinite(figures["loss"])
        if learner.scale is not None:
            learner.scale.update(finite)
        if not finite:
            _restore(buffers)
            self._skip(learner, figures, step, overflow)
            return figures | {"skipped": 1.0}
        if self.clip:
            clip_grads_with_norm_(params, self.clip, norm)
        figures["lr"] = learner.optimiser.step(step)
        for average in learner.averages().values():
            average.update()
        learner.in_row, learner.last = 0, step + 1
        return figures | {"skipped": 0.0}

    def _skip(self, learner: Learner, figures: dict[str, float], step: int, overflow: bool) -> None:
        """Counts a turn that was not taken. An fp16 overflow whose scale can still fall is no sign of trouble."""
        learner.skipped += 1
        told = f"loss {figures['loss']:g}, norm of the gradient {figures['norm']:g}"
        if overflow:
            log.info("step %d, %s: an fp16 overflow (%s); the loss scale is halved", step + 1, learner.phase.name, told)
            return
        learner.in_row += 1
        log.warning("step %d, %s: the update is skipped, it is not finite (%s)", step + 1, learner.phase.name, told)
        if learner.in_row >= PATIENCE:
            raise LdmError(
                Code.NUMERIC,
                f"Training stopped at step {step + 1}: the updates of phase {learner.phase.name} were not finite "
                f"{PATIENCE} times in a row ({told}).",
                f"Nothing of them was applied; the last good step is {learner.last}, and what is saved is finite.",
                "Give the same command with a lower optim.lr, with optim.clip or warmup, or with run.precision=fp32.",
            )

    def _halve(self) -> None:
        """After memory has run out: half the micro-batch; the batch of a step stays what it was."""
        release()
        self.micro = -(-self.micro // 2)
        log.warning(
            "memory ran out: micro-batches of %d examples from here on, the batch stays %d", self.micro, self.run.batch
        )

    def _check_ladder(self, error: Exception) -> None:
        """Whether a smaller micro-batch can help; where processes wait for each other inside a pass, it cannot."""
        if self.micro == 1:
            raise self._too_large(error, "one example at a time") from None
        if self.networks.split:
            raise self._too_large(error, f"micro-batches of {self.micro} examples") from None

    def _too_large(self, error: Exception, what: str) -> LdmError:
        held = sum(p.numel() * p.element_size() for p in self._all.values())
        held += sum(p.numel() * p.element_size() * 4 for p in self._all.values() if p.requires_grad)
        return LdmError(
            Code.RESOURCE,
            f"There is not enough memory on {self.processes.device} for {what}.",
            f"Weights, gradients, two moments and an average alone take about {held / 1e9:.2f} GB; "
            f"{str(error).splitlines()[0] if str(error) else 'the rest did not fit'}",
            "Set run.checkpointing=true, run.micro=1 or run.precision=bf16; or begin a new run with smaller "
            "pictures (data.size) or a smaller network.",
        )

    @contextmanager
    def _seeded(self, what: str) -> Iterator[None]:
        """Everything random comes from `Draws`. Dropout inside a network knows only torch's own generator; this makes
        it a function of the place in the run too, so that a resumed run draws the same."""
        device = self.processes.device
        digest = hashlib.sha256(f"{self.run.seed}/{what}/{self.processes.rank}".encode()).digest()
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(int.from_bytes(digest[:8], "little"))
            yield

    def autocast(self) -> torch.autocast:
        """The precision of a pass. Casts are not kept: one made without gradients would be used where they matter."""
        dtype = PRECISIONS[self.run.precision]
        kind = self.processes.device.type
        return torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)


def _restore(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in buffers:
        buffer.copy_(before)
