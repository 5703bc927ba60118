"""Webdataset shards: plain tar files in which neighbours of one basename are one sample; any sample is one read.

The places of all members are found once, by walking the headers, and kept in an index beside the shard. So a set may be
far larger than memory, any process may read any sample, and the order of examples is drawn over the whole set.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ldm.data.settings import Part
from ldm.data.source import PICTURES, TEXT_FIELDS, About, Source, as_captions, filled, listed, numbered
from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from ldm.images.size import picture_size
from ldm.store.write import staged

MAX_SHARDS = 100_000
MAX_TEXT = 1 << 20  # bytes of a caption or record
TEXTS = ("txt", "caption", "json", "cls")
IMAGES = tuple(suffix[1:] for suffix in PICTURES)
KINDS = ("image", "txt", "caption", "json", "cls", "hint", "mask")  # columns of the index
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, eq=False)
class Index:
    """One shard: sample s is `names[s]`; its member of kind k lies at places[s,k] = (offset, size); (0,0): none."""

    names: tuple[str, ...]
    places: npt.NDArray[np.int64]  # [samples, kinds, 2]


@dataclass(eq=False)
class Shards(Source):
    """Samples of all shards, in the order of the shards and of the samples in them."""

    title: str
    paths: Sequence[Path]
    shards: Sequence[Index]
    starts: npt.NDArray[np.int64]
    templates: tuple[str, ...] = ()
    text_field: str | None = None
    labels: tuple[str, ...] = ()
    _classes: Sequence[int] | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        shard, sample = self._find(index)
        return f"{self.paths[shard].name}/{self.shards[shard].names[sample]}"

    def about(self, index: int) -> About:
        record = self._record(index)
        captions = as_captions([self._text(index, "txt") or self._text(index, "caption") or ""])
        if not captions or self.text_field:
            named = next((f for f in (self.text_field, *TEXT_FIELDS, "prompt") if f and f in record), None)
            captions = as_captions(record[named]) if named else captions
        if self.templates:
            fields = {**record, "name": self.name(index).rpartition("/")[2], "label": self._text(index, "cls") or ""}
            each = [filled(self.templates, {**fields, "text": text}, self.title) for text in captions or ("",)]
            captions = tuple(caption for found in each for caption in found if caption)
        return About(self.name(index), captions, self._classes[index] if self._classes else None)

    def content(self, index: int) -> str:
        return hashlib.sha256(self._bytes(index, "image") or b"").hexdigest()

    def picture(self, index: int) -> Picture:
        return open_image(self._bytes(index, "image") or b"")

    def size(self, index: int) -> tuple[int, int]:
        return picture_size(self._bytes(index, "image") or b"", f"picture {self.name(index)!r}")

    def hint(self, index: int) -> Picture | None:
        data = self._bytes(index, "hint")
        return open_image(data) if data else None

    def mask(self, index: int) -> Picture | None:
        data = self._bytes(index, "mask")
        return open_image(data) if data else None

    def _find(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, index, "right")) - 1
        return shard, index - int(self.starts[shard])

    def _bytes(self, index: int, kind: str) -> bytes | None:
        shard, sample = self._find(index)
        offset, size = (int(n) for n in self.shards[shard].places[sample, KINDS.index(kind)])
        if not offset:
            return None
        path = self.paths[shard]
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            why = f"{error.strerror or error}."
            raise LdmError(Code.FILE, f"shard {path.name!r} cannot be read", why, "Check the file.") from error
        if len(data) < size:
            why = f"it ends before byte {offset + size}, where it had that when its index was made"
            raise LdmError(Code.FILE, f"shard {path.name!r} was cut off", why, "fetch it again")
        return data

    def _text(self, index: int, kind: str) -> str | None:
        data = self._bytes(index, kind)
        return None if data is None else data[:MAX_TEXT].decode("utf-8-sig", "replace").strip()

    def _record(self, index: int) -> Mapping[str, Any]:
        try:
            found = json.loads(self._text(index, "json") or "{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def open_shards(paths: Sequence[Path], part: Part, index: str | None) -> Shards:
    """All shards; each is walked once, after that its index is read."""
    shards = [read_index(path, Path(index) if index else None) for path in paths]
    title = f"shard {paths[0].name!r}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    starts = np.cumsum([0, *(len(shard.names) for shard in shards)]).astype(np.int64)
    if not starts[-1]:
        why = f"none of their samples has a member named .{', .'.join(IMAGES)}"
        raise LdmError(Code.FILE, f"{title}: no picture", why, "check that these are shards of captioned pictures")
    source = Shards(title, paths, shards, starts, part.templates, part.text_column)
    if all((shard.places[:, KINDS.index("cls"), 0] > 0).all() for shard in shards):
        texts = [source._text(i, "cls") or "" for i in range(len(source))]
        source._classes, source.labels = numbered([int(t) if t.isdigit() else t for t in texts])
    return source


def expand(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` as lists of names; as shells do it, for zero-padded numbers and words."""
    form = _BRACES.search(pattern)
    if form is None:
        return [pattern]
    found: list[str] = []
    for word in _words(form[1]):
        found += expand(pattern[: form.start()] + word + pattern[form.end() :])
        if len(found) > MAX_SHARDS:
            why = f"it names more than {MAX_SHARDS} shards"
            raise LdmError(Code.USAGE, f"data.path {pattern!r}: too many", why, "give fewer, larger shards")
    return found


def _words(inside: str) -> Iterator[str]:
    """What one pair of braces stands for."""
    span = _RANGE.fullmatch(inside)
    if span is None:
        yield from inside.split(",")
        return
    first, last = int(span[1]), int(span[2])
    width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
    step = 1 if last >= first else -1
    yield from (str(n).zfill(width) for n in range(first, last + step, step))


def find_shards(pattern: str) -> list[Path]:
    """The files that a pattern of braces and stars names; one that is missing is an error."""
    paths: list[Path] = []
    for name in expand(pattern):
        if any(c in name for c in "*?["):
            path = Path(name)
            paths += sorted(path.parent.glob(path.name))
        else:
            paths.append(Path(name))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        what = f"data.path {pattern!r}: {len(missing)} of {len(paths)} shards are not there"
        why = f"missing are {listed(missing)}" if missing else "no file has such a name"
        raise LdmError(Code.FILE, what, why, "correct the pattern, or fetch the missing ones")
    return paths


def read_index(path: Path, folder: Path | None = None) -> Index:
    """The index of a shard: the kept one if it is of this very file, else a new one, which is kept if it can be."""
    state = path.stat()
    mark = hashlib.sha256(f"1 {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    kept = (folder or path.parent) / f".{path.name}.{mark}.npz"
    try:
        with np.load(kept) as found:
            names = tuple(found["names"].tobytes().decode().split("\n")) if len(found["places"]) else ()
            places = found["places"]
        if places.shape == (len(names), len(KINDS), 2) and places.dtype == np.int64:
            return Index(names, places)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        pass  # there is none, or it is damaged: the shard itself tells
    index = walk(path)
    try:
        with staged(kept) as stage, stage.open("wb") as file:
            np.savez(file, names=np.frombuffer("\n".join(index.names).encode(), np.uint8), places=index.places)
    except LdmError:
        return index  # a folder that cannot be written, or another process that was faster
    return index


def walk(path: Path) -> Index:
    """The samples of a shard that have a picture, from the headers of its members."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in _members(path):
        folder, _, file = name.rpartition("/")
        base, _, suffix = file.partition(".")
        kind = _kind(suffix.lower())
        if kind is None or not base or base.startswith(".") or "\n" in name:
            continue
        sample = samples.setdefault(f"{folder}/{base}" if folder else base, {})
        if kind in sample:
            what = f"shard {path.name!r}: sample {base!r} has two members of the kind {kind}"
            raise LdmError(Code.FILE, what, "members with the same basename are one sample", "rename one of the two")
        sample[kind] = offset, size
    whole = {name: sample for name, sample in samples.items() if "image" in sample}
    places = np.zeros((len(whole), len(KINDS), 2), np.int64)
    for row, sample in enumerate(whole.values()):
        for kind, place in sample.items():
            places[row, KINDS.index(kind)] = place
    return Index(tuple(whole), places)


def _kind(suffix: str) -> str | None:
    """What a member is, by all that stands behind the first dot of its name: jpg, txt, hint.png, ..."""
    if suffix in IMAGES:
        return "image"
    first, _, rest = suffix.partition(".")
    return suffix if suffix in TEXTS else first if first in ("hint", "mask") and rest in IMAGES else None


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each plain file in a tar; it must be whole and uncompressed."""
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                if member.isfile() and not member.issparse():
                    if member.offset_data + member.size > total:
                        raise tarfile.ReadError(f"{member.name!r} reaches beyond its end")
                    yield member.name, member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError) as error:
        with path.open("rb") as file:
            packed = file.read(4)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")
        why = "it is compressed, and only plain tar files can be read at any place" if packed else f"{error}"
        fix = f"unpack it: gunzip {path.name}" if packed else "fetch or write it again"
        raise LdmError(Code.FILE, f"shard {path.name!r} cannot be read", why, fix) from error
