"""Pictures of the model itself that keep it what it is while it learns a subject (DreamBooth's prior, Ruiz 2023).

They are of the subject's kind and of other things, each with its prompt as caption. Made once for a model, its prompts,
seed and size, and used again by every run that asks for the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ldm.images import from_rgb, save_image
from ldm.store.fingerprint import content_hash
from ldm.store.write import staged
from pipelines.pipeline import Pipeline
from pipelines.request import Request
from pipelines.suited import suited
from train.signals import Stop

AT_ONCE = 8


def class_pictures(
    cache: Path,
    model: Path,
    prompts: Sequence[str],
    count: int,
    size: int,
    *,
    masked: bool,
    seed: int,
    device: str | None,
    progress: Callable[[str, int, int], None],
    stop: Stop,
) -> Path:
    """A folder with `count` pictures and captions, and masks that let all of them count where photos have masks."""
    told = {"model": content_hash(model), "prompts": list(prompts), "count": count, "size": size, "seed": seed}
    told["masked"] = masked
    folder = cache / hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    pipeline = Pipeline.load(model, device=device or "auto")
    done = 0
    with staged(folder) as stage:
        (stage / "masks" if masked else stage).mkdir(parents=True)
        for place, text in enumerate(prompts[:count]):
            share = len(range(place, count, len(prompts)))
            fields = suited(model, text, {}) | {"prompt": text, "seed": seed + 1000 * place, "count": share}
            request = Request(**{"width": size, "height": size, "batch": AT_ONCE, **fields})
            for step in pipeline.run(request):
                stop.check()
                for result in step.done:
                    save_image(result.picture, stage / f"{done:04d}.png")
                    (stage / f"{done:04d}.txt").write_text(text + "\n", "utf-8")
                    if masked:
                        save_image(from_rgb(np.ones((size, size, 3), np.float32)), stage / "masks" / f"{done:04d}.png")
                    done += 1
                    progress("class pictures", done, count)
        (stage / "made.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    return folder
