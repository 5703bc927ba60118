"""Trackers by accelerate's names (tensorboard, wandb, trackio, ...): opened where they are asked for, and only there.

None of them is a dependency, and none gets anything unless the run file names it: some send what they get elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ldm.config.explain import nearest
from ldm.errors import Code, LdmError
from ldm.extras import install

log = logging.getLogger("train.trackers")
OURS = {"tensorboard": "train"}  # in one of our extras
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "comet_ml": ("comet_ml",)}  # else as the name


def check(names: Sequence[str]) -> None:
    """Refuses a name that accelerate does not know, or whose package is not there, before anything is built."""
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    for name in names:
        if name not in known:
            near = nearest(name, known)
            raise LdmError(
                Code.USAGE,
                f"run.trackers: {name!r} is no tracker.",
                f"accelerate knows {', '.join(sorted(known))}.",
                f"Write {near}, or leave run.trackers out: log.jsonl and report.html are written anyway."
                if near
                else "Take one of these, or leave run.trackers out: log.jsonl and report.html are written anyway.",
            )
        if not any(find_spec(package) for package in PACKAGES.get(name, (name,))):
            how = install(OURS[name]) if name in OURS else f"pip install {name}"
            raise LdmError(
                Code.USAGE,
                f"run.trackers: {name} is not installed.",
                "A tracker is a package of its own, and not one that training needs.",
                f"Install it ({how}), or leave it out of run.trackers.",
            )


class Trackers:
    """What is logged, passed on. A tracker that fails costs its own figures, never the run: it is told once."""

    def __init__(self, names: Sequence[str], folder: Path, name: str, about: Mapping[str, Any]) -> None:
        self._open: dict[str, Any] = {}
        for kind in names:
            self._try(kind, lambda kind=kind: self._started(kind, folder, name, about))  # type: ignore[misc]

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for kind, tracker in list(self._open.items()):
            self._try(kind, lambda tracker=tracker: tracker.log(dict(figures), step=step))  # type: ignore[misc]

    def close(self) -> None:
        for kind, tracker in list(self._open.items()):
            self._try(kind, tracker.finish)
        self._open.clear()

    def _started(self, kind: str, folder: Path, name: str, about: Mapping[str, Any]) -> None:
        made = LOGGER_TYPE_TO_CLASS[kind]
        tracker = made(name, logging_dir=str(folder)) if made.requires_logging_directory else made(name)
        tracker.start()
        self._open[kind] = tracker
        tracker.store_init_configuration(dict(about))

    def _try(self, kind: str, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:  # whatever a stranger's package raises
            self._open.pop(kind, None)
            log.warning("the tracker %s is left out from here on: %s: %s", kind, type(error).__name__, error)
