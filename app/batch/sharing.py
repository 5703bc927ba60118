"""The chunks of a batch among processes: by a launcher's ranks, or as actors of a Ray cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from app.batch.launch import mine
from app.batch.source import Source
from app.batch.store import Store
from app.cluster import joined, missing, needed, room
from app.errors import as_ldm_error
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from app.batch.making import Maker

BLOCKS = 10_000  # of Ray Data at most; each is a few chunks where there are more
MOST_TRIES = 5  # of a chunk that takes its worker along
LOOK = 0.2  # seconds between two looks whether to go on


@dataclass(frozen=True)
class Plan:
    """All that a process must know to make a chunk."""

    source: Source
    store: Store
    model: str
    device: str
    dtype: str
    together: int

    def maker(self, own: bool = False) -> Maker:
        """With `own` on a card of its own, where a launch has several."""
        from app.batch.making import Maker
        from pipelines.device import own_card

        if own and self.device in ("auto", "cuda"):
            own_card()
        return Maker(self.source, self.store, self.model, self.device, self.dtype, self.together)


def here(plan: Plan, chunks: list[int], wanted: Callable[[], bool]) -> Iterator[dict[str, int]]:
    """Those of this process, one after another. Each process of a launch takes every so many-th chunk."""
    todo = mine(chunks)
    maker = plan.maker(own=True) if todo else None
    for chunk in todo:
        if maker is None or not wanted() or (told := maker.chunk(chunk, wanted)) is None:
            return
        yield told


class Tries:
    """An actor that outlives the workers: how often each chunk was begun."""

    def __init__(self) -> None:
        self.begun = dict[int, int]()

    def begin(self, chunk: int) -> int:
        self.begun[chunk] = self.begun.get(chunk, 0) + 1
        return self.begun[chunk]


class Worker:
    """An actor: its model is loaded once, with its first chunk. One that dies is started again, and its chunks are gone
    on with; but one that takes its worker along each time is given up."""

    def __init__(self, plan: Plan, tries: Any) -> None:
        self.plan, self.tries = plan, tries
        self.maker: Maker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"told": json.dumps(self._told(int(row["chunk"])))}

    def _told(self, chunk: int) -> dict[str, Any] | None:
        """Errors that are no bugs are told: Ray would show each as one, with its traceback."""
        import ray

        if ray.get(self.tries.begin.remote(chunk)) > MOST_TRIES:
            return {"lost": chunk}
        try:
            self.maker = self.maker or self.plan.maker()
            return self.maker.chunk(chunk)
        except Exception as error:
            if (told := as_ldm_error(error, ["batch"])).code is Code.BUG:
                raise
            return {"error": told.as_dict()}


def on_ray(
    plan: Plan, chunks: list[int], where: str, cpus: int, workers: int | None, wanted: Callable[[], bool]
) -> Iterator[dict[str, int]]:
    """On all machines of a cluster that have room, as Ray Data feeds them."""
    data, lost = _data(), list[int]()
    with joined(where, cpus) as ray:
        most, cards = _room(ray.nodes(), cpus, workers)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = -1  # nothing moves while chunks are made, however long that takes
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it prints tracebacks
        tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tries).remote()
        rows = data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=min(len(chunks), BLOCKS))
        pool = data.ActorPoolStrategy(min_size=1, max_size=most)
        made = rows.map(Worker, fn_constructor_args=(plan, tries), compute=pool, num_cpus=cpus, num_gpus=int(cards))
        for row in _heard(made.iter_rows(), wanted):
            told = json.loads(row["told"])
            if "error" in told:
                error = told["error"]
                raise LdmError(Code(error["exit"]), error["what"], error["why"], error["fix"])
            if "lost" in told:
                lost.append(told["lost"])
            else:
                yield told
    if lost and wanted():
        raise _given_up(plan.source, lost)


def _given_up(source: Source, lost: list[int]) -> LdmError:
    first = lost[0] * source.size + 1
    which = f"Chunk {lost[0]} (lines {first} to {min(first + source.size - 1, source.count)})"
    what = f"{which}{f' and {len(lost) - 1} more' if lost[1:] else ''} could not be made."
    why = f"It took its worker along {MOST_TRIES} times. All else is done."
    fix = "Make its lines by themselves to find the one; `ray logs` and the memory of the machines say more."
    return LdmError(Code.RESOURCE, what, why, fix)


def _room(nodes: Sequence[Mapping[str, Any]], cpus: int, workers: int | None) -> tuple[int, bool]:
    """How many workers at most, and whether each has a card; an error where not one has room, for Ray would wait for it
    without a word."""
    fit, cards = room(nodes, cpus)
    if fit < 1:
        why = f"No machine of it has {cpus} processors{' and a card' if cards else ''}."
        raise LdmError(Code.RESOURCE, "The cluster has no room for a worker.", why, "Give a smaller --ray-cpus.")
    return min(workers or fit, fit), cards


def _heard(rows: Iterator[dict[str, Any]], wanted: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Rows as they come, while they are wanted: Ray is waited for by a thread, and a stop does not wait for Ray."""
    heard = Queue[Any]()

    def listen() -> None:
        try:
            for row in rows:
                heard.put(row)
            heard.put(None)
        except Exception as error:
            heard.put(error)

    Thread(target=listen, daemon=True).start()
    while wanted():
        try:
            row = heard.get(timeout=LOOK)
        except Empty:
            continue
        if row is None:
            return
        if isinstance(row, Exception):
            raise row
        yield row


def _data() -> Any:
    """The part of Ray that feeds workers."""
    needed()
    try:
        import ray.data
    except ImportError as error:
        raise missing(error) from error
    return ray.data
