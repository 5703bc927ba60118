"""The chunks of a batch among processes: by a launcher's ranks, or as actors of a Ray cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.batch.launch import mine
from app.batch.source import Source
from app.batch.store import Store
from app.cluster import joined, missing, needed

if TYPE_CHECKING:
    from app.batch.making import Maker

BLOCKS = 10_000  # of Ray Data at most; each is a few chunks where there are more


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


class Worker:
    """An actor: its model is loaded once. One that dies is started again, and its chunks are gone on with."""

    def __init__(self, plan: Plan) -> None:
        self.maker = plan.maker()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"told": json.dumps(self.maker.chunk(int(row["chunk"])))}


def on_ray(
    plan: Plan, chunks: list[int], where: str, cpus: int, workers: int | None, wanted: Callable[[], bool]
) -> Iterator[dict[str, int]]:
    """On all machines of a cluster that have room, as Ray Data feeds them."""
    data = _data()
    with joined(where, cpus) as ray:
        room = ray.cluster_resources()
        cards = int(room.get("GPU", 0))
        most = workers or max(1, cards or int(room.get("CPU", 1)) // cpus)
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=min(len(chunks), BLOCKS))
        pool = data.ActorPoolStrategy(min_size=1, max_size=most)
        made = rows.map(Worker, fn_constructor_args=(plan,), compute=pool, num_cpus=cpus, num_gpus=1 if cards else 0)
        for row in made.iter_rows():
            yield json.loads(row["told"])
            if not wanted():
                return


def _data() -> Any:
    """The part of Ray that feeds workers."""
    needed()
    try:
        import ray.data
    except ImportError as error:
        raise missing(error) from error
    return ray.data
