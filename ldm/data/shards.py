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
from glob import escape, glob
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ldm.data.hashes import derived, drop_former
from ldm.data.settings import Part
from ldm.data.source import (
    MAX_TEXT,
    PICTURES,
    TEXT_FIELDS,
    About,
    Source,
    as_captions,
    decoded,
    filled,
    listed,
    numbered,
)
from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from ldm.images.size import picture_size
from ldm.store.write import staged

MAX_SHARDS = 100_000
TEXTS = ("txt", "caption", "json", "cls")
IMAGES = tuple(suffix[1:] for suffix in PICTURES)
KINDS = ("image", "txt", "caption", "json", "cls", "hint", "mask")  # columns of the index
UNPACK = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"(\xb5": "unzstd"}  # by the first two bytes
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
        return None if data is None else decoded(data[:MAX_TEXT]).strip()

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
        source._classes, source.labels = numbered([source._text(i, "cls") or "" for i in range(len(source))])
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
    """The files that a folder holds, or that a pattern of braces and stars names; a missing one is an error."""
    paths: list[Path] = []
    for name in [f"{escape(pattern)}/*.tar"] if Path(pattern).is_dir() else expand(pattern):
        if any(c in name for c in "*?[") and not Path(name).is_file():
            paths += (Path(found) for found in sorted(glob(name)))  # noqa: PTH207  # stars in folders; none hidden
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
    place = f" {path.absolute()}" if folder else ""  # shards of one name meet there
    kept = derived(path, folder or path.parent, f"2{place}", ".npz")
    try:
        with np.load(kept) as found:
            joined, places = found["names"].tobytes().decode("utf-8", "surrogateescape"), found["places"]
        names = tuple(joined.split("\n")) if len(places) else ()
        if places.shape == (len(names), len(KINDS), 2) and places.dtype == np.int64:
            return Index(names, places)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        pass  # there is none, or it is damaged: the shard itself tells
    index = walk(path)
    try:
        with staged(kept) as stage, stage.open("wb") as file:
            text = "\n".join(index.names).encode("utf-8", "surrogateescape")  # tar knows bytes, not letters
            np.savez(file, names=np.frombuffer(text, np.uint8), places=index.places)
        drop_former(kept)
    except LdmError:
        return index  # a folder that cannot be written, or another process that was faster
    return index


def walk(path: Path) -> Index:
    """The samples of a shard that have a picture, from the headers of its members."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    other: dict[str, str] = {}  # a picture of a sample that is no kind of ours
    for name, offset, size in _members(path):
        folder, _, file = name.rpartition("/")
        base, _, suffix = file.partition(".")
        kind = _kind(suffix.lower())
        if not base or "\n" in name:
            continue
        sample_name = f"{folder}/{base}" if folder else base
        if kind is None:
            if suffix.lower().endswith(PICTURES):
                other.setdefault(sample_name, file)
            continue
        sample = samples.setdefault(sample_name, {})
        if kind in sample:
            what = f"shard {path.name!r}: sample {base!r} has two members of the kind {kind}"
            raise LdmError(Code.FILE, what, "members with the same basename are one sample", "rename one of the two")
        sample[kind] = offset, size
    whole = {name: sample for name, sample in samples.items() if "image" in sample}
    if passed := [file for name, file in other.items() if name not in whole]:
        what = f"shard {path.name!r}: {len(passed)} pictures would be passed over: {listed(passed)}"
        why = "a sample's name ends at the first dot, and its picture is what is called .jpg, .png, ... behind that"
        raise LdmError(Code.FILE, what, why, "write the shard without other dots in the names")
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
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        with path.open("rb") as file:
            packed = UNPACK.get(file.read(2))
        why = "it is compressed, and only plain tar files can be read at any place" if packed else f"{error}"
        fix = f"unpack it: {packed} {path.name}" if packed else "fetch or write it again"
        raise LdmError(Code.FILE, f"shard {path.name!r} cannot be read", why, fix) from error


def _check_end(path: Path, offset: int) -> None:
    """The tar library takes a damaged header, or none at all, for the end of the archive: what follows would be lost
    without a word. The true end is a block of zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        why = "a header is damaged" if len(block) == tarfile.BLOCKSIZE else "it was cut off: its end is not marked"
        raise tarfile.ReadError(f"{why} (byte {offset:,})")
