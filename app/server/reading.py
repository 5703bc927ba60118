"""The body of a request: JSON, or a form of JSON and files."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from app.server.guard import RefusedError
from app.server.taking import apart
from app.server.uploads import Upload, Uploads
from ldm.errors import Code, LdmError

PART = "request"  # of a form: the request as JSON; the other parts are pictures, named by where they belong
FILES, FIELDS = 16, 16  # parts of a form


async def asked_of(request: Request, uploads: Uploads) -> dict[str, Any]:
    """The request that a body holds, its pictures uploaded on the way."""
    kind = _kind(request)
    if kind == "application/json":
        return await apart(request, object_of, await request.body())
    if kind != "multipart/form-data":
        raise _unread(kind, "application/json or multipart/form-data")
    texts, files = await form_of(request)
    told = [*files.pop(PART, ()), *([texts.pop(PART).encode()] if PART in texts else ())]
    given = await apart(request, object_of, told[0]) if told else {}
    if texts:
        what, why = f"The part {next(iter(texts))[:40]!r} is no file.", f"A form has one part {PART!r}, and files."
        raise LdmError(Code.USAGE, what, why, f"Put it into {PART!r}, as JSON.")
    for name, several in files.items():
        if len(several) != 1:
            what, why = f"The form has {len(several)} files {name[:40]!r}.", "One picture belongs in each place."
            raise LdmError(Code.USAGE, what, why, "Send one.")
        place, key = _place(given, name)
        place[key] = (await apart(request, uploads.add, several[0])).id
    return given


async def picture_of(request: Request, uploads: Uploads) -> Upload:
    """The one picture of a body."""
    return await apart(request, uploads.add, await file_of(request))


async def file_of(request: Request) -> bytes:
    """The one picture of a body as it came: the body itself, or the file of a form."""
    kind = _kind(request)
    if kind == "multipart/form-data":
        files = [data for several in (await form_of(request))[1].values() for data in several]
        if len(files) != 1:
            why = "One picture is taken at a time."
            raise LdmError(Code.USAGE, f"The form has {len(files)} files.", why, "Send one file.")
        return files[0]
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise _unread(kind, "a picture (image/png, ...) or multipart/form-data")
    return await request.body()


async def form_of(request: Request) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """The texts of a form by name, and its files, of which several may have one name."""
    if (kind := _kind(request)) != "multipart/form-data":
        raise _unread(kind, "multipart/form-data")
    texts, files = dict[str, str](), dict[str, list[bytes]]()
    for name, value in (await _form(request)).multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name, []).append(await value.read())
        else:
            texts[name] = value
    return texts, files


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=FILES, max_fields=FIELDS, max_part_size=1 << 20)
    except HTTPException as error:
        said = str(error.detail).rstrip(".")
        raise LdmError(Code.USAGE, "The form cannot be read.", f"{said}.", "Send fewer parts, or JSON.") from error


def _place(given: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Where a file belongs: `image`, `mask`, or `controls.0.image`."""
    *path, key = name.split(".")
    at: Any = given
    try:
        for part in path:
            at = at[int(part) if isinstance(at, list) else part]
        if key not in ("image", "mask") or not isinstance(at, dict):
            raise KeyError(key)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        why = "A file is called image, mask, controls.0.image or controls.0.mask."
        fix = "Name it after the place in the request where it belongs."
        raise LdmError(Code.USAGE, f"There is no place for the file {name[:40]!r}.", why, fix) from error
    return at, key


def object_of(data: bytes) -> dict[str, Any]:
    try:
        told = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise LdmError(Code.USAGE, "The body is no JSON.", f"{error}.", "Send an object: {...}.") from error
    if not isinstance(told, dict):
        raise LdmError(Code.USAGE, "The body is no JSON object.", "A request has named fields.", "Send {...}.")
    return told


def client_of(request: Request) -> str:
    """Whose turns are counted together: an address, and a name that a caller may give."""
    address = request.client.host if request.client else ""
    return f"{address} {request.headers.get('x-client', '')[:64]}".strip()


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unread(kind: str, wanted: str) -> RefusedError:
    return RefusedError(415, f"{kind[:60] or 'No type'!r} is not read here.", f"It takes {wanted}.", "Change the type.")
