"""What is seen of a run while it trains: a bar on a terminal, plain lines elsewhere, JSON lines for other programs."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from app.errors import printable
from app.progress import duration

if TYPE_CHECKING:
    from train.run import Run
    from train.trainer import Step

WINDOW = 50  # steps by which the time that is left is judged
PAUSE = 5.0  # seconds between two plain lines at least, but for the first and the last


class QuietView:
    """Nothing but results and warnings; what the others share."""

    begun = False

    def __enter__(self) -> QuietView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def begin(self, run: Run) -> None:
        """Before the first step."""
        self.begun = True

    def line(self, record: dict[str, Any]) -> None:
        """A line of the log, as it is written."""

    def step(self, step: Step) -> None:
        """After each step."""

    def progress(self, what: str, done: int, total: int) -> None:
        """While something is made ready."""

    def note(self, text: str) -> None:
        typer.echo(printable(text), err=True)

    def end(self, result: Mapping[str, Any]) -> None:
        typer.echo(printable(str(result["model"])))

    def stopped(self, command: str, done: int) -> None:
        """The trainer has told how to go on, if it had begun; until then, `done` steps are there from before."""
        if not self.begun:
            before = f"the {done:,} steps that were done are safe" if done else "nothing was trained yet"
            self.note(f"stopped; {before}. Go on with: {command}")


class JsonView(QuietView):
    """One line of JSON for each line of the log; the last one is the result."""

    def begin(self, run: Run) -> None:
        super().begin(run)
        self._tell({"run": run.told()})

    def line(self, record: dict[str, Any]) -> None:
        self._tell(record)

    def end(self, result: Mapping[str, Any]) -> None:
        self._tell({"result": dict(result)})

    def stopped(self, command: str, done: int) -> None:
        self._tell({"stopped": {"resume": command}})

    def _tell(self, record: dict[str, Any]) -> None:
        typer.echo(json.dumps(finite(record), ensure_ascii=False))
        sys.stdout.flush()


class View(QuietView):
    """For people. `steps` is how many there are to be."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.terminal = sys.stderr.isatty()
        self.pace = Pace()
        self._skipped, self._loss, self._told, self._ready = 0, "", -PAUSE, ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> View:
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[told]}"),
                console=Console(stderr=True),
                expand=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False)
        else:
            super().note(text)

    def begin(self, run: Run) -> None:
        super().begin(run)
        told = run.told()
        self.steps = told["steps"]
        data, machine = told["data"], told["machine"]
        parameters = ", ".join(f"{name} {count:,}" for name, count in told["parameters"].items())
        self.note(f"{told['out']}: task {told['task']}, parameters: {parameters}")
        threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
        where = machine.get("device") or f"{machine['processor']}, {threads}"
        several = f", {told['processes']} processes" if told["processes"] > 1 else ""
        kept = f" and {data['validation']:,} for validation" if data["validation"] else ""
        self.note(f"data: {data['set']}, {data['training']:,} for training{kept}; batches of {told['batch']}")
        self.note(f"on {where}{several}")
        from train.machine import crowded

        if beside := crowded(run.trainer.processes.device):
            self.note(f"note: {beside}")
        if run.done:
            self.note(f"going on from step {run.done:,} of {self.steps:,}")

    def line(self, record: dict[str, Any]) -> None:
        if "figures" in record:
            self._skipped = record["skipped"]
            losses = [v for name, v in record["figures"].items() if name.rpartition("/")[2] == "loss"]
            self._loss = f"{losses[0]:.4g}" if losses else ""
            if self._bar is None:
                self._plain(record["step"])
        elif "validation" in record:
            told = ", ".join(f"{name} {value:.4g}" for name, value in record["validation"].items())
            self.note(f"step {record['step']:,}: validation {told}")
        elif "previews" in record:
            self.note(f"step {record['step']:,}: previews {', '.join(record['previews'])}")

    def step(self, step: Step) -> None:
        self.pace.step()
        if step.step >= self.steps:
            self.note("all steps are done; the model is written")
        if self._bar is not None:
            self._show(f"step {step.step:,}/{self.steps:,}", step.step, self.steps, self._words(step.step))

    def progress(self, what: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._show(f"{what} {done:,}/{total:,}", done, total, "")
        elif what != self._ready:
            self._ready = what
            self.note(f"{what} are made ready: {done:,} of {total:,} are there")

    def end(self, result: Mapping[str, Any]) -> None:
        self.__exit__(None, None, None)
        if result["finished_before"]:
            self.note(f"finished already: {result['step']:,} steps are done; set run.steps to train longer")
        else:
            self.note(f"done: {result['step']:,} steps; report: {result['report']}")
        super().end(result)

    def _show(self, what: str, done: int, total: int, told: str) -> None:
        state = {"description": what, "completed": done, "total": total, "told": told}
        if self._task is None:
            self._task = self._bar.add_task(**state)
        else:
            self._bar.update(self._task, **state)

    def _words(self, step: int) -> str:
        loss = f"loss {self._loss}" if self._loss else ""
        skipped = f"{self._skipped:,} skipped" if self._skipped else ""
        return ", ".join(part for part in (loss, self.pace.told(self.steps - step), skipped) if part)

    def _plain(self, step: int) -> None:
        now = time.monotonic()
        if now - self._told >= PAUSE or step >= self.steps:
            self._told = now
            self.note(f"step {step:,}/{self.steps:,}: {self._words(step)}")


class Pace:
    """Seconds a step by the clock, previews and checkpoints included, over the last few; the first step warms up."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=WINDOW + 1)

    def step(self, now: float | None = None) -> None:
        self._times.append(time.monotonic() if now is None else now)

    def told(self, left: int) -> str:
        """ "0.41 s/step, 7 min left"; nothing before two steps are done."""
        if len(self._times) < 2:
            return ""
        each = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return f"{each:.3g} s/step" + (f", {duration(each * left)} left" if left else "")


class Ear(logging.Handler):
    """What the trainer and its parts have to say, in the view."""

    def __init__(self, view: QuietView) -> None:
        super().__init__(logging.WARNING if type(view) is not View else logging.INFO)
        self.view = view

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.view.note(f"{'note' if record.name == 'train.trainer' else 'warning'}: {record.getMessage()}")
        elif not record.getMessage().startswith("going on"):  # the view has said so
            self.view.note(record.getMessage())


@contextmanager
def heard(view: QuietView) -> Iterator[None]:
    """Inside, our own log goes to the view; warnings of libraries, which no user can mend, go nowhere."""
    ear, ours = Ear(view), [logging.getLogger(name) for name in ("train", "ldm")]
    before = [(log.level, log.propagate) for log in ours]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in ours:
            log.addHandler(ear)
            log.setLevel(logging.INFO)
            log.propagate = False
        try:
            yield
        finally:
            for log, (level, propagate) in zip(ours, before, strict=True):
                log.removeHandler(ear)
                log.setLevel(level)
                log.propagate = propagate


def finite(value: Any) -> Any:
    """JSON has no word for a number that is not finite: null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
