"""All trainings of a server: planned, queued, run one at a time, cancelled, gone on with, found again after a kill."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from threading import BoundedSemaphore, Lock, RLock, Thread
from threading import Event as Flag
from typing import Any
from uuid import uuid4

from app.failing import told_of
from app.server.catalog import Catalog
from app.server.hub import Event, Hub
from app.server.learning.asking import OUT, Understanding
from app.server.learning.planning import CLASS_PICTURES, folder_for, plan
from app.server.learning.process import Child, end_earlier
from app.server.learning.record import ENDED, REPORT, Record, State, read_all, unwritten
from app.server.learning.running import GOODBYE, Run, failed_with, published
from app.server.learning.story import Heard
from app.server.learning.telling import end_of, told
from app.server.limits import Limits
from app.server.uploads import Uploads
from ldm.errors import Code, LdmError

log = logging.getLogger("ldm.server")
TRASH = "trash"  # in the folder of the trainings: nothing is deleted
TRIES = 5  # how often a training may take the server along
PAUSE = 0.5  # seconds between two events of progress
REST = 1.0  # seconds between two looks at an empty queue, where nobody wakes it
PLANNERS = 4  # callers who wait for plans
TURN = 10.0  # seconds that a plan waits for another one


class Trainings:
    """Every method may be called from any thread; none but `plan` waits for a process."""

    def __init__(
        self, folder: Path, adapters: Path, catalog: Catalog, uploads: Uploads, limits: Limits, device: str = "auto"
    ) -> None:
        self.folder, self.adapters, self.catalog, self.uploads, self.limits = folder, adapters, catalog, uploads, limits
        self.device, self.hub = device, Hub()
        folder.mkdir(parents=True, exist_ok=True)
        self.understanding = Understanding(catalog, uploads, limits, folder)
        for left in (*folder.glob(".plan-*"), *unwritten(folder)):
            shutil.rmtree(left, ignore_errors=True)
        self._records = {record.id: record for record in read_all(folder)}
        self._lock, self._planning, self._planners = RLock(), Lock(), BoundedSemaphore(PLANNERS)
        self._told = 0.0  # when progress was told last
        self._awake, self._ending = Flag(), Flag()
        self._thread = Thread(target=self._work, name="ldm-trainings", daemon=True)
        self._again()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What runs saves and ends; it goes on when the server is started again."""
        self._ending.set()
        self._awake.set()
        self._thread.join(2 * GOODBYE)

    def plan(self, given: Mapping[str, Any], gone: Flag) -> dict[str, Any]:
        """Findings and cost, without training; given up when `gone` is set."""
        training = self.understanding(given)
        busy = LdmError(Code.BUSY, "Other plans are being made.", "One is made at a time.", "Ask again a little later.")
        if not self._planners.acquire(blocking=False):
            raise busy
        try:
            if not self._planning.acquire(timeout=TURN):
                raise busy
            try:
                unwanted = lambda: gone.is_set() or self._ending.is_set()  # noqa: E731
                return plan(training, self.folder, self.uploads, self.device, unwanted)
            finally:
                self._planning.release()
        finally:
            self._planners.release()

    def submit(self, given: Mapping[str, Any]) -> Record:
        """A training in the queue."""
        training = self.understanding(given)
        self._check_queue()  # before a hundred photos are copied in vain
        record = Record(uuid4().hex, dict(training.fields), "queued", time.time())
        (self.folder / CLASS_PICTURES).mkdir(exist_ok=True)
        folder_for(training, self.folder / record.id, self.uploads)
        try:
            with self._lock:
                self._check_queue()
                record.write(self.folder)
                self._records[record.id] = record
        except LdmError:
            shutil.rmtree(self.folder / record.id, ignore_errors=True)
            raise
        self._awake.set()
        return record

    def training(self, name: str) -> Record:
        """One training; an unknown name is an error."""
        with self._lock:
            if name in self._records:
                return self._records[name]
        what, why = f"There is no training {name[:64]!r}.", "No training has that id; deleted ones are forgotten."
        raise LdmError(Code.FILE, what, why, "List the trainings to see which there are.")

    def listed(self) -> list[dict[str, Any]]:
        """All as JSON, in brief; the newest first."""
        with self._lock:
            records = sorted(self._records.values(), key=lambda record: -record.created)
            return [told(record, self.folder, brief=True) for record in records]

    def told(self, name: str) -> dict[str, Any]:
        """A training as JSON."""
        with self._lock:
            return told(self.training(name), self.folder)

    def cancel(self, name: str) -> None:
        """What was learned is saved, and may be gone on with; what has ended stays as it is."""
        with self._lock:
            record = self.training(name)
            if record.state == "queued":
                self._turn(record, "cancelled")
            elif record.state not in ENDED:
                record.unwanted = True
                record.write(self.folder)

    def resume(self, name: str) -> None:
        """Goes on where it was left; what waits or runs does so anyway."""
        if self.training(name).state in ENDED:
            self.understanding.check_room()  # it looks through all of them, so nobody waits for it
        with self._lock:
            record = self.training(name)
            if record.state == "done":
                what, why = "The training is done.", "There is nothing left to go on with."
                raise LdmError(
                    Code.DIFFERENT, what, why, "Begin another one, with more steps if it learned too little."
                )
            if record.state in ENDED:
                self._check_queue()
                self.understanding.again(record.asked)  # its model may be gone
                record.unwanted, record.error, record.ended, record.tries = False, None, None, 0
                self._turn(record, "queued")
        self._awake.set()

    def forget(self, name: str) -> None:
        """Of one that has ended; its folder goes to the trash beside it."""
        with self._lock:
            record = self.training(name)
            if record.state not in ENDED:
                what, why = "The training has not ended.", f"It is {record.state}."
                raise LdmError(Code.DIFFERENT, what, why, "Cancel it first.")
            trash = self.folder / TRASH
            trash.mkdir(exist_ok=True)
            (self.folder / name).rename(trash / name)
            del self._records[name]

    def report(self, name: str) -> Path:
        """The report, also of one that is under way."""
        path = self.folder / self.training(name).id / REPORT
        if not path.is_file():
            what, why = f"Training {name} has no report yet.", "It is written when it is measured for the first time."
            raise LdmError(Code.FILE, what, why, "Wait for it.")
        return path

    def sample(self, name: str, step: int, number: int) -> Path:
        """A picture that was drawn to judge by; 0 is the step before the first one."""
        record = self.training(name)
        path = self.folder / record.id / OUT / "samples" / str(step) / f"subject-{number:02d}.png"
        if step not in (0, *(m["step"] for m in record.story.measured)) or number < 0 or not path.is_file():
            what, why = f"Training {name} has no sample {number} of step {step}.", "Its `samples` name those it has."
            raise LdmError(Code.FILE, what, why, "Ask for one of those.")
        return path

    def _check_queue(self) -> None:
        with self._lock:
            waiting = sum(record.state == "queued" for record in self._records.values())
        if waiting >= self.limits.trainings:
            why = f"{waiting} trainings are waiting, and no more may."
            raise LdmError(Code.BUSY, "The queue is full.", why, "Try again when some of them are done.")

    def _again(self) -> None:
        """What ran when the server ended is queued again, unless nobody wants it, or it ended the server each time."""
        for record in self._records.values():
            if record.state in ("planning", "running"):
                if record.unwanted:
                    self._turn(record, "cancelled")
                elif record.tries >= TRIES:
                    why = f"That was so {TRIES} times, so it is not tried again; memory may be short."
                    error = LdmError(
                        Code.RESOURCE, "The server ended while it trained.", why, "Ask for a smaller batch."
                    )
                    record.error = dict(error.as_dict())
                    self._turn(record, "failed")
                else:
                    record.state = "queued"  # its file says that it had begun: its turn comes before others

    def _work(self) -> None:
        while not self._ending.is_set():
            self._awake.clear()
            if (record := self._next()) is None:
                self._awake.wait(REST)
                continue
            try:
                self._learn(record)
            except Exception as error:  # a full disk, say: the thread goes on whatever happens
                record.error = failed_with(error)
                self._turn(record, "failed")

    def _next(self) -> Record | None:
        """What had begun goes on first; then the oldest."""
        with self._lock:
            waiting = [record for record in self._records.values() if record.state == "queued"]
            return min(waiting, key=lambda r: (not r.child, r.created), default=None)

    def _learn(self, record: Record) -> None:
        end_earlier(record.child)
        home, training = self.folder / record.id, self.understanding.again(record.asked)
        with self._lock:
            if record.state != "queued":  # cancelled meanwhile
                return
            record.tries += 1
            record.started = record.started or time.time()
            self._turn(record, "planning")
        run = Run(home, record, training, self.device, self.limits.trained)
        status = run.go(self._ending, lambda child: self._begun(record, child), self._heard)
        learned = status == 0 and record.story.result is not None
        with self._lock:
            if status != 0 and self._ending.is_set() and not record.unwanted and run.refused is None:
                record.tries = 0  # it did not take the server along; `child` is kept, so that it goes on first
                record.write(self.folder)
                return
            record.child = {}
        if learned:
            published(record, training, home, self.catalog, self.adapters)  # it copies, so nobody waits for it
        with self._lock:
            if learned:
                self._turn(record, "done")
            elif record.unwanted:
                self._turn(record, "cancelled")
            else:
                record.error = dict(run.failure(status).as_dict())
                self._turn(record, "failed")

    def _begun(self, record: Record, child: Child) -> None:
        with self._lock:
            record.child = dict(child.mark)
            record.write(self.folder)

    def _heard(self, record: Record, news: Heard) -> None:
        """News of its process, for whoever listens."""
        story = record.story
        with self._lock:
            if news == "measured":
                record.tries = 0
                record.write(self.folder)
                self.hub.tell(
                    record.id,
                    Event("measured", {"samples": told(record, self.folder)["samples"], **story.measured[-1]}),
                )
            elif news == "progress":
                if (now := time.monotonic()) - self._told >= PAUSE or story.step == story.steps:
                    self._told = now
                    self.hub.tell(record.id, Event("progress", story.progress()))
            elif story.running and record.state == "planning":
                self._turn(record, "running")
            else:
                self.hub.tell(record.id, Event("state", told(record, self.folder)))

    def _turn(self, record: Record, state: State) -> None:
        """Into another state, which is written down and told."""
        with self._lock:
            record.state = state
            if state in ENDED:
                record.ended = time.time()
            try:
                record.write(self.folder)
            except LdmError as error:  # of a full disk: it is so all the same, until the server ends
                log.error("%s %s", error.what, told_of(error).why)
            self.hub.tell(record.id, Event("state", told(record, self.folder)))
            if state in ENDED:
                self.hub.tell(record.id, Event("end", end_of(record)))
