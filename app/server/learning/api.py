"""/v1/trainings: a subject from a few photos, from the plan to the report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from threading import Event as Flag
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.server.api import Serving
from app.server.asking import read_as
from app.server.bodies import json_of
from app.server.learning.asking import AskTraining
from app.server.learning.record import ENDED
from app.server.learning.telling import end_of
from app.server.reading import asked_of
from app.server.service import Service
from app.server.streaming import event, until_end
from app.server.taking import GoneError, apart, left, taken_in

router = APIRouter(prefix="/v1", tags=["trainings"])
BODY = json_of(AskTraining)
# A report is a page of ours with words of callers in it: it may show itself, and nothing more.
ALONE = {
    "content-security-policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
}


@router.post("/trainings", status_code=202, summary="Learn a subject from photos, or plan it", openapi_extra=BODY)
async def begin(request: Request, service: Serving) -> JSONResponse:
    """With `dry` true nothing is trained: 200 with steps, findings, notes and cost, after some seconds."""
    async with taken_in(request):
        given = await asked_of(request, service.uploads)
        if not read_as(AskTraining, given).dry:
            record = await apart(request, service.trainings.submit, given)
            told = await run_in_threadpool(service.trainings.told, record.id)
            return JSONResponse(told, 202, {"Location": f"/v1/trainings/{record.id}"})
    return JSONResponse(await _planned(request, service, given))


@router.get("/trainings", summary="Trainings, the newest first")
def listed(service: Serving) -> dict[str, Any]:
    """Without their curves and samples."""
    return {"trainings": service.trainings.listed()}


@router.get("/trainings/{training}", summary="A training")
def shown(service: Serving, training: str) -> dict[str, Any]:
    return service.trainings.told(training)


@router.get("/trainings/{training}/events", summary="How a training goes on, as server-sent events")
async def events(service: Serving, training: str) -> StreamingResponse:
    """`state` first and at each change, `progress` at most twice a second, `measured`, and at last `end`."""
    await run_in_threadpool(service.trainings.training, training)
    return StreamingResponse(_events(service, training), media_type="text/event-stream")


@router.post("/trainings/{training}/cancel", summary="End a training; it may be gone on with")
def cancelled(service: Serving, training: str) -> dict[str, Any]:
    """What was learned is saved first, so it takes some seconds until its state is `cancelled`."""
    service.trainings.cancel(training)
    return service.trainings.told(training)


@router.post("/trainings/{training}/resume", status_code=202, summary="Go on with a training")
def resumed(service: Serving, training: str) -> dict[str, Any]:
    """From what was saved last."""
    service.trainings.resume(training)
    return service.trainings.told(training)


@router.delete("/trainings/{training}", status_code=204, summary="Forget a training that has ended")
def forgotten(service: Serving, training: str) -> Response:
    """Its folder goes to the trash of the server; its adapter stays."""
    service.trainings.forget(training)
    return Response(status_code=204)


@router.get("/trainings/{training}/report", summary="What a training brought, as a page")
def report(service: Serving, training: str) -> HTMLResponse:
    """Also of one that is under way, as soon as it was measured once."""
    return HTMLResponse(service.trainings.report(training).read_text("utf-8"), headers=ALONE)


@router.get("/trainings/{training}/samples/{step}/{number}", summary="A picture that a training was judged by")
def sample(service: Serving, training: str, step: int, number: int) -> FileResponse:
    """Those of step 0 are of the model before."""
    return FileResponse(service.trainings.sample(training, step, number), media_type="image/png")


async def _planned(request: Request, service: Service, given: Mapping[str, Any]) -> dict[str, Any]:
    """Who leaves needs no plan."""
    gone = Flag()
    plan = asyncio.ensure_future(run_in_threadpool(service.trainings.plan, given, gone))
    leaves = asyncio.ensure_future(left(request))
    both: set[asyncio.Future[Any]] = {plan, leaves}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not plan.done():
            gone.set()
            await asyncio.wait({plan})
            plan.exception()
            raise GoneError
        return plan.result()
    finally:
        gone.set()
        leaves.cancel()


async def _events(service: Service, name: str) -> AsyncIterator[str]:
    trainings = service.trainings
    with trainings.hub.listener(name) as listener:  # before the first look, so that nothing falls between
        yield event("state", await run_in_threadpool(trainings.told, name))
        record = await run_in_threadpool(trainings.training, name)
        if record.state in ENDED:
            yield event("end", end_of(record))
            return
        async for each in until_end(listener):
            yield each
