"""/v1: the pictures of all jobs, and the trash."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.server.api import Serving
from app.server.pictures import Search

router = APIRouter(prefix="/v1", tags=["pictures"])
LONGEST = 300  # characters of a search


@router.get("/pictures", summary="Pictures of all jobs, the newest first")
def listed(
    service: Serving,
    query: Annotated[str, Query(max_length=LONGEST)] = "",
    model: str | None = None,
    trash: bool = False,
    partial: bool | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 60,
    before: str | None = None,
) -> dict[str, Any]:
    """Every word of `query` occurs in the prompt, "two words" in quotes as one; `before` is JOB/PLACE of the last one
    that was shown; `trash` shows what was thrown away instead."""
    return service.pictures.search(Search(query, model, trash, partial, limit, before))


@router.delete("/jobs/{job}/pictures/{place}", summary="Throw a picture away")
def thrown(service: Serving, job: str, place: int) -> dict[str, Any]:
    """Its file stays until the trash is emptied."""
    return service.pictures.throw(job, place)


@router.post("/jobs/{job}/pictures/{place}/restore", summary="Take a picture back")
def restored(service: Serving, job: str, place: int) -> dict[str, Any]:
    """Out of the trash."""
    return service.pictures.restore(job, place)


@router.delete("/trash", summary="Remove what is in the trash, for good")
def emptied(service: Serving) -> dict[str, Any]:
    """Answers how many pictures that were."""
    return {"removed": service.pictures.empty()}


@router.get("/jobs/{job}/pictures/{place}/recipe", summary="How a picture was made")
def recipe(service: Serving, job: str, place: int) -> dict[str, Any]:
    """`recipe` is what its file says; `asked` is the request that makes this picture alone."""
    return service.pictures.recipe(job, place)
