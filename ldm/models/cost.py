"""What a network call costs, found by running it on the meta device: no weights are read and nothing is computed."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """`flops` counts a multiplication and an addition as two; `peak` is the most bytes of activations alive at once."""

    flops: int
    peak: int


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, and takes them off when they die: `now` and at `most`, in bytes.

    On the meta device that is what an eager run would hold; around a real forward and backward pass, what it holds,
    the tensors kept for the backward pass and the gradients among it. What a kernel takes inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in old:  # a view makes nothing
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self._alive.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


class _Fused(TorchFunctionMode):
    """Attention as the fused kernels of all devices compute it: the meta device would hold all its scores at once."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = (list(args) + [(kwargs or {})[n] for n in ("query", "key", "value")[len(args) :]])[:3]
        *outer, length, width = query.shape
        self.flops += 2 * math.prod(outer) * length * key.shape[-2] * (width + value.shape[-1])
        *batch, heads = outer  # the answer has its heads beside each other, so that joining them copies nothing
        return query.new_empty(*batch, length, heads, value.shape[-1]).transpose(-2, -3)


def cost(network: nn.Module, call: Callable[[nn.Module], object]) -> Cost:
    """The cost of `call(network)`, given a twin of the network on the meta device, in the network's type."""
    with torch.device("meta"):
        config = copy.deepcopy(dict(network.config))  # type: ignore[arg-type]
        twin = type(network).from_config(config)  # type: ignore[attr-defined]
        twin.to(next(network.parameters()).dtype)
        counter, peak, fused = FlopCounterMode(display=False), Allocations(), _Fused()
        with torch.no_grad(), counter, peak, fused:
            call(twin)
    return Cost(int(counter.get_total_flops()) + fused.flops, peak.most)


def weight_bytes(*modules: nn.Module) -> int:
    """The memory that the weights of some modules take, each once."""
    seen = {
        p.data_ptr() if p.device.type != "meta" else id(p): p.numel() * p.element_size()
        for m in modules
        for p in m.parameters()
    }
    return sum(seen.values())
