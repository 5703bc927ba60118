"""What `ldm generate` tells without making a picture: the words as the model reads them, and what a run costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from app.progress import duration
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from app.generate import Order
    from pipelines.pipeline import Pipeline
    from pipelines.plan import Plan
    from pipelines.request import Request

LARGE = 4_000_000  # pixels; below that nobody is asked whether the memory is enough


def explain(pipeline: Pipeline, order: Order, as_json: bool) -> int:
    from pipelines.jobs import jobs

    told = []
    for request in order.requests:
        for side, text in (("prompt", jobs(request)[0].prompt.text), ("negative", request.negative)):
            if text is not None:
                told.append(
                    {"side": side, "text": text, "explanation": str(pipeline.model.text.explain(text, request.dialect))}
                )
    if as_json:
        typer.echo(json.dumps({"prompts": told}))
    else:
        typer.echo("\n\n".join(f"{t['side']}: {t['text']}\n{t['explanation']}" for t in told))
    return 0


def plan(pipeline: Pipeline, order: Order, as_json: bool) -> int:
    from pipelines.plan import plan as cost

    plans = [cost(pipeline, order.whole(request)) for request in order.requests]
    if as_json:
        typer.echo(json.dumps({"plans": [made.as_dict() for made in plans]}))
    else:
        typer.echo("\n\n".join(_in_words(made) for made in plans))
        if len(plans) > 1:
            typer.echo(f"\nall {len(plans)} requests: {duration(sum(made.seconds for made in plans))}")
    return 0


def check_memory(pipeline: Pipeline, request: Request) -> None:
    """Refuses a large picture whose work cannot fit into the memory that is free now."""
    scale = request.hires.scale if request.hires else 1.0
    if (request.width or 0) * (request.height or 0) * scale**2 <= LARGE:
        return
    from pipelines.plan import plan as cost

    needed, free = cost(pipeline, request).working_mb * 1e6, _free_memory(str(pipeline.device))
    if needed > free:
        size = (
            f"{round(request.width * scale)}x{round(request.height * scale)}"
            if request.width and request.height
            else ""
        )
        raise LdmError(
            Code.RESOURCE,
            f"--size: {size} needs about {_size(needed)} of memory.",
            f"The device has {_size(free)} free.",
            "Choose a smaller --size, or add --tile 512." if request.tile is None else "Choose a smaller --size.",
        )


def _free_memory(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)


def _in_words(made: Plan) -> str:
    how = "one call timed" if made.measured else "computed"
    time = duration(made.seconds) if made.seconds >= 1 else "a second or less"
    return (
        f"{_count(made.pictures, 'picture')} of {made.width}x{made.height}, "
        f"{_count(made.steps, 'step')} of {made.solver} ({made.spacing}), "
        f"{_count(made.calls, 'network call')} a batch of {made.batch}; about {time} ({how}), "
        f"{_size(made.weights_mb * 1e6)} of weights, {_size(made.working_mb * 1e6)} of work"
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
