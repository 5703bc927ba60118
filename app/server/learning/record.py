"""A training as it is kept: one file in its folder, written whole; how it went is read from what its process told."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from app.server.learning.process import TOLD, Lines
from app.server.learning.story import Story
from ldm.errors import Code, LdmError

log = logging.getLogger("ldm.server")
State = Literal["queued", "planning", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
ID, FILE, REPORT = re.compile(r"[0-9a-f]{32}"), "training.json", "out/report.html"
VERSION = 1


@dataclass(eq=False)
class Record:
    """`asked` as the caller said it; `tries` count starts after which nothing was heard but that the server ended."""

    id: str
    asked: dict[str, Any]
    state: State
    created: float
    started: float | None = None
    ended: float | None = None
    error: dict[str, Any] | None = None
    adapter: str | None = None
    embedding: str | None = None
    unwanted: bool = False
    tries: int = 0
    child: dict[str, float] = field(default_factory=dict)  # the process, while there is one
    story: Story = field(default_factory=Story)

    def write(self, folder: Path) -> None:
        """In the folder of the trainings; the old file stays until the new one is whole."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "story"}
        goal = folder / self.id / FILE
        stage = goal.with_name(f".{FILE}.tmp")
        try:
            with stage.open("w", encoding="utf-8") as file:
                json.dump({"version": VERSION} | told, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            stage.replace(goal)
        except OSError as error:
            with contextlib.suppress(OSError):
                stage.unlink(missing_ok=True)
            why = f"The system says: {error.strerror or error}."
            fix = "Free some space where the server keeps its files."
            raise LdmError(Code.RESOURCE, "The training cannot be written down.", why, fix) from error

    @property
    def failure(self) -> Mapping[str, Any] | None:
        return None if self.error is None else {key: self.error[key] for key in ("code", "what", "why", "fix")}


def unwritten(folder: Path) -> Iterator[Path]:
    """Folders of trainings that were never written down: their server was killed before."""
    for home in folder.iterdir():
        if ID.fullmatch(home.name) and home.is_dir() and not (home / FILE).exists():
            yield home


def read_all(folder: Path) -> Iterator[Record]:
    """Those that a folder holds; one that cannot be read is left alone, and the log says so."""
    for home in sorted(folder.iterdir()):
        if not ID.fullmatch(home.name) or not (home / FILE).is_file():
            continue
        try:
            told = json.loads((home / FILE).read_text("utf-8"))
            if told.pop("version") != VERSION or told["id"] != home.name:
                raise ValueError("it was written by another version")
            record = Record(**told)
            for line in Lines(home / TOLD, from_start=True).new():
                record.story.hear(line)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the training %s is left out: %s", home.name, error)
            continue
        yield record
