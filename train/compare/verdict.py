"""What the numbers show, in plain words, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ldm.data.survey import many
from ldm.metrics.interval import Estimate
from train.compare.table import Row
from train.compare.wish import Wish


def in_words(wish: Wish, table: Sequence[Row]) -> Iterator[str]:
    """A few paragraphs for the head of the page."""
    like = comparable(wish, table)
    judged = [(row, kid) for row in like if (kid := row.figure("kid")) is not None]
    if not judged:
        yield "No cell has been measured yet."
        return
    best, least = min(judged, key=lambda pair: pair[1].value)
    level = [row.name for row, kid in judged if row is not best and kid.low <= least.high]
    said = f"Nearest to the data by the kernel distance is {best.name}"
    yield said + (f"; {_list(level)} cannot be told from it by these samples and seeds." if level else ", clearly.")
    yield from _apart(like)
    if exact := [(row, row.bits) for row in table if row.bits is not None]:
        row, told = min(exact, key=lambda pair: pair[1].value)
        how = "" if row.facts.likelihood == "exact" else " (a bound)"
        yield (
            f"Of those that tell a likelihood, {row.name} needs the fewest bits: {told.value:.2f} per dimension{how}. "
            "Bits say how well all pixels are foretold, most of it noise that nobody sees; they do not rank pictures."
        )
    yield _limits(wish, table)


def comparable(wish: Wish, table: Sequence[Row]) -> list[Row]:
    """Rows whose cells drew all samples: figures of fewer are of another protocol."""
    return [row for row in table if row.drawn is not None and row.drawn >= wish.samples]


def _apart(table: Sequence[Row]) -> Iterator[str]:
    """Families that are good at one of precision and recall alone."""
    narrow, wide = list[str](), list[str]()
    for row in table:
        precision, recall = row.figure("precision"), row.figure("recall")
        if precision is None or recall is None:
            continue
        told = f"{row.name} ({precision.value:.2f} and {recall.value:.2f})"
        if _clearly(precision, recall, 0.25):
            narrow.append(told)
        elif _clearly(recall, precision, 0.25):
            wide.append(told)
    if narrow:
        yield (
            f"Like single pictures of the data, but of few of its kinds, by precision and recall: {_list(narrow)}. "
            "Where the kernel distance is large all the same, it is the judge that is taken in."
        )
    if wide:
        yield f"As varied as the data, but much of it unlike any picture, by precision and recall: {_list(wide)}."


def _clearly(a: Estimate, b: Estimate, by: float) -> bool:
    return a.low - b.high > by


def _limits(wish: Wish, table: Sequence[Row]) -> str:
    protocol = next((told["protocol"] for row in table for told in row.good if "protocol" in told), None)
    by = "" if protocol is None else f" All distances are as {protocol['extractor']} sees pictures."
    return (
        f"What this does not show: how the families compare with more than {wish.budget} of training, with larger "
        "networks or at other sizes; each was tuned by its configuration alone. "
        f"With {many(wish.seeds, 'seed')} an interval says little of chance in training; "
        f"FID at {wish.samples:,} samples is above its limit; numbers of other papers are of another protocol.{by}"
    )


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
