"""A process of the command line beside the server: what it says goes to files, which outlive both."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from app.failing import HOME

TOLD, SAID = "told.jsonl", "said.log"  # its stdout, as JSON lines, and its stderr, which is for whoever runs the server
CHILD = "app.server.learning.child"
CLOCK = 2.0  # seconds by which the system may tell another time of birth once its clock was set
PATIENCE = 60.0  # seconds until one that was asked to end is killed
BY_ITSELF = 20.0  # seconds in which one whose server was killed has saved and ended


class Child:
    """Begun in a folder, with a Ctrl-C of the terminal meant for the server alone."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        command = [sys.executable, "-P", "-m", CHILD, str(os.getpid()), *words]
        with (folder / TOLD).open("ab") as told, (folder / SAID).open("ab") as said:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=said,
                start_new_session=True,
            )
        self._asked = False

    @property
    def mark(self) -> Mapping[str, float]:
        """What tells it apart from another process of the same number."""
        with contextlib.suppress(psutil.Error):
            return {"pid": self._process.pid, "born": psutil.Process(self._process.pid).create_time()}
        return {}

    def status(self) -> int | None:
        """None while it goes on; below 0 the signal that killed it."""
        return self._process.poll()

    def stop(self) -> None:
        """It saves, and ends. Asked once: a second signal would end it before it has saved."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def end(self, patience: float) -> None:
        """Waits for it so long at most."""
        self.stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
            return
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Lines:
    """The JSON lines of a file, as they are written; from those that are to come."""

    def __init__(self, path: Path, from_start: bool = False) -> None:
        self._path = path
        self._at = 0 if from_start or not path.exists() else path.stat().st_size
        self._rest = b""

    def new(self) -> Iterator[dict[str, Any]]:
        """What has come since; half a line waits for its end, and what is no object is left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(told := json.loads(line), dict):
                    yield told


def end_earlier(mark: Mapping[str, float]) -> None:
    """Of a server that is no more: it ends by itself, and is not asked again while it saves. One that was stopped, or
    hangs, is ended."""
    if not mark:
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(mark["pid"]))
        if abs(process.create_time() - mark["born"]) > CLOCK or CHILD not in process.cmdline():
            return
        for then, patience in ((process.terminate, BY_ITSELF), (process.kill, PATIENCE)):
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(patience)
                return
            then()
        process.wait(PATIENCE)


def _environment() -> dict[str, str]:
    """Without secrets; this program is found whatever folder it runs in."""
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name and "KEY" not in name}
    paths = [str(HOME), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return kept | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
