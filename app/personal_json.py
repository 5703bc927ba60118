"""What `ldm personalize --json` says of a personalisation: its plan, its cost, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from app.training_view import JsonView

if TYPE_CHECKING:
    from ldm.data.survey import Finding
    from train.personal.cost import Cost
    from train.personal.plan import Plan
    from train.run import Run
    from train.trainer import Step

PAUSE = 0.5  # seconds between two lines that say how far it is, but for the last one


class PersonalJson(JsonView):
    """One line of JSON for each thing that is to be said."""

    def __init__(self) -> None:
        self._steps, self._told = 0, -PAUSE

    def begin(self, run: Run) -> None:
        super().begin(run)
        self._steps = run.told()["steps"]

    def step(self, step: Step) -> None:
        self.progress("steps", step.step, self._steps)

    def progress(self, what: str, done: int, total: int) -> None:
        if (now := time.monotonic()) - self._told >= PAUSE or done >= total:
            self._told = now
            self.say({"progress": {"what": what, "done": done, "total": total}})

    def say(self, record: dict[str, Any]) -> None:
        self._tell(record)


def plan_told(plan: Plan, findings: Sequence[Finding]) -> dict[str, Any]:
    """What is planned, and what is worth mending; `prompts` are those that samples are drawn of, in their order."""
    return {
        "steps": plan.steps,
        "findings": [finding.as_dict() for finding in findings],
        "notes": list(plan.notes),
        "prompts": list(plan.prompts.subject),
    }


def cost_told(cost: Cost) -> dict[str, Any]:
    """Seconds and bytes."""
    return {**asdict(cost), "total": cost.total}
