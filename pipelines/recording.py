"""The recipe of a finished picture: what was asked for, and what was really used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.images import Picture
from pipelines.jobs import Job
from pipelines.recipe import ModelId, Recipe, pixel_hash, request_json, this_machine

if TYPE_CHECKING:
    from pipelines.making import Making


def record(making: Making, job: Job, picture: Picture, steps: int, notes: tuple[str, ...], partial: bool) -> Recipe:
    """The recipe that makes this picture alone."""
    pipeline, request, acting = making.pipeline, making.request, making.acting
    parts = pipeline.model.parts
    alone = request.model_copy(
        update={
            "seed": job.seed,
            "variation_seed": request.variation_seed if job.variation_seed is None else job.variation_seed,
        }
    )
    template = job.prompt.template
    return Recipe(
        request=request_json(alone),
        model=ModelId(name=parts.name, fingerprint=parts.fingerprint, family=parts.family),
        vae=None if pipeline.vae_source is None else pipeline.identity(pipeline.vae_source),
        refiner=None if request.refiner is None else _refiner(making),
        controls=tuple(pipeline.identity(use.model) for use in request.controls),
        adapters=acting.adapter_sources,
        embeddings=acting.embedding_sources,
        prompt=job.prompt.text,
        negative=None if job.negative is None else job.negative.text,
        template=template if template != job.prompt.text else None,
        wildcards=dict(job.prompt.files),
        solver=making.solver_name,
        spacing=making.spacing or request.spacing,
        steps=steps,
        width=picture.width,
        height=picture.height,
        seed=job.seed,
        index=job.index,
        machine=this_machine(str(pipeline.device), str(pipeline.dtype).removeprefix("torch.")),
        exact=request.exact,
        partial=partial,
        pixels=pixel_hash(picture),
        notes=notes,
    )


def _refiner(making: Making) -> ModelId | None:
    refiner = making.pipeline.refiner(making.request)
    if refiner is None:
        return None
    return ModelId(name=refiner.parts.name, fingerprint=refiner.parts.fingerprint, family=refiner.parts.family)
