"""`ldm personalize`: photos in, an adapter and a report out. The same command again goes on where it was left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from ldm.data.survey import Finding
from ldm.errors import Code, LdmError
from ldm.store.write import remove, staged
from train.config import RunFile
from train.log import Listener
from train.personal.cost import Cost, cost_of
from train.personal.judge import Judge
from train.personal.page import write_page
from train.personal.photos import Photos, looked_at, prepared
from train.personal.plan import Plan, base_of, captions_for, planned
from train.personal.prior import class_pictures
from train.personal.report import ENDINGS, report_of
from train.personal.settings import Wish
from train.personal.strengths import draw_strengths
from train.personal.verdict import Checkpoint, best
from train.personal.watching import Watching
from train.run import Run, opened
from train.signals import Stop
from train.trainer import Action, Step
from train.turns import is_out_of_memory, release

WISH, REPORT, PAGE = "personal.json", "report.json", "report.html"
FREE = frozenset({"device", "precision", "photos"})  # of a wish, that may change when a run goes on
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Learned:
    """What is there when all is done."""

    folder: Path
    files: tuple[Path, ...]  # the adapter, as diffusers and as kohya name it; a word
    report: dict[str, Any]


@dataclass(frozen=True)
class Hooks:
    """Whom to tell while it goes on."""

    planned: Callable[[Plan, Sequence[Finding]], None]
    costs: Callable[[Plan, Cost], None]
    begun: Callable[[Run], None]
    stepped: Callable[[Step], None]
    measured: Callable[[dict[str, Any]], None]
    progress: Progress
    listeners: Sequence[Listener] = ()


def personalize(wish: Wish, hooks: Hooks, stop: Stop) -> Learned:
    """All of it."""
    if (done := finished(wish)) is not None:
        return done
    base, home = base_of(wish.model), wish.out / "photos"
    judge, photos = Judge(wish.clip, base.path), Photos.read(home)
    if photos is None:
        source, findings = looked_at(wish.photos, wish.size or base.size, wish.token)
        plan = planned(wish, base, len(source))
        hooks.planned(plan, findings)
        _remember(wish)
        photos = prepared(source, home, plan.size, captions_for(wish.token, base), wish.token, findings)
    plan = planned(wish, base, len(photos.names))
    if not (wish.out / "run").exists():
        hooks.costs(plan, cost_of(plan, photos))
        stop.check()
    prior = None
    if plan.prior:
        prior = class_pictures(
            wish.out.parent / "class-pictures",
            base.path,
            plan.prompts.prior,
            plan.prior,
            plan.size,
            masked=photos.masked,
            seed=wish.seed,
            device=wish.device,
            progress=hooks.progress,
            stop=stop,
        )
    watching = Watching(plan, photos, judge, wish.out)

    def measured(told: dict[str, Any]) -> None:
        hooks.measured(told)
        write_page(wish.out / PAGE, report_of(plan, photos, watching, best(watching.checkpoints)))

    watching.tell = measured
    file = plan.run_file(photos, prior)
    if not watching.finished:
        _trained(plan, file, watching, hooks, stop)
        release()
    chosen = best(watching.checkpoints)
    files = _publish(wish, chosen)
    weights: tuple[float, ...] = ()
    if wish.method == "lora":
        weights = _strengths(plan, files[0], wish.out / "samples" / "weights", stop)
    report = report_of(plan, photos, watching, chosen, weights=weights, done=True)
    write_page(wish.out / PAGE, report)
    with staged(wish.out / REPORT) as stage:  # the last thing that is written: it says that all is there
        stage.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return Learned(wish.out, files, report)


def foreseen(wish: Wish, hooks: Hooks) -> tuple[Plan, Cost]:
    """What it would cost; nothing is written where it would go."""
    base = base_of(wish.model)
    source, findings = looked_at(wish.photos, wish.size or base.size, wish.token)
    plan = planned(wish, base, len(source))
    hooks.planned(plan, findings)
    with TemporaryDirectory(prefix="ldm-photos-") as place:
        photos = prepared(source, Path(place) / "photos", plan.size, captions_for(wish.token, base), wish.token)
        cost = cost_of(plan, photos)
    hooks.costs(plan, cost)
    return plan, cost


def _trained(plan: Plan, file: RunFile, watching: Watching, hooks: Hooks, stop: Stop) -> None:
    """Until the last step, or until more has stopped paying. What it holds in memory ends with it."""
    with opened(file, listeners=hooks.listeners, stop=stop, progress=hooks.progress) as run:
        hooks.begun(run)
        if run.done == 0:
            watching.before(run.trainer)
        run.trainer.actions = [*run.trainer.actions, Action(plan.every, watching.at)]
        for step in run.steps():
            hooks.stepped(step)
            if watching.finished:  # its checkpoint is saved: they are measured when they are due
                break


def _strengths(plan: Plan, adapter: Path, folder: Path, stop: Stop) -> tuple[float, ...]:
    """A part of the report that a lack of memory does not stop the rest for."""
    try:
        return draw_strengths(plan, adapter, folder, stop)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release()
        return ()


def finished(wish: Wish) -> Learned | None:
    """What an earlier command like this one has left; an error, if a run of another wish has begun there."""
    kept = wish.out / WISH
    if kept.is_file():
        try:
            before = Wish(**json.loads(kept.read_text("utf-8")))
        except (ValueError, ValidationError) as error:
            what, why = f"{kept} is not understood.", f"{type(error).__name__}."
            raise LdmError(Code.FILE, what, why, "Choose another --out.") from error
        fields = [name for name in Wish.model_fields if name not in FREE]
        if different := [name for name in fields if getattr(before, name) != getattr(wish, name)]:
            if not (wish.out / "checkpoints").exists():  # nothing was learned yet: it begins anew, as it is asked now
                for name in (WISH, "photos", "run", "samples", "base.safetensors"):
                    remove(wish.out / name)
                return None
            raise LdmError(
                Code.USAGE,
                f"{wish.out} was begun with another {different[0]}.",
                f"It was {getattr(before, different[0])!s}, and is to be {getattr(wish, different[0])!s}.",
                "Give the same options to go on, or another --out.",
            )
    elif wish.out.is_dir() and any(wish.out.iterdir()):
        what, why = f"{wish.out} is not empty.", "It holds something else, and nothing is overwritten."
        raise LdmError(Code.FILE, what, why, "Choose another --out.")
    if not (wish.out / REPORT).is_file():
        return None
    report = json.loads((wish.out / REPORT).read_text("utf-8"))
    return Learned(wish.out, tuple(wish.out / name for name in report["files"]), report)


def _remember(wish: Wish) -> None:
    if not (wish.out / WISH).is_file():
        with staged(wish.out / WISH) as stage:
            stage.write_text(wish.model_dump_json(indent=2) + "\n", "utf-8")


def _publish(wish: Wish, chosen: Checkpoint) -> tuple[Path, ...]:
    """The best checkpoint's files under the subject's name."""
    kept = wish.out / "checkpoints" / str(chosen.step)
    made = []
    for name, ending in ENDINGS.items():
        source, goal = kept / name, wish.out / f"{wish.name}{ending}"
        if not source.exists():
            continue
        if not goal.exists():
            with staged(goal) as stage:
                shutil.copytree(source, stage) if source.is_dir() else shutil.copyfile(source, stage)
        made.append(goal)
    return tuple(made)
