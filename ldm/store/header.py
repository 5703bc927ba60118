"""Safetensors headers, checked in full before anything is mapped: content decides what a file is, never its suffix.

A file is `n (8 bytes, little endian) | n bytes of JSON | data`; the JSON names each tensor's type, shape and place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.store.sniff import Content, content_of, refuse_pickle, sniff

MAX_HEADER_BYTES = 10_000_000
MAX_TENSORS = 20_000
MAX_DIMS = 8
HASH = "modelspec.hash_sha256"  # in the metadata: of the data
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: type, shape, and its bytes [begin, end) counted from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says about itself: tensors by name, free text, and where the data starts."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    start: int = 0
    size: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.items()}


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file, every rule of the format checked; raises `LdmError` naming the damage."""
    path = Path(path)
    size, head, content = _open(path)
    refuse_pickle(path, content)
    if content is not Content.SAFETENSORS:
        raise _damaged(path, content.value, _remedy(content))
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed", _AGAIN)
    if 8 + length > size:
        raise _damaged(path, f"it is truncated: the header ends at byte {8 + length}, the file at byte {size}", _AGAIN)
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        return _parse(text, size)
    except ValueError as error:
        raise _damaged(path, str(error), _AGAIN) from None


def header_coming(name: str, text: bytes, size: int | None) -> Header:
    """The header of a file that is on its way, of this size; where nobody tells it, as large as the header says."""
    try:
        return _parse(text, size)
    except ValueError as error:
        raise _damaged(Path(name), str(error), _AGAIN) from None


def refuse_start(name: str, head: bytes, size: int | None) -> int:
    """The end of the header of a file that begins so; what is no safetensors file is refused by its first bytes."""
    content = sniff(head, 1 << 62 if size is None else size)
    refuse_pickle(Path(name), content)
    if content is not Content.SAFETENSORS:
        raise _damaged(Path(name), content.value, _remedy(content))
    end = 8 + int.from_bytes(head[:8], "little")
    if end - 8 > MAX_HEADER_BYTES:
        why = f"its header claims {end - 8} bytes, more than the {MAX_HEADER_BYTES} allowed"
        raise _damaged(Path(name), why, _AGAIN)
    if size is not None and end > size:
        raise _damaged(Path(name), f"it is truncated: the header ends at byte {end}, the file at byte {size}", _AGAIN)
    return end


_AGAIN = "Fetch or copy the file again and compare its size and hash with those its author states."


def printable(text: str, most: int = 100) -> str:
    """A name from a file, safe to print: no control characters, cut to length."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _open(path: Path) -> tuple[int, bytes, Content]:
    """The size of a file, the eight bytes of its header's length, and what it is."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size, file.read(8), content_of(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        name = printable(str(path))
        raise LdmError(
            Code.FILE,
            f"{name} cannot be read.",
            f"The system says: {why}.",
            "Check the path and the permissions of the file.",
        ) from None


def _damaged(path: Path, why: str, fix: str) -> LdmError:
    return LdmError(Code.FILE, f"{printable(str(path))} is not a usable safetensors file.", f"Cause: {why}.", fix)


def _remedy(content: Content) -> str:
    if content is Content.LFS:
        return "Run `git lfs pull` in that folder, or fetch the real file: this one only points to it."
    if content is Content.HTML:
        return "Fetch the file again: the server sent a web page (a log-in or an error) in its place."
    if content in (Content.ZIP, Content.GZIP):
        return "Unpack the archive first, and pass the .safetensors file that is inside."
    return _AGAIN


def _parse(text: bytes, size: int | None) -> Header:
    """The JSON as a `Header`; `ValueError` says in words which rule is broken."""
    listed = text.count(b'"data_offsets"')  # counted before parsing: a bloated header costs no time
    if listed > MAX_TENSORS:
        raise ValueError(f"it lists {listed} tensors, more than the {MAX_TENSORS} allowed")
    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("its header is not valid JSON, so bytes were changed or the file is truncated") from None
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(raw, dict):
        raise ValueError("its header is not a JSON object")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ is not a map from text to text")
    if len(raw) > MAX_TENSORS:
        raise ValueError(f"it lists {len(raw)} tensors, more than the {MAX_TENSORS} allowed")
    tensors = {name: _entry(name, value) for name, value in raw.items()}
    start = 8 + len(text)
    if size is None:
        size = start + max((entry.end for entry in tensors.values()), default=0)
    _cover(tensors, size - start)
    return Header(tensors, metadata, start, size)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names a tensor twice")
    return found


def _entry(name: str, value: Any) -> Entry:
    shown = printable(name)
    if not name or not name.isprintable():
        raise ValueError(f"the tensor name '{shown}' is not printable text")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {shown} does not hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{shown} has the unknown type {printable(str(dtype), 20)}")
    if not _naturals(shape) or len(shape) > MAX_DIMS:
        raise ValueError(f"the shape of {shown} is not a list of at most {MAX_DIMS} natural numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the data_offsets of {shown} are not two natural numbers in order")
    need = math.prod(shape) * BITS[dtype] // 8
    if offsets[1] - offsets[0] != need:
        raise ValueError(f"{shown} needs {need} bytes for its shape and has {offsets[1] - offsets[0]}")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _cover(tensors: Mapping[str, Entry], size: int) -> None:
    """The tensors must cover the data exactly: no gap, no overlap, nothing missing, nothing left over."""
    spans = sorted((entry.begin, entry.end) for entry in tensors.values())
    if spans and spans[0][0] != 0:
        raise ValueError("its data does not begin with the first tensor")
    for (_, end), (begin, _) in pairwise(spans):
        if end != begin:
            raise ValueError(
                f"its tensors {'overlap' if begin < end else 'leave a gap'} at byte {min(begin, end)} of the data"
            )
    last = spans[-1][1] if spans else 0
    if last > size:
        raise ValueError(f"it is truncated: the tensors need {last} bytes of data and {size} are there")
    if last < size:
        raise ValueError(f"{size - last} bytes follow the last tensor that no tensor uses")
