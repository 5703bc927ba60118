"""`ldm personalize`: photos in, an adapter and a report out. The same command again goes on where it was left."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ldm.data.source import Source
from ldm.data.survey import Finding
from ldm.errors import Code, LdmError
from ldm.models.memory import release
from ldm.store.write import remove, staged
from train.config import RunFile
from train.log import Listener
from train.personal.cost import Cost, cost_of
from train.personal.earlier import PAGE, REPORT, Learned, earlier, held
from train.personal.judge import Judge
from train.personal.page import write_page
from train.personal.photos import Alike, Photos, looked_at, prepared, taken
from train.personal.plan import Base, Plan, base_of, captions_for, planned
from train.personal.prior import class_pictures
from train.personal.report import ENDINGS, file_of, report_of
from train.personal.settings import Wish
from train.personal.strengths import AT_WEIGHTS, draw_strengths, weighed
from train.personal.token import refuse_syntax
from train.personal.verdict import Checkpoint, best
from train.personal.watching import Watching
from train.run import Run, opened
from train.signals import Stop
from train.trainer import Action, Step

log = logging.getLogger("train.personal")
AT_ONCE = 8  # class pictures
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Hooks:
    """Whom to tell while it goes on; nobody, where nobody asks."""

    planned: Callable[[Plan, Sequence[Finding]], None] = lambda plan, findings: None
    costs: Callable[[Plan, Cost], None] = lambda plan, cost: None
    begun: Callable[[Run], None] = lambda run: None
    stepped: Callable[[Step], None] = lambda step: None
    measured: Callable[[dict[str, Any]], None] = lambda told: None
    progress: Progress = lambda what, done, total: None
    listeners: Sequence[Listener] = ()


def personalize(wish: Wish, hooks: Hooks, stop: Stop) -> Learned:
    """All of it."""
    refuse_syntax(wish.token)
    before = earlier(wish)
    if before.learned is not None:
        return before.learned
    base = base_of(wish.model)
    judge = Judge(wish.clip, base.path)
    looked = None
    if before.photos is None:  # whatever is wrong with them is said before anything is written
        looked = _looked(wish, base, judge, hooks)
    with held(wish, before):
        photos = before.photos
        if looked is not None:
            remove(wish.out / "photos")  # what was left half done
            photos = looked.prepared(wish.out / "photos", base)
        assert photos is not None
        return _learned(wish, base, judge, photos, hooks, stop)


@dataclass(frozen=True)
class _Looked:
    """The photos as they were found, and what is planned with them."""

    source: Source
    alike: Alike
    findings: Sequence[Finding]
    plan: Plan

    def prepared(self, home: Path, base: Base) -> Photos:
        plan, token = self.plan, self.plan.wish.token
        return prepared(self.source, home, plan.size, captions_for(token, base), token, self.findings, self.alike)


def _looked(wish: Wish, base: Base, judge: Judge, hooks: Hooks) -> _Looked:
    """At the photos; what is planned is told."""
    source, findings = looked_at(wish.photos, wish.size or base.size, wish.token, judge.see)
    alike = taken(source)
    plan = planned(wish, base, len(alike))
    hooks.planned(plan, findings)
    return _Looked(source, alike, findings, plan)


def _learned(wish: Wish, base: Base, judge: Judge, photos: Photos, hooks: Hooks, stop: Stop) -> Learned:
    """From the photos to the report, or from wherever an earlier command has come."""
    plan = planned(wish, base, len(photos.names))
    watching = Watching(plan, photos, judge, wish.out)

    def measured(told: dict[str, Any]) -> None:
        hooks.measured(told)
        try:
            write_page(wish.out / PAGE, report_of(plan, photos, watching, best(watching.checkpoints)))
        except LdmError as error:  # the figures are kept: the next page has them
            log.warning("%s %s", error.what, error.why)

    watching.tell = measured
    if not watching.whole:
        if not (wish.out / "run").exists():
            hooks.costs(plan, cost_of(plan, photos))
            stop.check()
        _trained(plan, plan.run_file(photos, _class_pictures(plan, photos, hooks, stop)), watching, hooks, stop)
        release()
    chosen = best(watching.checkpoints)
    files = _publish(wish, chosen)
    steps = weighed(plan, chosen, watching.checkpoints)
    weights = draw_strengths(plan, wish.out / "checkpoints", steps, wish.out / AT_WEIGHTS, stop)
    report = report_of(plan, photos, watching, chosen, weights=weights, done=True)
    write_page(wish.out / PAGE, report)
    remove(wish.out / REPORT)  # of an earlier command whose results were removed
    with staged(wish.out / REPORT) as stage:  # the last thing that is written: it says that all is there
        stage.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return Learned(wish.out, files, report)


def _class_pictures(plan: Plan, photos: Photos, hooks: Hooks, stop: Stop) -> Path | None:
    """Of the model itself, where the plan wants them."""
    if not plan.prior:
        return None
    return class_pictures(
        plan.wish.out.parent / "class-pictures",
        plan.base.path,
        plan.prompts.prior,
        plan.prior,
        plan.size,
        at_once=AT_ONCE if plan.base.small else 1,  # of a large one several at once may not fit where it trains
        masked=photos.masked,
        seed=plan.wish.seed,
        device=plan.wish.device,
        progress=hooks.progress,
        stop=stop,
    )


def foreseen(wish: Wish, hooks: Hooks) -> tuple[Plan, Cost]:
    """What it would cost; nothing is written where it would go."""
    refuse_syntax(wish.token)
    earlier(wish)  # what would be refused is refused here
    base = base_of(wish.model)
    looked = _looked(wish, base, Judge(wish.clip, base.path), hooks)
    plan = looked.plan
    with TemporaryDirectory(prefix="ldm-photos-") as place:
        cost = cost_of(plan, looked.prepared(Path(place) / "photos", base))
    hooks.costs(plan, cost)
    return plan, cost


def _trained(plan: Plan, file: RunFile, watching: Watching, hooks: Hooks, stop: Stop) -> None:
    """Until the last step, or until more has stopped paying. What it holds in memory ends with it."""
    with opened(file, listeners=hooks.listeners, stop=stop, progress=hooks.progress) as run:
        hooks.begun(run)
        if run.done == 0:
            watching.before(run.trainer)
        run.trainer.actions = [*run.trainer.actions, Action(plan.every, watching.at, again=True)]
        for step in run.steps():
            hooks.stepped(step)
            if watching.finished:  # its checkpoint is saved: they are measured when they are due
                break


def _publish(wish: Wish, chosen: Checkpoint) -> tuple[Path, ...]:
    """The best checkpoint's files under the subject's name."""
    kept = wish.out / "checkpoints" / str(chosen.step)
    if not kept.is_dir():
        what, why = f"{kept} is not there.", "It is the checkpoint that was chosen, and holds what was learned."
        raise LdmError(Code.FILE, what, why, "Put it back, or choose another --out to learn anew.")
    made = []
    for kind in ENDINGS:
        source, goal = kept / kind, file_of(wish, kind)
        if not source.exists():
            continue
        if not goal.exists():
            with staged(goal) as stage:
                shutil.copyfile(source, stage)
        made.append(goal)
    return tuple(made)
