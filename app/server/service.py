"""Everything that a server can do, without HTTP: the page and every API are doors to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.server.asking import Understanding
from app.server.catalog import Catalog
from app.server.converting import Conversions
from app.server.decoding import Decoder
from app.server.dispatcher import Dispatcher
from app.server.gallery import Gallery
from app.server.grids import Grids
from app.server.hub import Event, Hub
from app.server.importing import Imports
from app.server.learning.trainings import Trainings
from app.server.library import Library, sweep_library
from app.server.limits import Limits
from app.server.pictures import Pictures
from app.server.ranking import Rankings
from app.server.replica import Plan
from app.server.store import Job, Jobs
from app.server.uploads import Uploads
from app.server.worker import Worker
from ldm.errors import Code, LdmError
from train.lock import Lock

if TYPE_CHECKING:
    from app.server.crew import RayCrew
    from app.server.together import Together

JOBS, PICTURES, UPLOADS = "jobs.sqlite", "pictures", "uploads"  # in the folder of a server
MODELS, ADAPTERS = "models", "adapters"  # there too: what callers brought, and what was made here
TRAININGS = "trainings"
SECONDS = 5.0  # that a job is thought to take, before any has been made


@dataclass(frozen=True)
class Service:
    """Every method may be called from any thread; none waits for a model."""

    limits: Limits
    catalog: Catalog
    uploads: Uploads
    jobs: Jobs
    gallery: Gallery
    hub: Hub
    understanding: Understanding
    worker: Worker | Dispatcher
    trainings: Trainings
    pictures: Pictures
    grids: Grids
    library: Library
    imports: Imports
    conversions: Conversions
    choices: dict[str, str] = field(default_factory=dict)  # of callers whose dialect has settings between calls
    rankings: Rankings = field(default_factory=Rankings)
    comparisons: Path | None = None  # the folder that `ldm compare` writes its own into

    def submit(self, given: Mapping[str, Any], client: str) -> Job:
        """A request that is understood, in the queue."""
        self.check_alive()
        told = self.understanding(given)
        job = self.jobs.submit(client, told.kind, told.asked, told.request.count, told.work)
        self.worker.wake()
        return job

    def check_alive(self) -> None:
        """Whether anything can be made."""
        if not self.worker.alive:
            why = "Its worker has ended; its log says why."
            raise LdmError(
                Code.RESOURCE, "Nothing can be made now.", why, "Whoever runs the server may start it again."
            )

    def cancel(self, name: str, keep: bool = True) -> Job:
        """Ends a job; what has ended stays as it is. With `keep`, pictures under way are kept as far as they are."""
        while (job := self.jobs.job(name)).state in ("queued", "running"):  # it may become the other one meanwhile
            if self.jobs.withdraw(name):
                self.hub.tell(name, Event("end", {"state": "cancelled"}))
            elif self.jobs.unwanted(name):
                self.worker.cancel(name, keep)
                return self.jobs.job(name)
        return job

    def seconds(self) -> float:
        """What a job took, of those that ended last."""
        ended = [job for job in self.jobs.list(("done",), 20) if job.started and job.ended]
        return sum((job.ended or 0) - (job.started or 0) for job in ended) / len(ended) if ended else SECONDS

    def told(self, job: Job) -> dict[str, Any]:
        """A job as JSON; pictures by the addresses that they have here."""
        home = f"/v1/jobs/{job.id}"
        told: dict[str, Any] = {
            "id": job.id, "state": job.state, "request": dict(job.asked), "count": job.count,
            "created": job.created, "started": job.started, "ended": job.ended,
            "pictures": [
                {"place": made.place, "url": f"{home}/pictures/{made.place}", "partial": made.partial, **made.told}
                for made in job.pictures
            ],
        }  # fmt: skip
        if job.state == "queued":
            told["ahead"] = self.jobs.ahead(job.id)
        if job.state == "running" and (progress := self.hub.last(job.id)) is not None:
            told["progress"] = dict(progress)
        return told | ({} if job.error is None else {"error": dict(job.error)})


@contextmanager
def opened(
    folder: Path,
    limits: Limits,
    *,
    models: Path | None = None,
    adapters: Path | None = None,
    compare: Path | None = None,
    memory: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    replicas: Callable[[Plan, Path], RayCrew] | None = None,
) -> Iterator[Service]:
    """A service with its worker, or with `replicas` in its place; one at a time in a folder. What ran when the last one
    ended is queued again."""
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(Lock(folder))
        except LdmError as error:
            if error.code is not Code.BUSY:
                raise
            why = "One server at a time keeps its jobs and pictures there."
            raise LdmError(Code.BUSY, error.what, why, "Stop it first, or choose another --out.") from error
        sweep(folder / PICTURES, folder / UPLOADS)
        sweep_library(folder)
        jobs = Jobs(folder / JOBS, limits.waiting)
        stack.callback(jobs.close)
        jobs.again()
        decoder = Decoder(limits.input_pixels)
        stack.callback(decoder.close)
        catalog = Catalog(models, adapters, folder / MODELS, folder / ADAPTERS)
        uploads, hub = Uploads(folder / UPLOADS, decoder, limits.stored), Hub()
        understanding = Understanding(catalog, uploads, limits)
        gallery = Gallery(folder / PICTURES)
        pictures, grids = Pictures(jobs, gallery), Grids(jobs, understanding)
        library = Library(folder, catalog, limits)
        conversions = Conversions(library)
        stack.callback(conversions.stop)

        def together() -> Together:
            from app.server.shelf import Shelf
            from app.server.together import Together

            shelf = Shelf(memory, device, dtype)
            return Together(jobs, understanding, shelf, gallery, hub)

        worker: Worker | Dispatcher = Worker(jobs, together)
        if replicas is not None:
            seen = tuple(None if home is None else home.resolve() for home in catalog.folders)
            crew = replicas(Plan(seen, memory, device, dtype, limits), folder)
            stack.callback(crew.end)
            worker = Dispatcher(jobs, gallery, hub, uploads, crew.begin)
        worker.start()
        stack.callback(worker.stop)
        trainings = Trainings(folder / TRAININGS, folder / ADAPTERS, catalog, uploads, limits, device)
        trainings.start()
        stack.callback(trainings.stop)
        yield Service(
            limits, catalog, uploads, jobs, gallery, hub, understanding, worker, trainings, pictures, grids, library,
            Imports(library, limits.imports), conversions, comparisons=compare,
        )  # fmt: skip


def sweep(*folders: Path) -> None:
    """Removes what a kill in the middle of writing left: nobody else writes here."""
    for folder in folders:
        for path in folder.glob(".ldm-*.tmp"):
            path.unlink(missing_ok=True)


async def waited(service: Service, name: str, seconds: float) -> Job:
    """The job when it has ended, or as it is after these seconds."""
    until = time.monotonic() + seconds
    with service.hub.listener(name) as listener:
        job = await asyncio.to_thread(service.jobs.job, name)
        while job.state in ("queued", "running") and (left := until - time.monotonic()) > 0:
            if (event := await listener.next(left)) is not None and event.kind == "end":
                break
        return await asyncio.to_thread(service.jobs.job, name)
