"""Pictures of the model itself that keep it what it is while it learns a subject (DreamBooth's prior, Ruiz 2023).

They are of the subject's kind and of other things, each with its prompt as caption. Made once for a model, its prompts,
seed and size, and used again by every run that asks for the same; two that ask at once wait for each other. What a stop
leaves is gone on with.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.errors import Code, LdmError
from ldm.images import from_rgb, save_image
from ldm.images.save import make_folder
from ldm.store.fingerprint import content_hash
from ldm.store.sampling import read_sampling
from ldm.store.write import remove, staged
from pipelines.device import pick_device
from pipelines.pipeline import Pipeline
from pipelines.request import Request
from pipelines.suited import suited
from train.disk import put
from train.lock import Lock
from train.signals import Stop

log = logging.getLogger("train.personal")
WAIT = 1.0  # seconds between two looks whether another run is ready


def class_pictures(
    cache: Path,
    model: Path,
    prompts: Sequence[str],
    count: int,
    size: int,
    *,
    at_once: int,
    masked: bool,
    seed: int,
    device: str | None,
    progress: Callable[[str, int, int], None],
    stop: Stop,
) -> Path:
    """A folder with `count` pictures and captions, and masks that let all of them count where photos have masks."""
    told = {"model": content_hash(model), "prompts": list(prompts), "count": count, "size": size, "seed": seed}
    told |= {
        "masked": masked,
        "at_once": at_once,
        "device": pick_device(device or "auto").type,
        "sampling": read_sampling(model).model_dump(mode="json"),
    }
    folder = cache / hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    part = cache / f".{folder.name}.part"
    waits = False
    while not folder.is_dir():
        stop.check()
        make_folder(part)
        try:
            with Lock(part):
                if not folder.is_dir():  # else the one that was waited for has made it
                    drawn = part / "pictures"
                    _draw(drawn, model, prompts, told, device, progress, stop)
                    put(drawn, folder)
                remove(part)
        except LdmError as error:
            if folder.is_dir():  # and with it went the lock that was reached for
                break
            if error.code is not Code.BUSY:
                raise
            if not waits:
                log.info("another run draws the same class pictures: waiting for it")
            waits = True
            time.sleep(WAIT)
    return folder


def _draw(
    home: Path,
    model: Path,
    prompts: Sequence[str],
    told: Mapping[str, Any],
    device: str | None,
    progress: Callable[[str, int, int], None],
    stop: Stop,
) -> None:
    """All that are not there yet. Whole batches are gone on from: in another batch a picture may differ in its last
    bits, and the same seed is to give the same adapter."""
    count, size, done = told["count"], told["size"], 0
    pipeline: Pipeline | None = None
    for place, text in enumerate(prompts[:count]):
        share = len(range(place, count, len(prompts)))
        there = next((i for i in range(share) if not _picture(home, done + i).exists()), share)
        there -= there % told["at_once"] if there < share else 0
        for left in range(done + there, done + share):
            for path in (_picture(home, left), home / "masks" / f"{left:04d}.png"):
                path.unlink(missing_ok=True)
        done += there
        if there == share:
            progress("class pictures", done, count)
            continue
        pipeline = pipeline or Pipeline.load(model, device=device or "auto")
        fields = suited(model, text, {}) | {"prompt": text, "seed": told["seed"] + 1000 * place + there}
        request = Request(**{"width": size, "height": size, "batch": told["at_once"], **fields, "count": share - there})
        for step in pipeline.run(request):
            stop.check()
            for result in step.done:
                _write(_picture(home, done).with_suffix(".txt"), text)
                if told["masked"]:
                    white = from_rgb(np.ones((size, size, 3), np.float32))
                    save_image(white, home / "masks" / f"{done:04d}.png")
                save_image(result.picture, _picture(home, done))  # the last of its files: it says that all are there
                done += 1
                progress("class pictures", done, count)
    _write(home / "made.json", json.dumps(told, indent=2))


def _picture(home: Path, number: int) -> Path:
    return home / f"{number:04d}.png"


def _write(path: Path, text: str) -> None:
    remove(path)
    with staged(path) as stage:
        stage.write_text(text + "\n", "utf-8")
