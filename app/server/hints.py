"""What a control would see: the hint that a detector makes of a picture, before anything is drawn."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from app.generate import DEFAULT_MODEL
from app.server.asking import Brought, Named, Strict, read_as
from app.server.service import Service
from app.server.uploads import ID, bytes_of
from pipelines.suited import request_of

# A word in the name of a control -> the detector here that draws what it was made for; networks' maps come ready made.
MADE_FOR: Mapping[str, str] = {
    **dict.fromkeys(("canny", "edge", "edges"), "canny"),
    **dict.fromkeys(("soft", "softedge", "hed", "pidi", "pidinet", "lineart"), "soft"),
    **dict.fromkeys(("lines", "mlsd"), "lines"),
    **dict.fromkeys(("scribble", "scribbles", "sketch"), "scribble"),
    **dict.fromkeys(("recolor", "recolour", "luminance"), "recolour"),
    **dict.fromkeys(("grey", "gray", "brightness"), "grey"),
    **dict.fromkeys(("palette", "color", "colour", "shuffle"), "palette"),
    **dict.fromkeys(("depth", "pose", "openpose", "normal", "normals", "normalbae", "seg", "segmentation"), "none"),
    **{name: name for name in ("tile", "blur")},
}


class AskedHint(Strict):
    """A picture, and what is made of it. What is left out is as in a job: its `hint` is none, its size the model's."""

    image: Brought
    hint: Named = "none"
    model: Named = DEFAULT_MODEL
    width: Annotated[int, Field(description="of the picture that would be drawn")] | None = None
    height: int | None = None


def seen(service: Service, given: Mapping[str, Any]) -> bytes:
    """The hint as PNG: the one that a control is given when a picture of that size is drawn."""
    asked = read_as(AskedHint, given)
    request = request_of("", {"width": asked.width, "height": asked.height})
    size = service.understanding.size(asked.model, request)
    service.limits.check(request, size)
    uploads = service.uploads
    known = ID.fullmatch(asked.image) is not None
    picture = uploads.open(uploads.found(asked.image)) if known else uploads.look(bytes_of(asked.image))
    service.worker.bring_in()
    from pipelines.conditions import hint_of  # late: it brings torch

    file = io.BytesIO()
    samples = np.rint(hint_of(asked.hint, picture, size) * 255).astype(np.uint8)
    Image.fromarray(samples).save(file, "PNG")
    return file.getvalue()


def hints(service: Service) -> dict[str, str]:
    """The detectors, and what each of them draws."""
    service.worker.bring_in()
    from ldm.data.hints import HINTS  # late: it brings torch

    return {name: inspect.getdoc(detector) or "" for name, detector in HINTS.items()}


def controls(service: Service) -> dict[str, str | None]:
    """The detector that each control was made for, as its name tells it; None where it does not."""
    return {name: made_for(name) for name in service.catalog.controls()}


def made_for(control: str) -> str | None:
    words = re.split(r"[^a-z]+", control.lower())
    return next((MADE_FOR[word] for word in words if word in MADE_FOR), None)
