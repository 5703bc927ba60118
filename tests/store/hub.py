"""A stand-in for the hub on 127.0.0.1: the few routes that huggingface_hub asks for one model; it can drop bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


@dataclass
class Hub:
    """Serves `files` as the model `repo`; `cut` breaks and `stall` stops the first answer for a file half-way,
    `spoil` changes a byte of it."""

    repo: str
    files: dict[str, bytes]
    cut: str | None = None
    stall: str | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    spoil: str | None = None
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    address: str = ""

    def siblings(self) -> list[dict[str, Any]]:
        return [self._sibling(name, data) for name, data in self.files.items()]

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if not name.endswith((".json", ".txt", ".md")):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def etag(self, name: str) -> str:
        sibling = self._sibling(name, self.files[name])
        return str(sibling["lfs"]["sha256"] if "lfs" in sibling else sibling["blobId"])

    def body(self, name: str) -> bytes:
        data = bytearray(self.files[name])
        if name == self.spoil:
            data[-1] ^= 1
        return bytes(data)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub runs while the block does, and its address is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self._answer(head=True)

        def do_GET(self) -> None:
            self._answer(head=False)

        def _answer(self, head: bool) -> None:
            path = self.path.partition("?")[0]
            span = self.headers.get("Range")
            hub.asked.append((self.command, path, span))
            if re.fullmatch(rf"/api/models/{hub.repo}(/revision/\w+)?", path):
                card = {"license": "openrail++"}
                about = {"tags": [], "private": False, "downloads": 0, "likes": 0, "cardData": card}
                self._json({"id": hub.repo, "modelId": hub.repo, "sha": COMMIT, "siblings": hub.siblings(), **about})
            elif re.fullmatch(rf"/api/models/{hub.repo}/tree/\w+", path):
                self._json([{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"],
                             **({"lfs": {"oid": s["lfs"]["sha256"], **s["lfs"]}} if "lfs" in s else {})}
                            for s in hub.siblings()])  # fmt: skip
            elif (m := re.fullmatch(rf"/{hub.repo}/resolve/\w+/(.+)", path)) and m[1] in hub.files:
                self._file(m[1], span, head)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, span: str | None, head: bool) -> None:
            data = hub.body(name)
            told = {"X-Repo-Commit": COMMIT, "ETag": f'"{hub.etag(name)}"', "Accept-Ranges": "bytes"}
            first = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
            if span and not head:
                told["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            if not head and name in (hub.cut, hub.stall):
                self._half(name, data, told)
                return
            self._send(206 if span and not head else 200, b"" if head else data[first:], told, len(data) - first)

        def _half(self, name: str, data: bytes, told: dict[str, str]) -> None:
            self._send(200, data[: len(data) // 2], told | {"Content-Length": str(len(data))})
            self.close_connection = True
            if name == hub.cut:
                hub.cut = None
                return
            hub.stall = None
            self.wfile.flush()
            hub.stalled.set()
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until the other side is gone

        def _send(self, status: int, body: bytes, told: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            size = str(len(body) if length is None else length)
            for name, value in ({"Content-Length": size} | told).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as the files of a repository."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
