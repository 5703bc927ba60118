"""What a recipe names, among what is here: by its name, its fingerprint, or the hash of its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from app.server.catalog import brief_of, stamp_of
from ldm.errors import LdmError
from pipelines.recipe import ModelId, source_hash

LEAST = 10  # digits of a hash that mean something; A1111 writes so many
HASHED = 16 << 30  # bytes of weights that are hashed in search of one model or adapter


class Found(NamedTuple):
    """A name of this server; `same`: whether it is sure to be the very one."""

    name: str
    same: bool


def find_model(told: ModelId, there: Mapping[str, Path]) -> Found | None:
    """A model or a control. Files are hashed only where nothing else tells: other programs write that hash."""
    wanted = told.fingerprint.lower()
    named = [name for name, path in there.items() if told.name and told.name in (name, path.name, path.stem)]
    order = [*named, *(name for name in there if name not in named)]
    for name in order if len(wanted) >= LEAST else ():
        if (brief_of(there[name]).fingerprint or "").startswith(wanted):
            return Found(name, True)
    if named:
        return Found(named[0], False)
    return _hashed(wanted, ((name, path) for name, path in there.items() if path.is_file()))


def find_adapter(name: str, sha256: str, there: Mapping[str, Path]) -> Found | None:
    """An adapter or embedding by the name of its file and its hash."""
    stem, wanted = name.removesuffix(".safetensors"), sha256.lower()
    order = [*([stem] if stem in there else []), *(other for other in there if other != stem)]
    if (found := _hashed(wanted, ((other, there[other]) for other in order))) is not None:
        return found
    return Found(stem, not wanted) if stem in there else None


def _hashed(wanted: str, files: Iterable[tuple[str, Path]]) -> Found | None:
    """The first whose file has that hash, as far as so many are read."""
    left = HASHED
    for name, path in files if len(wanted) >= LEAST else ():
        if (left := left - path.stat().st_size) < 0:
            return None
        if _hash(path, stamp_of(path)).startswith(wanted):
            return Found(name, True)
    return None


@lru_cache(maxsize=1024)
def _hash(path: Path, stamp: int) -> str:
    """Read again where it has changed."""
    try:
        return source_hash(path)
    except LdmError:
        return ""
