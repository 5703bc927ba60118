"""What to say of a request that a small model can draw, but was not made for: other sizes, words that it never read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ldm.models.prompt import parse, remark
from ldm.store.find import adapter_file, find_tagged, shipped_adapters
from ldm.store.sampling import read_sampling
from pipelines.jobs import Job
from pipelines.request import Request

if TYPE_CHECKING:
    from pipelines.pipeline import Model

OTHER = 1.25  # an area that is so many times a model's own, or its part, is another size
LONG = 1.5  # and so is a side that is longer than so many of the model's own


def remarks(request: Request, model: Model, size: tuple[int, int], solver: str, batch: Sequence[Job]) -> Iterator[str]:
    """Notes for the recipes of a batch that is drawn at `size` with a solver."""
    yield from _size(request, model, size)
    for job in batch:
        yield from _words(request, model, job)
    yield from _adapters(request, solver, batch[0])  # a batch has the same adapters throughout


def _size(request: Request, model: Model, size: tuple[int, int]) -> Iterator[str]:
    """Models that people publish bear other sizes better, and tiles are of one size whatever the picture's is."""
    side, asked = int(model.network.config.sample_size) * model.vae.factor, "x".join(map(str, size))
    share = size[0] * size[1] / side**2
    usual = 1 / OTHER < share < OTHER and max(size) <= LONG * side
    if model.parts.family == "own" and request.tile is None and not usual:
        yield f"the model's own size is {side}x{side}: at {asked} things may repeat, stretch or be cut off"


def _words(request: Request, model: Model, job: Job) -> Iterator[str]:
    """An adapter or an embedding of the user's may have brought words of its own; what ships brings none."""
    known = model.parts.words
    if not known or request.embeddings:
        return
    given = (adapter_file(use.path) for use in request.loras)
    tagged = (find_tagged(name, request.lora_folder) for name, *_ in job.loras)
    if {*given, *tagged} <= set(shipped_adapters().values()):
        told = _remark(job.prompt.text, request.dialect, request.steps, known)
        yield from [told] if told else []


def _adapters(request: Request, solver: str, job: Job) -> Iterator[str]:
    """Adapters that are run with other settings than were measured to suit them, and those that act twice."""
    given = [adapter_file(use.path) for use in request.loras if use.weight != 0]
    given += [find_tagged(name, request.lora_folder) for name, *_ in job.loras]
    for file, times in Counter(given).items():
        if times > 1:
            yield f"{file.name} is given {times} times, and its changes add up"
        told = read_sampling(file)
        other_solver = told.solver not in (None, solver)
        if other_solver or told.guidance not in (None, request.guidance.scale):
            suits = told.model_dump(exclude_none=True, exclude={"steps", "spacing"})
            asked = f"solver {solver} and guidance {request.guidance.scale:g}"
            fit = " and ".join(f"{name} {value}" for name, value in suits.items())
            yield f"{file.name} was made for {fit}: with {asked} pictures may come out spoilt"


@lru_cache(maxsize=64)
def _remark(text: str, dialect: str, steps: int | None, known: frozenset[str]) -> str:
    """Kept: a prompt of many pictures is looked at once."""
    return remark(parse(text, dialect, steps=steps), known)
