"""A run as one page, `report.html` in its folder: curves, previews in a slider, data, configuration, machine, timing.

It is made from what lies in the folder alone (config.yaml, log.jsonl, previews/), opens from the disk without a server,
asks nothing of a network, and is written whole or not at all. The page itself is in `report_page.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.config import load
from ldm.errors import Code, LdmError
from train.config import RunFile
from train.folder import read_log
from train.report_curves import Point

NAME = "report.html"


@dataclass
class Story:
    """What the folder of a run tells."""

    name: str
    file: RunFile | None  # None: config.yaml is not there, or of a later version
    config: str  # config.yaml as it lies there
    figures: dict[str, list[Point]] = field(
        default_factory=lambda: defaultdict(list)
    )  # of training, lr and seconds too
    validation: dict[str, list[Point]] = field(default_factory=lambda: defaultdict(list))
    previews: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # name -> step -> file
    starts: list[dict[str, Any]] = field(default_factory=list)  # "step", "time", and what the line says
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds, by what for
    skipped: int = 0
    step: int = 0
    time: float = 0.0  # the clock's, of the last line
    ended: bool = False

    @property
    def steps(self) -> int:
        """How many there are to be; at least those that are done."""
        return max(self.step, self.file.run.steps if self.file is not None else 0)

    @property
    def losses(self) -> list[str]:
        """The names of the losses: of the first phase first."""
        return [name for name in self.figures if name.rpartition("/")[2] == "loss"]


def write_report(folder: Path) -> Path:
    """Writes the page of a run folder anew; an error where the folder is not one."""
    from train.report_page import page

    told = page(read_story(folder))
    return rewrite(folder / NAME, told, "Make room or mend the folder, and write it again: ldm train FILE --report.")


def rewrite(goal: Path, text: str, fix: str) -> Path:
    """A page of ours anew, the old one until then."""
    stage = goal.with_name(f".tmp-{goal.name}-{os.getpid()}")
    try:
        stage.write_text(text, "utf-8")
        stage.replace(goal)
    except OSError as error:
        why = f"The system says: {error.strerror or error}."
        raise LdmError(Code.FILE, f"{goal} could not be written.", why, fix) from None
    finally:
        stage.unlink(missing_ok=True)
    return goal


def read_story(folder: Path) -> Story:
    """Everything that a report tells, from the folder's files."""
    config, log = folder / "config.yaml", folder / "log.jsonl"
    if not config.is_file() and not log.is_file():
        raise LdmError(
            Code.FILE,
            f"{folder} holds no run to report on.",
            "There is neither a config.yaml nor a log.jsonl in it.",
            "Name a run file whose run.out has been trained, or train it first.",
        )
    file = None
    with contextlib.suppress(LdmError):
        file = load(config, RunFile)
    story = Story(folder.absolute().name, file, config.read_text("utf-8", "replace") if config.is_file() else "")
    before = 0
    for record in read_log(log):
        before = _take(story, record, before)
    _find_previews(story, folder)
    return story


def _take(story: Story, record: Mapping[str, Any], before: int) -> int:
    """One line of the log; `before` is the step up to which time was counted, which is returned."""
    step = int(record["step"])
    story.step, story.time = max(story.step, step), float(record.get("time") or story.time)
    seconds = _finite(record.get("seconds")) or 0.0
    if "start" in record:
        story.starts.append({"step": step, "time": story.time, **_section(record["start"])})
        if ready := _finite(story.starts[-1].get("ready")):
            story.spent["making ready"] += ready
        return step
    if "figures" in record:
        story.ended = False
        for name, value in [*_section(record["figures"]).items(), ("lr", record.get("lr")), ("seconds", seconds)]:
            if (told := _finite(value)) is not None:
                story.figures[name].append((step, told))
        story.skipped = int(record.get("skipped") or 0)
        story.spent["training"] += seconds * max(0, step - before)
        return step
    if "validation" in record:
        for name, value in _section(record["validation"]).items():
            if (told := _finite(value)) is not None:
                story.validation[name].append((step, told))
        story.spent["validation"] += seconds
    if "previews" in record:
        story.spent["previews"] += seconds
    story.ended = story.ended or "end" in record
    return before


def _find_previews(story: Story, folder: Path) -> None:
    """previews/<step>/<name>.png, as paths that a page beside them understands."""
    found = [path for path in (folder / "previews").glob("*/*.png") if path.parent.name.isdecimal()]
    for path in sorted(found, key=lambda path: (int(path.parent.name), path.name)):
        if int(path.parent.name) <= story.step or not story.step:
            story.previews[path.stem][int(path.parent.name)] = path.relative_to(folder).as_posix()


def _section(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _finite(value: Any) -> float | None:
    """A number; null stands for one that was not finite."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
