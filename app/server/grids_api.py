"""/v1/grids: what a comparison would take, the comparison as it goes on, and its sheet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app.server.api import Serving
from app.server.axes import AskedGrid, read
from app.server.bodies import json_of
from app.server.grids import OPEN
from app.server.reading import asked_of, client_of
from app.server.service import Service
from app.server.taking import apart, beside, taken_in
from ldm.errors import Code, LdmError

router = APIRouter(prefix="/v1/grids", tags=["grids"])


@router.post("", summary="Compare settings at the same noise", openapi_extra=json_of(AskedGrid))
async def submit(request: Request, service: Serving) -> JSONResponse:
    """`dry`, as it is if nothing is said, only tells what it takes. `request` is one of /v1/jobs; an axis has `field`,
    the dotted name of a field of it (`steps`, `guidance.scale`, `loras.0.weight`), and its `values`; with `replace`
    each value stands for that word of the prompt. One cell that is wrong refuses all."""
    async with taken_in(request):
        given = await asked_of(request, service.uploads)
        told = await apart(request, _asked, service, given, client_of(request))
    if "id" not in told:
        return JSONResponse(told)
    return JSONResponse(told, 201, {"Location": f"/v1/grids/{told['id']}"})


@router.get("", summary="Grids, the newest first")
def listed(
    service: Serving, limit: Annotated[int, Query(ge=1, le=200)] = 60, before: str | None = None
) -> dict[str, Any]:
    """`before` is the id of the last one that was shown."""
    return {"grids": service.grids.list(limit, before)}


@router.get("/{grid}", summary="A grid as it goes on")
def shown(service: Serving, grid: str) -> dict[str, Any]:
    """`x`, `y` and `z` of a cell are places in the values of the axes, 0 where there is none."""
    return service.grids.told(grid)


@router.post("/{grid}/cancel", summary="End a grid")
def cancelled(service: Serving, grid: str, keep: bool = True) -> dict[str, Any]:
    """What is made stays; `keep`: pictures under way are kept as far as they are."""
    for job in service.grids.withdraw(grid):
        service.cancel(job, keep)
    return service.grids.told(grid)


@router.get("/{grid}/sheet", summary="All pictures of a grid, as one PNG with labels")
async def sheet(request: Request, service: Serving, grid: str) -> Response:
    """When all cells have ended."""
    return Response(await beside(request, _sheet, service, grid), media_type="image/png")


def _asked(service: Service, given: Mapping[str, Any], client: str) -> dict[str, Any]:
    asked = service.grids.brought(read(given))
    cells = service.grids.plan(asked)
    if asked.dry:
        return service.grids.bill(cells)
    service.check_alive()
    grid = service.grids.submit(asked, cells, client)
    service.worker.wake()
    return service.grids.told(grid.id)


def _sheet(service: Service, name: str) -> bytes:
    from app.server.sheets import sheet

    told = service.grids.told(name)
    cells = told["cells"]
    if left := sum(cell["state"] in OPEN for cell in cells):
        why = f"{left} of its {len(cells)} cells are still to come."
        raise LdmError(Code.DIFFERENT, f"Grid {name} is not done.", why, "Ask again later, or end it.")
    paths = [_path(service, cell["job"]) if cell["state"] == "done" and cell["url"] else None for cell in cells]
    return sheet(service.grids.grid(name).axes, cells, paths)


def _path(service: Service, job: str) -> Path | None:
    """Of a picture that nobody has removed."""
    try:
        return service.gallery.path(service.jobs.job(job), 0)
    except LdmError:
        return None
