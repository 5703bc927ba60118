"""The processes of `accelerate launch` or `torchrun`: which one this is, what it makes, and how they end together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

AGENT = "TORCHELASTIC_USE_AGENT_STORE"  # torch's launcher has a store of words for its processes
ENDED = "ldm batch: ended"
LOOK = 1.0  # seconds between two looks at the others


def place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def mine(chunks: Sequence[int]) -> list[int]:
    """Each process takes every so many-th chunk."""
    rank, world = place()
    return [chunk for chunk in chunks if chunk % world == rank]


def advice(chunks: int) -> str | None:
    """What keeps a launch from sharing the work."""
    told = os.environ
    if told.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in told and "WORLD_SIZE" not in told:
        return "accelerate starts one process with --cpu: write --multi_gpu in its place, also without a card"
    if (world := place()[1]) > chunks:
        return f"{world} processes share {chunks} of them, so some have nothing to do: give a smaller --chunk"
    return None


def launched() -> bool:
    """Whether a launcher has begun this process and others, and looks how they end."""
    return place()[1] > 1 and os.environ.get(AGENT) == "True"


def ended(well: bool, wanted: Callable[[], bool]) -> None:
    """Says that this process is at its end. Where not all went well it waits for the others: a launcher ends all of
    them when one ends with an error."""
    if not launched():
        return
    import torch.distributed as dist

    world = place()[1]
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=1)
        )
        there = store.add(ENDED, 1)
        while not well and there < world and wanted():
            time.sleep(LOOK)
            there = store.add(ENDED, 0)
    except RuntimeError:  # the launcher is ending, and nobody is left to wait for
        return
