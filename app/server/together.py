"""The jobs of a server as they are made: those of one kind together, each in its own run of the pipeline."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from app import failing
from app.server.asking import Understanding
from app.server.hub import Event
from app.server.shelf import Shelf
from app.server.store import Job, Made, State
from ldm.errors import LdmError
from ldm.images import Picture, from_rgb
from ldm.models.gathering import Ended, Gathering, Run
from pipelines.pipeline import Pipeline, pil
from pipelines.request import Request
from pipelines.steps import Result, Step

log = logging.getLogger("ldm.server")
ROWS = 32  # of one call of the network
MOST = 16  # jobs
PREVIEW_SECONDS = 0.25  # between two previews of a job


class Queue(Protocol):
    """Where jobs come from, and where it is written down what becomes of them: a server's store."""

    def next(self, kind: str | None = None) -> Job | None: ...
    def job(self, name: str) -> Job: ...
    def begun(self, name: str) -> None: ...
    def made(self, name: str, picture: Made) -> None: ...
    def end(self, name: str, state: State, error: LdmError | None = None) -> bool: ...


class Keeper(Protocol):
    """Where pictures go: a server's gallery."""

    def left(self, job: Job) -> list[Made]: ...
    def keep(self, job: str, place: int, result: Result) -> Made: ...


class Listeners(Protocol):
    """Who is told how a job goes on: a server's hub."""

    def tell(self, job: str, event: Event) -> None: ...
    def watched(self, job: str) -> bool: ...


class Told(NamedTuple):
    """A step of a job, and by how much its places are moved there."""

    moved: int
    step: Step


@dataclass(eq=False)
class Doing:
    """A job under way."""

    job: Job
    last: Told | None = None
    made: int = 0  # finished pictures
    previewed: float = 0.0  # when


class Together:
    """For the one thread that owns the models."""

    def __init__(
        self, jobs: Queue, understanding: Understanding, shelf: Shelf, gallery: Keeper, hub: Listeners
    ) -> None:
        self.jobs, self.understanding, self.shelf, self.gallery, self.hub = jobs, understanding, shelf, gallery, hub
        self.turns = 0  # so far
        self._doing: dict[Run[Told], Doing] = {}

    def make(self, first: Job, ending: Callable[[], bool], unwanted: Callable[[], dict[str, bool]]) -> None:
        """A job, and those of its kind whose turn comes while it is made; `unwanted`: jobs to end, and whether what is
        under way of them is kept."""
        gathering = Gathering[Told](ROWS)
        heard = partial(self._heard, gathering)
        self._join(gathering, first)
        while self._doing and not ending():
            self._part_with(gathering, unwanted())
            while first.kind and len(self._doing) < MOST and (other := self.jobs.next(first.kind)):
                self._join(gathering, other)
            gathering.turn(heard)
            self.turns += 1
        for run in list(self._doing):
            gathering.leave(run)
        self._doing.clear()

    def fail(self, error: Exception) -> None:
        """What nobody foresaw ends the jobs under way, and no others."""
        under_way = list(self._doing.values())
        self._doing.clear()  # first: what cannot be written down either is over all the same
        for doing in under_way:
            self._end(doing.job, "failed", self._told_of(error))

    def _join(self, gathering: Gathering[Told], job: Job) -> None:
        try:
            for made in self.gallery.left(job):
                self.jobs.made(job.id, made)
            job = self.jobs.job(job.id)
            request = self.understanding.request(job.asked)
            pipeline = self.shelf.pipeline(self.understanding.catalog.model(job.asked["model"]))
            run = Run(_steps(pipeline, request, job.missing))
        except Exception as error:
            self._end(job, "failed", self._told_of(error))
            return
        self.jobs.begun(job.id)
        self._doing[run] = Doing(job, made=job.count - len(job.missing))
        gathering.runs.append(run)

    def _part_with(self, gathering: Gathering[Told], unwanted: dict[str, bool]) -> None:
        for run, doing in list(self._doing.items()):
            if doing.job.id not in unwanted:
                continue
            gathering.leave(run)
            del self._doing[run]
            if unwanted[doing.job.id] and doing.last is not None:
                self._keep_partial(doing, doing.last)
            self._end(doing.job, "cancelled")

    def _keep_partial(self, doing: Doing, told: Told) -> None:
        try:
            for result in told.step.partial():
                self._keep(doing, told.moved, result)
        except Exception as error:  # it was not wanted any more, so that is no failure
            log.warning("what job %s had so far was not kept: %s", doing.job.id, error)

    def _heard(self, gathering: Gathering[Told], run: Run[Told], told: Told | Ended) -> None:
        doing = self._doing[run]
        if isinstance(told, Ended):
            del self._doing[run]
            failed = None if told.error is None else self._told_of(told.error)
            self._end(doing.job, "done" if failed is None else "failed", failed)
            return
        doing.last = told
        try:
            for result in told.step.done:
                self._keep(doing, told.moved, result)
                doing.made += 1
        except Exception as error:  # a full disk, say: this job ends, others go on
            del self._doing[run]
            gathering.leave(run)
            self._end(doing.job, "failed", self._told_of(error))
            return
        self._tell(doing, told)

    def _keep(self, doing: Doing, moved: int, result: Result) -> None:
        made = self.gallery.keep(doing.job.id, moved + result.index, result)
        self.jobs.made(doing.job.id, made)
        self.hub.tell(doing.job.id, Event("picture", {"place": made.place, "partial": made.partial, **made.told}))

    def _tell(self, doing: Doing, told: Told) -> None:
        step, name = told.step, doing.job.id
        first, last = (told.moved + place for place in step.pictures)
        progress = {
            "stage": step.stage, "step": step.index, "steps": step.count, "pictures": [first, last],
            "made": doing.made, "count": doing.job.count, "notes": list(step.notes),
        }  # fmt: skip
        self.hub.tell(name, Event("progress", progress))
        now = time.monotonic()
        if step.clean is not None and now - doing.previewed > PREVIEW_SECONDS and self.hub.watched(name):
            doing.previewed = now
            try:
                for offset, array in enumerate(step.preview()):
                    self.hub.tell(name, Event("preview", {"place": first + offset, "png": _png(from_rgb(array))}))
            except Exception as error:  # only a look at it
                log.warning("job %s has no preview: %s", name, error)

    def _told_of(self, error: Exception) -> LdmError:
        return failing.told_of(error, *self.understanding.catalog.homes())

    def _end(self, job: Job, state: State, error: LdmError | None = None) -> None:
        if self.jobs.end(job.id, state, error):
            told = {"state": state} | ({} if error is None else {"error": error.as_dict()})
            self.hub.tell(job.id, Event("end", told))


def _steps(pipeline: Pipeline, request: Request, places: list[int]) -> Iterator[Told]:
    """The steps of the pictures that are missing, each in its place of the request."""
    for first, count in _spans(places):
        for step in pipeline.run(_part(request, first, count)):
            yield Told(first, step)


def _spans(places: list[int]) -> Iterator[tuple[int, int]]:
    """Places that follow each other: the first, and how many."""
    first = count = 0
    for place in places:
        if count and place == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = place, 1
    if count:
        yield first, count


def _part(request: Request, first: int, count: int) -> Request:
    """Some of its pictures: the same ones, for each is a function of its own seed."""
    if (first, count) == (0, request.count):
        return request
    varied = request.variation_seed is not None and request.variation > 0
    moved = {"variation_seed": (request.variation_seed or 0) + first} if varied else {"seed": request.seed + first}
    return request.model_copy(update={**moved, "count": count})


def _png(picture: Picture) -> bytes:
    file = io.BytesIO()
    pil(picture).save(file, "PNG")
    return file.getvalue()
