"""SIGTERM and Ctrl-C as a wish that loops ask for: the step is finished, the state saved, and the resume command told.

Every long loop polls, not only the one over steps: warm-up, caching, validation, previews. A second signal ends the
process at once; what it was writing is staged, so nothing is damaged.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2
_ELASTIC = "TORCHELASTIC_RUN_ID"  # in the environment of whatever torch's launcher has started
ECHO = 2.0  # seconds: a cluster signals every process of a job, and its launcher passes on what it got itself


class Stopped(SystemExit):
    """A loop ended because it was asked to: the exit status is 143 (SIGTERM) or 130 (Ctrl-C)."""


class Stop:
    """`with Stop() as stop:` turns the first signal into `stop.wanted`. In another than the main thread, where Python
    takes no signals, `ask` does the same by hand."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()
        self._asked = 0.0  # when, by a clock that nobody moves
        self._before: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit status that says which signal it was; 0 when there was none."""
        return 0 if self.signal is None else 128 + self.signal

    def ask(self, number: int = signal.SIGTERM) -> None:
        self.signal, self._asked = int(number), time.monotonic()

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
            if launched() and time.monotonic() - self._asked < ECHO:
                return
            os._exit(128 + number)
        self.ask(number)
        _tell("\nStopping: the state is saved first. The same signal again ends at once.\n")


def polled(stop: Stop | None) -> Callable[[], bool]:
    """The wish as a plain question, for floors below that know nothing of signals."""
    return (lambda: stop.wanted) if stop is not None else (lambda: False)


def launched() -> bool:
    """Whether a launcher started this process beside others; it passes signals on to them."""
    return _ELASTIC in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def resume_command(arguments: Sequence[str] | None = None) -> str:
    """The command that goes on with this run: the one that was given, quoted for a shell. Where torch's launcher or
    accelerate's started us, it was given to them."""
    if arguments is None and _ELASTIC in os.environ:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            return shlex.join(words[:-1])
    given = list(sys.argv) if arguments is None else list(arguments)
    name = Path(given[0]).name if given else "ldm"
    if name == "ldm":
        return shlex.join(["ldm", *given[1:]])
    return shlex.join(list(sys.orig_argv) if arguments is None else given)


def _tell(text: str) -> None:
    """Past all buffers: a handler may run while one of them is being written."""
    try:
        os.write(STDERR, text.encode())
    except OSError:
        return
