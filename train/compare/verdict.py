"""What the numbers show, in plain words, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from ldm.data.survey import many, percent
from ldm.metrics.extractors import PIXELS
from ldm.metrics.interval import Estimate
from ldm.metrics.measured import NEARER_NOTE
from train.compare.ranking import Scale, comparable, fooled, reached, real_coverage
from train.compare.table import Row
from train.compare.wish import Wish

MANY = 5  # names in a sentence
FEW = 5  # seeds: of less, Student's interval is itself hardly known
UNSURE = 2.0  # times a distance, which is not known where its interval is wider
APART = 0.5  # of precision and recall: good at one of them alone
NEAR = 1.5  # times the least kernel distance


def in_words(wish: Wish, table: Sequence[Row], scale: Scale = None) -> Iterator[str]:
    """A few paragraphs for the head of the page."""
    like, real = comparable(wish, table), reached(scale)
    judged = [(row, kid) for row in like if (kid := row.figure("kid")) is not None]
    odd = [(row, kid) for row, kid in judged if fooled(row, scale)]
    if sound := [pair for pair in judged if pair not in odd]:
        yield from _nearest(sound, real.get("kid"))
        yield from _choices(sound, scale)
    if judged:
        yield from _unlike(odd, median(kid.value for _, kid in sound) if sound else math.inf)
        yield from _apart(like)
    elif any(row.drawn for row in table):
        yield f"No family drew {wish.samples:,} samples within {wish.cap} seconds, so none are ranked by distances."
    elif any(row.done for row in table):
        yield "No cell has come to a figure: the notes say why."
    else:
        yield "No cell has been measured yet."
        return
    if exact := [(row, row.bits) for row in table if row.bits is not None]:
        row, told = min(exact, key=lambda pair: pair[1].value)
        how = "" if row.facts.likelihood == "exact" else " (a bound)"
        level = [other.name for other, one in exact if other is not row and one.low <= told.high]
        how += f"; {_few(level)} cannot be told from it" if level else ""
        yield (
            f"Of those that tell a likelihood, {row.name} needs the fewest bits: {told.value:.2f} per dimension{how}. "
            "Bits say how well all pixels are foretold, most of it noise that nobody sees; they do not rank pictures."
        )
    yield from _warnings(table)
    yield from _unfair(wish, table, scale)
    yield _limits(wish, table)


def _nearest(judged: Sequence[tuple[Row, Estimate]], real: Estimate | None) -> Iterator[str]:
    """Which are nearest to the data, as far as it can be told; `real` is the distance of held-out pictures."""
    best, least = min(judged, key=lambda pair: pair[1].value)
    near = [(row, kid) for row, kid in judged if row is not best and kid.low <= least.high]
    wide = [row.name for row, kid in near if kid.value > least.high and kid.high - kid.low > UNSURE * abs(kid.value)]
    level = [row.name for row, _ in near if row.name not in wide]
    as_real = [row.name for row, kid in judged if real is not None and kid.value <= real.high and kid.high >= real.low]
    lone = [row.name for row, _ in judged if len(row.good) < 2]
    said = f"Nearest to the data by the kernel distance (KID) is {best.name}"
    if level:
        said += f"; {_list(level)} cannot be told from it by these samples and seeds"
    elif len(judged) > 1 and not wide and not lone and len(as_real) < 2:
        said += ", clearly"
    said += f". The intervals of {_list(wide)} are too wide for a rank" if wide else ""
    if lone:
        said += f". Of one seed alone ({'all' if len(lone) == len(judged) else _few(lone)}): another may say otherwise"
    yield f"{said}."
    if as_real:
        yield f"By it real pictures that were held out are no nearer than {_list(as_real)}, so there it ranks no more."
    if nearer := [row.name for row, kid in judged if real is not None and kid.high < real.low]:
        yield f"Nearer to the training than held-out pictures, by KID: {_list(nearer)}. Look for copies."


def _choices(judged: Sequence[tuple[Row, Estimate]], scale: Scale) -> Iterator[str]:
    """Which of the near ones to take for speed, and which for variety."""
    best, least = min(judged, key=lambda pair: pair[1].value)
    if least.value > 0:
        far, near = NEAR * least.value, f"up to {NEAR:g} times the distance of {best.name}"
    else:
        far, near = least.high, f"a distance in the interval of {best.name}"
    good = [row for row, kid in judged if kid.value <= far and row.per_second]
    wide = [(row, coverage) for row, _ in judged if (coverage := row.figure("coverage")) is not None]
    if len(judged) > 1 and good and wide:
        fast = max(good, key=lambda row: row.per_second or 0)
        widest, coverage = max(wide, key=lambda pair: pair[1].value)
        level = [row.name for row, one in wide if row is not widest and one.high >= coverage.low]
        told = f"; {_few(level)} cannot be told from {widest.name}" if level else ""
        yield (
            f"Of families with {near}, {fast.name} draws fastest: {_count(fast.per_second or 0)} pictures a second. "
            f"The data is covered most by {widest.name}: {percent(coverage.value)} of real pictures have a sample near"
            f"{_real_coverage(widest, scale)}{told}."
        )


def _real_coverage(row: Row, scale: Scale) -> str:
    """What held-out pictures reach beside a row; more pictures cover more."""
    real = None if scale is None else scale["figures"].get("coverage")
    if real is None:
        return ""
    count, level = int(real["protocol"]["made"]), real_coverage(row, scale)
    if level is None or count == row.drawn:
        return f", where held-out ones reach {percent(real['value'])}"
    return f", where as many held-out ones would reach {percent(level)} ({count:,} reach {percent(real['value'])})"


def _unlike(odd: Sequence[tuple[Row, Estimate]], far: float) -> Iterator[str]:
    """Rows that a distance takes for near, and nothing else does."""
    if names := [row.name for row, kid in odd if kid.value < far]:
        yield (
            f"Do not believe the kernel distance of {_list(names)}: by precision and coverage hardly a sample is like "
            "any picture, so the judge is fooled, as one of raw pixels is by noise of the right colours."
        )


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


def _unfair(wish: Wish, table: Sequence[Row], scale: Scale) -> Iterator[str]:
    """What makes this comparison itself less fair, or less sharp."""
    images = [int(one) for row in table if (one := row.mean("images"))]
    if wish.budget.kind == "steps" and images and max(images) > min(images):
        yield (
            f"Batches differ between run files: {wish.budget} are {min(images):,} to {max(images):,} pictures. "
            "A budget of images or of time is more even."
        )
    if scale is not None and (lost := scale.get("classes", {}).get("lost")):
        kinds = f"{len(lost)} of the {len(scale['classes']['shares'])} classes"
        yield (
            f"The judge knows the classes badly: even among held-out pictures it all but misses {kinds}. Do not read "
            "IS, missing classes and their shares; begin anew, in another --out, with more --classifier-steps."
        )


def _apart(table: Sequence[Row]) -> Iterator[str]:
    """Families that are good at one of precision and recall alone."""
    narrow, wide = list[str](), list[str]()
    for row in table:
        precision, recall = row.figure("precision"), row.figure("recall")
        if precision is None or recall is None:
            continue
        told = f"{row.name} ({precision.value:.2f} and {recall.value:.2f})"
        if _clearly(precision, recall, APART):
            narrow.append(told)
        elif _clearly(recall, precision, APART):
            wide.append(told)
    if narrow:
        yield (
            f"Realistic but not varied, by precision and recall: {_few(narrow)}. "
            "Where the kernel distance is large too, do not believe that precision: the judge is fooled."
        )
    if wide:
        yield f"Varied, but much of it unlike any picture, by precision and recall: {_few(wide)}."


def _clearly(a: Estimate, b: Estimate, by: float) -> bool:
    return a.value - b.value > by and a.low > b.high


def _limits(wish: Wish, table: Sequence[Row]) -> str:
    protocol = next((told["protocol"] for row in table for told in row.good if "protocol" in told), None)
    by = "" if protocol is None else (
        f" Distances are between features of samples and of {protocol['real']:,} pictures that were trained on"
        f"{_of_pairs(table, protocol['real'])}, by {protocol['extractor']}."
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


def _of_pairs(table: Sequence[Row], most: int) -> str:
    """Figures that look at pairs take fewer pictures."""
    found = (told["figures"].get("kid") for row in table for told in row.good if "figures" in told)
    count = next((one["protocol"]["real"] for one in found if one is not None), most)
    return f" ({count:,} of them for all but FID and the spectrum)" if count < most else ""


def _few(names: Sequence[str]) -> str:
    """A sentence that can still be read."""
    return _list(names) if len(names) <= MANY else f"{', '.join(names[:MANY])} and {len(names) - MANY} more"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
