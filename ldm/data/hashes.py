"""sha256 of files, remembered: a data set of a million pictures is not read again to learn that nothing changed.

An answer from memory must be the answer that reading would give. So it counts only while path, size, both times (of the
content and of the directory entry) and the file's number are the same, and it is remembered only if the file was older
than a moment when it was read: a file that changes twice within the tick of a clock keeps its time (the rule of git's
index for racily clean entries).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import threading
import time
from pathlib import Path

MOMENT_NS = 3_000_000_000  # longer than the coarsest clock of a file system in use (2 s)
Mark = tuple[int, int, int, int]


class Hashes:
    """sha256 by path. `store` is a file of JSON lines that is only ever added to; None: nothing is remembered for the
    next run. A line that was cut off, or that says nothing usable, is skipped."""

    def __init__(self, store: Path | None = None) -> None:
        self.store = store
        self._known: dict[str, tuple[Mark, str]] = {}
        self._new: list[str] = []
        self._lock = threading.Lock()
        if store is not None:
            with contextlib.suppress(OSError):
                for line in store.read_bytes().split(b"\n"):
                    self._take(line)

    def of(self, path: Path) -> str:
        """sha256 of the bytes of a file, as hexadecimal digits; OSError where it cannot be read."""
        name = os.fspath(path.absolute())
        before = mark(path)
        known = self._known.get(name)
        if known is not None and known[0] == before:
            return known[1]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        now = time.time_ns()
        if mark(path) == before and min(now - before[1], now - before[2]) > MOMENT_NS:
            with self._lock:
                self._known[name] = before, found
                self._new.append(json.dumps([name, *before, found]) + "\n")
        return found

    def save(self) -> None:
        """Adds what is new to the store; a store that cannot be written is done without."""
        with self._lock:
            text, self._new = "".join(self._new).encode(), []
        if self.store is None or not text:
            return
        with contextlib.suppress(OSError):
            self.store.parent.mkdir(parents=True, exist_ok=True)
            with self.store.open("ab") as file:  # the system adds it in one piece, so two writers do not meet
                file.write(b"\n" + text)  # the first line ends whatever a dying writer left

    def _take(self, line: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if not isinstance(row, list) or [type(v) for v in row] != [str, int, int, int, int, str]:
                return
            name, size, changed, entered, number, found = row
            if len(found) == 64:
                self._known[name] = (size, changed, entered, number), found


def mark(path: Path) -> Mark:
    """By what a file is known again without reading it: size, both times, number. Whoever writes it anew and sets its
    date back, as archives and copying programs do, still changes the time of the entry."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def derived(source: Path, folder: Path, rest: str, suffix: str) -> Path:
    """Where something made of a file is kept, hidden: `.name.MARK-REST.suffix`, by the mark of the file and by what
    else it depends on. What the file's earlier states left there under the same rest is of no use to anybody."""
    now, other = (
        hashlib.sha256(t.encode("utf-8", "surrogatepass")).hexdigest()[:16] for t in (str(mark(source)), rest)
    )
    return folder / f".{source.name}.{now}-{other}{suffix}"


def drop_former(kept: Path) -> None:
    """Removes what was made of earlier states of the file that `kept` was made of."""
    head, _, rest = kept.name.rpartition("-")
    name = head.rpartition(".")[0]
    for old in kept.parent.glob(f"{glob.escape(name)}.{'[0-9a-f]' * 16}-{glob.escape(rest)}"):
        if old != kept:
            with contextlib.suppress(OSError):  # somebody else's, or gone already
                old.unlink()
