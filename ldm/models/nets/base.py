"""What all networks share: a configuration in the words of diffusers, and activations that may be recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ldm.fields import Fields


class Net(nn.Module):
    """A network that is made of its configuration alone. Fields of its kind that are settled may be there, but say
    nothing else than what is built here."""

    STOCK: ClassVar[str] = ""  # the class of diffusers or transformers that reads its files, and whose files it reads
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    SETTLED: ClassVar[Mapping[str, Sequence[Any]]] = {}  # field -> what it may say

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        if unknown := sorted(set(fields) - set(self.DEFAULTS) - set(self.SETTLED)):
            raise TypeError(f"{self.STOCK} has no {', '.join(unknown)}")
        for name, value in fields.items():
            settled = self.SETTLED.get(name)
            if settled is not None and value not in settled and not (value is None and not settled[0]):
                raise ValueError(f"{name}={value!r} is not built here, only {settled[0]!r}")
        self.config = Fields({**self.DEFAULTS, **fields})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(**{name: value for name, value in config.items() if not name.startswith("_")})

    def reconfigured(self, **fields: Any) -> None:
        """Other words in its configuration, about what changes no tensor."""
        self.config = Fields({**self.config, **fields})

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def recompute(self, on: bool = True) -> None:
        """Activations of its larger parts are made again in the backward pass, which takes time and saves memory."""
        waiting: list[nn.Module] = [self]
        while waiting:
            module = waiting.pop()
            if isinstance(module, Part):  # and those inside with it: twice would take time and save nothing
                module.recomputed = on
            else:
                waiting += module.children()


class _Unfilled(TorchFunctionMode):
    """Weights stay as they are where they would be drawn: without storage that means nothing, and imports seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks that are made inside have shapes and no numbers yet."""
    with torch.device("meta"), _Unfilled():
        yield


class Part(nn.Module):
    """A piece of a network whose activations may be recomputed."""

    recomputed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)
        return super().__call__(*args, **kwargs)


def only(known: Sequence[Any], said: Sequence[Any]) -> None:
    """The kinds of blocks that are built here; others are said to be not."""
    for kind in said:
        if kind not in known:
            raise ValueError(f"blocks of the kind {kind} are not built here, only {', '.join(map(str, known))}")


def each(value: Any, count: int) -> list[Any]:
    """A setting of each of some blocks: a list of them, or one for all."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} blocks")
    return values


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
}
