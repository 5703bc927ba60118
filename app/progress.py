"""What is seen while pictures are made (on stderr), and how a run is stopped without losing it."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import typer

from app.errors import INTERRUPTED, TERMINATED, printable

if TYPE_CHECKING:
    from pipelines.steps import Step


@dataclass
class Reporter:
    """A bar on a terminal, notes on stderr; quiet: nothing."""

    quiet: bool = False
    _bar: Any = field(default=None, repr=False)
    _task: Any = field(default=None, repr=False)
    _clock: Clock | None = field(default=None, repr=False)
    _told: set[str] = field(default_factory=set, repr=False)

    def __enter__(self) -> Reporter:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Says a thing once."""
        if not self.quiet and text not in self._told:
            self._told.add(text)
            typer.echo(printable(text), err=True)

    def step(self, step: Step) -> None:
        for note in step.notes:
            self.note(f"note: {note}")
        if self._bar is None or step.count == 0:
            return
        self._clock = (
            self._clock if self._clock is not None and self._clock.goes_on(step) else Clock(step.stage, step.pictures)
        )
        first, last = step.pictures
        name = f"picture {first + 1}" + (f"-{last}" if last > first + 1 else "") + f" of {step.total}, {step.stage}"
        told = {"description": name, "total": step.count, "completed": step.index, "pace": self._clock.pace(step)}
        if self._task is None:
            self._task = self._bar.add_task(**told)
        else:
            self._bar.update(self._task, **told)


@dataclass
class Clock:
    """Seconds per step and the time that is left, for one stage of one batch."""

    stage: str
    pictures: tuple[int, int]
    began: float = field(default_factory=time.monotonic)
    first: int | None = None

    def goes_on(self, step: Step) -> bool:
        return (self.stage, self.pictures) == (step.stage, step.pictures)

    def pace(self, step: Step, now: float | None = None) -> str:
        """ "0.41 s/step, 7 s left"; the first report only starts the clock."""
        now = time.monotonic() if now is None else now
        if self.first is None:
            self.began, self.first = now, step.index
            return ""
        if step.index <= self.first:
            return ""
        each = (now - self.began) / (step.index - self.first)
        made = max(1, step.pictures[1] - step.pictures[0])
        batches_after = -(-(step.total - step.pictures[1]) // made)
        left = each * (step.count - step.index + batches_after * step.count)
        return f"{each:.2f} s/step, {duration(left)} left"


def duration(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole} s"
        if whole < 90
        else f"{whole // 60} min {whole % 60} s"
        if whole < 5400
        else f"{seconds / 3600:.1f} h"
    )


class Stop:
    """The first Ctrl-C (or SIGTERM) asks the run to stop after this step; the second stops at once.

    `status` is the exit status that belongs to the signal, None while nobody asked.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: whoever runs us there stops us in another way
            self._before.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.status is not None:
            raise KeyboardInterrupt
        self.status = TERMINATED if number == signal.SIGTERM else INTERRUPTED
