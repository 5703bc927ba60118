"""/v1 beside jobs: what somebody who fills in a request wants to know before, and of pictures that are there."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.server import hints, options, ranking, recipes, words
from app.server.api import Serving
from app.server.asking import Ask
from app.server.bodies import PICTURE, json_of
from app.server.reading import file_of, object_of
from app.server.taking import alone, apart, beside, taken_in

router = APIRouter(prefix="/v1")
HINT, ASKED = json_of(hints.AskedHint), json_of(Ask)


@router.post("/tokens", tags=["beside"], summary="How long a prompt is for a model", openapi_extra=ASKED)
async def tokens(request: Request, service: Serving) -> dict[str, Any]:
    """Of a job's fields those that say what is read: tokens, windows, and the words that fall outside."""
    async with taken_in(request):
        given = object_of(await request.body())
    return await beside(request, words.tokens, service, given, line="words")


@router.post("/recipes", tags=["beside"], summary="The recipe in a picture, as a request", openapi_extra=PICTURE)
async def recipe(request: Request, service: Serving) -> dict[str, Any]:
    """Of pictures made here, by A1111 or by ComfyUI; `notes` tell what could not be taken over."""
    async with taken_in(request):
        file = await file_of(request)
        return await beside(request, recipes.recipe, service, file)


@router.get("/hints", tags=["beside"], summary="Detectors, and which of them each control was made for")
def detectors(service: Serving) -> dict[str, Any]:
    """`controls` tells null where the name of a control does not say it."""
    return {"hints": hints.hints(service), "controls": hints.controls(service)}


@router.post("/hints", tags=["beside"], summary="What a control would see of a picture", openapi_extra=HINT)
async def hint(request: Request, service: Serving) -> Response:
    """A PNG of the size that would be drawn."""
    async with taken_in(request):
        given = await apart(request, object_of, await request.body())
        seen = await beside(request, hints.seen, service, given)
    return Response(seen, media_type="image/png")


@router.get("/options", tags=["beside"], summary="What there is to choose from, and what each model is given by itself")
def choices(service: Serving) -> dict[str, Any]:
    """`defaults` of a request that says nothing; `adapters` lists what some of them ask for instead."""
    return options.options(service)


@router.post("/jobs/{job}/ranking", tags=["jobs"], summary="The pictures of a job, the one most like its prompt first")
async def ranked(request: Request, service: Serving, job: str, ranker: str | None = None) -> dict[str, Any]:
    """`ranker` names a CLIP; by itself the one that ships with the model is asked."""
    return await alone(request, ranking.ranking, service, job, ranker)
