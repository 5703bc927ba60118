"""What is computed of weights once and used again, for as long as they are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """One value of some weights. After an adapter was put in or out, in another type or on another device they are
    others, and the value is computed anew. Not for weights that learn: fused optimisers tell nobody."""

    def __init__(self) -> None:
        self._kept: tuple[list[tuple[Tensor, int]], T] | None = None

    def get(self, weights: tuple[Tensor, ...], make: Callable[[], T]) -> T:
        kept = self._kept
        if kept is None or not _same(weights, kept[0]):
            seen = [(weight.detach(), _version(weight)) for weight in weights]  # their memory cannot be used again
            self._kept = kept = (seen, make())
        return kept[1]


def _same(weights: tuple[Tensor, ...], seen: list[tuple[Tensor, int]]) -> bool:
    return len(weights) == len(seen) and all(
        weight.data_ptr() == held.data_ptr() and _version(weight) == version and weight.dtype == held.dtype
        for weight, (held, version) in zip(weights, seen, strict=True)
    )


def _version(weight: Tensor) -> int:
    """How often it was changed in place; those that cannot learn do not count that."""
    return 0 if weight.is_inference() else weight._version
