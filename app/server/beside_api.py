"""/v1 beside jobs: what somebody who fills in a request wants to know before, and of pictures that are there."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from app.server import recipes, words
from app.server.api import PICTURE_BODY, Serving
from app.server.asking import Ask
from app.server.reading import file_of, object_of
from app.server.taking import apart, taken_in

router = APIRouter(prefix="/v1")


def json_of(schema: dict[str, Any]) -> dict[str, Any]:
    """A body, as OpenAPI tells it."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


ASKED = json_of(Ask.model_json_schema(ref_template="#/components/schemas/{model}"))


@router.post("/tokens", tags=["beside"], summary="How long a prompt is for a model", openapi_extra=ASKED)
async def tokens(request: Request, service: Serving) -> dict[str, Any]:
    """Of a job's fields those that say what is read: tokens, windows, and the words that fall outside."""
    async with taken_in(request):
        given = object_of(await request.body())
    return await run_in_threadpool(words.tokens, service, given)


@router.post("/recipes", tags=["beside"], summary="The recipe in a picture, as a request", openapi_extra=PICTURE_BODY)
async def recipe(request: Request, service: Serving) -> dict[str, Any]:
    """Of pictures made here, by A1111 or by ComfyUI; `notes` tell what could not be taken over."""
    async with taken_in(request):
        return await apart(request, recipes.recipe, service, await file_of(request))
