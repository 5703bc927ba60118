"""Before a run: which examples are for training and which for validation, in which bucket each is, and their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ldm.data.buckets import Size, check_filled, nearest_bucket
from ldm.data.mixture import Mixture
from ldm.data.order import Bucketed, Ints, Mixed, MixedBatches, Order, Single, Stream, Turns
from ldm.data.quarantine import Quarantine
from ldm.data.settings import DataSettings
from ldm.data.source import Source
from ldm.errors import Code, LdmError

THREADS = 8  # that read headers: they wait for the disk


@dataclass(frozen=True, eq=False)
class Plan:
    """Example numbers of both sides, `buckets` [len(source)] the bucket of each, `counts` how many of training."""

    order: Order
    training: Ints
    validation: Ints
    buckets: Ints
    counts: list[int]


def plan(
    source: Source, settings: DataSettings, sizes: Sequence[Size], total: int, seed: int, quarantine: Quarantine
) -> Plan:
    """The whole plan, after the checks that do not need a picture decoded."""
    training, validation = split(source, settings)
    buckets = np.zeros(len(source), np.int64)
    if len(sizes) > 1:
        buckets = _sort(source, sizes, quarantine)
    counts = np.bincount(buckets[training], minlength=len(sizes)).tolist()
    if settings.buckets is not None and settings.buckets.sizes is not None:
        check_filled(sizes, counts)
    weights = source.weights()
    entries = training if weights is None else np.repeat(training, weights[training])
    _check_enough(source, len(entries), len(validation), total)
    return Plan(_order(source, settings, entries, buckets, total, seed), training, validation, buckets, counts)


def split(source: Source, settings: DataSettings) -> tuple[Ints, Ints]:
    """Training and validation, by a hash of each name: who joins the set later moves nobody to the other side.

    The validation examples are in the order of their hashes, so the first few are a sample of all.
    """
    everything = np.arange(len(source))
    if not settings.validation:
        return everything, everything[:0]
    name = source.inner_name if isinstance(source, Mixture) else source.name
    digests = (hashlib.sha256(name(i).encode("utf-8", "surrogatepass")).digest() for i in range(len(source)))
    keys = np.array([int.from_bytes(digest[:8], "little") >> 1 for digest in digests], np.int64)
    ranked = np.argsort(keys, kind="stable")
    if settings.validation < 1:
        count = max(1, int((keys < settings.validation * 2.0**63).sum()))
    else:
        count = int(settings.validation)
    if count >= len(source):
        what = f"data.validation={settings.validation:g} leaves nothing to train on"
        raise LdmError(Code.USAGE, what, f"{source.title} has {len(source)} pictures", "keep fewer for validation")
    return np.sort(ranked[count:]), ranked[:count]


def _sort(source: Source, sizes: Sequence[Size], quarantine: Quarantine) -> Ints:
    """The bucket of each example by the size in its header; those without a readable one go to quarantine."""
    failed: dict[int, str] = {}

    def measure(index: int) -> Size:
        try:
            return source.size(index)
        except LdmError as error:
            failed[index] = f"{source.name(index)}: {error.what}: {error.why}"
            return 1, 1

    with ThreadPoolExecutor(1 if source.quick else THREADS) as pool:
        found = np.array(list(pool.map(measure, range(len(source)))), np.int64)
    quarantine.take(range(len(source)), dict(sorted(failed.items())))
    return nearest_bucket(sizes, found)


def _check_enough(source: Source, entries: int, held: int, total: int) -> None:
    mixed = isinstance(source, Mixture) and len(source.parts) > 1
    if entries >= total or mixed:  # in a mix, weights say how often a small part comes round
        return
    kept = f" ({held} more are kept for validation)" if held else ""
    often = f"data.repeats={-(-total // entries)}"
    fix = f"set run.batch to at most {entries}, add pictures, or show each more often: {often}"
    what = f"{source.title} has {entries} examples for training{kept}, fewer than a batch of {total}"
    raise LdmError(Code.USAGE, what, "a batch holds each example once", fix)


def _order(source: Source, settings: DataSettings, entries: Ints, buckets: Ints, total: int, seed: int) -> Order:
    spans = source.spans() if isinstance(source, Mixture) else [(0, len(source), 1.0)]
    inside = [(p, entries[(entries >= a) & (entries < b)], share) for p, (a, b, share) in enumerate(spans)]
    inside = [(p, rows, share) for p, rows, share in inside if len(rows)]
    turns = Turns([share for *_, share in inside], seed)
    shuffle = settings.shuffle
    if settings.buckets is None:
        streams = [Stream(rows, seed, f"part {p}", shuffle) for p, rows, _ in inside]
        singles = [Single(stream, total) for stream in streams]
        return singles[0] if len(singles) == 1 else Mixed(singles, turns, total)
    parts = []
    for p, rows, _ in inside:
        used = np.unique(buckets[rows]).tolist()
        streams = [Stream(rows[buckets[rows] == b], seed, f"part {p} bucket {b}", shuffle) for b in used]
        parts.append(Bucketed(streams, used, total, seed, f"part {p}", shuffle))
    return parts[0] if len(parts) == 1 else MixedBatches(parts, turns)
