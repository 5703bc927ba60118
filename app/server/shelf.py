"""Models in memory: loaded when they are asked for, the one that was used longest ago makes room."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ldm.models.gathering import gathered
from pipelines.pipeline import Pipeline


class Shelf:
    """For the one thread that owns the models."""

    def __init__(self, memory: float, device: str = "auto", dtype: str = "auto") -> None:
        self.memory, self.device, self.dtype = memory, device, dtype  # bytes of weights that may stay
        self.loads = 0  # so far
        self.held = 0  # bytes of weights in memory
        self._pipelines: OrderedDict[Path, Pipeline] = OrderedDict()

    def pipeline(self, path: Path) -> Pipeline:
        """The model at a path, its calls ready to be shared."""
        if path not in self._pipelines:
            pipeline = Pipeline.load(path, device=self.device, dtype=self.dtype)
            pipeline.sharing = gathered
            self._pipelines[path] = pipeline
            self.loads += 1
        self._pipelines.move_to_end(path)
        self._make_room()
        return self._pipelines[path]

    def _make_room(self) -> None:
        """The last one stays, however large it is."""
        weights = {path: weight_of(pipeline) for path, pipeline in self._pipelines.items()}
        gone = False
        while len(weights) > 1 and sum(weights.values()) > self.memory:
            path, _ = self._pipelines.popitem(last=False)
            del weights[path]
            gone = True
        self.held = sum(weights.values())
        if gone:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def weight_of(pipeline: Pipeline) -> int:
    """Bytes of the weights of a model and of what was loaded beside it."""
    return sum(p.nbytes for module in _modules(pipeline) for p in module.parameters())


def _modules(pipeline: Pipeline) -> Iterator[nn.Module]:
    parts = pipeline.model.parts
    yield from (parts.unet, parts.vae, *(tower for _, tower in parts.towers))
    yield from pipeline.beside()
