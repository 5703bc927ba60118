"""Tensors kept between runs (latents, text states), found by what they were made of: never by a path or a date.

A key is the hash of the content, of how it was cut and turned, and of the weights that encoded it. Whatever of these
changes, the key changes, so nothing stale and nothing of another model is ever served.

A cache is a folder of safetensors shards that are only ever added: each holds n rows of one shape, the n keys, and a
checksum of each row. A shard is staged, synced and renamed under a name that nobody else chooses, so a half-written one
does not count and two writers do not meet. The index is read from the shards when the folder is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.store.weights import Weights, load_weights
from ldm.store.write import staged, write_weights

VERSION = 1  # of keys and shards: what another version wrote is left alone
KEYS, SUMS, KIND = "keys", "sums", "ldm.cache"
_NAME = re.compile(r"[0-9a-f]{24}\.safetensors")  # of our shards: a stranger's file is neither read nor renamed
STALE_SECONDS = 3600  # a staged file of that age belongs to a writer that died

Row = Mapping[str, Tensor]


def picture_key(
    content: str, *, size: tuple[int, int], crop: Sequence[int], flip: bool, model: str, dtype: torch.dtype
) -> str:
    """The key of a latent. `content` is the sha256 of the picture file, `size` (height, width) in pixels, `crop` the
    numbers that say which part was taken, `model` the `fingerprint` of what encoded it, in `dtype`."""
    return _key("picture", content, list(size), list(crop), flip, model, str(dtype))


def text_key(text: str, *, model: str, dtype: torch.dtype) -> str:
    """The key of text states; `model` is the `fingerprint` of tower and tokenizer together."""
    return _key("text", hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), model, str(dtype))


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()


def feed_weights(digest: Any, network: nn.Module) -> None:
    """Name, shape, type and every byte of each tensor of a network, into a hash object."""
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"\n{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bytes(tensor.detach().cpu()))


def fingerprint(*parts: nn.Module | Path | str) -> str:
    """sha256 of everything that decides what an encoder gives: of a module its structure and every byte of its weights
    (a training step moves few signs, so no sample of them is enough), of a file or folder its bytes, plain words."""
    digest = hashlib.sha256(f"ldm-cache-{VERSION}".encode())
    for part in parts:
        if isinstance(part, nn.Module):
            digest.update(f"\nmodule {part!r}".encode())
            feed_weights(digest, part)
        elif isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for path in files:
                name = path.relative_to(part).as_posix() if part.is_dir() else ""
                digest.update(f"\nfile {name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
        else:
            digest.update(f"\nwords {part}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Size:
    """What a cache holds: rows by what they are (`about`), and bytes on the disk."""

    rows: Mapping[str, int]
    shards: int
    bytes: int
    damaged: int  # shards that were set aside

    def __str__(self) -> str:
        held = ", ".join(f"{count} {about}" for about, count in self.rows.items()) or "nothing"
        aside = f"; {self.damaged} damaged set aside" if self.damaged else ""
        return f"{held} in {self.shards} files, {self.bytes / 1e6:.1f} MB{aside}"


@dataclass(frozen=True, eq=False)
class _Shard:
    """One file: tensors [n,...] mapped, never copied; `sums` [n] int64."""

    path: Path
    about: str
    tensors: Mapping[str, Tensor]
    keys: tuple[str, ...]
    sums: tuple[int, ...]

    def row(self, number: int) -> dict[str, Tensor] | None:
        """A copy of one row; None where its bytes are not those that were written."""
        found = {name: tensor[number].clone() for name, tensor in self.tensors.items()}
        return found if _sum(self.keys[number], found) == self.sums[number] else None


class Cache:
    """Rows of named tensors by key. Threads and processes may share a folder; `warn` hears of damage."""

    def __init__(self, folder: Path | str, warn: Callable[[str], None] | None = None) -> None:
        self.folder = Path(folder)
        self._warn = warn or (lambda text: warnings.warn(text, stacklevel=3))
        self._home: dict[str, tuple[_Shard, int]] = {}
        self._shards: dict[str, _Shard] = {}
        self._ignored: set[str] = set()
        self._lock = threading.RLock()
        self.full = False  # the disk is: nothing more is written
        self.refresh()

    def __len__(self) -> int:
        return len(self._home)

    def __contains__(self, key: object) -> bool:
        return key in self._home

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The places in `keys` of those that are not here, each key once; shards of other writers are looked for."""
        if any(key not in self._home for key in keys):
            self.refresh()
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        return sorted(place for key, place in first.items() if key not in self._home)

    def get_many(self, keys: Sequence[str]) -> list[dict[str, Tensor] | None]:
        """The rows of `keys`, in order, each its own copy; None for what is not here or was damaged."""
        self.missing(keys)
        return [self._row(key) for key in keys]

    def put_many(self, keys: Sequence[str], rows: Row, about: str = "") -> int:
        """Adds a shard with those of the n rows (`rows` by name: [n,...]) that are new; how many. All finite, or none.

        `about` says in a few words what they are, for `size`.
        """
        for name, tensor in rows.items():
            if len(tensor) != len(keys):
                raise ValueError(f"{name} has {len(tensor)} rows for {len(keys)} keys")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise LdmError(
                    Code.NUMERIC,
                    f"The encoder gave numbers in '{name}' that are not finite.",
                    "They would spoil every epoch that reads them, so they are not kept.",
                    "Encode in fp32 or bf16, and check the weights of the encoder.",
                )
        new = self.missing(keys)
        if not new or not rows:
            return 0
        kept = {name: tensor.detach()[new].cpu().contiguous() for name, tensor in rows.items()}
        names = [keys[place] for place in new]
        sums = [_sum(key, {n: t[i] for n, t in kept.items()}) for i, key in enumerate(names)]
        table = torch.tensor([list(bytes.fromhex(key)) for key in names], dtype=torch.uint8)
        goal = self.folder / f"{secrets.token_hex(12)}.safetensors"  # see _NAME
        self._sweep()
        with staged(goal) as path:
            tensors = {**kept, KEYS: table, SUMS: torch.tensor(sums, dtype=torch.int64)}
            write_weights(path, tensors, {KIND: str(VERSION), "about": about})
        self.refresh()
        return len(new)

    def keep(self, keys: Sequence[str], rows: Row, about: str = "") -> bool:
        """`put_many` while the disk has room; False where it has none, which is told once. A cache saves time and holds
        nothing that cannot be made again, so a full disk ends no run for its sake."""
        if not self.full:
            try:
                self.put_many(keys, rows, about)
            except LdmError as error:
                if error.code != Code.RESOURCE:
                    raise
                self.full = True
                self._warn(f"nothing more is cached: {error.what} {error.why}")
        return not self.full

    def get_or_make(self, keys: Sequence[str], make: Callable[[list[int]], Row], about: str = "") -> dict[str, Tensor]:
        """The rows of all keys stacked, [n,...] by name, as `Batch.extra` takes them; all have one shape. What is
        missing is made by `make(places)`, a row for each place, and kept; on a full disk it is made again each time."""
        found = self.get_many(keys)
        lacking = [place for place, row in enumerate(found) if row is None]
        if lacking:
            made = make(lacking)
            for row, place in enumerate(lacking):
                found[place] = {name: tensor[row].detach().cpu() for name, tensor in made.items()}
            self.keep([keys[place] for place in lacking], made, about)
        rows = [row for row in found if row is not None]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}

    def size(self) -> Size:
        """What is here, after a look at the folder."""
        self.refresh()
        rows: Counter[str] = Counter()
        for shard in self._shards.values():
            rows[shard.about or "rows"] += len(shard.keys)
        paths = [p for p in self.folder.glob("*") if p.is_file()] if self.folder.is_dir() else []
        used = sum(p.stat().st_size for p in paths)
        return Size(dict(sorted(rows.items())), len(self._shards), used, sum(p.suffix == ".damaged" for p in paths))

    def refresh(self) -> None:
        """Takes in shards that appeared since the last look."""
        with self._lock:
            for path in sorted(self.folder.glob("*.safetensors")):
                if path.name in self._shards or path.name in self._ignored or not _NAME.fullmatch(path.name):
                    continue
                try:
                    shard = _open(path)
                except FileNotFoundError:  # another process has set it aside
                    continue
                except (LdmError, ValueError, OSError) as error:
                    self._set_aside(path, error.why if isinstance(error, LdmError) else str(error))
                    continue
                if shard is None:
                    self._ignored.add(path.name)
                    continue
                self._shards[path.name] = shard
                for number, key in enumerate(shard.keys):
                    self._home.setdefault(key, (shard, number))

    def _row(self, key: str) -> dict[str, Tensor] | None:
        home = self._home.get(key)
        if home is None:
            return None
        row = home[0].row(home[1])
        if row is None:
            self._set_aside(home[0].path, f"row {home[1]} does not have its checksum")
        return row

    def _set_aside(self, path: Path, why: str) -> None:
        """Renames a damaged shard, so that its rows are made again; it stays for whoever asks what happened."""
        with self._lock:
            self._ignored.add(path.name)  # where it cannot be renamed, it is told once
            self._shards.pop(path.name, None)
            self._home = {key: home for key, home in self._home.items() if home[0].path != path}
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
        self._warn(f"the cache file {path.name} is damaged and is not used: {why}. What it held is computed again.")

    def _sweep(self) -> None:
        """Removes what writers that died left behind."""
        for path in self.folder.glob(".*.safetensors.tmp-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


def _open(path: Path) -> _Shard | None:
    """A shard with its table of keys; None for one of another version; ValueError where it does not hold together."""
    weights: Weights = load_weights(path)
    if weights.metadata.get(KIND) != str(VERSION):
        return None
    names = [name for name in weights if name not in (KEYS, SUMS)]
    shapes = weights.shapes
    count = shapes.get(KEYS, (0,))[0]
    if shapes.get(KEYS) != (count, 32) or shapes.get(SUMS) != (count,) or not names or not count:
        raise ValueError("its tables are missing")
    if any(shapes[name][:1] != (count,) for name in names):
        raise ValueError("its rows are not as many as its keys")
    keys = tuple(bytes(row).hex() for row in weights[KEYS].numpy())
    sums = tuple(int(value) for value in weights[SUMS].tolist())
    return _Shard(path, weights.metadata.get("about", ""), {name: weights[name] for name in names}, keys, sums)


def _sum(key: str, row: Row) -> int:
    """CRC-32 of a row with its key and names: accidents are found when the row is read, not when the file is opened."""
    value = zlib.crc32(bytes.fromhex(key))
    for name in sorted(row):
        value = zlib.crc32(_bytes(row[name]), zlib.crc32(name.encode(), value))
    return value


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
