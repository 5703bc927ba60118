"""What a run stands on besides its own weights: the frozen networks it was built over, and how many pictures it sees.

Both are written into the log at each start, and compared at the next. A U-Net that goes on over another autoencoder
would go on learning, of latents that it has never seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ldm.data.cache import feed_weights
from ldm.errors import Code, LdmError
from train.folder import read_log
from train.task import Task

log = logging.getLogger("train.standing")


def frozen(task: Task) -> dict[str, str]:
    """A hash of the weights of each network that is not trained."""
    return {name: _hash(network) for name, network in task.frozen().items()}


def check(folder: Path, start: Mapping[str, Any]) -> None:
    """Compares what this start stands on with what the last one did. Other frozen weights are refused."""
    before = next((line["start"] for line in reversed(read_log(folder / "log.jsonl")) if "start" in line), None)
    if before is None:
        return
    known, now = before.get("frozen", {}), start["frozen"]
    other = [name for name in now if name in known and known[name] != now[name]]
    if other:
        raise LdmError(
            Code.MODEL,
            f"{folder} stands on another {' and '.join(other)}.",
            "These frozen networks have other weights than when the run began: perhaps they were trained on since. "
            "What was learned so far fits the old ones.",
            "Put the old weights back, or choose another run.out and begin anew on these.",
        )
    was, pictures = before.get("data", {}).get("training"), start["data"]["training"]
    if was is not None and was != pictures:
        log.warning(
            "the data set had %s pictures for training at the last start and has %s now; their order is another now",
            f"{was:,}",
            f"{pictures:,}",
        )


def _hash(network: nn.Module) -> str:
    """Of the weights alone: a library that prints a network in another way changes nothing."""
    digest = hashlib.sha256()
    feed_weights(digest, network)
    return digest.hexdigest()[:32]
