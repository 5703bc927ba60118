"""What a text-to-image model draws for the captions of a data set, and how well it fits them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.images import open_image, to_tensor
from ldm.metrics.extractors import by_clip
from ldm.metrics.features import squares
from ldm.metrics.interval import around
from ldm.metrics.measured import FEWEST
from ldm.metrics.protocol import Protocol
from ldm.models.clip import Clip
from ldm.store.clip import load_clip
from ldm.store.find import find_model
from pipelines.pipeline import Pipeline
from train.compare.reference import captions_of
from train.compare.wish import Yardsticks
from train.signals import Stop

TRIED = 4  # pictures that the pace is taken from
HOPELESS = 1.5  # times the time there is


def drawn_for_captions(
    made: str, yard: Yardsticks, samples: int, cap: int, seed: int, stop: Stop
) -> tuple[Tensor, dict[str, Any]]:
    """uint8 [n,3,size,size], one picture a caption, in their order and round again, as many as the cap allows; with a
    CLIP also how well each fits its words. They come to their size as those of a data set do."""
    texts = captions_of(yard)
    if not texts:
        why = "A text-to-image model draws for the captions of the data set, and this one has none."
        raise LdmError(Code.USAGE, f"{made} cannot be asked for anything.", why, "Give a data set with captions.")
    pipeline = Pipeline.load(made)
    clip = None if yard.clip is None else load_clip(find_model(yard.clip)).eval()
    found, fits, spent, first = list[Tensor](), list[float](), 0.0, 0.0
    for place in range(samples):
        text, began = texts[place % len(texts)], time.monotonic()
        (picture,) = pipeline(text, seed=seed * 1_000_003 + place)
        spent += time.monotonic() - began
        first = first or spent  # it makes itself ready
        found.append((squares([open_image(picture)], yard.size) * 255).round().to(torch.uint8))
        if clip is not None:
            fits.append(_fit(clip, picture, text))
        stop.check()
        if spent > cap:
            break
        if len(found) == TRIED:
            _check_pace(made, (spent - first) / (TRIED - 1), min(FEWEST, samples), cap)
    told: dict[str, Any] = {"drawn": len(found), "draw_seconds": spent / len(found)}
    if clip is not None:
        told["clip_score"] = _score(clip, str(yard.clip), fits, texts)
    return torch.cat(found), told


def _check_pace(made: str, each: float, needed: int, cap: int) -> None:
    """After a few pictures already it can be seen that the time will not do by far."""
    if needed * each > HOPELESS * cap:
        what, why = f"{made} takes {each:.3g} seconds for a picture.", f"{needed} are needed for a statistic."
        raise LdmError(Code.USAGE, what, why, f"Give it more time with --cap, {int(1.2 * needed * each) + 1} or more.")


def _fit(clip: Clip, picture: Image.Image, text: str) -> float:
    """The cosine between a picture, as large as it was drawn, and its words."""
    with torch.no_grad():
        return float(clip.similarity(to_tensor(np.asarray(picture.convert("RGB")) / 255), [text]))


def _score(clip: Clip, name: str, fits: Sequence[float], texts: Sequence[str]) -> dict[str, Any]:
    """Its protocol has the hash of the captions where others have that of the pictures."""
    each, looks = torch.tensor(fits, dtype=torch.float64), by_clip(clip, name)
    asked = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    by = Protocol(looks.name, looks.resize, len(fits), 0, f"captions {asked}")
    return {**asdict(around(float(each.mean()), float(each.std()) / len(each) ** 0.5)), "protocol": asdict(by)}
