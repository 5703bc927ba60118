"""What the numbers show, in plain words, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ldm.data.survey import many, percent
from ldm.metrics.extractors import PIXELS
from ldm.metrics.interval import Estimate
from ldm.metrics.measured import NEARER_NOTE
from train.compare.table import Row, estimate_of
from train.compare.wish import Wish

MANY = 5  # names in a sentence
FEW = 5  # seeds: of less, Student's interval is itself hardly known
UNSURE = 2.0  # times a distance, which is not known where its interval is wider
APART = 0.5  # of precision and recall: good at one of them alone
FOOLED = 0.1  # of the precision and coverage of real pictures: below both, samples are like none of them
NEAR = 1.5  # times the least kernel distance


def in_words(wish: Wish, table: Sequence[Row], scale: Mapping[str, Any] | None = None) -> Iterator[str]:
    """A few paragraphs for the head of the page; `scale` is what held-out pictures reach."""
    like = comparable(wish, table)
    judged = [(row, kid) for row in like if (kid := row.figure("kid")) is not None]
    real = {} if scale is None else {name: estimate_of(one) for name, one in scale["figures"].items()}
    if judged:
        sound = [pair for pair in judged if not _fooled(pair[0], real)] or judged
        yield from _nearest(sound, real.get("kid"))
        yield from _choices(sound, real.get("coverage"))
        yield from _unlike([pair for pair in judged if pair not in sound], max(kid.high for _, kid in sound))
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
    yield from _unfair(wish, table, scale)
    yield _limits(wish, table)


def _nearest(judged: Sequence[tuple[Row, Estimate]], real: Estimate | None) -> Iterator[str]:
    """Which are nearest to the data, as far as it can be told."""
    best, least = min(judged, key=lambda pair: pair[1].value)
    near = [(row, kid) for row, kid in judged if row is not best and kid.low <= least.high]
    unsure = [row.name for row, kid in near if kid.value > least.high and kid.high - kid.low > UNSURE * kid.value]
    level = [row.name for row, _ in near if row.name not in unsure]
    said = f"Nearest to the data by the kernel distance (KID) is {best.name}"
    if level:
        said += f"; {_list(level)} cannot be told from it by these samples and seeds"
    elif not unsure and all(len(row.good) > 1 for row, _ in judged):
        said += ", clearly"
    said += f". The intervals of {_list(unsure)} are too wide for a rank" if unsure else ""
    if any(len(row.good) < 2 for row, _ in judged):
        said += ". Of one seed alone: another may say otherwise"
    yield f"{said}."
    if real is not None and (as_near := [row.name for row, kid in judged if kid.value <= real.high]):
        yield f"By it {_list(as_near)} cannot be told from real pictures that were held out, so it ranks no further."


def _choices(judged: Sequence[tuple[Row, Estimate]], real: Estimate | None) -> Iterator[str]:
    """Which of the near ones to take for speed, and which for variety."""
    best, least = min(judged, key=lambda pair: pair[1].value)
    far = NEAR * least.value if least.value > 0 else least.high
    good = [row for row, kid in judged if kid.value <= far and row.per_second]
    wide = [(row, coverage) for row, _ in judged if (coverage := row.figure("coverage")) is not None]
    if len(judged) > 1 and good and wide:
        fast = max(good, key=lambda row: row.per_second or 0)
        widest, coverage = max(wide, key=lambda pair: pair[1].value)
        speed = f"{_count(fast.per_second or 0)} pictures a second"
        first = (
            f"{fast.name} draws {speed}, and no family with up to {NEAR:g} times its distance draws faster. "
            if fast is best
            else f"Among families with up to {NEAR:g} times its distance {fast.name} draws fastest, {speed}. "
        )
        share = f"{percent(coverage.value)} of real pictures have a sample near"
        if real is not None:
            share += f", where held-out ones reach {percent(real.value)}"
        level = [row.name for row, one in wide if row is not widest and one.high >= coverage.low]
        told = f"; {_few(level)} cannot be told from it" if level else ""
        yield f"{first}The data is covered most by {widest.name}: {share}{told}."


def _fooled(row: Row, real: Mapping[str, Estimate]) -> bool:
    """Whether hardly a sample is like a real picture, and hardly a real picture has a sample near."""
    told = [(row.figure(name), real.get(name)) for name in ("precision", "coverage")]
    return all(one is not None and goal is not None and one.value < FOOLED * goal.value for one, goal in told)


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


def _unfair(wish: Wish, table: Sequence[Row], scale: Mapping[str, Any] | None) -> Iterator[str]:
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
            "IS, missing classes and their shares; give --classifier-steps more."
        )


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
