"""Jobs made elsewhere: in the place of the worker, a thread that sends them to replicas and keeps what they say.

The store, the gallery and the hub stay the server's. A job whose replica is lost is queued again, with what was
finished of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from app.errors import first_line
from app.failing import told_of
from app.server.gallery import Gallery
from app.server.hub import Event, Hub
from app.server.replica import Parcel, Slip, Word
from app.server.store import Jobs, Made, State, error_of
from app.server.uploads import Uploads
from app.server.worker import REST
from ldm.errors import LdmError

if TYPE_CHECKING:
    from app.server.together import Together

log = logging.getLogger("ldm.server")
MOST = 16  # jobs of an errand at a time
LONGEST = 256  # jobs of an errand in all, for both sides remember them
PAUSE = 5.0  # seconds after an errand that nobody took


class Crew(Protocol):
    """Those who make jobs elsewhere."""

    most: int  # errands at a time

    def make(self, errand: str, parcels: Sequence[Parcel]) -> Iterator[list[Word]]: ...
    def tell(self, errand: str, slip: Slip | None) -> None: ...


@dataclass(eq=False)
class Errand:
    """Jobs of one kind that are made together; `ended` are those that it has no more to do with."""

    kind: str
    jobs: list[str]
    name: str = field(default_factory=lambda: uuid4().hex)
    slip: Slip = field(default_factory=Slip)
    more: list[Parcel] = field(default_factory=list)  # that joined it on the way
    begun: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    @property
    def left(self) -> list[str]:
        return [name for name in self.jobs if name not in self.ended]


class Dispatcher:
    """For a service what the worker is. As many errands are under way as there may be replicas."""

    together: Together | None = None  # nothing is made in this process

    def __init__(
        self, jobs: Jobs, gallery: Gallery, hub: Hub, uploads: Uploads, begin: Callable[[Callable[[], bool]], Crew]
    ) -> None:
        self.jobs, self.gallery, self.hub, self.uploads = jobs, gallery, hub, uploads
        self.busy_seconds = 0.0  # of all replicas
        self._begin = begin
        self._crew: Crew | None = None  # until they are there
        self._errands: dict[Errand, Thread] = {}
        self._awake, self._ending = Flag(), Flag()
        self._lock, self._taking, self._importing = Lock(), Lock(), Lock()
        self._thread = Thread(target=self._work, name="ldm-dispatcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 60.0) -> None:
        """After the steps under way; what ran goes on when the server is started again."""
        self._ending.set()
        self.wake()
        until = time.monotonic() + seconds
        self._thread.join(seconds)
        for thread in self._carrying():
            thread.join(max(0.0, until - time.monotonic()))

    def wake(self) -> None:
        self._awake.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def bring_in(self, seconds: float = 60.0) -> None:
        """Imports what is heavy for those who ask beside the jobs: one thread at a time."""
        with self._importing:
            import app.server.together  # noqa: F401

    def cancel(self, name: str, keep: bool) -> None:
        """Ends a job before its next step; at once where nobody has begun it."""
        with self._taking, self._lock:  # a job that is taken now is in its errand afterwards
            errand = next((one for one in self._errands if name in one.left), None)
        if errand is None:
            return
        if name not in errand.begun:
            self._end(errand, name, "cancelled")
        self._say(errand, unwanted={name: keep})

    def _work(self) -> None:
        try:
            self._crew = crew = self._begin(self._ending.is_set)
        except Exception:  # nothing can be made, and /healthz says so
            log.exception("there are no replicas")
            return
        while not self._ending.is_set():
            self._awake.clear()
            try:
                if not self._sent(crew):
                    self._awake.wait(REST)
            except Exception:  # a full disk, say: the thread goes on whatever happens, for nobody else could
                log.exception("the dispatcher failed")
                self._awake.wait(REST)
        with self._lock:
            for errand in self._errands:
                crew.tell(errand.name, Slip(ending=True))

    def _sent(self, crew: Crew) -> bool:
        """Sends what comes next, where there may be one more replica at work; whether there was anything."""
        if len(self._carrying()) >= crew.most:
            return False
        with self._taking:
            if (errand := self._taken(crew)) is None:
                return False
            name = f"ldm-errand-{errand.name[:8]}"
            thread = Thread(target=self._carry, args=(errand, crew), name=name, daemon=True)
            with self._lock:
                self._errands[errand] = thread
        thread.start()
        return True

    def _taken(self, crew: Crew) -> Errand | None:
        """The next job, with others of its kind."""
        waiting = self._waiting()
        if (first := self.jobs.next()) is None:
            return None
        errand = Errand(first.kind, [first.id])
        self._fill(errand, waiting - 1, crew)
        return errand

    def _waiting(self) -> int:
        return sum(self.jobs.waiting(cells) for cells in (False, True))

    def _fill(self, errand: Errand, waiting: int, crew: Crew) -> list[str]:
        """Takes others of its kind into an errand: as many as are its share if all that there are were spread evenly,
        so that no replica is left with nothing while another has all. Returns those that came."""
        with self._lock:
            errands = {errand, *(one for one in self._errands if one.kind == errand.kind)}
        share = min(MOST, math.ceil((waiting + sum(len(one.left) for one in errands)) / crew.most))
        came = list[str]()
        while errand.kind and len(errand.left) < share and len(errand.jobs) < LONGEST:
            if (job := self.jobs.next(errand.kind)) is None:
                break
            errand.jobs.append(job.id)
            came.append(job.id)
        return came

    def _carrying(self) -> list[Thread]:
        with self._lock:
            return list(self._errands.values())

    def _carry(self, errand: Errand, crew: Crew) -> None:
        began = time.monotonic()
        try:
            parcels = self._parcels(errand, errand.left)  # some may have been cancelled already
            for said in crew.make(errand.name, parcels) if parcels else ():
                for word in said:
                    self._hear(errand, *word)
                self._join(errand, crew)
                self._say(errand)
        except Exception as error:  # its replica has died, or there is none
            log.warning("jobs are queued again: %s", first_line(error))
        try:
            self._part(errand)
        finally:
            with self._lock:
                del self._errands[errand]
                self.busy_seconds += time.monotonic() - began
            crew.tell(errand.name, None)  # the last word: nothing is said of what is no errand any more
            self.wake()

    def _join(self, errand: Errand, crew: Crew) -> None:
        """What waits and is of its kind joins it on the way, where no other replica is free for it."""
        if not errand.kind or self._ending.is_set() or not (waiting := self._waiting()):
            return
        with self._taking:
            came = self._fill(errand, waiting, crew) if len(self._carrying()) >= crew.most else []
        errand.more = [parcel for parcel in errand.more if parcel[0].id not in errand.begun]
        errand.more += self._parcels(errand, came)

    def _parcels(self, errand: Errand, names: Sequence[str]) -> list[Parcel]:
        """Jobs with the uploads that they name, after a look for pictures that nobody was told of."""
        parcels = list[Parcel]()
        for name in names:
            try:
                for made in self.gallery.left(self.jobs.job(name)):
                    self.jobs.made(name, made)
                job = self.jobs.job(name)
                parcels.append((job, {upload: self.uploads.file(upload) for upload in _uploads(job.asked)}))
            except LdmError as error:
                self._end(errand, name, "failed", error)
        return parcels

    def _part(self, errand: Errand) -> None:
        """Jobs that have come to no end are queued again; where the server ends they stay as they are."""
        left = errand.left
        if left and not errand.begun:
            self._ending.wait(PAUSE)
        if self._ending.is_set():
            return
        for name in left:
            errand.ended.add(name)  # before another errand takes it
            while not self._ending.is_set() and not self._again(name):
                self._ending.wait(PAUSE)

    def _again(self, name: str) -> bool:
        """Queues a job again; whether that could be written down. Else it would run until the server ends."""
        try:
            self.jobs.again(name)
            job = self.jobs.job(name)
        except Exception as error:  # a full disk, say
            log.warning("job %s is not queued again yet: %s", name, first_line(error))
            return False
        if job.state not in ("queued", "running"):
            self.hub.tell(name, _ended(job.state, job.failure))
        return True

    def _hear(self, errand: Errand, what: str, name: str, told: Any) -> None:
        if what == "begun":
            errand.begun.add(name)
        if name in errand.ended:
            return
        if what == "begun":
            self.jobs.begun(name)
        elif what == "event":
            self.hub.tell(name, told)
        elif what == "end":
            state, error, notes = told
            if notes:  # it may lie on another machine, whose files nobody looks at
                log.error("job %s failed on a replica:\n%s", name, notes)
            self._end(errand, name, state, None if error is None else error_of(error))
        elif what == "picture":
            self._keep(errand, name, *told)

    def _keep(self, errand: Errand, name: str, made: Made, data: bytes) -> None:
        try:
            self.jobs.made(name, self.gallery.keep_file(name, made, data))
        except Exception as error:  # a full disk, say: this job ends, others go on
            if made.partial:  # it was not wanted any more, so that is no failure
                log.warning("what job %s had so far was not kept: %s", name, error)
                return
            self._end(errand, name, "failed", told_of(error, self.gallery.folder))
            self._say(errand, unwanted={name: False})

    def _end(self, errand: Errand, name: str, state: State, error: LdmError | None = None) -> None:
        told = self.jobs.end(name, state, error)
        errand.ended.add(name)  # now: what could not be written down has not ended
        if told:
            self.hub.tell(name, _ended(state, error))

    def _say(self, errand: Errand, unwanted: Mapping[str, bool] | None = None) -> None:
        """Tells whoever makes it what has changed."""
        watched = frozenset(name for name in errand.left if self.hub.watched(name))
        with self._lock:
            more = tuple(errand.more)
            slip = Slip({**errand.slip.unwanted, **(unwanted or {})}, watched, more, self._ending.is_set())
            if slip != errand.slip and errand in self._errands and self._crew is not None:
                errand.slip = slip
                self._crew.tell(errand.name, slip)


def _uploads(asked: Mapping[str, Any]) -> set[str]:
    """The ids of the pictures that a request names."""
    return {use[name] for use in (asked, *asked.get("controls", ())) for name in ("image", "mask") if name in use}


def _ended(state: State, error: LdmError | None) -> Event:
    return Event("end", {"state": state} | ({} if error is None else {"error": error.as_dict()}))
