"""What the numbers show, in plain words, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ldm.data.survey import many
from ldm.metrics.extractors import PIXELS
from ldm.metrics.interval import Estimate
from ldm.metrics.measured import NEARER_NOTE
from train.compare.table import Row
from train.compare.wish import Wish

MANY = 5  # names in a sentence
FEW = 5  # seeds: of less, Student's interval is itself hardly known
UNSURE = 2.0  # times a distance, which is not known where its interval is wider
NEAR = 1.5  # times the least kernel distance


def in_words(wish: Wish, table: Sequence[Row]) -> Iterator[str]:
    """A few paragraphs for the head of the page."""
    like = comparable(wish, table)
    judged = [(row, kid) for row in like if (kid := row.figure("kid")) is not None]
    if judged:
        yield from _nearest(judged)
        yield from _apart(like)
    elif any(row.drawn for row in table):
        yield f"No family drew {wish.samples:,} samples within {wish.cap} seconds, so none are ranked by distances."
    else:
        yield "No cell has been measured yet."
        return
    if exact := [(row, row.bits) for row in table if row.bits is not None]:
        row, told = min(exact, key=lambda pair: pair[1].value)
        how = "" if row.facts.likelihood == "exact" else " (a bound)"
        yield (
            f"Of those that tell a likelihood, {row.name} needs the fewest bits: {told.value:.2f} per dimension{how}. "
            "Bits say how well all pixels are foretold, most of it noise that nobody sees; they do not rank pictures."
        )
    yield from _warnings(table)
    yield _limits(wish, table)


def _nearest(judged: Sequence[tuple[Row, Estimate]]) -> Iterator[str]:
    """Which are nearest to the data, and which of those to take for speed or for variety."""
    best, least = min(judged, key=lambda pair: pair[1].value)
    near = [(row, kid) for row, kid in judged if row is not best and kid.low <= least.high]
    unsure = [row.name for row, kid in near if kid.high - kid.low > UNSURE * kid.value]
    level = [row.name for row, _ in near if row.name not in unsure]
    said = f"Nearest to the data by the kernel distance (KID) is {best.name}"
    if level:
        said += f"; {_list(level)} cannot be told from it by these samples and seeds"
    elif unsure:
        pass
    elif all(len(row.good) > 1 for row, _ in judged):
        said += ", clearly"
    else:
        said += ", by the samples of one seed: another seed may say otherwise"
    yield f"{said}." + (f" Seeds of {_list(unsure)} differ too much for a rank." if unsure else "")
    good = [row for row, kid in judged if kid.value <= NEAR * least.value and row.per_second]
    wide = [(row, coverage) for row, _ in judged if (coverage := row.figure("coverage")) is not None]
    if len(judged) > 1 and good and wide:
        fast = max(good, key=lambda row: row.per_second or 0)
        widest, coverage = max(wide, key=lambda pair: pair[1].value)
        speed = f"{_count(fast.per_second or 0)} pictures a second"
        first = (
            f"It draws {speed}, and no family with up to {NEAR:g} times its distance draws faster. "
            if fast is best
            else f"Among families with up to {NEAR:g} times its distance {fast.name} draws fastest, {speed}. "
        )
        share = f"{100 * coverage.value:.0f} % of the real ones have a sample near"
        yield f"{first}Most kinds of pictures are covered by {widest.name}: {share}."


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _warnings(table: Sequence[Row]) -> Iterator[str]:
    """Of rows that look better than they are."""
    failed = [
        f"{row.name} ({len(row.done) - len(row.good)} of {row.wanted})"
        for row in table
        if len(row.good) < len(row.done)
    ]
    if failed:
        yield f"Seeds that came to nothing are in no figure: {_list(failed)}."
    if copied := [row.name for row in table if any(NEARER_NOTE in note for note in row.notes)]:
        yield f"Look at the nearest training pictures of {_list(copied)}: some samples may be copies."


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
            f"Realistic but not varied, by precision and recall: {_few(narrow)}. "
            "Where the kernel distance is large too, do not believe that precision: the judge is fooled."
        )
    if wide:
        yield f"Varied, but much of it unlike any picture, by precision and recall: {_few(wide)}."


def _clearly(a: Estimate, b: Estimate, by: float) -> bool:
    return a.low - b.high > by


def _limits(wish: Wish, table: Sequence[Row]) -> str:
    protocol = next((told["protocol"] for row in table for told in row.good if "protocol" in told), None)
    by = "" if protocol is None else (
        f" Distances are between features of samples and of {protocol['real']:,} pictures that were trained on, by "
        f"{protocol['extractor']}."
    )  # fmt: skip
    if protocol is not None and protocol["extractor"] == PIXELS:
        by += (
            " Raw pixels say little of what is on a picture: captions, a folder for each class, or a CLIP (--clip) "
            "give a judge that sees more."
        )
    few = f"with {many(wish.seeds, 'seed')} an interval says little of chance in training; " if wish.seeds < FEW else ""
    return (
        f"What this does not show: how the families compare with more than {wish.budget} of training, with larger "
        "networks or at other sizes; their run files were tuned by hand for minutes on CIFAR-10 at 32 pixels. Besides, "
        f"{few}FID of {wish.samples:,} samples is higher than of endless ones (FID\u221e), and numbers of other papers "
        f"are of another protocol.{by}"
    )


def _few(names: Sequence[str]) -> str:
    """A sentence that can still be read."""
    return _list(names) if len(names) <= MANY else f"{', '.join(names[:MANY])} and {len(names) - MANY} more"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
