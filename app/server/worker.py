"""The one thread that owns the models. It brings in what is heavy itself, so that a server answers from the start."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event as Flag
from threading import Lock, Thread
from typing import TYPE_CHECKING

from app.server.store import Jobs

if TYPE_CHECKING:
    from app.server.together import Together

log = logging.getLogger("ldm.server")
REST = 0.5  # seconds between two looks at an empty queue, where nobody wakes it


class Worker:
    """`start` it; `wake` it when a job is there; `cancel` a job; `stop` it between two steps."""

    def __init__(self, jobs: Jobs, together: Callable[[], Together]) -> None:
        self.jobs = jobs
        self.together: Together | None = None  # until it has been brought in
        self.busy_seconds = 0.0
        self._begin = together
        self._unwanted: dict[str, bool] = {}  # jobs to end -> whether what is under way is kept
        self._awake, self._ending, self._lock = Flag(), Flag(), Lock()
        self._there = Flag()
        self._thread = Thread(target=self._work, name="ldm-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 60.0) -> None:
        """After the step under way; what ran goes on when the server is started again."""
        self._ending.set()
        self.wake()
        self._thread.join(seconds)

    def wake(self) -> None:
        self._awake.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def bring_in(self, seconds: float = 60.0) -> None:
        """Waits until what is heavy has been imported: of two threads that do so at once one may see half of it."""
        self._there.wait(seconds)

    def cancel(self, name: str, keep: bool) -> None:
        """Ends a job before its next step; with `keep` the pictures under way are kept as far as they are."""
        with self._lock:
            self._unwanted[name] = keep
        self.wake()

    def _work(self) -> None:
        try:
            self.together = together = self._begin()
        except Exception:  # nothing can be made, and /healthz says so
            log.exception("the worker could not begin")
            return
        finally:
            self._there.set()
        while not self._ending.is_set():
            self._awake.clear()
            try:
                self._turn(together)
            except Exception:  # a full disk, say: the thread goes on whatever happens, for nobody else could
                log.exception("the worker failed")
                self._awake.wait(REST)

    def _turn(self, together: Together) -> None:
        """The next job with those that join it, or a rest."""
        if (job := self.jobs.next()) is None:
            self._no_more_wanted()  # what is not running needs no end
            self._awake.wait(REST)
            return
        began = time.monotonic()
        try:
            together.make(job, self._ending.is_set, self._no_more_wanted)
        except Exception as error:
            log.exception("jobs could not be made")
            together.fail(error)
        finally:
            self.busy_seconds += time.monotonic() - began

    def _no_more_wanted(self) -> dict[str, bool]:
        with self._lock:
            unwanted, self._unwanted = self._unwanted, {}
        return unwanted
