"""Pictures of strangers are decoded in a process of their own: a decoder that crashes or hangs takes no server along.

What comes back are raw samples and plain bytes: nothing in them is executed, whatever became of that process.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Lock, Timer
from typing import Any

import numpy as np

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image

MEMORY = 4 << 30  # bytes of address space
LENGTHS = struct.Struct(">5Q")  # of what is told, samples, alpha, profile, exif


@dataclass
class Decoder:
    """`decode` from any thread; one picture at a time."""

    max_pixels: int
    seconds: float = 20.0

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._closed = False

    def decode(self, data: bytes) -> Picture:
        """The picture in these bytes, as `open_image` has it; every refusal is an `LdmError`."""
        with self._lock:
            pipe = self._begun()
            late = Timer(self.seconds, self._kill)  # also of one that stops in the middle of a message
            late.daemon = True
            began = time.monotonic()
            late.start()
            try:
                pipe.send_bytes(data)
                return _understood(pipe.recv_bytes())
            except (OSError, EOFError) as error:
                self._end()
                slow = time.monotonic() - began >= self.seconds
                why = f"It took more than {self.seconds:g} s." if slow else "The decoder broke off."
                fix = "Open it in an editor, and save it again as PNG or JPEG."
                raise LdmError(Code.REFUSED, "The picture cannot be decoded.", why, fix) from error
            finally:
                late.cancel()

    def close(self) -> None:
        """For good: who still waits is refused."""
        self._closed = True
        with self._lock:
            self._end()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _begun(self) -> Connection:
        if self._closed:
            raise LdmError(Code.RESOURCE, "The server is ending.", "No picture is read now.", "Send it again later.")
        if self._process is None or self._pipe is None or not self._process.is_alive():
            self._end()
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs, self.max_pixels), daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe

    def _end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None


def serve(pipe: Connection, max_pixels: int) -> None:
    """The process: bytes in, a picture or a refusal out, until the pipe ends."""
    _confine()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes(), max_pixels))


def _confine() -> None:
    """It writes no file, and has memory for one picture. Ctrl-C is meant for the server, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name in [name for name in os.environ if "TOKEN" in name or "KEY" in name]:
        del os.environ[name]


def _answer(data: bytes, max_pixels: int) -> bytes:
    try:
        picture = open_image(data, max_pixels=max_pixels)
    except LdmError as error:
        return _packed({"error": [int(error.code), error.what, error.why, error.fix]})
    except MemoryError:
        return _packed({"error": [int(Code.REFUSED), "The picture needs too much memory.", "", "Shrink it first."]})
    pixels, alpha = picture.pixels, picture.alpha
    told = {
        "shape": pixels.shape, "type": pixels.dtype.name, "text": dict(picture.text), "notes": picture.notes,
        "sha256": picture.sha256, "icc": picture.icc is not None, "exif": picture.exif is not None,
        "alpha": alpha is not None,
    }  # fmt: skip
    parts = (pixels.tobytes(), b"" if alpha is None else alpha.tobytes(), picture.icc or b"", picture.exif or b"")
    return _packed(told, *parts)


def _packed(told: dict[str, Any], *parts: bytes) -> bytes:
    head = json.dumps(told).encode()
    lengths = [len(head), *map(len, parts)]
    return LENGTHS.pack(*lengths, *[0] * (5 - len(lengths))) + b"".join((head, *parts))


def _understood(answer: bytes) -> Picture:
    """The picture in an answer; one that contradicts itself is none."""
    head, pixels, alpha, icc, exif = _parts(answer)
    try:
        told = json.loads(head)
        if "error" in told:
            code, what, why, fix = told["error"]
            raise LdmError(Code(int(code)), str(what), str(why), str(fix))
        shape, kind = tuple(int(side) for side in told["shape"]), {"uint8": np.uint8, "uint16": np.uint16}[told["type"]]
        if len(pixels) != math.prod(shape) * np.dtype(kind).itemsize:
            raise ValueError("samples are missing")
        return Picture(
            np.frombuffer(pixels, kind).reshape(shape),
            np.frombuffer(alpha, kind).reshape(shape[:2]) if told["alpha"] else None,
            icc if told["icc"] else None,
            exif if told["exif"] else None,
            {str(key): str(value) for key, value in told["text"].items()},
            tuple(map(str, told["notes"])),
            sha256=str(told["sha256"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EOFError from error


def _parts(answer: bytes) -> Iterator[bytes]:
    at = LENGTHS.size
    if len(answer) < at:
        raise EOFError
    for length in LENGTHS.unpack_from(answer):
        yield answer[at : at + length]
        at += length
