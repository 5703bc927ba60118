"""One writer for a run folder: the system holds the lock (flock), and drops it when its owner dies, however it dies.

The file says who holds it: process number, machine and start time. That is for the message; the lock itself is the
kernel's, so a file that is left over locks nobody out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from ldm.errors import Code, LdmError

log = logging.getLogger("train.lock")
NAME = ".lock"
TRIES = 4  # some network disks have no lasting numbers for files, so we cannot always tell that it is the same
PATIENCE = 0.5  # seconds in which a new owner has surely written its name


class Lock:
    """Held between `with` and its end; who comes second gets `LdmError(BUSY)` at once, naming the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._file: int | None = None

    def __enter__(self) -> Lock:
        for again in reversed(range(TRIES)):
            try:
                file = os.open(self.folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                raise _unopened(self.folder / NAME, error) from None
            try:
                self._take(file)
            except BaseException:
                os.close(file)
                raise
            if not again or _is_at(file, self.folder / NAME):
                break
            os.close(file)  # whoever held it has removed it since we opened it: the next one would lock another
        self._file = file
        # A forked child (a loader's worker) shares the lock; it would hold it on after a kill of its parent.
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(this))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            _forget(weakref.ref(self))

    def _take(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(self.folder, _owner(file)) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise _unopened(self.folder / NAME, error) from None
            log.warning("%s lies on a disk without locks: see to it that only one process writes there", self.folder)
        before = _read(file)
        if before:
            log.info(
                "process %s on %s has ended without giving back its lock: it is taken",
                before.get("pid"),
                before.get("host"),
            )
        told = {"pid": os.getpid(), "host": socket.gethostname(), "started": started(os.getpid())}
        with contextlib.suppress(OSError):  # of a full disk: the lock holds without a name
            os.ftruncate(file, 0)
            os.pwrite(file, (json.dumps(told) + "\n").encode(), 0)


def started(pid: int) -> str:
    """When a process began, in UTC; empty where the system does not say. It tells two processes of one number apart."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text("utf-8").split()[0])
        began = time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began))
    return ""


def _forget(this: weakref.ref[Lock]) -> None:
    """Closes this process's hold; a lock goes when the last one closes."""
    lock = this()
    if lock is not None and lock._file is not None:
        with contextlib.suppress(OSError):
            os.close(lock._file)
        lock._file = None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that bears this name now."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _owner(file: int) -> dict[str, Any]:
    """Who holds the lock. Between taking it and writing one's name lies a moment, in which the file is empty or names
    an owner that is dead: it is read again until it names somebody alive."""
    until = time.monotonic() + PATIENCE
    while True:
        told = _read(file)
        pid = told.get("pid")
        if isinstance(pid, int) and (told.get("host") != socket.gethostname() or alive(pid)):
            return told
        if time.monotonic() > until:
            return told
        time.sleep(0.01)


def _read(file: int) -> dict[str, Any]:
    try:
        told = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _busy(folder: Path, owner: dict[str, Any]) -> LdmError:
    pid, host = owner.get("pid", "unknown"), owner.get("host", "this machine")
    since = f", which started {owner['started']}" if owner.get("started") else ""
    return LdmError(
        Code.BUSY,
        f"{folder} is in use by process {pid} on {host}{since}.",
        "Only one process may write a run folder; another one there would overwrite its checkpoints.",
        f"Wait for it, stop it there (`kill {pid}`: it saves, and ends), or choose another run.out.",
    )


def _unopened(path: Path, error: OSError) -> LdmError:
    return LdmError(
        Code.FILE,
        f"The run folder {path.parent} cannot be locked.",
        f"The system says of {path.name}: {error.strerror or error}.",
        "Choose a folder that you may write into as run.out, or remove that file if no run is active.",
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # alive, and not ours to signal
        return True
    return True
