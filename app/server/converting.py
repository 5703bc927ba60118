"""A model from a folder to a single file and back: one at a time, in a thread, into the server's own folder."""

from __future__ import annotations

import gc
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from app.failing import told_of
from app.server.library import KINDS, SUFFIX, Library
from ldm.errors import Code, LdmError
from ldm.store.describe import Description, describe

if TYPE_CHECKING:
    import torch

log = logging.getLogger("ldm.server")
TOLD = 50  # conversions that are remembered
WIDER = 1.3  # as many bytes of memory as the weights take in it, and some more


@dataclass(frozen=True)
class Conversion:
    """One of them; `name` is that of the result."""

    id: str
    model: str
    to: Literal["folder", "file"]
    state: Literal["running", "done", "failed"]
    created: float
    ended: float | None = None
    name: str | None = None
    error: LdmError | None = None

    def as_dict(self) -> dict[str, Any]:
        told = {"id": self.id, "model": self.model, "to": self.to, "state": self.state, "created": self.created}
        told |= {"ended": self.ended, "name": self.name}
        return told | ({} if self.error is None else {"error": self.error.as_dict()})


class Conversions:
    """Every method may be called from any thread; a restart forgets the list, and keeps the results."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._all: OrderedDict[str, Conversion] = OrderedDict()
        self._thread: Thread | None = None
        self._lock = Lock()

    def list(self) -> list[Conversion]:
        """The newest first."""
        with self._lock:
            return list(reversed(self._all.values()))

    def start(self, model: str, to: Literal["folder", "file"], wish: str | None = None) -> Conversion:
        """Begins, or says at once why not."""
        path = self.library.catalog.model(model)
        if path.is_dir() == (to == "folder"):
            what, why = f"{model} is a {to} already.", "There is nothing to convert."
            raise LdmError(Code.USAGE, what, why, f"Ask for the other: {'file' if to == 'folder' else 'folder'}.")
        with self._lock:
            if any(one.state == "running" for one in self._all.values()):
                why = "One conversion is made at a time, for it takes memory."
                raise LdmError(Code.BUSY, "A model is being converted.", why, "Try again when it is done.")
            one = Conversion(uuid4().hex, model, to, "running", time.time())
            self._all[one.id] = one
            while len(self._all) > TOLD:
                self._all.popitem(last=False)
            self._thread = Thread(target=self._work, args=(one, path, wish or model), name="ldm-convert", daemon=True)
            self._thread.start()
        return one

    def stop(self, seconds: float = 60.0) -> None:
        """Waits for the one under way; what it leaves half-written is swept at the next start."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self, one: Conversion, path: Path, wish: str) -> None:
        try:
            ended = replace(one, state="done", name=self._converted(one, path, wish))
        except Exception as error:
            if not isinstance(error, LdmError):
                log.exception("a conversion failed")
            told = told_of(error, *self.library.catalog.homes())
            ended = replace(one, state="failed", error=told)
        gc.collect()  # before it is told: whoever hears of it may begin the next one
        with self._lock:
            self._all[one.id] = replace(ended, ended=time.time())

    def _converted(self, one: Conversion, path: Path, wish: str) -> str:
        from ldm.store.parts import load_parts
        from ldm.store.save import save_folder, save_single

        told = describe(path)
        dtype = dtype_of(told)
        size = told.parameters * dtype.itemsize  # on the disk they may be narrower
        check_memory(one.model, size)
        kind = KINDS["single file" if one.to == "file" else "model folder"]
        with self.library.room(round(size * 1.1)), self.library.promised(wish, kind) as name:
            parts = load_parts(path, dtype=dtype)
            parts.name = one.model
            if one.to == "file":
                save_single(parts, self.library.place(name, kind, SUFFIX))
            else:
                save_folder(parts, self.library.place(name, kind, ""))
            return name


def dtype_of(told: Description) -> torch.dtype:
    """Half precision stays half: a file of one kind of half-precision numbers loses nothing in it."""
    import torch

    floating = {name for name in told.dtypes if name.startswith(("F", "BF"))}
    return {frozenset({"F16"}): torch.float16, frozenset({"BF16"}): torch.bfloat16}.get(
        frozenset(floating), torch.float32
    )


def check_memory(model: str, size: int) -> None:
    import psutil

    available = psutil.virtual_memory().available
    if size * WIDER > available:
        why = f"Its weights take {size / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are free."
        raise LdmError(Code.RESOURCE, f"{model} is not converted now.", why, "Try again when other work is done.")
