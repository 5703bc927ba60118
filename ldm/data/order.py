"""Which example stands where: a function of (seed, place) for every place of an endless run, so that a run may begin at
any step, on any number of processes, without replaying what came before.

An epoch is a permutation of the entries of a stream, sorted by Philox words of (seed, stream, epoch). Streams of one
size run on across epochs; in buckets a batch has one size, so an epoch is a permutation of batches. Parts of a mix take
turns in blocks of fixed shares, shuffled block by block, each part at its own pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ldm.data.draws import Draws

Ints = npt.NDArray[np.int64]
BLOCK = 4096  # draws in which every part of a mix has its exact share
HELD = 3  # epochs (or blocks) whose permutation is remembered


@dataclass(frozen=True, eq=False)
class Stream:
    """Entries that belong together: all examples of a set, or of one bucket of it. Entry k of epoch e is a function."""

    entries: Ints  # example numbers; one that comes several times an epoch stands here several times
    seed: int
    name: str
    shuffle: bool = True
    _held: dict[int, Ints] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries)

    def at(self, epoch: int, inside: Ints) -> Ints:
        """The examples at positions of an epoch; behind its end it begins again."""
        inside = inside % len(self)
        return self.entries[_permutation(self, len(self), epoch)[inside] if self.shuffle else inside]


@dataclass(frozen=True, eq=False)
class Place:
    """Where an example is drawn from: if it cannot be read, `stream` has others to follow it."""

    stream: Stream
    epoch: int
    inside: int

    def example(self, skip: int = 0) -> int:
        return int(self.stream.at(self.epoch, np.array([self.inside + skip], np.int64))[0])


@dataclass(frozen=True, eq=False)
class Drawn:
    """Consecutive rows of one step's batch: examples [n], for the how-manieth time each is shown, their bucket."""

    examples: Ints
    places: Sequence[Place]
    bucket: int

    @property
    def epochs(self) -> list[int]:
        return [place.epoch for place in self.places]


class Order(Protocol):
    def rows(self, step: int, first: int, end: int, skip: int = 0) -> Drawn:
        """Rows first .. end-1 of the batch of a step; `skip` > 0: where batches have a bucket, of one that follows."""
        ...

    def steps(self) -> float:
        """How many steps show every example once (of a mix: as many examples as there are)."""
        ...


@dataclass(frozen=True, eq=False)
class Single:
    """One size, one set: place step * total + row, on across epochs."""

    stream: Stream
    total: int
    bucket: int = 0

    def rows(self, step: int, first: int, end: int, skip: int = 0) -> Drawn:
        return self.positions(np.arange(step * self.total + first, step * self.total + end))

    def positions(self, positions: Ints) -> Drawn:
        epochs, inside = np.divmod(positions, len(self.stream))
        examples = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            examples[rows] = self.stream.at(int(epoch), inside[rows])
        pairs = zip(epochs.tolist(), inside.tolist(), strict=True)
        return Drawn(examples, [Place(self.stream, e, i) for e, i in pairs], self.bucket)

    def steps(self) -> float:
        return len(self.stream) / self.total


@dataclass(frozen=True, eq=False)
class Bucketed:
    """One set in several sizes: an epoch is a permutation of batches, each of one bucket. The last batch of a bucket is
    filled up by its first examples, so every example comes once, and those few once more."""

    streams: Sequence[Stream]
    buckets: Sequence[int]  # the bucket of each stream
    total: int
    seed: int
    name: str
    shuffle: bool = True
    _held: dict[int, Ints] = field(default_factory=dict)

    def rows(self, step: int, first: int, end: int, skip: int = 0) -> Drawn:
        counts = np.array([-(-len(stream) // self.total) for stream in self.streams])
        starts = np.cumsum([0, *counts])
        epoch, slot = divmod(step, int(starts[-1]))
        slot = (slot + skip) % int(starts[-1])
        if self.shuffle:
            slot = int(_permutation(self, int(starts[-1]), epoch)[slot])
        which = int(np.searchsorted(starts, slot, "right")) - 1
        stream, batch = self.streams[which], slot - int(starts[which])
        inside = np.arange(batch * self.total + first, batch * self.total + end)
        places = [Place(stream, epoch, i) for i in inside.tolist()]
        return Drawn(stream.at(epoch, inside), places, self.buckets[which])

    def steps(self) -> float:
        return float(sum(-(-len(stream) // self.total) for stream in self.streams))


@dataclass(frozen=True, eq=False)
class Turns:
    """Whose turn it is among several parts: in each block every part has its share, in an order drawn for the block."""

    shares: Sequence[float]
    seed: int
    name: str = "turns"
    _held: dict[int, Ints] = field(default_factory=dict)

    def counts(self) -> Ints:
        """How many of a block's places each part has: the nearest whole numbers that add up, at least one each."""
        exact = np.array(self.shares) / sum(self.shares) * BLOCK
        counts = np.maximum(1, np.floor(exact)).astype(np.int64)
        missing = BLOCK - int(counts.sum())
        order = np.argsort(counts - exact, kind="stable")
        counts[order[: max(0, missing)]] += 1
        counts[np.argmax(counts)] += BLOCK - counts.sum()  # many tiny parts were raised to one
        return counts

    def at(self, places: Ints) -> tuple[Ints, Ints]:
        """For each place the part, and how often that part came before."""
        counts = self.counts()
        parts, before = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
        for block in np.unique(places // BLOCK):
            rows = places // BLOCK == block
            turn = np.repeat(np.arange(len(counts)), counts)[_permutation(self, BLOCK, int(block))]
            earlier = np.empty(BLOCK, np.int64)
            for part in range(len(counts)):
                earlier[turn == part] = np.arange(counts[part])
            inside = places[rows] - block * BLOCK
            parts[rows] = turn[inside]
            before[rows] = block * counts[turn[inside]] + earlier[inside]
        return parts, before


@dataclass(frozen=True, eq=False)
class Mixed:
    """Several sets of one size: each row of a batch is of the part whose turn it is."""

    parts: Sequence[Single]
    turns: Turns
    total: int

    def rows(self, step: int, first: int, end: int, skip: int = 0) -> Drawn:
        parts, before = self.turns.at(np.arange(step * self.total + first, step * self.total + end))
        examples = np.empty(len(parts), np.int64)
        places: dict[int, Place] = {}
        for part in np.unique(parts):
            rows = np.flatnonzero(parts == part)
            drawn = self.parts[int(part)].positions(before[rows])
            examples[rows] = drawn.examples
            places |= dict(zip(rows.tolist(), drawn.places, strict=True))
        return Drawn(examples, [places[row] for row in range(len(parts))], 0)

    def steps(self) -> float:
        return sum(part.steps() for part in self.parts)


@dataclass(frozen=True, eq=False)
class MixedBatches:
    """Several sets in buckets: each batch is of the part whose turn it is."""

    parts: Sequence[Bucketed]
    turns: Turns

    def rows(self, step: int, first: int, end: int, skip: int = 0) -> Drawn:
        part, before = self.turns.at(np.array([step], np.int64))
        return self.parts[int(part[0])].rows(int(before[0]), first, end, skip)

    def steps(self) -> float:
        return sum(part.steps() for part in self.parts)


def _permutation(owner: Stream | Bucketed | Turns, count: int, epoch: int) -> Ints:
    """A permutation of count numbers for (seed, name, epoch): sorted by 64 random bits each."""
    held = owner._held
    if epoch not in held:
        draws = Draws(owner.seed, torch.arange(count), 1, f"order/{owner.name}/{epoch}")
        words = draws.words("place", 2)
        keys = (words[:, 0] << 31) ^ words[:, 1]
        while len(held) >= HELD:
            held.pop(next(iter(held)))
        held[epoch] = torch.argsort(keys, stable=True).numpy()
    return held[epoch]
