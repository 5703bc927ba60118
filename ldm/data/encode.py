"""Fills a cache before a run: what is missing is loaded, encoded in batches of one shape, and kept in large pieces."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ldm.data.cache import Cache, Row
from ldm.errors import LdmError

T = TypeVar("T")
PIECE_BYTES, PIECE_SECONDS = 32 << 20, 60.0  # a piece is written when it is so large, or so old: a kill loses no more


@dataclass(frozen=True)
class Filled:
    """What became of the keys: so many rows were `made` and kept, so many `found`; `failed` are places that could not
    be loaded, with the reason; `stopped`: asked to."""

    made: int
    found: int
    failed: tuple[tuple[int, str], ...] = ()
    stopped: bool = False


def fill(
    cache: Cache,
    keys: Sequence[str],
    load: Callable[[int], T],
    encode: Callable[[list[T]], Row],
    *,
    batch: int = 8,
    shape: Callable[[T], Hashable] = lambda item: tuple(getattr(item, "shape", ())),
    about: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Filled:
    """Makes the rows of all `keys` that are missing. `load(place)` gives what `encode` takes a list of (all of one
    `shape`); an `LdmError` of `load` leaves that place out. `stop` is asked before each item; what is done is kept.

    On a full disk nothing more is encoded, but all is still loaded: whoever goes on without the cache must know which
    places to leave out.

    Several processes fill one cache together when each is given its own part of the keys.
    """
    lacking = cache.missing(keys)
    found, failed = len(set(keys)) - len(lacking), list[tuple[int, str]]()
    waiting: dict[Hashable, list[tuple[int, T]]] = defaultdict(list)
    made = _Pieces(cache, about)
    stopped, done = False, 0
    twins: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        twins[key].append(place)

    def progress(more: int) -> None:
        nonlocal done
        done += more
        on_progress(done, found + len(lacking))

    def loaded(key: str) -> tuple[int, T] | None:
        """Of the places of a key the first that can be loaded; each one before it is a failure of its own."""
        for place in twins[key]:
            try:
                return place, load(place)
            except LdmError as error:
                failed.append((place, f"{error.what.rstrip('.')}: {error.why}"))
        return None

    def encoded(items: list[tuple[int, T]]) -> None:
        if not cache.full:
            made.add([keys[place] for place, _ in items], encode([item for _, item in items]))
        progress(len(items))

    progress(found)
    for first in lacking:
        if stopped := stop():
            break
        one = loaded(keys[first])
        if one is None:
            progress(1)
            continue
        group = waiting[shape(one[1])]
        group.append(one)
        if len(group) == batch:
            encoded(group)
            group.clear()
    for group in waiting.values():
        if stopped := stopped or stop():
            break
        if group:
            encoded(group)
    made.write()
    return Filled(made.count, found, tuple(sorted(failed)), stopped)


@dataclass
class _Pieces:
    """Rows that wait to be written, apart by shape, so that shards are few and large; `count` are written."""

    cache: Cache
    about: str
    count: int = 0
    _rows: dict[Hashable, list[tuple[list[str], dict[str, Tensor]]]] = field(default_factory=lambda: defaultdict(list))
    _bytes: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, keys: list[str], rows: Row) -> None:
        held = {name: tensor.detach().cpu() for name, tensor in rows.items()}
        shape = tuple((name, tuple(t.shape[1:]), t.dtype) for name, t in sorted(held.items()))
        self._rows[shape].append((keys, held))
        self._bytes += sum(t.nbytes for t in held.values())
        if self._bytes >= PIECE_BYTES or time.monotonic() - self._since > PIECE_SECONDS:
            self.write()

    def write(self) -> None:
        for parts in self._rows.values():
            keys = [key for some, _ in parts for key in some]
            rows = {name: torch.cat([held[name] for _, held in parts]) for name in parts[0][1]}
            if self.cache.keep(keys, rows, self.about):
                self.count += len(keys)
        self._rows.clear()
        self._bytes, self._since = 0, time.monotonic()
