"""/sdapi/v1 as clients of A1111 speak it: pictures in and out in base64, one answer when all is done."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from app.generate import DEFAULT_MODEL
from app.server.a1111_fields import bare, fields_of, model_of
from app.server.api import Serving
from app.server.masks import inverted
from app.server.reading import client_of, object_of
from app.server.service import Service
from app.server.store import Job
from app.server.taking import apart, taken_in
from app.server.uploads import bytes_of
from app.server.waiting import finished
from ldm.errors import Code, LdmError
from ldm.images import Picture
from pipelines.a1111 import SOLVERS, SPACINGS
from pipelines.recipe import read_recipe, recipe_of

router = APIRouter(prefix="/sdapi/v1", tags=["as A1111's"])
UPSCALERS = ("Lanczos", "Nearest")
BULKY = ("init_images", "mask", "alwayson_scripts")  # not told again in an answer
LATENT = ("Latent",)


@router.post("/txt2img", summary="Pictures of a prompt")
async def txt2img(request: Request, service: Serving) -> JSONResponse:
    return await _made(request, service, image=False)


@router.post("/img2img", summary="A picture painted over, or inpainted where a mask is white")
async def img2img(request: Request, service: Serving) -> JSONResponse:
    return await _made(request, service, image=True)


@router.post("/interrupt", summary="End the caller's jobs that run; what they have so far is answered")
def interrupt(request: Request, service: Serving) -> dict[str, Any]:
    for job in _running(service, client_of(request)):
        service.cancel(job.id)
    return {}


@router.post("/skip", summary="The same")
def skip(request: Request, service: Serving) -> dict[str, Any]:
    return interrupt(request, service)


@router.get("/progress", summary="How far the caller's job is that runs")
def progress(request: Request, service: Serving) -> dict[str, Any]:
    jobs = _running(service, client_of(request))
    told = (service.hub.last(jobs[0].id) or {}) if jobs else {}
    step, steps, count = told.get("step", 0), told.get("steps", 0), max(1, told.get("count", 1))
    under_way = told.get("pictures", [0, 1])
    share = (told.get("made", 0) + (under_way[1] - under_way[0]) * step / max(1, steps)) / count
    state = {
        "skipped": False, "interrupted": False, "job": jobs[0].id if jobs else "", "job_count": len(jobs),
        "job_no": 0, "sampling_step": step, "sampling_steps": steps,
    }  # fmt: skip
    return {"progress": min(1.0, share), "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}


@router.get("/options", summary="The model that is used where none is named")
def options(service: Serving) -> dict[str, Any]:
    return {"sd_model_checkpoint": _chosen(service), "CLIP_stop_at_last_layers": 1, "samples_format": "png"}


@router.post("/options", summary="Choose the model that is used where none is named")
async def set_options(request: Request, service: Serving) -> None:
    """For callers of this dialect alone; others name it themselves."""
    given = object_of(await request.body())
    now = await run_in_threadpool(options, service)
    for name, value in given.items():
        if name == "sd_model_checkpoint":
            await run_in_threadpool(service.catalog.model, bare(value))
            service.choices["model"] = bare(value)
        elif now.get(name) != value:
            why = "Only sd_model_checkpoint can be chosen here; others are said with each request."
            raise LdmError(Code.USAGE, f"The option {name[:40]!r} is not here.", why, "Leave it out.")


@router.post("/png-info", summary="The recipe in a picture")
async def png_info(request: Request, service: Serving) -> dict[str, Any]:

    def opened(body: bytes) -> Picture:
        return service.uploads.look(bytes_of(str(object_of(body).get("image", ""))))

    async with taken_in(request):
        picture = await apart(request, opened, await request.body())
    try:
        info = recipe_of(picture).to_a1111()
    except LdmError:  # it carries none
        info = ""
    return {"info": info, "items": dict(picture.text), "parameters": {}}


@router.get("/samplers", summary="Solvers by their names there")
def samplers() -> list[dict[str, Any]]:
    return [{"name": a[0], "aliases": [ours, *a[1:]], "options": {}} for ours, (a, _) in SOLVERS.items()]


@router.get("/schedulers", summary="Spacings by their names there")
def schedulers() -> list[dict[str, Any]]:
    own = [{"name": ours, "label": a[0], "aliases": list(a[1:])} for ours, (a, _) in SPACINGS.items()]
    return [{"name": "automatic", "label": "Automatic", "aliases": None}, *own]


@router.get("/sd-models", summary="Models")
def sd_models(service: Serving) -> list[dict[str, Any]]:
    names = service.catalog.models()
    return [{"title": n, "model_name": n, "hash": None, "sha256": None, "filename": n, "config": None} for n in names]


@router.get("/loras", summary="Adapters, as <lora:name:1> names them")
def loras(service: Serving) -> list[dict[str, Any]]:
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in service.catalog.adapters()]


@router.get("/embeddings", summary="Learned words: none is loaded by itself")
def embeddings() -> dict[str, Any]:
    return {"loaded": {}, "skipped": {}}


@router.get("/upscalers", summary="Filters of the second pass")
def upscalers() -> list[dict[str, Any]]:
    return [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in UPSCALERS]


@router.get("/latent-upscale-modes", summary="Filters of latents")
def latent_upscale_modes() -> list[dict[str, Any]]:
    return [{"name": name} for name in LATENT]


@router.get("/scripts", summary="Of its extensions ControlNet is spoken")
def scripts() -> dict[str, Any]:
    return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}


@router.get("/memory", summary="Main memory, in bytes")
def memory() -> dict[str, Any]:
    import psutil

    found = psutil.virtual_memory()
    return {"ram": {"free": found.available, "used": found.total - found.available, "total": found.total}, "cuda": {}}


@router.get("/cmd-flags", summary="None of its flags")
def cmd_flags() -> dict[str, Any]:
    return {}


@router.get("/sd-vae", summary="None apart")
@router.get("/hypernetworks", summary="None")
@router.get("/face-restorers", summary="None")
@router.get("/realesrgan-models", summary="None")
@router.get("/prompt-styles", summary="None")
def nothing() -> list[Any]:
    return []


@router.post("/refresh-checkpoints", summary="Names are looked up at each request")
@router.post("/refresh-loras", summary="Names are looked up at each request")
def refreshed() -> None:
    return None


async def _made(request: Request, service: Service, image: bool) -> JSONResponse:
    def asked(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        uploads, given = service.uploads, object_of(body)
        model = model_of(given) or _chosen(service)
        bring, invert = (lambda text: uploads.add_text(text).id), (lambda name: inverted(uploads, name))
        shown = {name: value for name, value in given.items() if name not in BULKY}
        return fields_of(given, model, bring, invert, image), shown

    async with taken_in(request):
        fields, shown = await apart(request, asked, await request.body())
    job = await finished(service, fields, request)
    return JSONResponse(await run_in_threadpool(_told, service, job, shown))


def _told(service: Service, job: Job, shown: Mapping[str, Any]) -> dict[str, Any]:
    paths = [service.gallery.path(job, made.place) for made in job.pictures]
    recipes = [read_recipe(path) for path in paths]
    seeds = [recipe.seed for recipe in recipes] or [int(job.asked["seed"])]
    first = recipes[0] if recipes else None
    info = {
        "prompt": job.asked.get("prompt", ""), "negative_prompt": job.asked.get("negative", ""),
        "all_prompts": [recipe.prompt for recipe in recipes], "seed": seeds[0], "all_seeds": seeds,
        "width": first.width if first else 0, "height": first.height if first else 0,
        "steps": job.asked.get("steps"), "cfg_scale": job.asked.get("guidance", {}).get("scale"),
        "batch_size": shown.get("batch_size", 1), "sampler_name": first.solver if first else "",
        "sd_model_name": job.asked["model"], "infotexts": [recipe.to_a1111() for recipe in recipes], "job": job.id,
    }  # fmt: skip
    images = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    return {"images": images, "parameters": dict(shown), "info": json.dumps(info)}


def _running(service: Service, client: str) -> list[Job]:
    return [job for job in service.jobs.list(("running",)) if job.client == client]


def _chosen(service: Service) -> str:
    return service.choices.get("model", DEFAULT_MODEL)
