"""Replicas of a server on Ray Serve: as many as the work wants, between two numbers; called by their handle alone.

No proxy of Serve is begun, so nothing answers HTTP but the server itself.
"""

from __future__ import annotations

import hashlib
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.cluster import environment, joined, missing, needed, room
from app.server.replica import Mailbox, Parcel, Plan, Replica, Slip, Word
from ldm.errors import Code, LdmError

log = logging.getLogger("ldm.server")
DEPLOYMENT = "replica"
MOST = 512  # replicas
PATIENCE = 30.0  # seconds that the fewest may take to come until it is told that they do not
LOOK = 0.2  # seconds between two looks whether they are there
HEALTH = 2.0  # seconds between two questions to a replica whether it is well; after three times no another one comes
GOODBYE = 3600.0  # seconds that a replica which is not needed any more may finish its work in
SCALING = {
    "target_ongoing_requests": 1, "metrics_interval_s": 1.0, "look_back_period_s": 2.0, "upscale_delay_s": 2.0,
    "downscale_delay_s": 60.0,
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """Where, how many at least and at most, and the processors of each."""

    address: str
    least: int = 1
    most: int = 1
    cpus: int = 2


@dataclass(frozen=True)
class Place:
    """A cluster that this process has joined."""

    ray: Any
    wanted: Wanted
    cards: bool  # each replica has one


def numbers(text: str) -> tuple[int, int]:
    """MIN:MAX, or one number for both."""
    least, colon, most = text.partition(":")
    most = most if colon else least
    if least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most) <= MOST:
        return int(least), int(most)
    why = f"It is MIN:MAX or one number, from 1 to {MOST}, the smaller first."
    raise LdmError(Code.USAGE, f"--replicas {text[:40]!r} is not understood.", why, "Write --replicas 1:4.")


@contextmanager
def cluster(wanted: Wanted | None) -> Iterator[Place | None]:
    """The cluster on which they are to be; an error where not even the fewest have room, for Ray would wait for it
    without a word."""
    if wanted is None:
        yield None
        return
    needed()
    try:
        import ray.serve
    except ImportError as error:
        raise missing(error) from error
    with joined(wanted.address, wanted.cpus) as ray:
        fit, cards = room(ray.nodes(), wanted.cpus)
        if fit < wanted.least:
            what = f"The cluster has no room for --replicas {wanted.least}:{wanted.most}."
            why = f"With {wanted.cpus} processors each {fit} of them fit."
            raise LdmError(Code.RESOURCE, what, why, "Give a smaller --ray-cpus or fewer --replicas.")
        yield Place(ray, replace(wanted, most=min(wanted.most, fit)), cards)  # no errand waits for what cannot be


class RayCrew:
    """`begin` it, once; `end` it."""

    def __init__(self, place: Place, plan: Plan, folder: Path) -> None:
        self.place, self.plan, self.most = place, plan, place.wanted.most
        own = f"{socket.gethostname()} {folder.resolve()}"  # others have theirs on the same cluster
        self.name = f"ldm-{hashlib.sha256(own.encode()).hexdigest()[:12]}"
        self._mailbox: Any = None
        self._handle: Any = None

    def begin(self, ending: Callable[[], bool]) -> RayCrew:
        """Returns when the fewest are there, or the server ends: others may have the room for as long as they like."""
        from ray import serve
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray, wanted = self.place.ray, self.place.wanted
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1)(Mailbox).remote()
        serve.start(proxy_location="Disabled")
        scaling = {"min_replicas": wanted.least, "max_replicas": wanted.most} | SCALING
        deployment = serve.deployment(
            name=DEPLOYMENT,
            max_ongoing_requests=1,
            health_check_period_s=HEALTH,
            autoscaling_config=scaling,
            graceful_shutdown_timeout_s=GOODBYE,
            ray_actor_options={
                "num_cpus": wanted.cpus,
                "num_gpus": int(self.place.cards),
                "runtime_env": {"env_vars": environment(wanted.cpus) | {"LDM_TOKEN": ""}},
            },
        )(Replica)
        app = serve.RunTarget(deployment.bind(self.plan, wanted.cpus), name=self.name, route_prefix=None)
        (handle,) = serve.run_many([app], wait_for_applications_running=False)
        self._handle = handle.options(stream=True)
        self._wait(ending)
        return self

    def _wait(self, ending: Callable[[], bool]) -> None:
        from ray import serve

        until = time.monotonic() + PATIENCE
        while not ending() and (app := serve.status().applications[self.name]).status != "RUNNING":
            if app.status == "DEPLOY_FAILED":
                raise RuntimeError(app.message)
            if time.monotonic() > until:
                log.warning("the replicas wait for room on the cluster: others have its processors or cards")
                until = math.inf
            time.sleep(LOOK)

    def end(self) -> None:
        """They have nothing to do any more."""
        if self._mailbox is None:
            return
        from ray import serve

        if self._handle is not None:
            self._handle.shutdown()  # else it goes on measuring, and complains that Ray is gone
        serve.delete(self.name, _blocking=False)

    def make(self, errand: str, parcels: Sequence[Parcel]) -> Iterator[list[Word]]:
        self.place.ray.get(self._mailbox.open.remote(errand))  # it must be there when it is asked for
        yield from self._handle.make.remote(errand, list(parcels), self._mailbox)

    def tell(self, errand: str, slip: Slip | None) -> None:
        self._mailbox.put.remote(errand, slip)
