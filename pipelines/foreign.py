"""From the parameters of A1111 or ComfyUI to fields of our request; what has no counterpart is said, not guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ldm.errors import LdmError
from pipelines.a1111 import Parameters, solver_from_name, spacing_from_name
from pipelines.recipe import ModelId, Recipe, file_name


def foreign_recipe(found: Parameters, origin: Literal["a1111", "comfyui"]) -> Recipe:
    """A recipe from another program's parameters; what has no counterpart is named in `notes`."""
    fields, notes = request_fields(found, origin)
    pairs = found.pairs
    return Recipe(
        origin=origin,
        request=fields,
        model=ModelId(name=file_name(pairs.get("Model", "")), fingerprint=pairs.get("Model hash", "")),
        prompt=found.prompt,
        negative=found.negative,
        solver=fields.get("solver", "auto"),
        spacing=fields.get("spacing", "auto"),
        steps=fields.get("steps", 0),
        width=fields.get("width", 0),
        height=fields.get("height", 0),
        seed=fields.get("seed", 0),
        foreign=dict(pairs),
        notes=tuple(notes),
    )


def request_fields(found: Parameters, origin: Literal["a1111", "comfyui"]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a request, and notes in plain words."""
    pairs, notes = found.pairs, list[str]()
    fields: dict[str, Any] = {"prompt": found.prompt}
    if found.negative is not None:
        fields["negative"] = found.negative
    if origin == "comfyui":
        fields["dialect"] = "comfy"
    _number(pairs, "Steps", fields, "steps", notes)
    _number(pairs, "Seed", fields, "seed", notes)
    _number(pairs, "Mask blur", fields, "mask_blur", notes, whole=False)
    if (scale := _read(pairs, "CFG scale", notes, whole=False)) is not None:
        fields["guidance"] = {"scale": scale}
    if (skip := _read(pairs, "Clip skip", notes)) is not None and skip > 1:  # there 1 is the last layer, here 0
        fields["clip_skip"] = skip - 1
    if (variation := _read(pairs, "Variation seed strength", notes, whole=False)) is not None:
        fields["variation"] = variation
        _number(pairs, "Variation seed", fields, "variation_seed", notes)
    _size(pairs, fields, notes)
    _sampler(pairs, fields, notes)
    _second_pass(pairs, fields, notes)
    if origin == "a1111" and pairs.get("RNG", "GPU") != "CPU":
        notes.append("its noise was drawn on a GPU: the same seed gives another picture here")
    if origin == "comfyui":
        notes.append("a ComfyUI graph can do more than its KSampler says: the picture may differ")
    return fields, notes


def _read(pairs: Mapping[str, str], key: str, notes: list[str], whole: bool = True) -> Any:
    if key not in pairs:
        return None
    try:
        value = int(pairs[key]) if whole else float(pairs[key])
        if math.isfinite(value):
            return value
    except (ValueError, OverflowError):
        pass
    notes.append(f"{key} {pairs[key][:40]!r} is not a number, and was left out")
    return None


def _number(
    pairs: Mapping[str, str], key: str, fields: dict[str, Any], name: str, notes: list[str], whole: bool = True
) -> None:
    if (value := _read(pairs, key, notes, whole)) is not None:
        fields[name] = value


def _size(pairs: Mapping[str, str], fields: dict[str, Any], notes: list[str]) -> None:
    if "Size" not in pairs:
        return
    width, _, height = pairs["Size"].partition("x")
    if width.isdecimal() and height.isdecimal() and len(width) < 6 and len(height) < 6:
        fields |= {"width": int(width), "height": int(height)}
    else:
        notes.append(f"Size {pairs['Size'][:40]!r} was left out")


def _sampler(pairs: Mapping[str, str], fields: dict[str, Any], notes: list[str]) -> None:
    if "Sampler" not in pairs:
        return
    try:
        solver, spacing = solver_from_name(pairs["Sampler"])
        if "Schedule type" in pairs:
            spacing = spacing_from_name(pairs["Schedule type"], solver)
        fields |= {"solver": solver, "spacing": spacing}
    except LdmError as error:
        notes.append(f"{error.what} here, and was left out")


def _second_pass(pairs: Mapping[str, str], fields: dict[str, Any], notes: list[str]) -> None:
    """`Denoising strength` belongs to the second pass if there was one, else to an input picture."""
    strength = _read(pairs, "Denoising strength", notes, whole=False)
    scale = _read(pairs, "Hires upscale", notes, whole=False)
    if scale is not None:
        told = {"scale": scale, "strength": strength, "steps": _read(pairs, "Hires steps", notes) or None}
        fields["hires"] = {key: value for key, value in told.items() if value is not None}
        upscaler = pairs.get("Hires upscaler", "")
        fields["hires"]["upscale"] = "latent" if upscaler.lower().startswith("latent") else "lanczos"
    elif strength is not None:
        fields["strength"] = strength
        notes.append(f"it was made from a picture with strength {strength:g}: give that picture with --image")
