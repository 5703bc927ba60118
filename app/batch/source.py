"""A file of requests, a JSON object or a string a line, cut into chunks that can be read by themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fsspec

from ldm.errors import Code, LdmError
from pipelines.request import MAX_PROMPT_BYTES
from pipelines.suited import merged

LONGEST = 4 * MAX_PROMPT_BYTES  # bytes of a line


@dataclass(frozen=True)
class Line:
    """A request as it stands: its number in the file, its fields, or what is wrong with it."""

    number: int
    fields: Mapping[str, Any]
    wrong: str = ""


@dataclass(frozen=True)
class Source:
    """Lines of a file, `size` of them in a chunk; `defaults` are fields that a line need not name."""

    path: str
    size: int
    seed: int
    defaults: Mapping[str, Any]

    @cached_property
    def starts(self) -> list[int]:
        """Where each chunk begins, in bytes: found in one pass, so that no chunk needs those before it."""
        found, at, count = list[int](), 0, 0
        with self._open() as file:
            for line in file:
                if count % self.size == 0:
                    found.append(at)
                at, count = at + len(line), count + 1
        self.__dict__["count"] = count
        return found

    @cached_property
    def count(self) -> int:
        """Lines of the file."""
        _ = self.starts
        return int(self.__dict__["count"])

    @property
    def digest(self) -> str:
        """Of the file, read once more."""
        found = hashlib.sha256()
        with self._open() as file:
            while data := file.read(1 << 20):
                found.update(data)
        return found.hexdigest()

    def chunk(self, number: int) -> Iterator[Line]:
        """The lines of a chunk; blank ones are left out."""
        with self._open() as file:
            file.seek(self.starts[number])
            for place in range(number * self.size, min((number + 1) * self.size, self.count)):
                if line := file.readline().strip():
                    yield self._line(place, line)

    def _line(self, number: int, line: bytes) -> Line:
        """A line without a seed has one of its own, whatever else is in the file."""
        if len(line) > LONGEST:
            return Line(number, {}, f"it has {len(line):,} bytes; at most {LONGEST:,} are read")
        try:
            told = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Line(number, {}, f"it is no JSON: {error}")
        fields = {"prompt": told} if isinstance(told, str) else told
        if not isinstance(fields, dict):
            return Line(number, {}, "it is neither a text nor an object of fields")
        return Line(number, {"seed": self.seed + number} | merged(self.defaults, fields))

    def _open(self) -> Any:
        try:
            return fsspec.open(self.path, "rb").open()
        except (OSError, ValueError, ImportError) as error:
            why = f"{getattr(error, 'strerror', None) or error}."
            raise LdmError(Code.FILE, f"{self.path} cannot be read.", why, "Check the path.") from error
