"""Finds pictures that look the same among many, without comparing each with each.

Two pictures are near duplicates when at most `BITS` of their 64 frequency bits differ and their 8x8 colours differ by
at most `COLOURS` (of 255) on average and `CELL` at most: copies of other size, format, quality or brightness, which
benchmarks/data_check.py measures. Mirrored and cropped copies, and versions that differ in one place, are different.

Candidates come from four buckets of 16 bits: two numbers that differ in at most 7 bits differ in at most one bit of
some quarter, so looking a quarter up with each of its bits turned finds every pair (multi-index hashing: Norouzi,
Punjani and Fleet 2012). 100,000 pictures take seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

BITS, COLOURS, CELL = 6, 4.0, 24
MOST = 500  # candidates of one picture in one bucket: a bucket of thousands would cost their square
CHUNK = 1 << 21
Ints = npt.NDArray[np.int64]


def near_duplicates(bits: Sequence[int], thumbs: Sequence[bytes]) -> list[list[int]]:
    """Groups of two or more places whose pictures look the same, each group and the list in order."""
    if len(bits) < 2:
        return []
    hashes = np.array(bits, np.uint64)
    colours = np.frombuffer(b"".join(thumbs), np.uint8).reshape(len(hashes), -1)
    label = np.arange(len(hashes))
    for a, b in candidates(hashes):
        apart = np.abs(colours[a].astype(np.int16) - colours[b])
        near = (apart.mean(1) <= COLOURS) & (apart.max(1) <= CELL)
        _join(label, a[near], b[near])
    groups: dict[int, list[int]] = defaultdict(list)
    for place, name in enumerate(label.tolist()):
        groups[name].append(place)
    return [group for group in groups.values() if len(group) > 1]


def candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[Ints, Ints]]:
    """Pairs (a < b) of places whose numbers differ in at most `BITS` bits, in pieces; some pairs come twice."""
    for quarter in range(4):
        part = ((hashes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.lexsort((hashes, part))
        ordered = part[order]
        for turned in (0, *(1 << bit for bit in range(16))):
            first = np.searchsorted(ordered, part ^ turned, "left")
            last = np.searchsorted(ordered, part ^ turned, "right")
            yield from _pairs(hashes, order, first, np.minimum(last - first, MOST))


def _pairs(hashes: npt.NDArray[np.uint64], order: Ints, first: Ints, counts: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Each place with the `counts` places that follow `first` in `order`, those that are near."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK, "right")))
        some = counts[start:stop]
        a = np.repeat(np.arange(start, stop), some)
        offset = np.arange(len(a)) - np.repeat(np.cumsum(some) - some, some)
        b = order[np.repeat(first[start:stop], some) + offset]
        near = (a != b) & (np.bitwise_count(hashes[a] ^ hashes[b]) <= BITS)
        a, b = a[near], b[near]
        yield np.minimum(a, b), np.maximum(a, b)
        start = stop


def _join(label: Ints, a: Ints, b: Ints) -> None:
    """Gives joined places one label, the least: labels spread over the pairs until nothing changes."""
    while len(a):
        least = np.minimum(label[a], label[b])
        if np.array_equal(least, label[a]) and np.array_equal(least, label[b]):
            break
        for side in (a, b):
            np.minimum.at(label, label[side], least)
            np.minimum.at(label, side, least)
        while not np.array_equal(jumped := label[label], label):
            label[:] = jumped
