"""/v1: jobs, their events and pictures, uploads, and what there is to make pictures with."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.server.asking import Ask
from app.server.bodies import FILE, PICTURE, body_of, schema_of
from app.server.reading import asked_of, client_of, picture_of
from app.server.service import Service, waited
from app.server.store import Job, State
from app.server.streaming import event, until_end
from app.server.taking import apart, taken_in
from ldm.errors import Code, LdmError

LONGEST_WAIT = 60.0  # seconds that a result is waited for
CHUNK = 1 << 16


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix="/v1")
FORM = {
    "type": "object",
    "description": "The request as JSON in `request`; pictures in parts named image, mask, controls.0.image, ...",
    "properties": {"request": {"type": "string"}, "image": FILE},
}
BODY = body_of({"application/json": schema_of(Ask), "multipart/form-data": FORM})


@router.post("/jobs", status_code=202, tags=["jobs"], summary="Ask for pictures", openapi_extra=BODY)
async def submit(request: Request, service: Serving) -> JSONResponse:
    """Answers at once; the pictures come in their turn."""
    async with taken_in(request):
        given = await asked_of(request, service.uploads)
        job = await apart(request, service.submit, given, client_of(request))
    told = await run_in_threadpool(service.told, job)
    return JSONResponse(told, 202, {"Location": f"/v1/jobs/{job.id}"})


@router.get("/jobs", tags=["jobs"], summary="Jobs, the newest first")
def listed(
    service: Serving,
    state: Annotated[list[State] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 100,
    before: str | None = None,
) -> dict[str, Any]:
    """`before` is the id of the last one that was shown."""
    jobs = service.jobs.list(tuple(state or ()), limit, before)
    return {"jobs": [service.told(job) for job in jobs], "counts": service.jobs.counts()}


@router.get("/jobs/{job}", tags=["jobs"], summary="A job")
def shown(service: Serving, job: str) -> dict[str, Any]:
    return service.told(service.jobs.job(job))


@router.get("/jobs/{job}/events", tags=["jobs"], summary="How a job goes on, as server-sent events")
async def events(service: Serving, job: str, previews: bool = False) -> StreamingResponse:
    """`job` first, then `progress`, `preview` (where asked for), `picture`, and at last `end`."""
    await run_in_threadpool(service.jobs.job, job)
    return StreamingResponse(_events(service, job, previews), media_type="text/event-stream")


@router.post("/jobs/{job}/cancel", tags=["jobs"], summary="End a job")
def cancelled(service: Serving, job: str, keep: bool = True) -> dict[str, Any]:
    """Before its next step; `keep`: pictures under way are kept as far as they are."""
    return service.told(service.cancel(job, keep))


@router.get("/jobs/{job}/result", tags=["jobs"], summary="What came of a job: a PNG, or a ZIP of several")
async def result(service: Serving, job: str, wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT)] = 0.0) -> Response:
    """Waits up to `wait` seconds for its end."""
    ended = await waited(service, job, wait)
    if ended.state in ("queued", "running"):
        what, why = f"Job {ended.id} is not done.", f"It is {ended.state}."
        raise LdmError(Code.DIFFERENT, what, why, "Ask again later, or with wait=60.")
    if not ended.pictures:
        if (failure := ended.failure) is not None:
            raise failure
        why = "Its pictures were thrown away." if ended.away else "It has no picture."
        what = f"Job {ended.id} was {ended.state}."
        raise LdmError(Code.FILE, what, why, "Ask for it again.")
    if len(ended.pictures) == 1:
        return _png(service, ended, ended.pictures[0].place)
    paths = [service.gallery.path(ended, made.place) for made in ended.pictures]
    return StreamingResponse(_zipped(paths), media_type="application/zip")


@router.get("/jobs/{job}/pictures/{place}", tags=["jobs"], summary="A picture, with its recipe inside")
def picture(service: Serving, job: str, place: int) -> FileResponse:
    return _png(service, service.jobs.job(job), place)


@router.post("/uploads", status_code=201, tags=["pictures"], summary="Bring a picture", openapi_extra=PICTURE)
async def upload(request: Request, service: Serving) -> dict[str, Any]:
    """Its id stands for it in requests."""
    async with taken_in(request):
        kept = await picture_of(request, service.uploads)
    return {"id": kept.id, "width": kept.width, "height": kept.height}


@router.get("/limits", tags=["here"], summary="What is done for one caller at most")
def limits(service: Serving) -> dict[str, Any]:
    return service.limits.model_dump()


def _png(service: Service, job: Job, place: int) -> FileResponse:
    path = service.gallery.path(job, place)
    return FileResponse(path, media_type="image/png", filename=path.name, content_disposition_type="inline")


def _zipped(paths: Sequence[Path]) -> Iterator[bytes]:
    """All pictures of a job; the file has no name, so that nothing is left of it."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in paths:
                archive.write(path, path.name)
        file.seek(0)
        yield from _chunks(file)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


async def _events(service: Service, name: str, previews: bool) -> AsyncIterator[str]:
    with service.hub.listener(name, previews) as listener:  # before the first look, so that nothing falls between
        job = await run_in_threadpool(service.jobs.job, name)
        yield event("job", await run_in_threadpool(service.told, job))
        if job.state not in ("queued", "running"):
            yield event("end", {"state": job.state} | ({} if job.error is None else {"error": dict(job.error)}))
            return
        async for each in until_end(listener):
            yield each
