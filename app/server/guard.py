"""The outermost door: who may speak, how much and how long, and what every answer says to a browser.

There is no CORS: no page of another origin may read or send anything. A browser tells where a request comes from
(`Origin`, `Sec-Fetch-Site`) and by which name (`Host`, which a rebound name gives away); other programs tell nothing,
and need nothing but the token, where there is one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.server.limits import Limits
from app.server.problems import problem
from ldm.errors import Code, LdmError

OPEN = ("/healthz",)  # needs no token
IMPORTS = ("POST", "/v1/imports")  # brings a file of weights: larger than all others, and as long as it goes on
PACE = 64 << 10  # bytes of it that come within the time that any other body has in all
HEAD = 1 << 16  # bytes of a form around its file
LOOPBACK = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class RefusedError(Exception):
    """An answer that is given in place of any other."""

    def __init__(self, status: int, what: str, why: str, fix: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(what)
        self.status, self.error, self.headers = status, LdmError(Code.REFUSED, what, why, fix), headers or {}


@dataclass(frozen=True)
class Doors:
    """Names by which this server may be called, and the token that it asks for."""

    hosts: frozenset[str]
    token: str | None = None
    addresses: bool = False  # whether any address in numbers will do as a name: no rebound name is one

    def check_caller(self, headers: dict[str, list[str]]) -> None:
        """Refuses pages of other sites and names that are not ours."""
        given = headers.get("host", [])
        if len(given) != 1 or not self._ours(name := hostname(given[0])):
            why = "A page of another site may have been led here by a name that points to this machine."
            fix = "Use the address that the server told, or start it with --allow-host NAME."
            raise RefusedError(421, f"{name[:80] if len(given) == 1 else 'That'!r} is no name of ours.", why, fix)
        site = headers.get("sec-fetch-site", ["none"])
        origin = headers.get("origin", [])
        foreign = any(place_of(told) != given[0].lower() for told in origin)
        if foreign or len(origin) > 1 or any(told not in ("same-origin", "none") for told in site):
            why = "Only pages of this server itself may use it from a browser."
            raise RefusedError(403, "The request comes from a page of another site.", why, "Open this server's page.")

    def check_token(self, headers: dict[str, list[str]]) -> None:
        """Bearer, or Basic with the token as password; compared in constant time."""
        if self.token is None:
            return
        given = headers.get("authorization", [""])
        told = _secret(given[0]) if len(given) == 1 else b""
        if not hmac.compare_digest(told, self.token.encode()):
            why = "This server asks for a token, and none or another one was given."
            ask = {"www-authenticate": 'Basic realm="ldm", charset="UTF-8", Bearer'}
            raise RefusedError(401, "The token is missing.", why, "Send Authorization: Bearer TOKEN.", ask)

    def _ours(self, name: str) -> bool:
        if name in self.hosts:
            return True
        try:
            return self.addresses and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def hostname(host: str) -> str:
    """Of a `Host` header: without its port, in small letters; empty where it is no host."""
    try:
        parts = urlsplit(f"//{host}")
        return "" if parts.username or parts.path or parts.query else (parts.hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def place_of(origin: str) -> str:
    """Host and port of an origin; empty where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secret(header: str) -> bytes:
    """The token in an Authorization header."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class Guard:
    """Around an app: everything that it sees has passed here, and everything that it says."""

    def __init__(self, app: ASGIApp, doors: Doors, limits: Limits) -> None:
        self.app, self.doors, self.limits = app, doors, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _read(scope["headers"])
        said = Said(send)
        try:
            self.doors.check_caller(headers)
            if scope["path"] not in OPEN:
                self.doors.check_token(headers)
            body = Body(receive, self.limits, headers, (scope["method"], scope["path"]) == IMPORTS)
            await self.app(scope, body.receive, said.send)
        except RefusedError as error:
            if not said.begun:
                await refusal(error)(scope, receive, said.send)


def refusal(error: RefusedError) -> Any:
    """As a response; the connection is closed, for there may be more coming on it that nobody wants."""
    return problem(error.error, error.status, error.headers | {"connection": "close"})


class Body:
    """What a caller sends: so much and no more, in so long and no longer. A file of weights may take its time, as long
    as some of it comes."""

    def __init__(self, receive: Receive, limits: Limits, headers: dict[str, list[str]], weights: bool = False) -> None:
        self._receive, self._limits, self._weights = receive, limits, weights
        self._most = limits.imported + HEAD if weights else limits.body
        self._paced, self._left = 0, 0.0  # bytes since the clock began anew; when the last of them was handed over
        told = headers.get("content-length", ["0"])[0]
        if told.isdecimal() and int(told[:20]) > self._most:
            raise self._too_large()
        self._bytes, self._whole = 0, told == "0" and "transfer-encoding" not in headers  # else one is still to come
        self._until: float | None = None

    async def receive(self) -> Message:
        if self._whole:  # what comes now is the end of the connection, whenever that is
            return await self._receive()
        if self._until is None:  # who reads begins to wait now
            self._until = time.monotonic() + self._limits.body_seconds
        elif self._weights:  # what the disk takes is nobody's fault
            self._until += time.monotonic() - self._left
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            why = f"It was not there after {self._limits.body_seconds:g} s."
            raise RefusedError(408, "The body of the request is not whole.", why, "Send it again.") from None
        self._bytes += len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self._bytes > self._most:
            raise self._too_large()
        self._paced, self._left = self._paced + len(message.get("body", b"")), time.monotonic()
        if self._weights and self._paced >= PACE:
            self._paced, self._until = 0, self._left + self._limits.body_seconds
        return message

    def _too_large(self) -> RefusedError:
        why = f"At most {self._most >> 20} MB are taken."
        put = "Whoever runs the server can put the file into the folder of --models or --adapters."
        return RefusedError(413, "The request is too large.", why, put if self._weights else "Send smaller pictures.")


class Said:
    """What the app answers, with our headers; those that it set itself stay."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            own = list(message.get("headers", ()))
            names = {name.lower() for name, _ in own}
            own += [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
            message = {**message, "headers": own}
        await self._send(message)


def _read(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found
