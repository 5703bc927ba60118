"""What it will cost, before it begins: a few steps are taken, and all else is led on from their time."""

from __future__ import annotations

from dataclasses import dataclass

from train.personal.photos import Photos
from train.personal.plan import Plan
from train.personal.watching import LOOK
from train.run import forecasted

BACKWARD = 2.0  # of a forward pass, that the rest of a step takes
KEEPING = 0.5 / (1 + BACKWARD)  # of a step: the model as it was is asked about half of the batch, without gradients


@dataclass(frozen=True)
class Cost:
    """Seconds (None where memory does not allow a measure) and bytes."""

    training: float | None
    looking: float | None  # at the checkpoints
    prior: float | None
    memory: int
    free: int
    fits: bool
    disk: int

    @property
    def total(self) -> float | None:
        parts = (self.training, self.looking, self.prior)
        return None if None in parts else sum(part or 0.0 for part in parts)


def cost_of(plan: Plan, photos: Photos) -> Cost:
    """Of the whole plan on this machine; a run that stops early takes less."""
    file = plan.run_file(photos, None)
    batch = file.run.batch * (2 if plan.prior else 1)  # photos stand for pictures that are not made yet
    made = forecasted(file.model_copy(update={"run": file.run.model_copy(update={"batch": batch})}))
    training = looking = prior = None
    if made.step_seconds is not None:
        each = made.step_seconds / batch / (1 + BACKWARD)  # one picture, once through the network
        picture = each * (2 * LOOK.steps + 2)
        shown = len(plan.prompts.subject) + len(plan.prompts.kind) + len(plan.prompts.unrelated)
        training = made.step_seconds * plan.steps * (1 + (KEEPING if plan.prior else 0))
        looking = picture * plan.seeds * (shown * (plan.wish.checkpoints + 1) + len(plan.prompts.unrelated))
        prior = picture * plan.prior
    return Cost(training, looking, prior, made.memory.total, made.free, made.fits, made.disk)
