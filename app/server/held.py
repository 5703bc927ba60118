"""The catalog as it is at one moment, for whoever looks names up hundreds of times: its folders are read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from app.server.catalog import Catalog


@dataclass(frozen=True)
class Held(Catalog):
    """For one thread, and for no longer than a request takes."""

    known: dict[str, dict[str, Path]] = field(default_factory=dict)

    def models(self) -> dict[str, Path]:
        return self._once("models", super().models)

    def adapters(self) -> dict[str, Path]:
        return self._once("adapters", super().adapters)

    def controls(self, model: str | None = None) -> dict[str, Path]:
        return self._once(f"controls {model}", lambda: super(Held, self).controls(model))

    def _once(self, name: str, read: Callable[[], dict[str, Path]]) -> dict[str, Path]:
        if name not in self.known:
            self.known[name] = read()
        return self.known[name]


def held(catalog: Catalog) -> Held:
    return Held(*(getattr(catalog, each.name) for each in fields(catalog)))
