"""`ldm compare DATA`: what it will cost, each cell as it is done, and the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ValidationError

from app.errors import printable
from app.progress import duration
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from train.compare.cells import Cell
    from train.compare.lab import Cost, Progress
    from train.compare.wish import Wish
    from train.signals import Stop


def compare(
    data: str,
    overrides: Sequence[str],
    fields: Mapping[str, Any],
    *,
    ray: str | None,
    ray_cpus: int,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Runs what is left of a comparison; Ctrl-C leaves what is done."""
    section = data_section(data, overrides)
    families = _families(fields["families"])
    wish = _wish(data, section, families, fields)
    from train.compare.children import alone
    from train.compare.lab import Progress, cost_of, merged
    from train.signals import Stop, Stopped, resume_command

    def say(text: str) -> None:
        if not as_json:
            typer.echo(printable(text), err=True)

    def done(cell: Cell, told: Mapping[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps({"cell": {key: value for key, value in told.items() if key != "loss"}}))
        else:
            say(f"  {cell.name}, seed {cell.seed}: {_in_short(told)}")

    alone()
    with Stop() as stop:
        try:
            wish = merged(wish)
            cost = cost_of(wish, stop, say)
            _say_cost(wish, cost, say)
            if dry_run:
                if as_json:
                    typer.echo(json.dumps({"out": str(wish.out), "cost": asdict(cost)}))
                return 0
            page = _run(wish, Progress(say, done), stop, ray, ray_cpus)
            status = undone(wish, say)
        except Stopped as stopped:
            say(f"stopped; cells that are done are kept. Go on with: {resume_command()}")
            return int(stopped.code or 143)
    typer.echo(json.dumps({"page": str(page)}) if as_json else printable(str(page)))
    return status


def undone(wish: Wish, say: Callable[[str], None]) -> int:
    """The exit status: that of the first cell which ended without a result, of which it says why; else 0."""
    from ldm.data.survey import many
    from train.compare.cells import cells

    left = [told for cell in cells(wish) if cell.result is None and (told := cell.told) is not None]
    if not left:
        return 0
    first = left[0]
    say(f"{many(len(left), 'cell')} came to nothing; the same command tries again")
    say(f"  {Path(first['family']).stem}, seed {first['seed']}: {first['failed']}")
    return int(first["status"]) if first.get("status", 0) > 0 else int(Code.RESOURCE)


def _say_cost(wish: Wish, cost: Cost, say: Callable[[str], None]) -> None:
    from ldm.data.survey import many

    left = "1 cell is left" if cost.cells == 1 else f"{cost.cells} cells are left"
    say(f"{many(len(wish.families), 'family')}, {many(wish.seeds, 'seed')}, into {wish.out}; {left}")
    drawing = f"at most {duration(cost.drawing)} of drawing, and half a minute or so a cell of starting and measuring"
    if cost.judge != 0:
        say(f"first a classifier of the captions' words, which will look at all samples: {_time(cost.judge)}")
    say(f"cost: {_time(cost.training)} of training, {drawing}")


def _time(seconds: float | None) -> str:
    return "a time that could not be measured" if seconds is None else duration(seconds)


def _run(wish: Wish, progress: Progress, stop: Stop, ray: str | None, cpus: int) -> Path:
    from train.compare.cluster import compare_on
    from train.compare.lab import compare as run

    return run(wish, progress, stop) if ray is None else compare_on(ray, cpus, wish, progress, stop)


def _in_short(told: Mapping[str, Any]) -> str:
    if "failed" in told:
        return str(told["failed"])
    from train.compare.gallery import times_of

    parts = []
    for name in ("fid", "kid"):
        if one := told.get("figures", {}).get(name):
            times = times_of(name, one["protocol"]["extractor"])
            parts.append(f"{name}{' x 1000' * (times > 1)} {one['value'] * times:.4g}")
    if bits := told.get("bits_per_dim"):
        parts.append(f"{'<= ' if bits['kind'] == 'bound' else ''}{bits['value']:.3f} bits/dim")
    return ", ".join([*parts, *told.get("notes", [])])


def data_section(data: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The data section: its path, and what `data.key=value` says besides."""
    from ldm.config import loads
    from ldm.data.settings import DataSettings

    for word in overrides:
        if not word.startswith("data.") or "=" not in word:
            what, why = f"{word[:80]!r} is not understood.", "Only keys of the data section can be given here."
            raise LdmError(Code.USAGE, what, why, "Write data.where={split: train}, for example.")
    changes = [word.removeprefix("data.") for word in overrides]
    if any(word.startswith(("buckets", "mix")) for word in changes):
        what, why = "data.buckets and data.mix cannot be compared on.", "All pictures are squares of one set."
        raise LdmError(Code.USAGE, what, why, "Leave them out; give one folder or table.")
    if taken := [word for word in changes if word.split("=")[0] in ("size", "validation", "path")]:
        key = taken[0].split("=")[0]
        option = {"size": "--size", "validation": "--held-out", "path": "the argument DATA"}[key]
        raise LdmError(
            Code.USAGE, f"data.{key} is given by {option}.", "It is the same for all cells.", f"Use {option}."
        )
    told = loads(f"path: {json.dumps(data)}\nsize: 8\n", DataSettings, changes, name="data")
    chosen = told.model_dump(exclude_defaults=True, mode="json")
    return {key: value for key, value in chosen.items() if key != "size"}


def _families(asked: str | None) -> tuple[str, ...]:
    from train.compare.cells import shipped_families

    known = shipped_families()
    if asked is None:
        return tuple(known)
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    for name in names:
        _check_family(name, known)
    return names


def _check_family(name: str, known: Sequence[str]) -> None:
    """A run file by its path, or a name that ships."""
    from ldm.config.explain import nearest
    from train.compare.cells import base_file

    if name not in known and "/" not in name and Path(name).suffix not in (".yaml", ".yml"):
        near = nearest(name, list(known))
        fix = f"Write {near}." if near else "Write one of these, or the path of a run file."
        raise LdmError(Code.FILE, f"{name} is no family.", f"There are {', '.join(known)}.", fix)
    base_file(name)


def _wish(data: str, section: Mapping[str, Any], families: Sequence[str], fields: Mapping[str, Any]) -> Wish:
    from train.compare.wish import Wish

    out = fields["out"] or f"runs/compare/{named(data)}"
    given = {key: value for key, value in fields.items() if value is not None}
    try:
        return Wish(**{**given, "data": dict(section), "families": tuple(families), "out": Path(out).expanduser()})
    except ValidationError as error:
        raise not_understood(error) from error


def named(data: str) -> str:
    """What a folder of results on it is called; "." and ".." have a name too."""
    path = Path(data).resolve()
    return (path.name if path.is_dir() else path.stem) or "data"


def not_understood(error: ValidationError) -> LdmError:
    """The first of its errors, by the name of the option."""
    first = error.errors()[0]
    option = "--" + str(first["loc"][0]).replace("_", "-")
    why = f"{first['msg'].removeprefix('Value error, ')}."
    return LdmError(Code.USAGE, f"{option} cannot be that.", why, "Give another value; --help tells what it means.")
