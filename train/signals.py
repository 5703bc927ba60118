"""SIGTERM and Ctrl-C as a wish that loops ask for: the step is finished, the state saved, and the resume command told.

Every long loop polls, not only the one over steps: warm-up, caching, validation, previews. A second signal ends the
process at once; what it was writing is staged, so nothing is damaged.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A loop ended because it was asked to: the exit status is 143 (SIGTERM) or 130 (Ctrl-C)."""


class Stop:
    """`with Stop() as stop:` turns the first signal into `stop.wanted`. In another than the main thread, where Python
    takes no signals, `ask` does the same by hand."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit status that says which signal it was; 0 when there was none."""
        return 0 if self.signal is None else 128 + self.signal

    def ask(self, number: int = signal.SIGTERM) -> None:
        self.signal = int(number)

    def check(self) -> None:
        """For loops that have nothing to save."""
        if self.wanted:
            raise Stopped(self.code)

    def __enter__(self) -> Stop:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` and background jobs mean it
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker: Ctrl-C is its parent's affair, all else ends it
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        if self.wanted:
            os._exit(128 + number)
        self.ask(number)
        _tell("\nStopping: the state is saved first. The same signal again ends at once.\n")


def polled(stop: Stop | None) -> Callable[[], bool]:
    """The wish as a plain question, for floors below that know nothing of signals."""
    return (lambda: stop.wanted) if stop is not None else (lambda: False)


def resume_command(arguments: Sequence[str] | None = None) -> str:
    """The command that goes on with this run: the one that was given, quoted for a shell."""
    given = list(sys.argv) if arguments is None else list(arguments)
    name = Path(given[0]).name if given else "ldm"
    if name == "ldm":
        return shlex.join(["ldm", *given[1:]])
    return shlex.join(list(sys.orig_argv) if arguments is None else given)


def _tell(text: str) -> None:
    """Past all buffers: a handler may run while one of them is being written."""
    with_error = 2
    try:
        os.write(with_error, text.encode())
    except OSError:
        return
