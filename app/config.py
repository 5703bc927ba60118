"""`ldm config check` and `ldm config show`: a request written as a YAML file, with its defaults filled in."""

from __future__ import annotations

import json as json_
from typing import TYPE_CHECKING

import typer

from ldm.config import dump, find, load

if TYPE_CHECKING:
    from pipelines.request import Request


def read(file: str) -> Request:
    """The request of a run file: the fields of `Request` as YAML keys, sections as nested keys."""
    from pipelines.request import Request

    return load(find(file), Request)


def check(file: str, *, json: bool = False) -> int:
    """Say that a file is fine and what it sets; what is wrong is raised with its line."""
    request = read(file)
    said = [name for name in type(request).model_fields if name in request.model_fields_set]
    if json:
        typer.echo(json_.dumps({"file": file, "ok": True, "set": said}))
    else:
        typer.echo(f"{file}: fine; sets {', '.join(said) or 'nothing'}")
    return 0


def show(file: str, *, json: bool = False) -> int:
    """Print the file with every default filled in."""
    request = read(file)
    typer.echo(json_.dumps(request.model_dump(mode="json")) if json else dump(request), nl=json)
    return 0
