"""`ldm batch`: many requests from a file, on one machine or on many, gone on with after any end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from app.batch.launch import advice, ended, launched, mine
from app.batch.sharing import Plan, here, on_ray
from app.batch.source import Source
from app.batch.store import Format, Store
from app.errors import first_line, printable
from app.inputs import request_file
from app.options import request_fields
from app.progress import Stop, duration
from ldm.data.survey import many
from ldm.errors import Code, LdmError
from ldm.store.describe import describe
from ldm.store.find import find_model
from pipelines.suited import merged

SHOWN = 3  # errors of lines


def batch(given: Mapping[str, Any]) -> int:
    """Makes what is left; the exit status."""
    as_json = bool(given["as_json"])
    source, store = _source(given), Store(_whole(given["out"]), _format(given["format"]))
    model = find_model(given["model"])
    _check_first(source)
    if not given["dry_run"]:
        store.begin(_what(source, store, model, given["model"]))
    left = _left(source, store, bool(given["again"]))
    _say(as_json, f"{many(source.count, 'request')} in {many(len(source.starts), 'chunk')}, {len(left)} left")
    if hint := advice(len(source.starts)):
        _say(as_json, hint)
    if given["dry_run"]:
        if as_json:
            typer.echo(json.dumps({"requests": source.count, "chunks": len(source.starts), "left": len(left)}))
        return 0
    plan = Plan(source, store, str(model), given["device"], given["dtype"], given["together"])
    with Stop() as stop:
        try:
            wrong = _made(plan, left if given["ray"] else mine(left), given, stop, as_json)
        except Exception as error:
            if launched():
                _say(as_json, f"this process ends when the others have: {first_line(error)}")
            ended(False, lambda: stop.status is None)
            raise
        ended(not wrong, lambda: stop.status is None)
        if stop.status is not None:
            _say(as_json, "stopped; what was made is kept, and the same command goes on")
            return stop.status
    typer.echo(json.dumps({"out": store.url, "wrong": wrong}) if as_json else printable(store.url))
    return int(Code.USAGE) if wrong else 0


def _made(plan: Plan, left: list[int], given: Mapping[str, Any], stop: Stop, as_json: bool) -> int:
    """Chunk by chunk; how many requests could not be made."""
    began, pictures, wrong, shown = time.monotonic(), 0, 0, 0
    for done, told in enumerate(_running(plan, left, given, stop), start=1):
        pictures, wrong = pictures + told["made"], wrong + told["wrong"]
        seconds = time.monotonic() - began
        if as_json:
            typer.echo(json.dumps(told))
        rest = duration(seconds / done * (len(left) - done))
        text = f"chunk {told['chunk']}: {told['made']} of {told['requests']} made"
        _say(as_json, f"{text}; {pictures / seconds:.3g} a second, about {rest} left")
        if told["wrong"] and shown < SHOWN:
            for line in plan.store.manifest(told["chunk"]):
                if "error" in line and shown < SHOWN:
                    _say(as_json, f"  line {line['line'] + 1}: {line['error']}")
                    shown += 1
    if wrong:
        _say(as_json, f"{many(wrong, 'request')} could not be made; the manifests say why. --again tries them anew")
    return wrong


def _running(plan: Plan, left: list[int], given: Mapping[str, Any], stop: Stop) -> Iterator[dict[str, int]]:
    if not left:
        return iter(())
    if given["ray"]:
        return on_ray(plan, left, given["ray"], given["ray_cpus"], given["workers"], lambda: stop.status is None)
    return here(plan, left, lambda: stop.status is None)


def _what(source: Source, store: Store, model: Path, name: str) -> dict[str, Any]:
    """What a batch is, so that another one is not mixed with it."""
    return {
        "source": source.digest, "requests": source.count, "chunk": source.size, "seed": source.seed,
        "defaults": dict(source.defaults), "model": describe(model).fingerprint or name, "format": store.format,
    }  # fmt: skip


def _source(given: Mapping[str, Any]) -> Source:
    defaults = request_file(given["defaults"]) if given["defaults"] else {}
    defaults = merged(defaults, request_fields({"set_": given["set_"]}))
    if "seed" in defaults:
        why = "Each line has one of its own: that of --seed plus its number, from 0."
        raise LdmError(Code.USAGE, "seed cannot be the same for all lines.", why, "Give --seed, or seeds in the file.")
    return Source(_whole(given["prompts"]), given["chunk"], given["seed"], defaults)


def _whole(path: str) -> str:
    """By its whole path, for other processes may have another working folder."""
    return path.rstrip("/") if "://" in path else str(Path(path).expanduser().resolve())


def _format(name: str) -> Format:
    if name == "files" or name == "webdataset":
        return "webdataset" if name == "webdataset" else "files"
    why = "Pictures become files, or shards of webdataset."
    raise LdmError(Code.USAGE, f"--format {name[:40]!r} is not written.", why, "Write --format files or webdataset.")


def _check_first(source: Source) -> None:
    """A file of another kind is told of before a model is loaded."""
    if not source.count:
        why = "It has no line."
        raise LdmError(Code.FILE, f"{source.path} holds no request.", why, 'Write one a line: {"prompt": "..."}.')
    lines = list(source.chunk(0))
    if lines and all(line.wrong for line in lines):
        why = f"Line {lines[0].number + 1}: {lines[0].wrong}."
        raise LdmError(Code.FILE, f"{source.path} holds no requests.", why, 'Write one a line: {"prompt": "..."}.')


def _left(source: Source, store: Store, again: bool) -> list[int]:
    done = store.done()
    if again:
        done = {chunk for chunk in done if not any("error" in line for line in store.manifest(chunk))}
    return [chunk for chunk in range(len(source.starts)) if chunk not in done]


def _say(as_json: bool, text: str) -> None:
    if not as_json:
        typer.echo(printable(text), err=True)
