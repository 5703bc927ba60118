"""What a grid is asked for: a request, and along each axis the values of a field or of a word of its prompt."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Annotated, Any

from pydantic import Field

from app.grids import MAX_CELLS
from app.server.asking import Named, Strict, read_as
from ldm.errors import Code, LdmError
from pipelines.request import MAX_PROMPT_BYTES
from pipelines.suited import merged

SIDES = ("x", "y", "z")
TEXTS = ("prompt", "negative")  # in which words may be replaced
SHORT = 32  # characters of a value in a label or an error
BRIEF, SOME = 60, 24  # characters of a value in a list of grids, and of an axis how many of them
MOST = 256 << 10  # bytes of a request with its axes, as they are kept

Place = tuple[int, int, int]  # of the values of x, y and z


class AskedAxis(Strict):
    """`field` is the dotted name of a field of the request; with `replace` each value stands for that word in it."""

    field: Named
    values: Annotated[tuple[Any, ...], Field(min_length=1, max_length=MAX_CELLS)]
    replace: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


class AskedGrid(Strict):
    """`dry`: only what it would take is told."""

    request: Annotated[dict[str, Any], Field(default_factory=dict)]
    x: AskedAxis | None = None
    y: AskedAxis | None = None
    z: AskedAxis | None = None
    dry: bool = True

    @property
    def axes(self) -> dict[str, AskedAxis]:
        """Those that there are, by their sides."""
        return {side: axis for side in SIDES if (axis := getattr(self, side)) is not None}

    @property
    def shape(self) -> Place:
        """Values along x, y and z."""
        across, down, deep = (1 if axis is None else len(axis.values) for axis in (self.x, self.y, self.z))
        return across, down, deep

    def places(self) -> Iterator[Place]:
        """Of all cells: along x first, then y, then z."""
        across, down, deep = self.shape
        for k, j, i in product(range(deep), range(down), range(across)):
            yield i, j, k

    def name(self, place: Place) -> str:
        """A cell in words, by its values."""
        told = (f"{side} {labels_of(axis)[place[SIDES.index(side)]]}" for side, axis in self.axes.items())
        return ", ".join(told)

    def request_at(self, place: Place, base: Mapping[str, Any]) -> dict[str, Any]:
        """The request of a cell, over what all cells have in common."""
        told, words = dict(base), dict[str, dict[str, str]]()
        for side, axis in self.axes.items():
            value = axis.values[place[SIDES.index(side)]]
            if axis.replace is None:
                told = _with(told, axis.field.split("."), value, axis.field)
            else:
                words.setdefault(axis.field, {})[axis.replace] = value
        return told | {field: _swapped(told.get(field), pairs, field) for field, pairs in words.items()}


def read(given: Mapping[str, Any]) -> AskedGrid:
    """A grid that may be looked at further; whether its cells are right is seen when each is understood."""
    asked = read_as(AskedGrid, given, "in the grid")
    if not asked.axes:
        raise LdmError(Code.USAGE, "The grid has no axis.", "It compares the values of one.", "Give it x.")
    if (cells := math.prod(asked.shape)) > MAX_CELLS:
        why = f"A grid has at most {MAX_CELLS} cells."
        raise LdmError(Code.USAGE, f"{cells:,} cells are too many.", why, "Give fewer values.")
    for side, axis in asked.axes.items():
        _check_words(side, axis)
    for (one, a), (other, b) in combinations(asked.axes.items(), 2):
        if _same(a, b):
            why = "One of them would undo the other."
            what = f"The axes {one} and {other} both set {a.field[:80]}."
            raise LdmError(Code.USAGE, what, why, "Give each its own field.")
    return asked


def check_bytes(asked: AskedGrid) -> None:
    """Of one whose pictures have ids: what is kept of it is told again and again."""
    kept = asked.model_dump_json(include={"request", *SIDES})
    if (size := len(kept.encode("utf-8", "surrogatepass"))) > MOST:
        why = f"Its request and its values have {size:,} bytes; at most {MOST:,} are kept."
        raise LdmError(Code.USAGE, "The grid is too long.", why, "Give fewer or shorter values.")


def brief(axis: AskedAxis) -> dict[str, Any]:
    """An axis in a list of grids: its first values, cut, and how many it has."""
    values = [short(value, BRIEF) for value in axis.values[:SOME]]
    replaced = {} if axis.replace is None else {"replace": short(axis.replace, BRIEF)}
    return {"field": axis.field, "values": values, "count": len(axis.values), **replaced}


def labels_of(axis: AskedAxis) -> list[str]:
    """One for each value, short enough to be drawn above a column."""
    name = axis.field.rpartition(".")[2] if axis.replace is None else ""
    return [f"{short(name)} {short(value)}".strip() for value in axis.values]


def short(value: Any, most: int = SHORT) -> str:
    """Printable, on one line, and no longer than that."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _check_words(side: str, axis: AskedAxis) -> None:
    if axis.replace is None:
        return
    if axis.field not in TEXTS:
        why = "Words are replaced in the prompt or in the negative one."
        raise LdmError(Code.USAGE, f"{side}.replace: {axis.field[:80]} is no text.", why, "Leave out replace.")
    for value in axis.values:
        if not isinstance(value, str):
            why = "It stands for a word."
            raise LdmError(Code.USAGE, f"{side}.values: {short(value)} is no text.", why, "Put it into quotes.")


def _same(one: AskedAxis, other: AskedAxis) -> bool:
    """Whether both set the same, or one a part of what the other sets; words of a prompt that is set are no part."""
    if one.replace is not None or other.replace is not None:
        return one.field == other.field and one.replace == other.replace
    both = sorted((f"{one.field}.", f"{other.field}."), key=len)
    return both[1].startswith(both[0])


def _with(told: Any, path: Sequence[str], value: Any, field: str) -> Any:
    """A copy in which one nested field is another; a list has its places, from 0."""
    name, *rest = path
    if told is None and name.isdecimal():
        told = []
    if isinstance(told, list | tuple):
        if not re.fullmatch(r"[0-9]{1,4}", name) or int(name) >= len(told):
            why = f"The list has {len(told)} of them in the request."
            raise LdmError(Code.USAGE, f"{field[:80]}: there is no {name[:40]!r}.", why, "Add it to the request first.")
        made: list[Any] = list(told)
        made[int(name)] = _put(made[int(name)], rest, value, field)
        return made
    if not isinstance(told, Mapping | None):
        why = "What is there in the request has no parts."
        raise LdmError(Code.USAGE, f"{field[:80]}: there is no {name[:40]!r}.", why, "Name a field of the request.")
    below = told or {}
    return {**below, name: _put(below.get(name), rest, value, field)}


def _put(told: Any, path: Sequence[str], value: Any, field: str) -> Any:
    """A value in its place, or deeper in what is there; of a section what it says over what is there."""
    if path:
        return _with(told, path, value, field)
    return merged(told, value) if isinstance(told, dict) and isinstance(value, dict) else value


def _swapped(text: Any, words: Mapping[str, str], field: str) -> str:
    """All at once, so that no word that was put in is replaced again."""
    whole = text if isinstance(text, str) else ""
    _check_text(field, size := _bytes(whole))  # before it is looked through
    pattern = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
    found = Counter(pattern.findall(whole))
    for word in words:
        if word not in found:
            why = "There is nothing to replace."
            raise LdmError(Code.USAGE, f"{short(word)!r} does not occur in the {field}.", why, "Write it as it stands.")
    _check_text(field, size + sum(many * (_bytes(words[word]) - _bytes(word)) for word, many in found.items()))
    return pattern.sub(lambda match: words[match[0]], whole)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _check_text(field: str, size: int) -> None:
    """A text that no job takes is not made."""
    if size > MAX_PROMPT_BYTES:
        why = f"It has {size:,} bytes, with its words replaced; at most {MAX_PROMPT_BYTES:,} are read."
        raise LdmError(Code.USAGE, f"The {field} is too long.", why, "Write a shorter one, or shorter values.")
