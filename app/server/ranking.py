"""Which pictures of a job are most like their prompt, as a CLIP that lies here finds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from app.server.gallery import Gallery
from app.server.store import Job, Made
from ldm.errors import Code, LdmError
from ldm.images import open_image
from ldm.models.prompt import retagged
from ldm.store.find import ranker_of
from pipelines.recipe import recipe_of

if TYPE_CHECKING:
    from app.server.service import Service
    from pipelines.ranking import Ranker

KEPT = 512  # jobs whose scores are remembered
Scores = dict[str, float]  # by the file of a picture


class Rankings:
    """Scores of pictures, and the CLIP that was used last; one job is looked at at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ranker: Ranker | None = None
        self._scores: OrderedDict[tuple[str, str], Scores] = OrderedDict()

    def scores(self, job: Job, pictures: Sequence[Made], name: str, path: Path, gallery: Gallery) -> Scores:
        """Of these pictures; those that were looked at before are not looked at again."""
        with self._lock:
            known = self._scores.setdefault((job.id, name), {})
            self._scores.move_to_end((job.id, name))
            for made in pictures:
                if made.file not in known:
                    known[made.file] = self._score(gallery.path(job, made.place), name, path)
            while len(self._scores) > KEPT:
                self._scores.popitem(last=False)
            return dict(known)

    def _score(self, picture: Path, name: str, path: Path) -> float:
        from ldm.store.clip import load_clip  # late: they bring torch
        from pipelines.ranking import Ranker
        from pipelines.steps import Result

        if self._ranker is None or self._ranker.name != name:
            self._ranker = Ranker(load_clip(path), name)
        opened = open_image(picture)
        recipe = recipe_of(opened, picture.name)
        return self._ranker.scores([Result(opened, recipe, recipe.seed, recipe.index)])[0]


def ranking(service: Service, name: str, ranker: str | None = None) -> dict[str, Any]:
    """The finished pictures of a job that has ended, the one most like its words first."""
    job = service.jobs.job(name)
    if job.state in ("queued", "running"):
        raise LdmError(Code.DIFFERENT, f"Job {job.id} is not done.", f"It is {job.state}.", "Ask again when it is.")
    pictures = [made for made in job.pictures if not made.partial]
    if not pictures:
        what, why = f"Job {job.id} has no finished picture.", f"It was {job.state}."
        raise LdmError(Code.FILE, what, why, "Ask for its pictures again.")
    if not retagged(str(job.asked.get("prompt", "")), lambda tag: None).strip():
        why = "It has no prompt, so there are no words that its pictures could be like."
        raise LdmError(
            Code.USAGE, f"The pictures of job {job.id} cannot be ranked.", why, "Ask for some with a prompt."
        )
    chosen = ranker or _ranker_of(service, str(job.asked["model"]))
    path = service.catalog.ranker(chosen)
    service.worker.bring_in()
    scores = service.rankings.scores(job, pictures, chosen, path, service.gallery)
    told = [{"place": made.place, "score": scores[made.file]} for made in pictures]
    return {"ranker": chosen, "scores": sorted(told, key=lambda each: (-each["score"], each["place"]))}


def _ranker_of(service: Service, model: str) -> str:
    name = ranker_of(service.catalog.model(model))
    if name is None:
        others = ", ".join(service.catalog.rankers()) or "none"
        why = f"No CLIP ships beside {model} that could say which picture is most like the prompt; here is {others}."
        raise LdmError(Code.MODEL, f"Pictures of {model} cannot be ranked.", why, "Name a CLIP: ?ranker=NAME.")
    return name
