"""The models and adapters in the server's own folder: what is put there gets a plain name, what is removed goes to a
folder `trash` beside them. Nothing is deleted, nothing overwritten."""

from __future__ import annotations

import errno
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from app.server.catalog import Catalog
from app.server.limits import Limits
from ldm.errors import Code, LdmError
from ldm.images.save import publish

TRASH = "trash"
SPARE = 256 << 20  # bytes of a disk that stay free for pictures
LONGEST_NAME = 80
# Of no use as names: what some systems keep for devices, and words that addresses here have.
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d|trash|models|adapters|none|auto)(?:\..*)?", re.IGNORECASE)
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Kind:
    """What may be put here, in which of the two folders, and what it is called without a name."""

    kind: str
    folder: str
    called: str


KINDS = {
    kind.kind: kind
    for kind in (
        Kind("lora", "adapters", "adapter"),
        Kind("textual inversion", "adapters", "word"),
        Kind("single file", "models", "model"),
        Kind("model folder", "models", "model"),
        Kind("controlnet", "models", "control"),
    )
}


class Library:
    """Every method may be called from any thread."""

    def __init__(self, folder: Path, catalog: Catalog, limits: Limits) -> None:
        self.folder, self.catalog, self.limits = folder, catalog, limits
        self._coming, self._promised = 0, set[str]()
        self._lock = RLock()

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """So many bytes more, or an error before any of them is written."""
        with self._lock:
            self._check_room(size)
            self._coming += size
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size

    @contextmanager
    def promised(self, wish: str, kind: Kind) -> Iterator[str]:
        """A name that nothing else gets while this lasts."""
        with self._lock:
            name = self._free(wish, kind)
            self._promised.add(name.casefold())
        try:
            yield name
        finally:
            with self._lock:
                self._promised.discard(name.casefold())

    def place(self, name: str, kind: Kind, suffix: str = SUFFIX) -> Path:
        return self.folder / kind.folder / f"{name}{suffix}"

    def keep(self, temp: Path, wish: str, kind: Kind) -> tuple[str, Path]:
        """A finished file under its name, and where it is."""
        with self.promised(wish, kind) as name:
            goal = self.place(name, kind)
            goal.parent.mkdir(parents=True, exist_ok=True)
            publish(temp, goal)
            return name, goal

    def remove(self, what: str, name: str) -> str:
        """To the trash, and how it is called there; what is not the server's own stays."""
        find = {"model": self.catalog.model, "adapter": self.catalog.adapter, "control": self.catalog.any_control}[what]
        with self._lock:
            try:
                path = find(name)
            except LdmError as error:
                raise LdmError(Code.FILE, error.what, error.why, error.fix) from error
            if (source := self.catalog.source(name, path)) != "imported":
                told = {
                    "shipped": "It comes with the program.",
                    "pulled": "It lies in the cache of the hub, which other programs use too.",
                    "folder": "It lies in a folder of whoever runs the server.",
                }
                fix = "Only what was imported, trained or converted here is removed here."
                raise LdmError(Code.REFUSED, f"The {what} {name} is not removed.", told[source], fix)
            trash = self.folder / TRASH
            try:
                trash.mkdir(exist_ok=True)
                path.rename(goal := _beside(trash / path.name))
            except OSError as error:
                raise unkept(f"The {what} {name} is not removed.", error) from error
            return goal.name

    def _free(self, wish: str, kind: Kind) -> str:
        """The name, or the first of NAME-2, NAME-3, ... that means nothing here and names no file."""
        name, number = plain(wish, kind.called), 1
        taken = self.catalog.taken() | self._promised
        for folder in ("models", "adapters"):
            there = self.folder / folder
            for path in there.iterdir() if there.is_dir() else ():
                taken |= {path.name.casefold(), path.name.removesuffix(SUFFIX).casefold()}
        found = name
        while found.casefold() in taken:
            number += 1
            found = f"{name}-{number}"
        return found

    def _check_room(self, size: int) -> None:
        used = sum(map(_size, (self.folder / name for name in ("models", "adapters", TRASH)))) + self._coming
        if used + size > self.limits.library:
            why = f"Models and adapters here take {used / 1e9:.1f} GB, and no more than "
            why += f"{self.limits.library / 1e9:.1f} are kept; this is {size / 1e9:.2f} GB."
            fix = "Remove some of them; whoever runs the server can empty its folder trash."
            raise LdmError(Code.RESOURCE, "There is no room for it.", why, fix)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free - self._coming - SPARE
        if size > free:
            why = f"It takes {size / 1e9:.2f} GB, and {max(0, free) / 1e9:.2f} GB of the disk may be used."
            raise LdmError(Code.RESOURCE, "The disk of the server is full.", why, "Free some space there.")


def plain(wish: str, called: str) -> str:
    """Letters, digits, '.', '-' and '_' of a wish, as a name that is no path and nowhere hidden or kept for devices."""
    text = unicodedata.normalize("NFKD", wish[:1000]).rpartition("/")[2].rpartition("\\")[2]
    text = text[: -len(SUFFIX)] if text.lower().endswith(SUFFIX) else text
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    text = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("._-")
    text = text[:LONGEST_NAME].strip("._-")
    return f"{called}-{text}" if text and RESERVED.fullmatch(text) else text or called


def unkept(what: str, error: OSError) -> LdmError:
    """What the system says, without where."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = f"The system says: {error.strerror or type(error).__name__}."
    return LdmError(Code.RESOURCE if full else Code.FILE, what, why, "Free some space there." if full else "Try again.")


def sweep_library(folder: Path) -> None:
    """Removes what a kill in the middle of writing left in the server's own folders."""
    for name in ("models", "adapters"):
        there = folder / name
        for pattern in (".ldm-*.tmp", ".*.tmp-*"):
            for path in there.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _beside(wish: Path) -> Path:
    """The path, or the first of NAME-2, NAME-3, ... that is not there."""
    stem, suffix, number, path = wish.name.removesuffix(SUFFIX), "", 1, wish
    suffix = wish.name[len(stem) :]
    while os.path.lexists(path):
        number += 1
        path = wish.with_name(f"{stem}-{number}{suffix}")
    return path


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they are there at this moment."""
    total = 0
    for path in folder.rglob("*"):
        if path.suffix != ".tmp":  # what is coming is counted already
            with suppress(FileNotFoundError):
                total += path.lstat().st_size if path.is_file() else 0
    return total
