"""A replica of a server's worker, somewhere on a Ray cluster: it owns models, and makes the jobs that it is sent.

It has neither store nor gallery nor hub: what it would write there it says to the server, which writes it down in that
order. Nothing heavy is imported before a replica begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as Flag
from typing import TYPE_CHECKING, Any

from app.failing import told_of
from app.server.hub import Event
from app.server.limits import Limits
from app.server.store import Job, Made, State
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from pipelines.steps import Result

log = logging.getLogger("ldm.server")
Word = tuple[str, str, Any]  # what is done (begun, picture, event, end), with which job, and what is to be known of it
Words = SimpleQueue[Word | None]  # None: there are no more
Parcel = tuple[Job, Mapping[str, bytes]]  # and the uploads that it names


@dataclass(frozen=True)
class Plan:
    """What a replica must know. It sees the folders where the server does."""

    folders: tuple[Path | None, ...]  # of its catalog
    memory: float | None
    device: str
    dtype: str
    limits: Limits


@dataclass(frozen=True)
class Slip:
    """What a server has to say of an errand: which jobs are to end (and whether what there is of them is kept), whose
    previews somebody wants to see, jobs that join it and have not begun, and whether all of it is to stop."""

    unwanted: Mapping[str, bool] = field(default_factory=dict)
    watched: frozenset[str] = frozenset()
    more: tuple[Parcel, ...] = ()
    ending: bool = False


class Mailbox:
    """An actor beside the server, which holds a slip for each errand: whoever asks is answered when it has changed."""

    def __init__(self) -> None:
        self._slips: dict[str, tuple[int, Slip]] = {}
        self._changed = asyncio.Condition()

    async def open(self, errand: str) -> None:
        """There is a slip from now on; what has been said of it already stands."""
        async with self._changed:
            self._slips.setdefault(errand, (1, Slip()))

    async def put(self, errand: str, slip: Slip | None) -> None:
        """None: the errand is over."""
        async with self._changed:
            if slip is None:
                self._slips.pop(errand, None)
            else:
                self._slips[errand] = (self._slips.get(errand, (0, slip))[0] + 1, slip)
            self._changed.notify_all()

    async def slip(self, errand: str, seen: int) -> tuple[int, Slip]:
        """The next one after that of this number."""
        async with self._changed:
            while (told := self._slips.get(errand)) is not None and told[0] <= seen:
                await self._changed.wait()
        return (seen, Slip(ending=True)) if told is None else told


class News:
    """The slip of an errand as it was last heard of; it is asked for beside the work, so that no step waits for it."""

    def __init__(self, mailbox: Any, errand: str) -> None:
        self._mailbox, self._errand = mailbox, errand
        self._slip = Slip()
        self._gone = False
        self._asked = mailbox.slip.remote(errand, 0)

    def stop(self) -> None:
        self._gone = True

    def ending(self) -> bool:
        return self._gone or self._heard().ending

    def unwanted(self) -> dict[str, bool]:
        return dict(self._heard().unwanted)

    def more(self) -> Sequence[Parcel]:
        return self._heard().more

    def watched(self, job: str) -> bool:
        return job in self._slip.watched

    def _heard(self) -> Slip:
        import ray

        while not self._gone and ray.wait([self._asked], timeout=0)[0]:
            try:
                number, self._slip = ray.get(self._asked)
                self._asked = self._mailbox.slip.remote(self._errand, number)
            except ray.exceptions.RayError:  # the server is gone
                self._gone = True
            if self._slip.ending:
                break
        return self._slip


class Desk:
    """In the place of a server's store, gallery and hub. `broken` is set where a job failed for what nobody foresaw:
    nothing begins after that."""

    def __init__(self, parcels: Sequence[Parcel], say: Words, news: News, broken: Flag) -> None:
        self.under_way: dict[str, Mapping[str, bytes]] = {}  # jobs that have begun, with the uploads that they name
        self._left = list(parcels)
        self._jobs = {job.id: job for job, _ in parcels}
        self._say, self._news, self._broken = say, news, broken

    def next(self, kind: str | None = None) -> Job | None:
        """All that are sent together, or join them, are of one kind. What a model takes along while it is loaded for a
        job is a try of it: so it has begun now."""
        for job, pictures in self._news.more():
            if job.id not in self._jobs:
                self._jobs[job.id] = job
                self._left.append((job, pictures))
        while self._left and not self._broken.is_set():
            job, pictures = self._left.pop(0)
            if job.id in self._news.unwanted():
                self.end(job.id, "cancelled")
                continue
            self.under_way[job.id] = pictures
            self._say.put(("begun", job.id, None))
            return job
        return None

    def job(self, name: str) -> Job:
        return self._jobs[name]

    def begun(self, name: str) -> None:
        """Said when it was taken."""

    def left(self, job: Job) -> list[Made]:
        """The server has looked before it sent the job."""
        return []

    def keep(self, job: str, place: int, result: Result) -> Made:
        from app.server import gallery
        from ldm.images import as_png
        from pipelines.recipe import chunks

        recipe, picture = result.recipe, result.picture
        made = Made(place, "", gallery.told_of(recipe, picture.size), recipe.partial)
        self._say.put(("picture", job, (made, as_png(picture, chunks(recipe, False, picture.text)))))
        return made

    def made(self, name: str, picture: Made) -> None:
        """Said with the picture."""

    def tell(self, job: str, event: Event) -> None:
        if event.kind != "end":  # said with the end
            self._say.put(("event", job, event))

    def watched(self, job: str) -> bool:
        return self._news.watched(job)

    def end(self, name: str, state: State, error: LdmError | None = None) -> bool:
        self.under_way.pop(name, None)
        notes = "\n".join(getattr(error, "__notes__", ()))  # for the log of the server, which nobody else sees
        self._say.put(("end", name, (state, None if error is None else error.as_dict(), notes)))
        if error is not None and error.code is Code.BUG:
            self._broken.set()
        return True

    def fail(self, error: LdmError) -> None:
        """What is under way; the server queues the others again. Where nothing is, the first: of what fails whatever
        the job is, something must come to an end."""
        for name in list(self.under_way) or list(self._jobs)[:1]:
            self.end(name, "failed", error)


class Replica:
    """One errand at a time; one thread owns the models, as in a server without replicas."""

    def __init__(self, plan: Plan, cpus: int) -> None:
        from app.server.catalog import Catalog
        from app.server.decoding import Decoder
        from app.server.shelf import Shelf

        self.limits, self.catalog = plan.limits, Catalog(*plan.folders)
        self.shelf = Shelf(share_of(plan, cpus), plan.device, plan.dtype)
        self.decoder = Decoder(plan.limits.input_pixels)
        self._thread, self._broken = ThreadPoolExecutor(1), Flag()

    def check_health(self) -> None:
        """Asked by Ray Serve, which puts another one in the place of one that raises: after an error that nobody
        foresaw a card may answer nothing any more."""
        if self._broken.is_set():
            raise RuntimeError("A job failed here for what nobody foresaw.")

    async def make(self, errand: str, parcels: Sequence[Parcel], mailbox: Any) -> AsyncIterator[list[Word]]:
        """What comes of some jobs, a step at a time."""
        loop, words, news = asyncio.get_running_loop(), Words(), News(mailbox, errand)
        done = loop.run_in_executor(self._thread, self._make, parcels, words, news)
        try:
            while said := await loop.run_in_executor(None, _taken, words):
                yield said
        finally:
            news.stop()
            await done

    def _make(self, parcels: Sequence[Parcel], words: Words, news: News) -> None:
        desk = Desk(parcels, words, news, self._broken)
        try:
            self._made(desk, news)
        except Exception as error:
            log.exception("jobs could not be made")
            desk.fail(told_of(error, *self.catalog.homes()))
        finally:
            words.put(None)

    def _made(self, desk: Desk, news: News) -> None:
        from app.server.asking import Understanding
        from app.server.together import Together
        from app.server.uploads import Brought

        understanding = Understanding(self.catalog, Brought(self.decoder, desk.under_way), self.limits)
        together = Together(desk, understanding, self.shelf, desk, desk)
        while not news.ending() and (job := desk.next()):
            together.make(job, news.ending, news.unwanted)


def share_of(plan: Plan, cpus: int) -> float | None:
    """Bytes of weights that may stay: of a machine's half what its processors are of all, for others are beside it."""
    import psutil

    from pipelines.device import pick_device

    if plan.memory is not None or pick_device(plan.device).type == "cuda":
        return plan.memory
    return float(psutil.virtual_memory().total) / 2 * min(1.0, cpus / (psutil.cpu_count() or 1))


def _taken(words: Words) -> list[Word]:
    """All that has been said since; waits for the first word. Empty: there are no more."""
    said = list[Word]()
    try:
        word = words.get()
        while word is not None:
            said.append(word)
            word = words.get_nowait()
    except Empty:
        return said
    if said:
        words.put(None)  # for the next time
    return said
