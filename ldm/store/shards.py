"""Small JSON files and shard indexes: the names in them are plain names, and never lead out of their folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.store.header import Header, printable, read_header

MAX_JSON_BYTES = 10_000_000


def headers_of(path: Path) -> dict[Path, Header]:
    """The headers of a `.safetensors` file, or of all shards that an `.index.json` names; checked before use."""
    if path.name.endswith(".json"):
        return _sharded(path)
    return {path: read_header(path)}


def _sharded(index: Path) -> dict[Path, Header]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise LdmError(
            Code.FILE,
            f"{index} is not a shard index.",
            "Its weight_map from tensor to file is missing or empty.",
            "Name a .safetensors file; of a model in shards, fetch the index again.",
        )
    headers = {path: read_header(path) for path in (_shard(index, name) for name in sorted(set(table.values())))}
    home = {name: path.name for path, header in headers.items() for name in header.tensors}
    wrong = sorted(name for name in set(table) | set(home) if table.get(name) != home.get(name))
    if wrong or sum(len(h.tensors) for h in headers.values()) != len(home):
        first = printable(wrong[0]) if wrong else "a tensor that two shards hold"
        raise LdmError(
            Code.FILE,
            f"{index} does not fit its shards.",
            f"The first difference is {first} ({len(wrong)} in all).",
            "Fetch the index and all of its shards again, from one revision.",
        )
    return headers


def _shard(index: Path, name: str) -> Path:
    """The path of a shard: a plain name beside the index, and no link that leads out of the folder.

    A folder of the hub's cache links into its own blobs (`snapshots/REV/unet/x -> blobs/HASH`): that is inside too.
    """
    folder = index.parent.resolve()
    inside = [folder, *(parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots")]
    plain = (
        name == Path(name).name
        and name.endswith(".safetensors")
        and name.isprintable()
        and not set(name) & set("/\\:%")
    )
    path = index.parent / name if plain else index
    if not plain or not any(path.resolve().is_relative_to(place) for place in inside):
        raise LdmError(
            Code.REFUSED,
            f"{index} is refused: it names the shard '{printable(name)}'.",
            "A shard must be a plain .safetensors name beside its index; this one leads elsewhere.",
            "Get the model from a source that you trust.",
        )
    return path


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a small file."""
    try:
        if path.stat().st_size > most:
            raise ValueError(f"it is larger than {most} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LdmError(
            Code.FILE,
            f"{path} cannot be used.",
            f"Cause: {printable(why)}.",
            "Fetch the file again, or restore it from the original model folder.",
        ) from None
    return value
