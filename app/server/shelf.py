"""Models in memory: loaded when they are asked for, the one that was used longest ago makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import nn

from app.server.catalog import stamp_of
from ldm.models.gathering import gathered
from ldm.models.memory import release
from ldm.store.describe import describe
from pipelines.device import pick_device
from pipelines.pipeline import Pipeline


class Shelf:
    """For the one thread that owns the models."""

    def __init__(self, memory: float | None, device: str = "auto", dtype: str = "auto") -> None:
        self.device, self.dtype = device, dtype
        self.memory = half_of(pick_device(device)) if memory is None else memory  # bytes of weights that may stay
        self.loads = 0  # so far
        self.held = 0  # bytes of weights in memory
        self._pipelines: OrderedDict[Path, Pipeline] = OrderedDict()
        self._stamps: dict[Path, int] = {}

    def pipeline(self, path: Path) -> Pipeline:
        """The model at a path, its calls ready to be shared."""
        if self._stamps.get(path) != (stamp := stamp_of(path)):  # another one has come to its place
            self._pipelines.pop(path, None)
            self._stamps[path] = stamp
        if path not in self._pipelines:
            self._make_room(describe(path).size)  # before it is there
            pipeline = Pipeline.load(path, device=self.device, dtype=self.dtype)
            pipeline.sharing = gathered
            self._pipelines[path] = pipeline
            self.loads += 1
        self._pipelines.move_to_end(path)
        self._make_room(keep=1)
        return self._pipelines[path]

    def _make_room(self, more: float = 0.0, keep: int = 0) -> None:
        """For so many bytes more; the last ones that are to be kept stay, however large they are."""
        weights = {path: weight_of(pipeline) for path, pipeline in self._pipelines.items()}
        gone = False
        while len(weights) > keep and sum(weights.values()) + more > self.memory:
            path, _ = self._pipelines.popitem(last=False)
            del weights[path]
            gone = True
        self.held = sum(weights.values())
        if gone:
            release()


def half_of(device: torch.device) -> float:
    """Bytes: of the memory that the weights lie in."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory) / 2
    return float(psutil.virtual_memory().total) / 2


def weight_of(pipeline: Pipeline) -> int:
    """Bytes of the weights of a model and of what was loaded beside it."""
    return sum(p.nbytes for module in _modules(pipeline) for p in module.parameters())


def _modules(pipeline: Pipeline) -> Iterator[nn.Module]:
    parts = pipeline.model.parts
    yield from (parts.unet, parts.vae, *(tower for _, tower in parts.towers))
    yield from pipeline.beside()
