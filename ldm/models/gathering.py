"""Runs of several people that share the calls of one network: rows at different steps, in one batch.

A run is an iterator with calls of the network somewhere inside it. Each lives in a greenlet and stops where it calls;
the others go on until all have stopped. Then those calls that fit together become one. The loop of a run knows nothing
of it: `gathered` is a network like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction
from ldm.models.latent import Cond, Network
from ldm.models.memory import is_out_of_memory, release

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Call:
    """What a run wants to know of a network."""

    network: Network
    alike: Hashable  # networks for which it is equal answer alike
    x: Tensor
    level: Level
    conds: Sequence[Cond]

    @property
    def kind(self) -> Hashable:
        """Calls of one kind fit into one batch; one with controls stands alone, for each has hints of its own."""
        if any(cond.controls for cond in self.conds):
            return id(self)
        told = tuple((cond.perturb, *_shapes(cond)) for cond in self.conds)
        return self.alike, self.x.shape[1:], self.x.dtype, self.x.device, told

    @property
    def rows(self) -> int:
        """Rows that the network computes."""
        return len(self.x) * len(self.conds)


@dataclass(frozen=True)
class Ended:
    """A run has nothing more to say; the error that ended it, if it was one."""

    error: Exception | None = None


class Run(Generic[T]):
    """An iterator that can stop inside its next item."""

    def __init__(self, items: Iterator[T]) -> None:
        self.call: Call | None = None
        self._answer: list[Prediction] | Exception | None = None
        self._items = items
        self._let = greenlet(self._main)

    def go(self) -> T | Ended | None:
        """On to its next item, its end, or the next call of the network (None)."""
        answer, self._answer = self._answer, None
        told = self._let.throw(answer) if isinstance(answer, Exception) else self._let.switch(answer)
        if isinstance(told, Call):
            self.call = told
            return None
        result: T | Ended = told
        return result

    def answer(self, said: list[Prediction] | Exception) -> None:
        """What the network says to its call; it hears that when it goes on."""
        self._answer, self.call = said, None

    def close(self) -> None:
        """Ends it where it is; what it holds is let go."""
        if not self._let.dead:
            self._let.throw()

    def _main(self, _: object) -> Ended:
        above = getcurrent().parent
        assert above is not None
        try:
            for item in self._items:
                above.switch(item)
        except Exception as error:
            return Ended(error)
        return Ended()


def gathered(network: Network, alike: Hashable) -> Network:
    """The network for those inside a `Run`: each call waits until others can be made with it, by whichever of the
    networks that are `alike`."""

    def call(x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
        above = getcurrent().parent
        if above is None:  # nobody gathers here
            return network(x, level, conds)
        said: list[Prediction] = above.switch(Call(network, alike, x, level, conds))
        return said

    return call


class Gathering(Generic[T]):
    """Runs that go on together; one may come or go between any two turns."""

    def __init__(self, most: int) -> None:
        self.most = most  # rows of a call
        self.runs: list[Run[T]] = []

    def turn(self, heard: Callable[[Run[T], T | Ended], None]) -> None:
        """Each run goes on to its next call of a network, its items are heard on the way; then all calls are made."""
        for run in list(self.runs):
            while run in self.runs and run.call is None:
                if (told := run.go()) is None:
                    break
                if isinstance(told, Ended):
                    self.runs.remove(run)
                heard(run, told)
        for lot in self._lots():
            _make(lot)

    def leave(self, run: Run[T]) -> None:
        run.close()
        if run in self.runs:
            self.runs.remove(run)

    def _lots(self) -> Iterator[list[tuple[Run[T], Call]]]:
        """Runs whose calls fit together, so many that no call has more rows than allowed; a large one alone."""
        kinds: dict[Hashable, list[tuple[Run[T], Call]]] = {}
        for run in self.runs:
            if run.call is not None:
                kinds.setdefault(run.call.kind, []).append((run, run.call))
        for alike in kinds.values():
            lot, rows = list[tuple[Run[T], Call]](), 0
            for run, call in alike:
                if lot and rows + call.rows > self.most:
                    yield lot
                    lot, rows = [], 0
                lot.append((run, call))
                rows += call.rows
            yield lot


def _make(lot: Sequence[tuple[Run[Any], Call]]) -> None:
    """One call for all, and to each run its share of what the network says; an error is told to each. Where memory does
    not suffice for all together, halves are tried: what fits alone does not fail because others came."""
    told = _told([call for _, call in lot])
    if isinstance(told, Exception) and len(lot) > 1 and is_out_of_memory(told):
        del told  # with all that it holds
        release()
        half = len(lot) // 2
        for part in (lot[:half], lot[half:]):
            _make(part)
        return
    for place, (run, _) in enumerate(lot):
        run.answer(told if isinstance(told, Exception) else list(told[place]))


def _told(calls: Sequence[Call]) -> list[tuple[Prediction, ...]] | Exception:
    """What the network says, apart again for each call, or its error."""
    try:
        joined = _joined(calls)
        said = joined.network(joined.x, joined.level, joined.conds)
        return list(zip(*(_shares(one, [len(call.x) for call in calls]) for one in said), strict=True))
    except Exception as error:
        return error


def _joined(calls: Sequence[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]
    x = torch.cat([call.x for call in calls])
    levels = [call.level.expand(len(call.x)) for call in calls]
    level = Level(*(torch.cat([getattr(one, f.name) for one in levels]) for f in fields(Level)))
    columns = zip(*(call.conds for call in calls), strict=True)
    conds = [_stacked(column, [len(call.x) for call in calls]) for column in columns]
    return replace(calls[0], x=x, level=level, conds=conds)


def _stacked(conds: Sequence[Cond], rows: Sequence[int]) -> Cond:
    """One condition of several runs, a row for each of their latents."""
    told: dict[str, Any] = {
        name: torch.cat([_spread(getattr(cond, name), count) for cond, count in zip(conds, rows, strict=True)])
        for name, _ in _shapes(conds[0])
    }
    return replace(conds[0], **told)


def _spread(tensor: Tensor, rows: int) -> Tensor:
    return tensor.expand(rows, *tensor.shape[1:]) if len(tensor) == 1 else tensor


def _shapes(cond: Cond) -> tuple[tuple[str, torch.Size], ...]:
    """Of a row of each tensor that it holds."""
    return tuple((f.name, v.shape[1:]) for f in fields(cond) if isinstance(v := getattr(cond, f.name), Tensor))


def _shares(said: Prediction, rows: list[int]) -> list[Prediction]:
    """What the network said, apart again for each run."""
    clean = torch.split(said.clean, rows)
    variance = [None] * len(rows) if said.variance is None else torch.split(said.variance, rows)
    return [Prediction(one, other) for one, other in zip(clean, variance, strict=True)]
