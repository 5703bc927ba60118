"""/v1/images as clients of OpenAI speak it. What such a client has no word for goes into a field `ldm`."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from app.server.api import Serving
from app.server.asking import read_as
from app.server.masks import from_alpha
from app.server.problems import STATUS
from app.server.reading import form_of, object_of
from app.server.service import Service
from app.server.store import Job
from app.server.taking import apart, taken_in
from app.server.waiting import finished
from ldm.errors import Code, LdmError

router = APIRouter(prefix="/v1/images", tags=["as OpenAI's"])
AS_IT_IS = ("auto", "standard", "medium", "opaque", "natural")  # words that ask for nothing
PART = re.compile(r"\[(\w+)\]")


class Asked(BaseModel):
    """The fields of both calls; `ldm` holds fields of ours, which go over all others."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    response_format: str | None = None
    output_format: str | None = None
    stream: bool | None = None
    partial_images: int | None = None
    user: str | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    input_fidelity: str | None = None
    output_compression: int | None = None
    ldm: dict[str, Any] | None = None


@router.post("/generations", summary="Pictures of a prompt, as OpenAI's clients ask for them")
async def generations(request: Request, service: Serving) -> JSONResponse:
    try:
        async with taken_in(request):
            asked = _asked(await apart(request, object_of, await request.body()))
        return await _answer(service, request, asked, _fields(asked))
    except LdmError as error:
        return _failed(error)


@router.post("/edits", summary="A picture painted anew where its mask is transparent, as OpenAI's clients ask for it")
async def edits(request: Request, service: Serving) -> JSONResponse:
    """The whole picture changes where neither it nor a mask is transparent."""
    try:
        async with taken_in(request):
            texts, files = await form_of(request)
            asked = _asked(_nested(texts))
            fields = await apart(request, _pictures, service, files) | _fields(asked)
        return await _answer(service, request, asked, fields)
    except LdmError as error:
        return _failed(error)


def _pictures(service: Service, files: Mapping[str, list[bytes]]) -> dict[str, Any]:
    """Picture and mask of an edit: what is transparent is painted."""
    images = [data for name in ("image", "image[]") for data in files.get(name, ())]
    if len(images) != 1:
        why = "One picture is edited at a time."
        raise LdmError(Code.USAGE, f"The form has {len(images)} pictures.", why, "Send one as image.")
    image = service.uploads.add(images[0]).id
    mask = from_alpha(service.uploads, service.uploads.add(files["mask"][0]).id if "mask" in files else image)
    if mask is None and "mask" in files:
        why = "It paints where it is transparent, and it nowhere is."
        raise LdmError(Code.USAGE, "The mask has no transparent part.", why, "Erase what is to be painted.")
    return {"image": image} | ({} if mask is None else {"mask": mask, "strength": 1.0})


def _asked(given: Mapping[str, Any]) -> Asked:
    asked = read_as(Asked, given)
    for name in ("quality", "style", "background"):
        value = getattr(asked, name)
        if value is not None and value not in AS_IT_IS:
            why = "Nothing here acts on that, and a field that was set acts or is refused."
            raise LdmError(Code.USAGE, f"{name} {value!r} is not understood.", why, f"Leave {name} out.")
    if asked.stream or asked.partial_images:
        why = "Pictures come whole; how a job goes on is told at /v1/jobs/ID/events."
        raise LdmError(Code.USAGE, "stream is not spoken here.", why, "Leave it out.")
    if asked.output_format not in (None, "png"):
        raise LdmError(Code.USAGE, f"{asked.output_format!r} is not written here.", "Pictures are PNG.", "Ask for png.")
    if asked.response_format not in (None, "url", "b64_json"):
        why = "It is url or b64_json."
        raise LdmError(Code.USAGE, f"response_format {asked.response_format!r} is unknown.", why, "Ask for b64_json.")
    return asked


def _nested(texts: Mapping[str, str]) -> dict[str, Any]:
    """`ldm[guidance][scale]=3`, as those clients write what is inside of another, or `ldm={...}`."""
    made: dict[str, Any] = {}
    for name, text in texts.items():
        first, rest = name.partition("[")[0], PART.findall(name)
        value: Any = text
        if first == "ldm":
            try:
                value = json.loads(text)
            except ValueError:
                value = text
        at = made
        for key in (path := [first, *rest])[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    return made


def _fields(asked: Asked) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": asked.prompt}
    fields |= {name: value for name, value in (("model", asked.model), ("count", asked.n)) if value is not None}
    if asked.size not in (None, "auto"):
        width, _, height = str(asked.size).partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise LdmError(Code.USAGE, f"size {asked.size!r} is none.", "It is WIDTHxHEIGHT or auto.", "Write 512x512.")
        fields |= {"width": int(width[:6]), "height": int(height[:6])}
    return fields | (asked.ldm or {})


async def _answer(service: Service, request: Request, asked: Asked, fields: Mapping[str, Any]) -> JSONResponse:
    job = await finished(service, fields, request)
    told = await run_in_threadpool(_told, service, job, asked.response_format == "url", str(request.base_url))
    return JSONResponse({"created": int(time.time()), "data": told, "output_format": "png", "job": job.id})


def _told(service: Service, job: Job, by_address: bool, base: str) -> list[dict[str, Any]]:
    made = []
    for picture in job.pictures:
        if by_address:
            where = {"url": f"{base}v1/jobs/{job.id}/pictures/{picture.place}"}
        else:
            data = service.gallery.path(job, picture.place).read_bytes()
            where = {"b64_json": base64.b64encode(data).decode()}
        made.append({**where, "seed": picture.told.get("seed")})
    return made


def _failed(error: LdmError) -> JSONResponse:
    """As those clients read it."""
    status = STATUS[error.code]
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = f"{error.what} {error.why} {error.fix}"
    told = {"message": message, "type": kind, "param": None, "code": error.code.name.lower()}
    return JSONResponse({"error": told}, 400 if status == 422 else status)
