"""Files that callers bring: streamed to the disk while they come, judged by their first bytes, put whole under a name.

What a file is, its header tells, never its name. Nothing of it is loaded; a file that is not taken leaves nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.server.forms import Form, boundary_of
from app.server.guard import RefusedError
from app.server.library import KINDS, Kind, Library, unkept
from ldm.errors import Code, LdmError
from ldm.store.describe import kind_of
from ldm.store.header import HASH, Header, header_coming, printable, refuse_start

log = logging.getLogger("ldm.server")
FIRST = 4096  # bytes by which a file is known
BLOCK = 1 << 20  # bytes that are written at once
HEARD = 10.0  # seconds in which the rest of what is refused is read and dropped: many programs listen only afterwards
NOT_ALONE = {
    "vae": "an autoencoder", "unet": "a U-Net without its other parts", "clip": "a CLIP",
    "text tower": "a text encoder",
}  # fmt: skip


class Imports:
    """Few at a time."""

    def __init__(self, library: Library, most: int) -> None:
        self.library, self.most = library, most
        self._now, self._lock = 0, Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """One of the few."""
        with self._lock:
            if self._now >= self.most:
                why = f"{self._now} files are being brought at this moment, and no more may."
                raise RefusedError(
                    429, "Another file cannot be taken now.", why, "Try again later.", {"retry-after": "5"}
                )
            self._now += 1
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    async def take(self, request: Request, wish: str | None) -> tuple[str, Path]:
        """The name and the place of the file that a request brings."""
        try:
            with self.one():
                return await self._taken(request, wish)
        except (LdmError, RefusedError) as error:
            if getattr(error, "status", 0) != 408 and "expect" not in request.headers:
                await _dropped(request)
            if isinstance(error, LdmError) and error.code is Code.FILE:  # what a caller brings is no file of ours
                raise LdmError(Code.REFUSED, error.what, error.why, error.fix) from error
            raise

    async def _taken(self, request: Request, wish: str | None) -> tuple[str, Path]:
        coming = Coming(request, wish)
        header, head = await coming.header()
        kind = await run_in_threadpool(kind_or_refuse, coming.name, header)
        if header.size > (most := self.library.limits.imported):
            raise too_large(header.size, most)
        room = self.library.room(header.size)
        await run_in_threadpool(room.__enter__)
        temp = self.library.folder / kind.folder / f".ldm-{secrets.token_hex(8)}.tmp"
        try:
            await coming.write(temp, header, head)
            return await run_in_threadpool(self.library.keep, temp, coming.wish, kind)
        except OSError as error:
            raise unkept("The file cannot be kept.", error) from error
        finally:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            room.__exit__(None, None, None)


class Coming:
    """A file on its way: the body itself, or the one file of a form."""

    def __init__(self, request: Request, wish: str | None) -> None:
        kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
        if kind not in ("application/octet-stream", "multipart/form-data"):
            why = "It takes application/octet-stream or multipart/form-data."
            raise RefusedError(415, f"{kind[:60]!r} is not read here.", why, "Change the type.")
        self._form = Form(boundary_of(request.headers["content-type"])) if kind.startswith("multipart") else None
        told = request.headers.get("content-length", "")
        self._size = int(told) if self._form is None and told.isdecimal() else None
        self._asked, self._chunks = wish, self._parted(request)

    @property
    def wish(self) -> str:
        """The name that is asked for, else that of the file in a form."""
        return self._asked or (self._form.name if self._form is not None else "") or ""

    @property
    def name(self) -> str:
        """What errors call it."""
        return printable(self.wish.replace("/", "-").replace("\\", "-")) or "The file"

    async def _parted(self, request: Request) -> AsyncIterator[bytes]:
        async for chunk in request.stream():
            for part in [chunk] if self._form is None else self._form.feed(chunk):
                if part:
                    yield part

    async def header(self) -> tuple[Header, bytearray]:
        """The header, and all bytes that have come with it; refused as soon as it can be."""
        head, end = bytearray(), 0
        async for chunk in self._chunks:
            head += chunk
            if not end and len(head) >= FIRST:
                end = refuse_start(self.name, bytes(head[:FIRST]), self._size)
            if end and len(head) >= end:
                break
        if not end:
            end = refuse_start(self.name, bytes(head[:FIRST]), self._size or len(head))
        if len(head) < end:
            raise broken(len(head), self._size or end)
        return await run_in_threadpool(header_coming, self.name, bytes(head[8:end]), self._size), head

    async def write(self, temp: Path, header: Header, head: bytearray) -> None:
        """All of it, and no byte more than its header says."""
        temp.parent.mkdir(parents=True, exist_ok=True)
        digest, said = hashlib.sha256(), header.metadata.get(HASH, "").removeprefix("0x")
        with temp.open("xb") as file:
            total, block = len(head), head
            if said:
                digest.update(memoryview(head)[header.start : header.size])
            async for chunk in self._chunks:
                total += len(chunk)
                if total > header.size:
                    break
                block += chunk
                if said:
                    digest.update(chunk)
                if len(block) >= BLOCK:
                    await run_in_threadpool(file.write, block)
                    block = bytearray()
            if total != header.size:
                raise broken(total, header.size)
            if said and digest.hexdigest() != said:
                what, why = f"{self.name} is damaged.", "Its data has another hash than its metadata says."
                raise LdmError(Code.REFUSED, what, why, "Fetch or copy the file again.")
            await run_in_threadpool(_finish, file, block)


def _finish(file: BinaryIO, block: bytearray) -> None:
    file.write(block)
    file.flush()
    os.fsync(file.fileno())


def kind_or_refuse(name: str, header: Header) -> Kind:
    """What a file is by its header; only whole things that something here can use are taken."""
    shapes = header.shapes
    kind = kind_of(shapes)
    if kind == "single file" and not any(tensor.startswith("first_stage_model.") for tensor in shapes):
        kind = "unet"
    if kind in KINDS:
        return KINDS[kind]
    if kind in NOT_ALONE:
        what, why = f"{name} is {NOT_ALONE[kind]}.", "It is a part of a model, and makes no picture by itself."
        raise LdmError(Code.REFUSED, what, why, "Bring a whole model, a LoRA, an embedding or a control.")
    some = ", ".join(printable(tensor, 60) for tensor in list(shapes)[:3]) or "none"
    why = f"Its tensors ({some}) are those of no LoRA, embedding, control or model that is known here."
    raise LdmError(Code.REFUSED, f"{name} is of no known kind.", why, "Bring a file of one of those kinds.")


def too_large(size: int, most: int) -> RefusedError:
    why = f"It has {size / 1e9:.2f} GB, and at most {most / 1e9:.2f} GB are taken."
    fix = "Whoever runs the server can put it into the folder of --models or --adapters."
    return RefusedError(413, "The file is too large.", why, fix)


def broken(came: int, size: int) -> LdmError:
    why = f"{came:,} bytes of it came, and it has {size:,}."
    what = "The file broke off." if came < size else "The file is longer than its header says."
    return LdmError(Code.REFUSED, what, why, "Send it again, whole.")


async def _dropped(request: Request) -> None:
    """The rest of what is not wanted."""
    with suppress(TimeoutError, ClientDisconnect, RefusedError, RuntimeError):
        async with asyncio.timeout(HEARD):
            async for _ in request.stream():
                pass
