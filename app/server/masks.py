"""Masks as other programs send them, made into ours: white is painted, black never changes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from app.server.uploads import Uploads
from ldm.images import Picture


def inverted(uploads: Uploads, name: str) -> str:
    """The upload of the opposite of a mask."""
    from pipelines.hole import mask_values  # late: it brings torch, and a server answers from the start

    return kept(uploads, 1 - mask_values(uploads.open(name)))


def from_alpha(uploads: Uploads, name: str) -> str | None:
    """The upload of a mask that paints where a picture is transparent; None where it nowhere is."""
    picture: Picture = uploads.open(name)
    if picture.alpha is None or not (picture.alpha < np.iinfo(picture.alpha.dtype).max).any():
        return None
    return kept(uploads, 1 - picture.alpha.astype(np.float32) / np.iinfo(picture.alpha.dtype).max)


def kept(uploads: Uploads, mask: np.ndarray) -> str:
    """The upload of a mask [H,W] in 0..1."""
    file = io.BytesIO()
    Image.fromarray(np.rint(mask * 255).astype(np.uint8)).save(file, "PNG")
    return uploads.add(file.getvalue()).id
