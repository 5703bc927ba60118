"""What it will cost, before it begins: a few steps are taken, and all else is led on from their time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm.store.sampling import read_sampling
from pipelines.request import Request
from train.personal.page import SHOWN
from train.personal.photos import Photos
from train.personal.plan import DROPPED, PART, Plan
from train.personal.strengths import OTHERS, WEIGHTS
from train.personal.watching import LOOK
from train.run import forecasted

BACKWARD = 2.0  # of a forward pass, that the rest of a step takes
# Of a step: the model as it was is asked about its own pictures and about dropped captions, without gradients.
KEEPING = (PART + (1 - PART) * DROPPED) / (1 + BACKWARD)


@dataclass(frozen=True)
class Cost:
    """Seconds (None where memory does not allow a measure) and bytes."""

    training: float | None
    looking: float | None  # at the checkpoints, and at them at several weights
    prior: float | None
    memory: int
    free: int
    fits: bool
    disk: int  # of all that is left: the run, checkpoints, pictures, the page that shows them

    @property
    def total(self) -> float | None:
        parts = (self.training, self.looking, self.prior)
        return None if None in parts else sum(part or 0.0 for part in parts)


def cost_of(plan: Plan, photos: Photos) -> Cost:
    """Of the whole plan on this machine; a run that stops early takes less."""
    file = plan.run_file(photos, None)
    batch = plan.together if plan.prior else plan.batch  # photos stand for pictures that are not made yet
    made = forecasted(file.model_copy(update={"run": file.run.model_copy(update={"batch": batch})}))
    training = looking = prior = None
    if made.step_seconds is not None:
        each = made.step_seconds / batch / (1 + BACKWARD)  # one picture, once through the network
        picture, full = (each * (2 * steps + 2) for steps in (LOOK.steps, _steps(plan)))
        training = made.step_seconds * plan.steps * (1 + (KEEPING if plan.prior else 0))
        again = plan.other_seeds * len(plan.prompts.unrelated)
        again += 0 if plan.prompts.kind else plan.seeds * len(plan.prompts.before)
        looking = picture * (_shown(plan) + again) + full * _at_weights(plan)
        prior = full * plan.prior
    disk = made.disk + made.saved * (plan.wish.checkpoints + 1) + _pictures(plan) + _bytes(photos.folder)
    return Cost(training, looking, prior, made.memory.total, made.free, made.fits, disk)


def _steps(plan: Plan) -> int:
    """Of a picture as `ldm generate` draws it: those of the class, and those at several weights."""
    default: int = Request.model_fields["steps"].default
    return read_sampling(plan.base.path).steps or default


def _shown(plan: Plan) -> int:
    """Samples that are kept, of all checkpoints and of the model before."""
    prompts = plan.prompts
    each = plan.seeds * len(prompts.subject) + plan.other_seeds * (len(prompts.kind) + len(prompts.unrelated))
    return each * (plan.wish.checkpoints + 1)


def _at_weights(plan: Plan) -> int:
    others = plan.wish.checkpoints - 1 if plan.base.small else 0
    each = 0 if plan.wish.method == "inversion" else len(WEIGHTS) + others * len(OTHERS)
    return each * len(plan.prompts.subject)


def _pictures(plan: Plan) -> int:
    """Bytes at most: a PNG is hardly larger than its samples, and the page holds a small one of each, as text."""
    samples = _shown(plan) + _at_weights(plan)
    return 3 * (plan.size**2 * (samples + plan.prior) + min(plan.size, SHOWN) ** 2 * samples * 4 // 3)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
