"""/v1: what there is to make pictures with, what each of it is, and how more of it comes here or goes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.server.about import about_adapter, about_control, about_model, listed, listed_adapter, listed_model
from app.server.api import Serving
from app.server.asking import Named, Strict, read_as
from app.server.bodies import FILE, FORM, body_of, json_of
from app.server.catalog import brief_of
from app.server.fitting import fits
from app.server.reading import object_of
from app.server.service import Service
from app.server.taking import GoneError, apart, beside, taken_in
from ldm.errors import Code, LdmError

router = APIRouter(prefix="/v1", tags=["here"])


class AskedConversion(Strict):
    """`name` of the result; else that of the model, with -2 behind it where it is taken."""

    model: Named
    to: Literal["folder", "file"]
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None


IMPORT_BODY = body_of({"application/octet-stream": FILE, "multipart/form-data": FORM})


@router.get("/models", summary="Models, and the controls that fit each")
def models(service: Serving) -> dict[str, Any]:
    """`object`, `data` and the `id` of each are for clients of OpenAI."""
    catalog = service.catalog
    return {"object": "list", "data": [listed_model(catalog, *found) for found in catalog.models().items()]}


@router.get("/models/{name:path}", summary="A model")
def model(service: Serving, name: str) -> dict[str, Any]:
    try:
        return listed_model(service.catalog, name, service.catalog.model(name))
    except LdmError as error:
        raise LdmError(Code.FILE, error.what, error.why, error.fix) from error


@router.get("/adapters", summary="Adapters and embeddings")
def adapters(service: Serving) -> dict[str, Any]:
    """`model` is the one here that it was made for; `base` is what that one was called where it was made."""
    catalog = service.catalog
    return {"adapters": [listed_adapter(catalog, *found) for found in catalog.adapters().items()]}


@router.get("/controls", summary="Controls")
def controls(service: Serving) -> dict[str, Any]:
    catalog = service.catalog
    return {"controls": [{"name": name, **listed(catalog, name, path)} for name, path in catalog.controls().items()]}


@router.get("/about", summary="What a model, an adapter or a control is, from its headers")
async def about(
    request: Request, service: Serving, model: str | None = None, adapter: str | None = None, control: str | None = None
) -> dict[str, Any]:
    """Give one of the three: ?model=NAME, ?adapter=NAME, ?control=NAME."""
    asked = [
        (tell, name)
        for tell, name in ((about_model, model), (about_adapter, adapter), (about_control, control))
        if name is not None
    ]
    if len(asked) != 1:
        why = "It takes one name: of a model, an adapter or a control."
        raise LdmError(Code.USAGE, f"{len(asked)} names are given.", why, "Ask for /v1/about?model=NAME.")
    tell, name = asked[0]
    return await beside(request, _found, tell, service.catalog, name)


def _found(tell: Any, catalog: Any, name: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = tell(catalog, name)
    except LdmError as error:
        code = Code.FILE if error.code is Code.USAGE else error.code
        raise LdmError(code, error.what, error.why, error.fix) from error
    return told


@router.post("/imports", status_code=201, summary="Bring a model or an adapter", openapi_extra=IMPORT_BODY)
async def brought(
    request: Request, service: Serving, name: Annotated[str | None, Query(max_length=1000)] = None
) -> dict[str, Any]:
    """A .safetensors file as the body, or as the one file of a form: a LoRA, an embedding, a control, or a model."""
    try:
        kept, path = await service.imports.take(request, name)
    except ClientDisconnect as error:
        raise GoneError from error
    return await apart(request, _kept, service, kept, path)


def _kept(service: Service, name: str, path: Any) -> dict[str, Any]:
    told = brief_of(path)
    fitting = [fit.model for fit in fits(path, service.catalog.models()) if fit.fits]
    return {"name": name, "kind": told.kind, "family": told.family, "size": told.size, "fits": fitting}


@router.delete("/models/{name:path}", summary="Put a model that was brought here into the trash")
def remove_model(service: Serving, name: str) -> dict[str, str]:
    return {"name": name, "trash": service.library.remove("model", name)}


@router.delete("/adapters/{name}", summary="Put an adapter that was brought or trained here into the trash")
def remove_adapter(service: Serving, name: str) -> dict[str, str]:
    return {"name": name, "trash": service.library.remove("adapter", name)}


@router.delete("/controls/{name}", summary="Put a control that was brought here into the trash")
def remove_control(service: Serving, name: str) -> dict[str, str]:
    return {"name": name, "trash": service.library.remove("control", name)}


@router.post(
    "/conversions",
    status_code=202,
    summary="Make a file of a model folder, or back",
    openapi_extra=json_of(AskedConversion),
)
async def convert(request: Request, service: Serving) -> dict[str, Any]:
    """Answers at once; the result is listed among the models when it is done."""
    async with taken_in(request):
        given = object_of(await request.body())
    asked = read_as(AskedConversion, given)
    started = await run_in_threadpool(service.conversions.start, asked.model, asked.to, asked.name)
    return started.as_dict()


@router.get("/conversions", summary="Conversions since the server started, the newest first")
def conversions(service: Serving) -> dict[str, Any]:
    return {"conversions": [one.as_dict() for one in service.conversions.list()]}
