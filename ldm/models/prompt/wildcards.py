"""`{a|b}` and `__file__`: choices that are a function of the seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from ldm.errors import Code, LdmError
from ldm.models.prompt.clean import MAX_BYTES

MAX_DEPTH = 16  # of wildcards inside wildcards
MAX_CHOICES = 2_000  # in one prompt
MAX_FILE_BYTES = 1_000_000
_MAX_NAMES = 10_000  # looked through for the nearest name

_FILE = re.compile(r"__([\w./\\:-]+?)__")
_WEIGHT = re.compile(r"\s*(\d+\.?\d*|\.\d+)::")
_ESCAPED = re.compile(r"\\(__|[{}|_])")


class Expander:
    """Fills in one prompt. `files` collects the SHA-256 of every file that was read, by its name in the prompt."""

    def __init__(self, seed: int, folder: Path | None) -> None:
        self.files: dict[str, str] = {}
        self._lines: dict[str, list[str]] = {}
        self._seed, self._folder = seed, folder
        self._choices = self._length = 0

    def expand(self, text: str, depth: int = 0) -> str:
        """Each group `{a|b}` by one option, each `__file__` by one line; options and lines are expanded in turn."""
        if depth > MAX_DEPTH:
            raise LdmError(
                Code.USAGE,
                f"wildcards are nested more than {MAX_DEPTH} deep",
                "a file that names itself, directly or through others, never ends",
                "take the reference to itself out of the wildcard file",
            )
        closing = _braces(text)
        out: list[str] = []
        i = 0
        while i < len(text):
            escaped, file = _ESCAPED.match(text, i), _FILE.match(text, i)
            if escaped:
                out.append(escaped.group(1))
                i = escaped.end()
            elif text[i] == "\\":  # two backslashes, or an escape of the weight grammar: not ours
                out.append(text[i : i + 2])
                i += 2
            elif file:
                out.append(self.expand(self._pick(self._read(file.group(1))), depth + 1))
                i = file.end()
            elif i in closing and len(options := _options(text[i + 1 : closing[i]])) > 1:
                out.append(self.expand(self._pick(options), depth + 1))
                i = closing[i] + 1
            else:
                out.append(text[i])
                self._grown()
                i += 1
        return "".join(out)

    def _grown(self) -> None:
        """Stop while the text grows, not when it is there: files that name each other grow like a power."""
        self._length += 1
        if self._length > MAX_BYTES * 4:
            raise LdmError(
                Code.USAGE,
                f"the prompt with its wildcards filled in is longer than {MAX_BYTES} bytes",
                "wildcards were replaced by long lines",
                "use fewer wildcards or shorter lines",
            )

    def _pick(self, options: Sequence[str]) -> str:
        """One option; `2::a` is twice as likely. A hash of (seed, number of the choice) is the same everywhere."""
        parts = [(_WEIGHT.match(option), option) for option in options]
        weights = [float(match.group(1)) if match else 1.0 for match, _ in parts]
        total = sum(weights)
        if not 0 < total < float("inf"):
            raise LdmError(
                Code.USAGE,
                f"the options {'|'.join(options)[:60]!r} add up to a weight of {total:g}",
                "one of them has to be chosen",
                "give at least one option a weight above 0",
            )
        self._choices += 1
        if self._choices > MAX_CHOICES:
            raise LdmError(
                Code.USAGE,
                f"the prompt asks for more than {MAX_CHOICES} choices",
                "wildcard files that name several others grow quickly",
                "use fewer wildcards",
            )
        digest = hashlib.blake2b(f"{self._seed}/{self._choices}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64 * total
        chosen = ""
        for (match, option), weight in zip(parts, weights, strict=True):
            if weight > 0:
                chosen = option[match.end() :] if match else option
                if place < weight:
                    break
            place -= weight
        return chosen  # the last one that may be chosen, where rounding left a rest

    def _read(self, name: str) -> list[str]:
        """The lines of a file of the wildcard folder; empty ones and those that begin with # are left out."""
        if name not in self._lines:
            path = self._find(name)
            if path.stat().st_size > MAX_FILE_BYTES:
                raise _unusable(name, f"it is larger than {MAX_FILE_BYTES} bytes", "split the file")
            content = path.read_bytes()
            try:
                lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
            except UnicodeDecodeError:
                raise _unusable(name, "it is not UTF-8 text", "save the file as UTF-8") from None
            self._lines[name] = [line for line in lines if line and not line.startswith("#")]
            self.files[name] = hashlib.sha256(content).hexdigest()
        if not self._lines[name]:
            raise _unusable(name, "it has no line to choose from", "put one option on each line")
        return self._lines[name]

    def _find(self, name: str) -> Path:
        """`__animals/cats__` is FOLDER/animals/cats.txt; nothing outside the folder is looked at."""
        if self._folder is None:
            raise LdmError(
                Code.USAGE,
                f"__{name}__ names a wildcard file, but there is no wildcard folder",
                "the prompt was given without one",
                f"name the folder with --wildcards, or write \\__{name}__ for plain text",
            )
        if not self._folder.is_dir():
            raise LdmError(
                Code.FILE,
                f"wildcard folder {self._folder.name!r} is not there",
                "it is missing, or it is a file",
                "name an existing folder with --wildcards",
            )
        parts = name.split("/")
        folder = self._folder.resolve()
        path = (folder / f"{name}.txt").resolve() if not re.search(r"[\\:]", name) else folder.parent
        if any(part in ("", ".", "..") for part in parts) or not path.is_relative_to(folder):
            raise LdmError(
                Code.REFUSED,
                f"__{name}__ leads out of the wildcard folder",
                "only files inside that folder are read",
                "name a file inside the folder, such as __animals/cats__",
            )
        if not path.is_file():
            names = (p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.txt"))
            near = get_close_matches(name, list(islice(names, _MAX_NAMES)), n=1, cutoff=0.0)
            raise LdmError(
                Code.FILE,
                f"__{name}__ has no file",
                f"{name}.txt is not in the wildcard folder",
                f"write __{near[0]}__, the nearest name there is" if near else "put a .txt file into the folder",
            )
        return path


def _unusable(name: str, why: str, fix: str) -> LdmError:
    return LdmError(Code.FILE, f"wildcard file {name}.txt cannot be used", why, fix)


def _braces(text: str) -> dict[int, int]:
    """Place of each `{` that is closed -> place of its `}`; deeper ones than are expanded are plain text."""
    opened: list[int] = []
    found: dict[int, int] = {}
    i = 0
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] == "{":
            opened.append(i)
        elif text[i] == "}" and opened:
            start = opened.pop()
            if len(opened) <= MAX_DEPTH:
                found[start] = i
        i += 1
    return found


def _options(inside: str) -> list[str]:
    """The options of a group: cut at each | that is in no inner group, square bracket or escape."""
    options, start, depth, i = [], 0, 0, 0
    while i < len(inside):
        c = inside[i]
        if c == "\\":
            i += 1
        elif c in "{[":
            depth += 1
        elif c in "}]":
            depth -= 1
        elif c == "|" and depth <= 0:
            options.append(inside[start:i])
            start = i + 1
        i += 1
    return [*options, inside[start:]]
