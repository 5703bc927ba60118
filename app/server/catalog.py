"""What a server offers, by name. A name is looked up in a list; it never becomes a path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ldm.errors import Code, LdmError
from ldm.store.describe import describe
from ldm.store.find import (
    controls_inside,
    fetched,
    fetched_ids,
    find_model,
    shipped,
    shipped_adapters,
    shipped_beside,
    whose,
)
from ldm.store.header import printable

SHOWN = 12  # names in an error
MODELS, ADAPTERS = ("model folder", "single file"), ("lora", "textual inversion")
KEPT = ("modelspec.trigger_phrase", "ldm.base_name", "ldm.base_fingerprint")  # of the metadata
Source = Literal["shipped", "pulled", "folder", "imported"]


@dataclass(frozen=True)
class Brief:
    """What is told of a file or folder in a list, from its headers."""

    kind: str
    family: str | None = None
    size: int = 0
    fingerprint: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalog:
    """The models and adapters that ship, those that were pulled, those in two folders of the user's, and those in the
    server's own folder. Of two with one name the first in this order is meant."""

    models_folder: Path | None = None  # each folder or file in it is a model or a control
    adapters_folder: Path | None = None  # each file in it is an adapter or an embedding
    own_models: Path | None = None  # the same two, of what callers brought and what was made here
    own_adapters: Path | None = None

    def models(self) -> dict[str, Path]:
        """Whatever pictures can be made with."""
        pulled = {name: path for name in fetched_ids() if (path := fetched(name)) is not None}
        others = {n: p for n, p in _first(pulled, self._beside()).items() if is_model(p)}
        return _first({name: find_model(name) for name in shipped()}, others)

    def controls(self, model: str | None = None) -> dict[str, Path]:
        """Controls by name: those inside the model under their short names too."""
        beside = {name: find_model(name) for name in shipped_beside() if model is None or whose(name) == model}
        found = _first(beside, self._beside())
        home = None if model is None else self.model(model)
        inside = {name: path for name, path in controls_inside().items() if home is None or path.parent == home}
        return _first(inside, {name: path for name, path in found.items() if kind_of(path) == "controlnet"})

    def adapters(self) -> dict[str, Path]:
        """Adapters and embeddings by the names of their files; what cannot be read is none yet."""
        folders = (self._inside(folder, only_files=True) for folder in (self.adapters_folder, self.own_adapters))
        return _first(shipped_adapters(), {n: p for n, p in _first(*folders).items() if kind_of(p) in ADAPTERS})

    def rankers(self) -> dict[str, Path]:
        """CLIPs that say how much a picture is like its words."""
        found = _first({name: find_model(name) for name in shipped_beside()}, self._beside())
        return {name: path for name, path in found.items() if kind_of(path) == "clip"}

    def model(self, name: str) -> Path:
        return _named("model", name, self.models())

    def control(self, name: str, model: str) -> Path:
        return _named("control", name, self.controls(model))

    def any_control(self, name: str) -> Path:
        return _named("control", name, self.controls())

    def adapter(self, name: str) -> Path:
        return _named("adapter", name, self.adapters())

    def ranker(self, name: str) -> Path:
        return _named("ranker", name, self.rankers())

    def source(self, name: str, path: Path) -> Source:
        """Where it comes from; `imported` is whatever lies in the server's own folders."""
        if path.parent in (self.own_models, self.own_adapters):
            return "imported"
        if path.parent in (self.models_folder, self.adapters_folder):
            return "folder"
        return "pulled" if "/" in name else "shipped"

    @property
    def folders(self) -> tuple[Path | None, ...]:
        """What another catalog of the same things is made with."""
        return self.models_folder, self.adapters_folder, self.own_models, self.own_adapters

    def homes(self) -> list[Path]:
        """Folders that no caller is told of."""
        return [folder for folder in self.folders if folder]

    def taken(self) -> set[str]:
        """Names that mean something here, in small letters."""
        inside = (self._inside(f) for f in (self.models_folder, self.own_models, self.adapters_folder))
        lists = (shipped(), shipped_beside(), controls_inside(), self.adapters(), *inside)
        return {name.casefold() for names in lists for name in names}

    def _beside(self) -> dict[str, Path]:
        """What lies in both folders for models."""
        return _first(self._inside(self.models_folder), self._inside(self.own_models))

    @staticmethod
    def _inside(folder: Path | None, only_files: bool = False) -> dict[str, Path]:
        """What lies in a folder; hidden files and what leads out of it do not. A folder hides a file of its name."""
        if folder is None or not folder.is_dir():
            return {}
        home = folder.resolve()
        there = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        inside = [path for path in there if path.resolve().is_relative_to(home)]
        files = {path.stem: path for path in inside if path.is_file() and path.suffix == ".safetensors"}
        folders = {path.name: path for path in inside if path.is_dir() and any(path.glob("*.json"))}
        return files if only_files else files | folders


def _first(*lists: dict[str, Path]) -> dict[str, Path]:
    """All of them; of one name the first."""
    found: dict[str, Path] = {}
    for there in lists:
        found |= {name: path for name, path in there.items() if name not in found}
    return found


def _named(what: str, name: str, there: dict[str, Path]) -> Path:
    if name in there:
        return there[name]
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.6)
    names = ", ".join(list(there)[:SHOWN]) + (", ..." if len(there) > SHOWN else "")
    raise LdmError(
        Code.USAGE,
        f"There is no {what} {printable(name[:80])!r} here.",
        f"This server has {names or 'none'}.",
        f"Use {near[0]} if that is what you mean." if near else "Use one of those names.",
    )


def is_model(path: Path) -> bool:
    """Whether pictures can be made with it: it has a U-Net and an autoencoder, and its headers can be read."""
    return kind_of(path) in MODELS and (path.is_file() or all((path / part).is_dir() for part in ("unet", "vae")))


def kind_of(path: Path) -> str:
    """`model folder`, `controlnet`, `lora`, ...: as its headers tell."""
    return brief_of(path).kind


def brief_of(path: Path) -> Brief:
    """Cheap: the headers are read once."""
    return _brief(path, stamp_of(path))


def stamp_of(path: Path) -> int:
    """What changes with a file."""
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=1024)
def _brief(path: Path, stamp: int) -> Brief:
    """Read again where it has changed."""
    try:
        told = describe(path)
    except (LdmError, OSError):
        return Brief("unreadable")
    kept = {name: printable(told.metadata[name]) for name in KEPT if name in told.metadata}
    return Brief(told.kind, told.family, told.size, told.fingerprint, kept)
