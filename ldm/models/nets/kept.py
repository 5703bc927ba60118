"""What is computed of weights once and used again, for as long as they are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """One value of some weights. After an adapter was put in or taken out, after a step of training, in another type or
    on another device they are others, and the value is computed anew."""

    def __init__(self) -> None:
        self._value: T | None = None
        self._of: list[tuple[Tensor, int]] = []

    def get(self, weights: tuple[Tensor, ...], make: Callable[[], T]) -> T:
        if self._value is None or not self._same(weights):
            self._of = [(weight.detach(), weight._version) for weight in weights]  # their memory cannot be used again
            self._value = make()
        return self._value

    def _same(self, weights: tuple[Tensor, ...]) -> bool:
        return len(weights) == len(self._of) and all(
            weight.data_ptr() == held.data_ptr() and weight._version == version and weight.dtype == held.dtype
            for weight, (held, version) in zip(weights, self._of, strict=True)
        )
