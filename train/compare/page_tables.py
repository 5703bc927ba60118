"""The tables of a comparison's page: what was measured of each family, and what it costs and is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ldm.data.survey import many
from ldm.metrics.interval import Estimate
from train.compare.gallery import MEANS, WORDS, number, times_of
from train.compare.ranking import Scale, by_distance, reached
from train.compare.table import FIGURES, Row, estimate_of
from train.compare.wish import Wish

FIRST = ("kid", "fid", "precision", "recall", "coverage", "copies")  # the others are folded away
READ = (
    "Nearest to the data first; rows that are not ranked are last. Under each figure is its "
    "interval. Bold is the best value of a column, by however little: where intervals overlap, it may be chance. "
    "Held-out pictures show what real ones reach; where they are not as many as the samples, compare with care: of "
    "more pictures FID is lower, and recall and coverage are higher."
)
DENSITY = (
    "Bits of a density (simple families, flows, score, flow matching) are those of pictures with even noise within "
    "each of the 256 shades of a number, which bound the bits of shades from above; Flow++ learns the noise; "
    "autoregressive ones are of shades."
)
_LOWER = {"fid", "fid_infinity", "kid", "spectrum_db", "class_distance"}
_UNRANKED = {"copies", "authentic"}  # warnings, in which the best is no merit
_COSTS = {
    "parameters": "numbers that are learned",
    "seconds a step": "of training, with the first reading of pictures",
    "at twice the side": "how much longer a step takes when the side of pictures doubles; 4 is the work of the pixels",
    "seconds trained": "with what is taken from data before the first step, and reading",
    "pictures seen": "in training, with repetitions",
    "memory": "at its most, in training",
    "pictures a second": "when it draws",
    "passes": "how often the network runs to draw one picture",
    "told classes": "whether it learns and is asked for a class",
    "likelihood": "whether it can tell that of a picture exactly, by a bound, or not",
    "any layers": "whether its network may be of any form (a free Jacobian), for nothing has to be inverted",
}


def figures(table: Sequence[Row], reasons: Mapping[str, str], scale: Scale) -> str:
    """The main figures of all families, the other ones folded, and what they mean; `reasons` are those of the rows that
    are not ranked."""
    here, first = _here(table), _main(table)
    rest = [name for name in here if name not in first]
    order = by_distance(table, reasons)
    more = _table(order, reasons, scale, rest, False)
    more = f"<details><summary>More figures</summary>{more}</details>" if rest else ""
    return f"{_table(order, reasons, scale, first, True)}<p>{READ}</p>{more}{meanings([*first, *rest, 'bits'])}"


def plain(table: Sequence[Row], reasons: Mapping[str, str], scale: Scale) -> tuple[list[str], list[list[str]]]:
    """The table of the main figures without HTML: its headings, and its lines in the same order."""
    names, times = _main(table), {"kid": _times(table)}
    heads = [html.unescape(WORDS[name]) + " × 1000" * (times.get(name) == 1000) for name in [*names, "bits"]]
    lines = []
    if scale is not None:
        real = reached(scale)
        few = f"held-out pictures ({scale['protocol']['made']:,} real ones)"
        lines.append([few, *(_plain(real.get(name), times.get(name, 1)) for name in names), _plain(None)])
    for row in by_distance(table, reasons):
        why = f" ({told})" if (told := reasons.get(row.name)) else ""
        told_of = [_plain(row.figure(name), times.get(name, 1)) for name in names]
        lines.append([row.name + why, *told_of, _plain(row.bits, 1, _bound(row, "≤ "))])
    return ["family", *heads], lines


def extent(wish: Wish, table: Sequence[Row]) -> str:
    """How much was done, and by which protocol."""
    done, wanted = sum(row.measured for row in table), sum(row.wanted for row in table)
    return (
        f"{done} of {wanted} cells ({many(len(table), 'family')}, {many(wish.seeds, 'seed')}), "
        f"{wish.budget} of training each, {wish.size} pixels, {wish.samples:,} samples"
    )


def _here(table: Sequence[Row]) -> list[str]:
    return [name for name in FIGURES if any(row.figure(name) is not None for row in table)]


def _main(table: Sequence[Row]) -> list[str]:
    return [name for name in FIRST if name in _here(table)]


def _bound(row: Row, sign: str) -> str:
    return "" if row.bits is None or row.facts.likelihood == "exact" else sign


def meanings(names: Iterable[str]) -> str:
    """What figures are, folded away."""
    said = "".join(f"<dt>{WORDS[name]}</dt><dd>{MEANS[name]}</dd>" for name in names)
    return f"<details><summary>What these figures are</summary><dl>{said}</dl><p>{DENSITY}</p></details>"


def _table(table: Sequence[Row], reasons: Mapping[str, str], scale: Scale, names: Sequence[str], bits: bool) -> str:
    """Above all families what real pictures reach, where that was measured."""
    times, whole = {"kid": _times(table)}, [row for row in table if row.name not in reasons]
    best = {name: _best([row.figure(name) for row in whole], name in _LOWER) for name in names if name not in _UNRANKED}
    least = _best([row.bits for row in table], True)
    head = "".join(_head(name, " &times; 1000" * (times.get(name) == 1000)) for name in [*names, *["bits"] * bits])
    lines = [] if scale is None else [_real(scale, names, times, bits)]
    for row in table:
        told = [_cell(row.figure(name), best.get(name), times.get(name, 1)) for name in names]
        told += [_cell(row.bits, least, 1, _bound(row, "&le; "))] * bits
        why = f"<small>{why}</small>" if (why := reasons.get(row.name)) else ""
        lines.append(f"<tr><td>{html.escape(row.name)}{why}</td>{''.join(told)}</tr>")
    return f"<div class=wide><table><tr><th>family</th>{head}</tr>{''.join(lines)}</table></div>"


def _head(name: str, more: str) -> str:
    return f"<th title='{html.escape(MEANS[name], quote=True)}'>{WORDS[name]}{more}</th>"


def _real(scale: Mapping[str, Any], names: Sequence[str], times: Mapping[str, float], bits: bool) -> str:
    told = {name: estimate_of(one) for name, one in scale["figures"].items()}
    own = "".join(_cell(told.get(name), None, times.get(name, 1)) for name in names)
    few = f"<small>{scale['protocol']['made']:,} real ones</small>"
    return f"<tr class=scale><td>held-out pictures{few}</td>{own}{'<td>&ndash;</td>' * bits}</tr>"


def _times(table: Sequence[Row]) -> int:
    """Of kernel distances, which are all by one judge."""
    told = (cell["figures"]["kid"] for row in table for cell in row.good if "kid" in cell.get("figures", {}))
    return next((times_of("kid", one["protocol"]["extractor"]) for one in told), 1)


def _best(found: Sequence[Estimate | None], lower: bool) -> float | None:
    values = [one.value for one in found if one is not None]
    return None if not values else min(values) if lower else max(values)


def _cell(one: Estimate | None, best: float | None, times: float = 1, kind: str = "") -> str:
    if one is None:
        return "<td>&ndash;</td>"
    marked = " class=best" if one.value == best else ""
    low, high = number(one.low * times), number(one.high * times)
    return f"<td{marked}>{kind}{number(one.value * times)}<small>{low} &ndash; {high}</small></td>"


def _plain(one: Estimate | None, times: float = 1, kind: str = "") -> str:
    if one is None:
        return "–"
    return f"{kind}{number(one.value * times)} ({number(one.low * times)} – {number(one.high * times)})"


def costs(table: Sequence[Row], classes: bool) -> str:
    """In the order of their groups, and below what each cannot do."""
    columns = {word: why for word, why in _COSTS.items() if classes or word != "told classes"}
    lines = []
    for row in table:
        facts, memory = row.facts, row.mean("memory")
        told = [
            _count(row.mean("parameters")), _or(row.mean("step_seconds"), "{:.3f}"),
            _or(row.mean("growth"), "{:.1f} &times;"), _count(row.mean("train_seconds")), _count(row.mean("images")),
            _or(None if memory is None else memory / 1e9, "{:.2f} GB"), _count(row.per_second),
            html.escape(facts.passes), *[_yes(row.takes_class)] * classes, facts.likelihood, _yes(facts.free_form),
        ]  # fmt: skip
        lines.append(
            f"<tr><td>{html.escape(row.name)}<small>{html.escape(facts.paper)}</small></td>"
            + "".join(f"<td>{word}</td>" for word in told)
            + "</tr>"
        )
    heads = "".join(f"<th title='{html.escape(why, quote=True)}'>{word}</th>" for word, why in columns.items())
    said = "".join(f"<dt>{word}</dt><dd>{why}</dd>" for word, why in columns.items() if why)
    cannot = "".join(f"<li><b>{html.escape(row.name)}</b>: {html.escape(row.facts.cannot)}</li>" for row in table)
    return (
        f"<div class=wide><table><tr><th>family</th>{heads}</tr>{''.join(lines)}</table></div>"
        f"<details><summary>What these columns are</summary><dl>{said}</dl></details>"
        f"<details><summary>What each family cannot do</summary><ul>{cannot}</ul></details>"
    )


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
