"""Where the pictures of a batch go: a folder, or whatever fsspec reaches. A chunk is done when its manifest is there.

OUT/batch.json          what the batch is: it is not gone on with as another one
OUT/pictures/3f/3f….png pictures by the hash of what was asked for, or OUT/shards/000012.tar of webdataset
OUT/manifest/000012.jsonl   a line for each request of a chunk, written last
OUT/.parts/                 what is being written
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import secrets
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec

from ldm.errors import Code, LdmError
from ldm.images.save import sync_folder

Format = Literal["files", "webdataset"]
BATCH, PARTS = "batch.json", ".parts"
OLD = 86_400  # seconds after which a part is of a process that was killed


@dataclass(frozen=True)
class Store:
    """Every write is whole or not there."""

    url: str
    format: Format = "files"

    def begin(self, told: Mapping[str, Any]) -> None:
        """The batch is this one from now on; another one is refused."""
        self._sweep()
        names = self._names("")  # before the look at what is told: another process may write it, and then pictures
        if (there := self.told()) is None:
            if any(not name.startswith((BATCH, PARTS)) for name in names):
                why = "It is not empty, and holds no batch."
                raise LdmError(Code.FILE, f"{self.url} cannot be used.", why, "Choose a new --out.")
            self._write(BATCH, json.dumps(told, indent=2).encode() + b"\n")
            return
        different = sorted(name for name in told.keys() | there.keys() if told.get(name) != there.get(name))
        if different:
            how = "differ" if len(different) > 1 else "differs"
            what = f"{self.url} holds another batch: {', '.join(different)} {how}."
            why = f"There {different[0]} is {str(there.get(different[0]))[:80]}."
            raise LdmError(Code.DIFFERENT, what, why, "Give the same command, or choose another --out.")

    def told(self) -> dict[str, Any] | None:
        data = self._read(BATCH)
        return None if data is None else dict(json.loads(data))

    def done(self) -> set[int]:
        """Chunks whose manifests are there."""
        names = (name.removesuffix(".jsonl") for name in self._names("manifest"))
        return {int(name) for name in names if name.isdecimal()}

    def manifest(self, chunk: int) -> list[dict[str, Any]]:
        data = self._read(f"manifest/{chunk:06d}.jsonl") or b""
        return [json.loads(line) for line in data.splitlines()]

    def finish(self, chunk: int, lines: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> None:
        """The pictures of a chunk that are not there yet, and then its manifest."""
        if self.format == "webdataset":
            self._write(f"shards/{chunk:06d}.tar", _tar(lines, pictures))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._write(f"manifest/{chunk:06d}.jsonl", text.encode())

    def keep(self, name: str, data: bytes) -> None:
        """A picture as soon as it is done, where pictures are files."""
        if self.format == "files":
            self._write(place_of(name), data)

    def has(self, name: str) -> bool:
        return self.format == "files" and self._fs.exists(self._at(place_of(name)))

    def picture(self, name: str) -> bytes | None:
        return self._read(place_of(name))

    @property
    def _fs(self) -> Any:
        try:
            return fsspec.core.url_to_fs(self.url)[0]
        except (ValueError, ImportError) as error:
            raise LdmError(Code.USAGE, f"--out {self.url} cannot be reached.", f"{error}.", "Name a folder.") from error

    def _at(self, name: str) -> str:
        return posixpath.join(fsspec.core.url_to_fs(self.url)[1], name) if name else fsspec.core.url_to_fs(self.url)[1]

    def _names(self, folder: str) -> list[str]:
        fs, at = self._fs, self._at(folder)
        fs.invalidate_cache()
        return sorted(posixpath.basename(name) for name in fs.ls(at, detail=False)) if fs.isdir(at) else []

    def _read(self, name: str) -> bytes | None:
        fs, at = self._fs, self._at(name)
        return bytes(fs.cat_file(at)) if fs.exists(at) else None

    @property
    def _local(self) -> bool:
        return "file" in self._fs.protocol or "local" in self._fs.protocol

    def _sweep(self) -> None:
        """Parts that killed processes left; a younger one may be written just now, here or on another machine."""
        for path in Path(self._at(PARTS)).glob("*") if self._local else ():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - OLD:
                    path.unlink()

    def _write(self, name: str, data: bytes) -> None:
        """Under another name first, where a name is given in one act; an object of a bucket appears whole by itself."""
        fs, at, local = self._fs, self._at(name), self._local
        stage = posixpath.join(self._at(PARTS), secrets.token_hex(8)) if local else at
        try:
            for path in (at, stage):
                fs.makedirs(posixpath.dirname(path), exist_ok=True)
            fs.pipe_file(stage, data)
            if local:
                _settle(Path(stage), Path(at))
        except OSError as error:
            if local and fs.exists(stage):
                fs.rm(stage)
            why = f"{error.strerror or error}."
            raise LdmError(
                Code.RESOURCE, f"{name} cannot be written to {self.url}.", why, "Free some space."
            ) from error


def _settle(stage: Path, at: Path) -> None:
    """On disk first, then under its name: a chunk whose manifest is there is done, also after the power was gone."""
    with stage.open("rb+") as file:
        os.fsync(file.fileno())
    stage.replace(at)
    sync_folder(at.parent)


def place_of(name: str) -> str:
    """Two letters of a hash are a folder: a million names in one are too many."""
    return f"pictures/{name[:2]}/{name}.png"


def _tar(lines: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> bytes:
    """A shard of webdataset: NAME.png, NAME.txt (the prompt) and NAME.json (the request) beside each other."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in _members(lines, pictures):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _members(lines: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    left = dict(pictures)  # each once: webdataset refuses a name twice
    for line in lines:
        for name in line.get("pictures", ()):
            if name in left:
                yield f"{name}.png", left.pop(name)
                yield f"{name}.txt", str(line.get("prompt", "")).encode("utf-8", "replace")  # half a pair has no bytes
                yield f"{name}.json", json.dumps(line).encode()
