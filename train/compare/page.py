"""The page of a comparison: one file that needs nothing else, beside it the same as JSON and CSV."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.data.survey import many
from ldm.metrics.interval import Estimate
from ldm.store.weights import load_weights
from train.compare.cells import SAMPLES, Cell, cells
from train.compare.gallery import NEAREST, OWN, SHEET, WORDS, beside, gallery, number
from train.compare.reference import FACTS, PICTURES
from train.compare.scale import scale_of
from train.compare.table import FIGURES, Row, as_csv, estimate_of, rows
from train.compare.trilemma import legend, marks, picture
from train.compare.verdict import comparable, in_words
from train.compare.wish import Wish
from train.report import rewrite
from train.report_curves import Series, plot
from train.report_style import STYLE

PAGE, DATA, TABLE = "compare.html", "compare.json", "compare.csv"
DENSITY = (
    "Bits of a density (simple families, flows, score, flow matching) are those of pictures with even noise within "
    "each shade, which bound the bits of shades from above; Flow++ learns the noise; autoregressive ones are of shades."
)
READ = (
    "Lower is better of FID, KID, spectrum, classes off by and bits; higher of IS, precision, recall, density, "
    "coverage and accuracy. Copies and authentic are warnings: about 1 % and a half are chance. Held-out pictures "
    "show what real ones reach; where they are fewer than the samples, their FID is the higher for it, and "
    "recall and coverage the lower. Under each figure is its interval."
)
COSTS = (
    "Passes for one: how often the network is run to draw a picture. At twice the side: how much longer a step "
    "takes when the side of the pictures doubles; 4 is as many times as there are pixels. Free Jacobian: layers "
    "may be of any form, for nothing has to be inverted."
)
TRILEMMA = (
    "A family lies towards the corners that it is good at, beside the others here: quality by KID, coverage, and "
    "pictures drawn in a second. A larger dot is better in all."
)
_LOWER = {"fid", "fid_infinity", "kid", "spectrum_db", "class_distance"}
_UNRANKED = {"copies", "authentic"}  # warnings, in which the best is no merit


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
    done = sum(row.measured for row in table)
    wanted = sum(row.wanted for row in table)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Families compared</title><style>{STYLE}{OWN}</style><main>",
        "<h1>Families of generative models, compared</h1>",
        f"<p>{done} of {wanted} cells: {len(table)} families, {many(wish.seeds, 'seed')}, "
        f"{html.escape(str(wish.budget))} of training each, {wish.size} pixels, {wish.samples:,} samples.</p>",
        "".join(f"<p>{html.escape(text)}</p>" for text in in_words(wish, table)),
        "<h2>Figures</h2>", _figures(table, comparable(wish, table), scale_of(wish.out)),
        f"<p>{READ}</p><p>{DENSITY}</p>",
        "<h2>Cost, and what each family is</h2>", _costs(table, _has_classes(wish)), f"<p>{COSTS}</p>",
        f"<h2>The trilemma</h2><div class=trilemma>{picture(found := marks(comparable(wish, table)))}</div>",
        f"<p>{TRILEMMA}</p>{legend(found)}",
        "<h2>Samples of the first seed</h2>", _sheets(wish),
        "<h2>Between two held-out pictures, along a line of latents</h2>", _between(wish),
        "<h2>The nearest training pictures</h2>", _sought(wish), _nearest(wish),
        "<h2>Losses</h2>", _losses(table),
        "<h2>Notes</h2>", _notes(table, done < wanted), "</main></html>",
    ]  # fmt: skip
    return "\n".join(parts)


def _has_classes(wish: Wish) -> bool:
    path = wish.out / FACTS
    return path.is_file() and bool(json.loads(path.read_text("utf-8"))["classes"])


def _figures(table: Sequence[Row], whole: Sequence[Row], scale: Mapping[str, Any] | None) -> str:
    """Above all families what real pictures reach, where that was measured."""
    names = [name for name in FIGURES if any(row.figure(name) is not None for row in table)]
    times = {"kid": _thousandfold([row.figure("kid") for row in table])}
    head = "".join(f"<th>{WORDS[name]}{' &times; 1000' * (times.get(name) == 1000)}</th>" for name in names)
    best = {name: _best([row.figure(name) for row in whole], name in _LOWER) for name in names if name not in _UNRANKED}
    best["bits"] = _best([row.bits for row in table], True)
    lines = []
    if scale is not None:
        told = {name: estimate_of(one) for name, one in scale["figures"].items()}
        real = "".join(_cell(told.get(name), None, times.get(name, 1)) for name in names)
        few = f"<small>{scale['protocol']['made']:,} real ones</small>"
        lines.append(f"<tr class=scale><td>held-out pictures{few}</td>{real}<td>&ndash;</td></tr>")
    for row in table:
        cellsof = [_cell(row.figure(name), best.get(name), times.get(name, 1)) for name in names]
        kind = "" if row.bits is None or row.facts.likelihood == "exact" else "&le; "
        cellsof.append(_cell(row.bits, best["bits"], 1, kind))
        few = (
            "" if row in whole or row.drawn is None else f"<small>only {row.drawn} samples: not to be compared</small>"
        )
        lines.append(f"<tr><td>{html.escape(row.name)}{few}</td>{''.join(cellsof)}</tr>")
    return f"<div class=wide><table><tr><th>family</th>{head}<th>bits/dim</th></tr>{''.join(lines)}</table></div>"


def _thousandfold(found: Sequence[Estimate | None]) -> int:
    """Kernel distances are told in thousandths where they are as small as those of Inception's features."""
    return 1000 if all(one is None or one.value < 1 for one in found) else 1


def _best(found: Sequence[Estimate | None], lower: bool) -> float | None:
    values = [one.value for one in found if one is not None]
    return None if not values else min(values) if lower else max(values)


def _cell(one: Estimate | None, best: float | None, times: float = 1, kind: str = "") -> str:
    if one is None:
        return "<td>&ndash;</td>"
    marked = " class=best" if one.value == best else ""
    low, high = number(one.low * times), number(one.high * times)
    return f"<td{marked}>{kind}{number(one.value * times)}<small>{low} &ndash; {high}</small></td>"


def _costs(table: Sequence[Row], classes: bool) -> str:
    head = (
        "parameters", "s a step", "at twice the side", "trained, s", "pictures seen", "memory", "drawn a second",
        "passes for one", "told classes", "exact density", "free Jacobian", "cannot",
    )  # fmt: skip
    lines = []
    for row in table:
        facts, memory = row.facts, row.mean("memory")
        told = [
            _count(row.mean("parameters")), _or(row.mean("step_seconds"), "{:.3f}"),
            _or(row.mean("growth"), "{:.1f} &times;"), _count(row.mean("train_seconds")), _count(row.mean("images")),
            _or(None if memory is None else memory / 1e9, "{:.2f} GB"), _count(row.per_second),
            html.escape(facts.passes), _yes(row.takes_class) if classes else "&ndash;", facts.likelihood,
            _yes(facts.free_form),
        ]  # fmt: skip
        lines.append(
            f"<tr><td>{html.escape(row.name)}<small>{html.escape(facts.paper)}</small></td>"
            + "".join(f"<td>{word}</td>" for word in told)
            + f"<td class=words>{html.escape(facts.cannot)}</td></tr>"
        )
    heads = "".join(f"<th>{word}</th>" for word in head)
    return f"<div class=wide><table><tr><th>family</th>{heads}</tr>{''.join(lines)}</table></div>"


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _or(value: float | None, form: str) -> str:
    return "&ndash;" if value is None else form.format(value)


def _count(value: float | None) -> str:
    if value is None:
        return "&ndash;"
    if value >= 1e3:
        return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.3g} k"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _first(wish: Wish) -> list[Cell]:
    """The first seed's cell of each family that has drawn something."""
    return [cell for cell in cells(wish) if cell.seed == 0 and (cell.folder / SAMPLES).is_file()]


def _sheets(wish: Wish) -> str:
    shown = [("the data itself, held out", load_weights(wish.out / PICTURES)["held_out"][:SHEET])]
    shown += [(Path(cell.family).stem, load_weights(cell.folder / SAMPLES)["samples"][:SHEET]) for cell in _first(wish)]
    return gallery(shown)


def _between(wish: Wish) -> str:
    shown = []
    for cell in _first(wish):
        tensors = load_weights(cell.folder / SAMPLES)
        if "between" in tensors:
            shown.append((Path(cell.family).stem, tensors["between"]))
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
            shown.append((Path(cell.family).stem, both))
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
