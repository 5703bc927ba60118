"""`ldm evaluate MADE --against DATA`: figures with intervals, and the protocol that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from app.compare import data_section, named, not_understood
from app.errors import printable


def evaluate(
    made: str,
    data: str,
    overrides: Sequence[str],
    fields: Mapping[str, Any],
    *,
    samples: int,
    cap: int,
    seed: int,
    keep: str | None,
    name: str | None,
    as_json: bool,
) -> int:
    """Prints the figures, or the file that holds them as JSON."""
    from ldm.store.find import find_model
    from train.compare.wish import Yardsticks

    if not Path(made).exists():
        find_model(made)  # whose error lists what there is
    out = fields["out"] or f"runs/evaluate/{named(data)}"
    given = {key: value for key, value in fields.items() if value is not None}
    section = data_section(data, overrides)
    try:
        yard = Yardsticks(**{**given, "data": section, "out": Path(out).expanduser()})
    except ValidationError as error:
        raise not_understood(error) from error
    from train.compare.children import alone
    from train.compare.evaluate import evaluate as run
    from train.compare.made import Asked
    from train.signals import Stop, Stopped

    alone()

    def say(text: str) -> None:
        if not as_json:
            typer.echo(printable(text), err=True)

    with Stop() as stop:
        try:
            kept = None if keep is None else Path(keep).expanduser()
            path = run(made, yard, Asked(samples, cap, seed), say, stop, kept, name)
        except Stopped as stopped:
            return int(stopped.code or 143)
    told = json.loads(path.read_text("utf-8"))
    if as_json:
        typer.echo(json.dumps(told))
        return 0
    for line in _lines(told):
        typer.echo(printable(line))
    typer.echo(printable(str(path)))
    typer.echo(printable(str(path.with_suffix(".html"))))
    return 0


def _lines(told: Mapping[str, Any]) -> list[str]:
    from train.compare.gallery import times_of

    figures = dict(told["figures"])
    figures |= {key: told[key] for key in ("bits_per_dim", "clip_score") if key in told}
    scale = (told.get("held_out") or {}).get("figures", {})
    by, lines = told["protocol"], []
    for name, one in figures.items():
        times = times_of(name, by["extractor"])
        value, low, high = (one[key] * times for key in ("value", "low", "high"))
        real = f"   held-out pictures: {scale[name]['value'] * times:.4g}" if name in scale else ""
        lines.append(f"{name + ' x 1000' * (times > 1):<18} {value:<10.4g} {low:.4g} to {high:.4g}{real}")
    lines.append(
        f"{by['made']:,} pictures against {by['real']:,}, as {by['extractor']} sees them (resize: {by['resize']})"
    )
    return lines + [f"note: {note}" for note in told["notes"]]
