"""The page of a comparison: one file that needs nothing else, beside it the same as JSON and CSV."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.store.weights import load_weights
from train.compare.cells import SAMPLES, Cell, cells
from train.compare.gallery import NEAREST, OWN, SHEET, beside, gallery
from train.compare.page_tables import costs, extent, figures
from train.compare.ranking import by_distance, unranked
from train.compare.reference import FACTS, PICTURES
from train.compare.scale import scale_of
from train.compare.table import Row, as_csv, rows
from train.compare.trilemma import legend, marks, picture
from train.compare.verdict import in_words
from train.compare.wish import Wish
from train.report import rewrite
from train.report_curves import Series, plot
from train.report_style import STYLE

PAGE, DATA, TABLE = "compare.html", "compare.json", "compare.csv"
TRILEMMA = (
    "A family lies towards the corners that it is good at, beside the others here: quality by KID, coverage, and "
    "pictures drawn in a second. A larger dot is better in all."
)


def write_pages(wish: Wish) -> Path:
    """All three files, in place of older ones; returns the page."""
    table = rows(wish)
    data: dict[str, Any] = {
        "held_out": scale_of(wish.out),
        "wish": json.loads(wish.model_dump_json()),
        "cells": [dict(told) for row in table for told in row.done],
    }
    fix = "Free some space, or choose another --out."
    rewrite(wish.out / DATA, json.dumps(data, indent=1) + "\n", fix)
    rewrite(wish.out / TABLE, as_csv(table), fix)
    return rewrite(wish.out / PAGE, page(wish, table), fix)


def page(wish: Wish, table: Sequence[Row]) -> str:
    scale = scale_of(wish.out)
    reasons = unranked(wish, table, scale)
    found = marks([row for row in table if row.name not in reasons])
    done = sum(row.measured for row in table)
    wanted = sum(row.wanted for row in table)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Families compared</title><style>{STYLE}{OWN}</style><main>",
        "<h1>Families of generative models, compared</h1>",
        f"<p>{html.escape(extent(wish, table))}.</p>",
        "".join(f"<p>{html.escape(text)}</p>" for text in in_words(wish, table, scale)),
        "<h2>Figures</h2>", figures(table, reasons, scale),
        "<h2>Cost, and what each family is</h2>", costs(table, _has_classes(wish)),
        f"<h2>The trilemma</h2><div class=trilemma>{picture(found)}</div>",
        f"<p>{TRILEMMA}</p>{legend(found)}",
        "<h2>Samples of the first seed</h2>", _sheets(wish, by_distance(table, reasons)),
        "<h2>Between two held-out pictures, along a line of latents</h2>", _between(wish),
        "<h2>The nearest training pictures</h2>", _sought(wish), _nearest(wish),
        "<h2>Losses</h2>", _losses(table),
        "<h2>Notes</h2>", _notes(table, done < wanted),
        f"<h2>The command</h2><p><code>{html.escape(wish.command)}</code></p></main></html>",
    ]  # fmt: skip
    return "\n".join(parts)


def _has_classes(wish: Wish) -> bool:
    path = wish.out / FACTS
    return path.is_file() and bool(json.loads(path.read_text("utf-8"))["classes"])


def _first(wish: Wish) -> list[Cell]:
    """The first seed's cell of each family that has drawn something."""
    return [cell for cell in cells(wish) if cell.seed == 0 and (cell.folder / SAMPLES).is_file()]


def _sheets(wish: Wish, table: Sequence[Row]) -> str:
    """In the order of the table."""
    order = [row.name for row in table]
    first = sorted(_first(wish), key=lambda cell: order.index(cell.name))
    shown = [("the data itself, held out", load_weights(wish.out / PICTURES)["held_out"][:SHEET])]
    shown += [(cell.name, load_weights(cell.folder / SAMPLES)["samples"][:SHEET]) for cell in first]
    return gallery(shown)


def _between(wish: Wish) -> str:
    shown = []
    for cell in _first(wish):
        tensors = load_weights(cell.folder / SAMPLES)
        if "between" in tensors:
            shown.append((cell.name, tensors["between"]))
    return gallery(shown) if shown else "<p>None of these families has latents to walk along.</p>"


def _sought(wish: Wish) -> str:
    """Copies of a picture that nobody looked at are taken for new."""
    path = wish.out / FACTS
    told = json.loads(path.read_text("utf-8")).get("pictures") if path.is_file() else None
    if told is None or told["training"] <= wish.reference:
        return ""
    few = f"{wish.reference:,} of the {told['training']:,} pictures that were trained on"
    return f"<p>Copies were sought among {few}: as many of all copies, and no more, can have been found.</p>"


def _nearest(wish: Wish) -> str:
    """Above samples, below them the training picture that the judge finds nearest."""
    training, shown = load_weights(wish.out / PICTURES)["training"], []
    for cell in _first(wish):
        told = cell.result or {}
        if near := told.get("nearest"):
            both = beside(load_weights(cell.folder / SAMPLES)["samples"], training, near)
            shown.append((cell.name, both))
    return gallery(shown, NEAREST)


def _losses(table: Sequence[Row]) -> str:
    plots = []
    for row in table:
        if not row.good:
            continue
        first: Mapping[str, Any] = row.good[0]
        series = [
            Series(name.replace("/loss", ""), [(float(s), float(v)) for s, v in points], tone)
            for (name, points), tone in zip(first["loss"].items(), "abc", strict=False)
        ]
        plots.append(plot(row.name, series))
    return f"<div class=plots>{''.join(plots)}</div>"


def _notes(table: Sequence[Row], unfinished: bool) -> str:
    lines = [
        f"<li><b>{html.escape(row.name)}</b>: {html.escape('; '.join(row.notes))}</li>" for row in table if row.notes
    ]
    nothing = "has so far gone" if unfinished else "went"
    return f"<ul>{''.join(lines)}</ul>" if lines else f"<p>Nothing {nothing} wrong.</p>"
