"""The trainer: at each step it takes the turns that are due, and it writes down enough to go on from there.

It knows nothing of pictures or of what is learned; it knows phases, processes, precision, averages and checkpoints. The
loop is a generator: whoever calls it draws the bar. The same call again goes on where the last one ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.memory import is_out_of_memory, release
from train.average import Average, forget, power, store, warmed
from train.checkpoint import State
from train.config import OptimSettings, RunSettings
from train.draws import Draws
from train.folder import RunFolder
from train.networks import Networks
from train.optim import LossScale, Optimiser
from train.processes import Processes
from train.sharding import placed, whole
from train.signals import Stop, Stopped, resume_command
from train.task import Phase, Task
from train.turns import AbandonedError, Learner, Turns

log = logging.getLogger("train.trainer")


@dataclass(frozen=True)
class Step:
    """One step that is done. `step` counts from 1; figures are of the whole batch, `phase/name` if there are several
    phases: loss, norm (of the gradient before clipping), lr, and what the task told."""

    step: int
    figures: Mapping[str, float]
    skipped: bool  # whether an update was left out because it was not finite
    seconds: float
    micro: int  # examples in a micro-batch


@dataclass(frozen=True)
class Action:
    """Something done after every so many steps, and after the last: a preview, a figure, a line of a log. `again`: also
    where a run goes on from such a step, for an action that may have been cut short and knows whether it was."""

    every: int
    do: Callable[[Trainer, int], None]
    again: bool = False


class Trainer:
    """Trains a task. `batches(step)` yields this process's share of each batch from that step on, places global."""

    def __init__(
        self,
        task: Task,
        batches: Callable[[int], Iterator[Batch]],
        run: RunSettings,
        optim: OptimSettings,
        folder: RunFolder | Path,
        validation: Sequence[Batch] = (),
        actions: Sequence[Action] = (),
        stop: Stop | None = None,
    ) -> None:
        self.task, self.batches, self.run, self.optim = task, batches, run, optim
        self.validation, self.actions = validation, actions
        self.processes = Processes.start(run.device)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        self.folder = folder if isinstance(folder, RunFolder) else RunFolder(folder, writer=self.processes.main)
        self.stop = stop or Stop()
        self._own = [mine for mine, given in ((self.folder, folder), (self.stop, stop)) if mine is not given]
        self.networks = Networks(task.networks(), task.frozen(), self.processes)
        phases = task.phases()
        names = _named(phases, self.networks)
        _check_split(run, optim, phases, self.processes)
        self.networks.prepare(run)
        self.params = self.networks.parameters()
        self.learners = [self._learner(phase, names[phase.name]) for phase in phases]
        self.turns = Turns(task, self.networks, run, optim.clip)
        self.step = 0  # how many are done
        self.saved: int | None = None  # of which step the newest checkpoint is
        self.last: Step | None = None
        self._averaged = False

    def fit(self) -> None:
        """All steps that are left."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[Step]:
        """Goes on from the newest checkpoint, yields after each step, and at the end writes `model/`."""
        with contextlib.ExitStack() as stack:
            for own in self._own:  # who gave us a folder or a stop has entered it
                stack.enter_context(own)
            self._resume()
            if self.step:
                self._act(only_again=True)
            feed = self.batches(self.step)
            stack.callback(getattr(feed, "close", lambda: None))
            while self.step < self.run.steps:
                yield self._one(feed)
            self._save()
            self._publish()

    def validate(self) -> dict[str, float]:
        """Figures of the validation pictures at fixed noise, by the averaged networks; the same on all processes."""
        total = sum(len(batch) for batch in self.validation)
        sums: dict[str, float] = {}
        rank, world = self.processes.rank, self.processes.world
        together = self.networks.split or len(self.validation) < world  # then each process takes all of them
        mine = self.validation if together else self.validation[rank::world]
        with self.averaged(), torch.no_grad():
            for batch in mine:
                if self.stop.wanted and not self.networks.split:
                    break
                for name, each in self._judged(batch.to(self.processes.device), total).items():
                    sums[name] = sums.get(name, 0.0) + each
        names = json.loads(self.processes.tell(json.dumps(sorted({"", *sums}))))
        means = dict(zip(names, self.processes.sums([sums.get(name, 0.0) for name in names]), strict=True))
        count = means.pop("")
        whole_set = total * (world if together else 1)
        return {name: value / count for name, value in means.items()} if count == whole_set else {}  # {}: we stop

    def preview(self, seed: int = 0) -> dict[str, Tensor]:
        """What the averaged networks make of this seed: pictures by name, on the CPU. None where memory does not hold
        it: a look never ends a run."""
        with self.averaged(), torch.no_grad(), self.turns.autocast():
            try:
                return {name: pictures.float().cpu() for name, pictures in self.task.preview(seed).items()}
            except Exception as error:
                if self.networks.split or not is_out_of_memory(error):  # split ones look together, or not at all
                    raise
                log.warning("the previews of step %d are left out: memory ran out", self.step)
            release()
            return {}

    def save(self, folder: Path) -> None:
        """Writes the result into a new folder, from the averaged networks."""
        with self.averaged(), self.networks.whole():
            if self.processes.main:
                self.task.save(folder)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the networks hold their averages and are at rest (`eval`). Weights and averages change places, which
        needs no second copy (but for schedule-free, whose average is made for it), and come back to the bit."""
        if self._averaged:
            yield
            return
        averages = self.averages()
        self._exchange(averages)
        self.networks.train(False)
        self._averaged = True
        try:
            yield
        finally:
            self._averaged = False
            self.networks.train()
            self._exchange(averages)

    def keep(self) -> None:
        """A checkpoint of this step at once, before something that takes long; a full disk does not end the run."""
        self._save(patient=True)

    def averages(self) -> dict[str, Tensor]:
        """By the name of their parameter; parameters without one are themselves what is looked at."""
        found: dict[str, Tensor] = {}
        for learner in self.learners:
            found |= learner.optimiser.average()
            found |= learner.average.tensors if learner.average is not None else {}
        return found

    def state(self) -> State:
        """Everything that the run is now; whole tensors. All processes ask together."""
        if self._averaged:
            raise RuntimeError("the networks hold their averages: what is saved now would be neither")
        optimisers = {f"{l.phase.name}/{k}": t for l in self.learners for k, t in l.optimiser.tensors().items()}
        model, ema, optimizer = (
            {name: whole(tensor) for name, tensor in part.items()}
            for part in (self.networks.tensors(), self._averages(), optimisers)
        )
        phases = {learner.phase.name: learner.numbers() for learner in self.learners}
        about = {"threads": torch.get_num_threads(), "processes": self.processes.world, "torch": torch.__version__}
        return State(self.step, model, ema, optimizer, {"phases": phases, **about})

    def load(self, state: State) -> None:
        """Becomes what `state` says."""
        self.networks.load(state.model)
        for name, tensor in self._averages().items():
            tensor.copy_(placed(state.ema[name], tensor))
        for learner in self.learners:
            name = learner.phase.name
            mine = {k.removeprefix(f"{name}/"): t for k, t in state.optimizer.items() if k.startswith(f"{name}/")}
            learner.load(state.meta["phases"][name], mine)
        self.step = state.step

    def _averages(self) -> dict[str, Tensor]:
        """The moving averages by their names in a checkpoint."""
        return {
            f"{prefix}{name}": tensor
            for learner in self.learners
            for prefix, average in learner.averages().items()
            for name, tensor in average.tensors.items()
        }

    def _learner(self, phase: Phase, names: Sequence[str]) -> Learner:
        params = {name: self.params[name] for name in names}
        rough = torch.bfloat16 if self.run.precision == "bf16" else torch.float32
        learner = Learner(phase, params, Optimiser(params, self.optim, phase.rate, self.run.steps, rough, phase.rates))
        if self.run.precision == "fp16":
            learner.scale = LossScale()
        if phase.average and self.optim.kind != "schedule_free":  # which has an average of its own
            if self.optim.ema:
                learner.average = Average(params, warmed(self.optim.ema))
            learner.powers = {width: Average(params, power(width)) for width in self.optim.snapshots}
        return learner

    def _one(self, feed: Iterator[Batch]) -> Step:
        """One step: each phase that is due takes its turn on the same batch."""
        began = time.perf_counter()
        batch = self._checked(next(feed, None)).to(self.processes.device)
        due = [learner for learner in self.learners if learner.phase.due(self.step)]
        figures: dict[str, float] = {}
        try:
            for learner in due:
                wish = self._wish if learner is due[0] else _never  # once something has moved, the step is finished
                told = self.turns.take(learner, batch, self.step, wish)
                prefix = f"{learner.phase.name}/" if len(self.learners) > 1 else ""
                figures |= {f"{prefix}{name}": value for name, value in told.items()}
        except AbandonedError:
            self._end()
        if not due and self.processes.worst(self._wish()):
            self._end()
        self.step += 1
        skipped = [figures.pop(name) for name in list(figures) if name.rpartition("/")[2] == "skipped"]
        done = Step(self.step, figures, any(skipped), time.perf_counter() - began, self.turns.micro)
        self.last = done
        self._act()
        if self.step % self.run.save == 0:  # after the actions: what they log and show of this step is not done again
            self._save(patient=True)
        return done

    def _act(self, only_again: bool = False) -> None:
        """Whatever is due after this step."""
        for action in self.actions:
            due = action.every and (self.step % action.every == 0 or self.step == self.run.steps)
            if due and (action.again or not only_again):
                action.do(self, self.step)

    def _checked(self, batch: Batch | None) -> Batch:
        share = self.processes.share(self.run.batch)
        if batch is None or len(batch) != share:
            raise ValueError(f"a step takes {share} examples of each process, not {0 if batch is None else len(batch)}")
        return batch

    def _judged(self, batch: Batch, total: int) -> dict[str, float]:
        """Sums of a batch's validation figures, and under "" how many examples; in halves where memory runs out."""
        try:
            with self.turns.autocast():
                figures = self.task.validate(Draws(self.run.seed, batch.places, total, "validation"), batch)
            return {name: float(each.cpu().double().sum()) for name, each in figures.items()} | {"": float(len(batch))}
        except Exception as error:
            if len(batch) == 1 or self.networks.split or not is_out_of_memory(error):
                raise
            log.warning("memory ran out: %d validation pictures are looked at in halves", len(batch))
        release()
        halves = [self._judged(half, total) for half in batch.split(-(-len(batch) // 2))]
        return {name: sum(half[name] for half in halves) for name in halves[0]}

    def _wish(self) -> bool:
        return self.stop.wanted

    def _resume(self) -> None:
        """Goes on from the newest checkpoint, if there is one; one process reads it for all."""
        state = None
        if self.processes.main:
            state = self.folder.resume(model=self.networks.tensors(), ema=self._averages())
            if self.optim.snapshots:
                forget(self.folder.path, 0 if state is None else state.step)
        state = self.processes.from_main(state)
        if state is not None:
            self.load(state)
            self.saved = state.step
            try:
                self._snapshot()  # a crash may have come between the checkpoint and this
            except LdmError as error:
                log.warning("%s %s", error.what, error.why)
            log.info("going on from step %d of %d", self.step, self.run.steps)

    def _save(self, patient: bool = False) -> None:
        """A checkpoint of this step. `patient`: where the disk is full the run goes on, and tries again later."""
        if self.saved == self.step:
            return
        if not self.networks.split and not self.processes.alike(self.networks.parameters().values()):
            raise LdmError(
                Code.BUG,
                f"At step {self.step} the weights differ between processes.",
                "Each applied the same updates, so something else changed them: the task, or a failing device.",
                "Please report it; a run with one process goes on from the last checkpoint.",
            )
        state, failed = self.state(), False
        try:
            self.folder.save(state, self.run.keep)
            self._snapshot()
        except LdmError as error:
            if error.code is not Code.RESOURCE or not patient:
                raise
            failed = True
            log.warning("%s %s%s", error.what, error.why, "" if self.stop.wanted else " Training goes on.")
        if not self.processes.worst(failed):
            self.saved = self.step

    def _snapshot(self) -> None:
        """Stores the averages that are kept for a choice afterwards, beside the checkpoint of this step."""
        powers = {width: a for learner in self.learners for width, a in learner.powers.items()}
        if powers and self.processes.main:
            store(self.folder.path, self.step, powers)

    def _publish(self) -> None:
        """`model/` in the run folder, whole or not at all."""
        self.folder.publish(self.save)
        self.processes.wait()

    def _end(self) -> None:
        """Saves what is done, tells how to go on, and leaves; where the disk is full, without what came last."""
        self._save(patient=True)
        kept = "nothing is saved yet" if self.saved is None else f"only step {self.saved} is saved"
        lost = "nothing is lost" if self.saved == self.step else f"free some space: {kept}"
        log.warning("Stopped at step %d of %d; %s. Go on with: %s", self.step, self.run.steps, lost, resume_command())
        raise Stopped(self.stop.code or 143)

    @torch.no_grad()
    def _exchange(self, averages: Mapping[str, Tensor]) -> None:
        for name, average in averages.items():
            p = self.params[name]
            held = p.detach().clone()
            p.copy_(average)
            average.copy_(held)


def _never() -> bool:
    return False


def _named(phases: Sequence[Phase], networks: Networks) -> dict[str, list[str]]:
    """The names of each phase's parameters."""
    names = {p: name for name, p in networks.parameters().items()}
    if len({phase.name for phase in phases}) != len(phases):
        raise ValueError("two phases of a task have one name")
    return {phase.name: [names[p] for p in phase.params] for phase in phases}


def _check_split(run: RunSettings, optim: OptimSettings, phases: Sequence[Phase], processes: Processes) -> None:
    """What split parameters do not go together with."""
    if run.sharding == "none" or processes.world == 1:
        return
    for told, wrong in {
        f"optim.kind={optim.kind}": optim.kind not in ("adamw", "sgd"),
        "a task of several phases": len(phases) > 1,
        "optim.snapshots": bool(optim.snapshots),
    }.items():
        if wrong:
            raise LdmError(
                Code.USAGE,
                f"run.sharding=full does not go together with {told}.",
                "With it each process holds a part of every weight, and these need whole ones.",
                "Set run.sharding=none, or train with one phase, optim.kind=adamw and no snapshots.",
            )
