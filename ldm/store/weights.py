"""The one door for weights: safetensors, mapped and never copied, whole or in shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ldm.store.header import Entry, Header
from ldm.store.shards import headers_of

TORCH = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64,
    "U64": torch.uint64, "F64": torch.float64,
}  # fmt: skip


class Weights(Mapping[str, Tensor]):
    """Named tensors of one file or several shards; `weights[name]` is a view into the mapped file."""

    def __init__(self, source: Path, headers: Mapping[Path, Header]) -> None:
        self.source = source
        self.headers = dict(headers)
        self._home = {name: path for path, header in headers.items() for name in header.tensors}
        self._mapped: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        path = self._home[name]
        if path not in self._mapped:
            self._mapped[path] = safe_open(path, framework="pt", device="cpu")
        tensor: Tensor = self._mapped[path].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def entry(self, name: str) -> Entry:
        return self.headers[self._home[name]].tensors[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.entry(name).shape for name in self._home}

    @property
    def metadata(self) -> dict[str, str]:
        return {key: value for header in self.headers.values() for key, value in header.metadata.items()}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in another type: mapped where nothing changes; else read apart, so that no page of the map
        stays resident beside the converted copy."""
        entry = self.entry(name)
        if dtype is None or TORCH[entry.dtype] == dtype or not TORCH[entry.dtype].is_floating_point or not entry.count:
            return self[name]
        path = self._home[name]
        with path.open("rb") as file:
            file.seek(self.headers[path].start + entry.begin)
            data = bytearray(file.read(entry.end - entry.begin))
        return torch.frombuffer(data, dtype=TORCH[entry.dtype]).view(entry.shape).to(dtype)


def load_weights(path: str | Path) -> Weights:
    """A `.safetensors` file, or the `.index.json` of a sharded one; every header is checked before a byte is mapped."""
    return Weights(Path(path), headers_of(Path(path)))
