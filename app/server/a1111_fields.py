"""A request of A1111's API as one of ours. What acts there acts here, or is refused; what asks for nothing passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ldm.errors import Code, LdmError
from pipelines.a1111 import solver_from_name, spacing_from_name

FILLS = ("blur", "original", "noise", "colour")  # of `inpainting_fill`: fill, original, latent noise, latent nothing
HASH = re.compile(r"\s*\[[0-9a-f]{6,64}\]$")  # that A1111 puts behind names
MODES = {"Balanced": 0, "My prompt is more important": 1, "ControlNet is more important": 2}
UPSCALES = {"latent": "latent", "lanczos": "lanczos", "nearest": "nearest", "none": "lanczos"}
MODULES = {
    "scribble_hed": "scribble", "scribble_pidinet": "scribble", "softedge_hed": "soft", "lineart": "soft",
    "mlsd": "lines", "tile_resample": "tile", "blur_gaussian": "blur", "recolor_luminance": "recolour",
}  # fmt: skip
# What nothing here does: refused unless it says that it is off.
ABSENT: Mapping[str, Callable[[Any], bool]] = {
    "styles": bool, "restore_faces": bool, "tiling": bool, "script_name": bool, "hr_prompt": bool,
    "hr_negative_prompt": bool, "hr_checkpoint_name": bool, "refiner_checkpoint": bool,
    "seed_resize_from_w": lambda v: isinstance(v, int) and v > 0, "s_churn": bool,
    "initial_noise_multiplier": lambda v: v not in (None, 1, 1.0),
}  # fmt: skip
Brought = Callable[[str], str]  # a picture in base64 -> the id of its upload


def fields_of(
    given: Mapping[str, Any], model: str, bring: Brought, invert: Callable[[str], str], image: bool
) -> dict[str, Any]:
    """The fields of a request of ours. `image`: it is img2img."""
    _check_absent(given)
    told: dict[str, Any] = {"model": model, "prompt": _text(given, "prompt")}
    if negative := _text(given, "negative_prompt"):
        told["negative"] = negative
    for theirs, ours in (("steps", "steps"), ("width", "width"), ("height", "height"), ("seed", "seed")):
        if (value := given.get(theirs)) is not None:
            told[ours] = value
    if given.get("cfg_scale") is not None:
        told["guidance"] = {"scale": given["cfg_scale"]}
    each, runs = _count(given, "batch_size"), _count(given, "n_iter")
    told |= {"count": each * runs, "batch": each}
    told |= dict(_sampler(given, told)) | dict(_variation(given)) | dict(_settings(given))
    if given.get("enable_hr"):
        told["hires"] = _hires(given)
    if image:
        told |= dict(_start(given, bring, invert))
    if controls := list(_controls(given, bring)):
        told["controls"] = controls
    return told


def model_of(given: Mapping[str, Any]) -> str | None:
    """The model that its settings ask for."""
    settings = given.get("override_settings")
    name = settings.get("sd_model_checkpoint") if isinstance(settings, dict) else None
    return bare(name) if name else None


def bare(name: object) -> str:
    """A name without the hash behind it."""
    return HASH.sub("", str(name)).removesuffix(".safetensors").strip()


def _check_absent(given: Mapping[str, Any]) -> None:
    for name, on in ABSENT.items():
        if on(given.get(name)):
            why = "This server does not do that, and would draw something else without a word."
            raise LdmError(Code.USAGE, f"{name} is not done here.", why, f"Leave {name} out.")
    scripts = given.get("alwayson_scripts")
    for name, script in scripts.items() if isinstance(scripts, dict) else ():
        args = script.get("args") if isinstance(script, dict) else None
        if str(name).lower() != "controlnet" and args and any(args if isinstance(args, list) else [args]):
            why = "Extensions of other programs are not run here; ControlNet is."
            raise LdmError(Code.USAGE, f"The script {str(name)[:40]!r} is not here.", why, "Leave it out.")


def _sampler(given: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    name = given.get("sampler_name") or given.get("sampler_index")
    if not name:
        return
    solver, spacing = solver_from_name(str(name))
    scheduler = str(given.get("scheduler") or "automatic")
    if scheduler.lower() not in ("automatic", "use same scheduler"):
        spacing = spacing_from_name(scheduler, solver)
    elif spacing == "auto":
        spacing = spacing_from_name("automatic", solver)
    yield from (("solver", solver), ("spacing", spacing))
    if solver == "ddim" and given.get("eta"):
        yield "eta", given["eta"]


def _variation(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if strength := given.get("subseed_strength"):
        if (seed := given.get("subseed", -1)) in (None, -1):
            why = "A variation turns a seed towards another one, which must be said."
            raise LdmError(Code.USAGE, "subseed is missing.", why, "Give subseed a number from 0.")
        yield from (("variation", strength), ("variation_seed", seed))


def _settings(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    settings = given.get("override_settings")
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if name == "CLIP_stop_at_last_layers":
            yield "clip_skip", max(0, int(value) - 1)
        elif name not in ("sd_model_checkpoint", "samples_format", "sd_vae"):
            why = "It knows sd_model_checkpoint and CLIP_stop_at_last_layers."
            raise LdmError(Code.USAGE, f"override_settings.{name[:40]} is not known.", why, "Leave it out.")


def _hires(given: Mapping[str, Any]) -> dict[str, Any]:
    name = str(getattr(given.get("hr_upscaler"), "value", given.get("hr_upscaler") or "Latent"))
    upscale = UPSCALES.get(name.partition(" ")[0].lower())
    if upscale is None:
        why = f"Upscalers here are {', '.join(sorted({'Latent', 'Lanczos', 'Nearest'}))}."
        raise LdmError(Code.USAGE, f"hr_upscaler {name[:40]!r} is not here.", why, "Choose one of them.")
    if given.get("hr_resize_x") or given.get("hr_resize_y"):
        why = "The second pass enlarges both sides alike."
        raise LdmError(Code.USAGE, "hr_resize_x is not done here.", why, "Give hr_scale.")
    told: dict[str, Any] = {"scale": given.get("hr_scale", 2.0), "upscale": upscale}
    if given.get("denoising_strength") is not None:
        told["strength"] = given["denoising_strength"]
    if given.get("hr_second_pass_steps"):
        told["steps"] = given["hr_second_pass_steps"]
    return told


def _start(given: Mapping[str, Any], bring: Brought, invert: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    """Picture and mask of img2img."""
    images = given.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        why = "One picture is painted over at a time."
        raise LdmError(Code.USAGE, "init_images holds no single picture.", why, "Send a list of one.")
    yield "image", bring(str(images[0]))
    if given.get("denoising_strength") is not None:
        yield "strength", given["denoising_strength"]
    if not given.get("mask"):
        return
    mask = bring(str(given["mask"]))
    yield from (("mask", invert(mask) if given.get("inpainting_mask_invert") else mask), ("resize_mask", True))
    yield "mask_blur", given.get("mask_blur", 4) or 0
    fill = given.get("inpainting_fill", 1)
    if fill not in range(len(FILLS)):
        raise LdmError(Code.USAGE, f"inpainting_fill {fill!r} is none.", "It is 0, 1, 2 or 3.", "Use 1, the original.")
    yield "fill", FILLS[fill]
    if given.get("inpaint_full_res", True):
        yield from (("only_masked", True), ("padding", given.get("inpaint_full_res_padding", 32) or 0))


def _controls(given: Mapping[str, Any], bring: Brought) -> Iterator[dict[str, Any]]:
    scripts = given.get("alwayson_scripts")
    found = [script for name, script in (scripts or {}).items() if str(name).lower() == "controlnet"]
    units = found[0].get("args", []) if found and isinstance(found[0], dict) else []
    for unit in units:
        if not isinstance(unit, dict) or not unit.get("enabled", True) or unit.get("model") in (None, "", "None"):
            continue
        picture = unit.get("image") or unit.get("input_image")
        inside = picture if isinstance(picture, dict) else {"image": picture, "mask": unit.get("mask")}
        told: dict[str, Any] = {"model": bare(unit["model"]), "hint": _hint(str(unit.get("module") or "none"))}
        told |= {name: bring(str(inside[name])) for name in ("image", "mask") if inside.get(name)}
        for theirs, ours in (("weight", "weight"), ("guidance_start", "start"), ("guidance_end", "end")):
            if unit.get(theirs) is not None:
                told[ours] = unit[theirs]
        mode = MODES.get(str(unit.get("control_mode", 0)), unit.get("control_mode", 0))
        if mode not in (0, 2):
            why = "Here a control is balanced, or more important than the prompt."
            raise LdmError(Code.USAGE, f"control_mode {mode!r} is not done here.", why, "Lower the unit's weight.")
        yield told | ({"guess": True} if mode == 2 else {})


def _hint(module: str) -> str:
    from ldm.data.hints import HINTS

    name = MODULES.get(module.lower(), module.lower())
    if name not in HINTS:
        why = f"Detectors here are {', '.join(HINTS)}; others need networks that do not ship."
        raise LdmError(Code.USAGE, f"The module {module[:40]!r} is not here.", why, "Send a ready hint, module none.")
    return name


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise LdmError(Code.USAGE, f"{name} is no text.", "It holds words.", "Send a string.")
    return value or ""


def _count(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        raise LdmError(Code.USAGE, f"{name} is {str(value)[:20]}.", "It is a whole number from 1 to 100.", "Use 1.")
    return value
