"""One training from its start to its end: the process is begun, listened to, asked to end, and judged by how it did."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag

from app.failing import told_of
from app.server.catalog import Catalog
from app.server.learning.asking import OUT, Training, check_kept, size_of, without_options
from app.server.learning.process import PATIENCE, TOLD, Child, Lines
from app.server.learning.publishing import publish
from app.server.learning.record import Record
from app.server.learning.story import BEGUN, Heard
from ldm.errors import Code, LdmError

log = logging.getLogger("ldm.server")
LOOK = 0.2  # seconds between two looks at what the process says
GOODBYE = 30.0  # seconds that it has to save when the server ends
STOPPED = (130, 143)  # exit status of one that saved and ended as it was asked to
BROKEN = LdmError(
    Code.BUG,
    "The training failed in a way that it should not.",
    "This is an error of this program, not of yours; whoever runs the server finds more in its folder trainings.",
    "Resume it; if it fails again, report it with what you asked for.",
)
Tell = Callable[[Record, Heard], None]


class Run:
    """For the one thread that trainings are run by. `ending`: the server is to end; `tell` hears all news."""

    def __init__(self, home: Path, record: Record, training: Training, device: str, most: int) -> None:
        self.home, self.record, self.training, self.device = home, record, training, device
        self.most = most  # bytes of all trainings
        self.refused: LdmError | None = None  # why it was ended by us
        self._kept: int | None = None  # bytes of all trainings when this one began
        self._stopped: float | None = None  # when it was asked to end

    def go(self, ending: Flag, begun: Callable[[Child], None], tell: Tell) -> int:
        """Its exit status."""
        with (self.home / TOLD).open("a", encoding="utf-8") as told:
            told.write(f"\n{json.dumps(BEGUN)}\n")  # on a line of its own, whatever a kill left half said
        self.record.story.hear(BEGUN)
        lines = Lines(self.home / TOLD)
        child = Child(self.training.command(self.device), self.home)
        try:
            begun(child)
            while True:
                status = child.status()  # before its last lines are read
                for line in lines.new():
                    if (news := self.record.story.hear(line)) != "nothing":
                        tell(self.record, news)
                if status is not None:
                    return status
                self._check_room()
                if self.record.unwanted or self.refused is not None or ending.is_set():
                    self._stop(child, GOODBYE if ending.is_set() else PATIENCE)
                time.sleep(LOOK)
        finally:
            if child.status() is None:
                child.kill()

    def _stop(self, child: Child, patience: float) -> None:
        self._stopped = self._stopped or time.monotonic()
        child.stop()
        if time.monotonic() - self._stopped > patience:  # what it saved last is there
            child.kill()

    def _check_room(self) -> None:
        """Once the cost is known, and before anything is trained."""
        story = self.record.story
        if self.refused is not None or story.step or not (cost := (story.plan or {}).get("cost")):
            return
        if (free := shutil.disk_usage(self.home).free) < cost["disk"]:
            why = f"It takes up to {cost['disk'] / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free."
            fix = "Free some space where the server keeps its files, or ask for fewer checkpoints."
            what = "There is not enough room on the disk for this training."
            self.refused = LdmError(Code.RESOURCE, what, why, fix)
        if self._kept is None:  # they are looked through once
            self._kept = size_of(self.home.parent)
            try:
                check_kept(self._kept, cost["disk"], self.most)
            except LdmError as error:
                self.refused = self.refused or error

    def failure(self, status: int) -> LdmError:
        """Why it did not come to its end."""
        error = self.record.story.error
        if self.refused is not None:
            return self.refused
        if error is not None and error["code"] != "bug":
            return without_options(LdmError(Code[error["code"].upper()], error["what"], error["why"], error["fix"]))
        if status in STOPPED or status < 0:
            why = "Somebody ended its process." if status in STOPPED else "The system did; memory may be short."
            return LdmError(Code.RESOURCE, "The training was ended.", why, "Resume it: what was saved is there.")
        return BROKEN


def published(record: Record, training: Training, home: Path, catalog: Catalog, folder: Path) -> None:
    """What was learned gets its names among the adapters."""
    adapter, word = (home / OUT / name for name in training.files)
    sources = {"": adapter} if adapter.is_file() else {}
    if word.is_file():  # a word alone has the name for itself
        sources["-word" if sources else ""] = word
    names = publish(sources, training.name, folder, catalog.taken())
    if adapter.is_file():
        record.adapter = names[""]
    if word.is_file():
        record.embedding = names["-word" if adapter.is_file() else ""]


def failed_with(error: Exception) -> dict[str, object]:
    """As it is kept; the log has the rest."""
    if not isinstance(error, LdmError):
        log.exception("a training failed")
    return dict(without_options(told_of(error)).as_dict())
