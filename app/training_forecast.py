"""A forecast in words: what a run will look at, what it holds, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from app.progress import duration

if TYPE_CHECKING:
    from train.config import RunFile
    from train.forecast import Forecast


def in_words(made: Forecast, settings: RunFile) -> Iterator[str]:
    """Lines; the verdict last, where the eye is."""
    yield typer.style(f"{settings.run.out}: task {settings.task.type}, {settings.run.steps:,} steps", bold=True)
    yield ""
    yield from _rows("data", _data(made))
    several = f" x {made.micros} micro-batches" if made.micros > 1 else ""
    shapes = [(name, f"{' x '.join(map(str, shape))}{several}") for name, shape in made.shapes.items()]
    yield from _rows("a step sees", shapes)
    networks = [(n, f"{count:>14,}{'' if trained else '  frozen'}") for n, (count, trained) in made.networks.items()]
    yield from _rows("parameters", networks)
    yield from _rows(f"memory on {made.device}", _memory(made))
    yield from _rows("disk", _disk(made))
    yield from _rows("time", [*_cache(made), *_time(made)])
    if made.beside:
        yield typer.style(f"note: {made.beside}", fg="yellow")
    if made.memory.activations is None:
        yield typer.style("it does not fit: not even one example at a time", fg="red", bold=True)
    elif not made.fits:
        yield typer.style(
            "it may not fit: set run.micro, run.checkpointing=true or run.precision=bf16", fg="yellow", bold=True
        )
    else:
        yield typer.style("it fits", fg="green", bold=True)


def size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _rows(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield title
    width = max((len(name) for name, _ in rows), default=0)
    yield from (f"  {name:<{width}}  {value}" for name, value in rows)
    yield ""


def _data(made: Forecast) -> list[tuple[str, str]]:
    facts = made.data
    kept = f", {facts['validation']:,} for validation" if facts["validation"] else ""
    rows = [("pictures", f"{facts['training']:,} for training{kept} ({facts['set']})")]
    epoch = facts["steps_an_epoch"]
    rows.append(("an epoch", f"{epoch:,.0f} steps" if epoch >= 100 else f"{epoch:.3g} steps"))
    if len(facts["sizes"]) > 1:
        rows.append(("sizes", ", ".join(f"{name} ({count:,})" for name, count in facts["sizes"].items())))
    return rows


def _memory(made: Forecast) -> list[tuple[str, str]]:
    memory = made.memory
    rows = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimiser),
        ("averages", memory.averages),
        ("activations", memory.activations),
        ("decoded pictures", memory.pictures),
    ]
    told = [(name, f"{size(value):>10}") for name, value in rows if value]
    whole = "at least " if memory.activations is None else ""
    return [*told, ("in all", f"{size(memory.total):>10}  {whole}of {size(made.free)} free, beside the program itself")]


def _disk(made: Forecast) -> list[tuple[str, str]]:
    enough = "" if made.disk < made.disk_free else typer.style("  not enough", fg="red")
    rows = [("a checkpoint", f"{size(made.checkpoint):>10}")]
    if made.snapshots:
        rows.append(("averages kept", f"{size(made.snapshots):>10}"))
    rows.append(("the run folder", f"{size(made.disk):>10}  of {size(made.disk_free)} free{enough}"))
    if made.cache is not None:
        rows.append(("the cache", f"{size(made.cache.bytes):>10}  in a folder of its own"))
    return rows


def _time(made: Forecast) -> list[tuple[str, str]]:
    if made.step_seconds is None or made.total_seconds is None:
        return [("a step", f"unknown: {made.how}")]
    each = f"{made.step_seconds:.3g} s" if made.step_seconds >= 1 else f"{1000 * made.step_seconds:.3g} ms"
    done = "" if made.steps == 0 else f"{made.steps:,} steps to go"
    return [("a step", f"{each}  ({made.how})"), ("in all", f"{duration(made.total_seconds)}  ({done or 'all done'})")]


def _cache(made: Forecast) -> list[tuple[str, str]]:
    """One line: what a cache takes before the first step."""
    if made.cache is None:
        return []
    kept = f"{made.cache.latents:,} latents" + (f", {made.cache.texts:,} captions" if made.cache.texts else "")
    return [("filling the cache", f"{duration(made.cache.seconds)}  ({kept}; none for what is there already)")]
