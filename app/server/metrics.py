"""What a server does, in numbers, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from app.server.service import Service
from app.server.store import State


class Told:
    """Asked for at each look, so that nothing is counted twice."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        service, worker = self.service, self.service.worker
        jobs = GaugeMetricFamily("ldm_jobs", "Jobs in each state", labels=["state"])
        counts = service.jobs.counts()
        for state in get_args(State):
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("ldm_queue_limit", "Jobs that may wait", service.limits.waiting)
        yield CounterMetricFamily("ldm_pictures", "Pictures that were finished", service.jobs.pictures())
        yield CounterMetricFamily("ldm_worker_busy_seconds", "Seconds in which pictures were made", worker.busy_seconds)
        if (together := worker.together) is not None:
            yield CounterMetricFamily("ldm_worker_turns", "Steps that the worker took", together.turns)
            yield CounterMetricFamily("ldm_model_loads", "Models that were loaded", together.shelf.loads)
            yield GaugeMetricFamily("ldm_model_bytes", "Weights in memory", together.shelf.held)


def metrics(service: Service) -> bytes:
    registry = CollectorRegistry()
    registry.register(Told(service))
    return generate_latest(registry)
