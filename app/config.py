"""`ldm config check` and `ldm config show`: a request or a training run as a YAML file, with its defaults filled in."""

from __future__ import annotations

import json as json_
from typing import TYPE_CHECKING

import typer

from ldm.config import dump, find, load
from ldm.config.reader import read as parse

if TYPE_CHECKING:
    from pipelines.request import Request
    from train.config import RunFile

SECTIONS = ("task", "data", "optim", "run")  # of a training run; a request has none of these names


def read(file: str) -> Request | RunFile:
    """The record of a file: of a training run where one of its sections is there, else of a request."""
    path = find(file)
    if path.is_file() and any(name in parse(path.read_bytes(), str(path)).data for name in SECTIONS):
        from train.config import RunFile

        return load(path, RunFile)
    from pipelines.request import Request

    return load(path, Request)


def check(file: str, *, json: bool = False) -> int:
    """Say that a file is fine and what it sets; what is wrong is raised with its line."""
    record = read(file)
    said = [name for name in type(record).model_fields if name in record.model_fields_set]
    if json:
        typer.echo(json_.dumps({"file": file, "ok": True, "set": said}))
    else:
        typer.echo(f"{file}: fine; sets {', '.join(said) or 'nothing'}")
    return 0


def show(file: str, *, json: bool = False) -> int:
    """Print the file with every default filled in."""
    record = read(file)
    typer.echo(json_.dumps(record.model_dump(mode="json")) if json else dump(record), nl=json)
    return 0
