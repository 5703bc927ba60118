"""The requests of a chunk, made together as they fit: each in its own run of the pipeline, with shared calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.batch.source import Line, Source
from app.batch.store import Store
from app.failing import told_of
from app.inputs import opened
from ldm.errors import Code, LdmError
from ldm.images import as_png
from ldm.models.gathering import Ended, Gathering, Run, gathered
from pipelines.mask_rule import is_rule
from pipelines.pipeline import Pipeline
from pipelines.recipe import chunks
from pipelines.request import Request
from pipelines.steps import Result, Step
from pipelines.suited import request_of, settled

ROWS = 64  # of one call of the network
LONGEST = 240  # characters of an error in a manifest


@dataclass(eq=False)
class Item:
    """A line that is understood; `names` are those of its pictures."""

    line: Line
    request: Request
    key: str
    made: dict[int, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [name_of(self.key, place) for place in range(self.request.count)]


class Maker:
    """A model, and what it has to make. One to a process."""

    def __init__(self, source: Source, store: Store, model: str, device: str, dtype: str, together: int) -> None:
        self.source, self.store, self.together = source, store, together
        self.pipeline = Pipeline.load(model, device=device, dtype=dtype)
        self.pipeline.sharing = gathered
        self.fingerprint = self.pipeline.model.parts.fingerprint

    def chunk(self, number: int, wanted: Callable[[], bool] = lambda: True) -> dict[str, int] | None:
        """Makes what is missing of a chunk, and says how much; None if it is not wanted any more before its end."""
        items, lines = list[Item](), list[dict[str, Any]]()
        for line in self.source.chunk(number):
            try:
                items.append(self._item(line))
            except Exception as error:  # also one that nobody foresaw: it does not stop the others
                lines.append({"line": line.number, "error": _told(told_of(error))})
        pictures, failed = dict[str, bytes](), dict[str, str]()  # by names and keys: lines that are equal share them
        todo = self._missing(items)
        for item, told in self._made(iter(todo), wanted):
            if isinstance(told, LdmError):
                failed[item.key] = _told(told)
                continue
            name, data = name_of(item.key, told.index), _png(told)
            self.store.keep(name, data)
            if self.store.format == "webdataset":
                pictures[name] = data
        if not wanted():
            return None
        lines += [self._line(item, failed.get(item.key)) for item in items]
        lines.sort(key=lambda told: told["line"])
        self.store.finish(number, lines, pictures)
        wrong = sum("error" in told for told in lines)
        return {"chunk": number, "requests": len(lines), "made": len(todo) - len(failed), "wrong": wrong}

    def _item(self, line: Line) -> Item:
        if line.wrong:
            raise LdmError(Code.USAGE, "It is not read", line.wrong, "Correct it.")
        fields = {name: self._beside(name, value) for name, value in line.fields.items()}
        prompt, model = fields.pop("prompt", ""), self.pipeline.model.parts.source
        request = request_of(str(prompt), settled(model, str(prompt), opened(fields, str(model))))
        self.pipeline.check(request)
        asked = json.dumps({"model": self.fingerprint, **line.fields}, sort_keys=True)
        return Item(line, request, hashlib.sha256(asked.encode()).hexdigest()[:32])

    def _beside(self, name: str, value: Any) -> Any:
        """Pictures lie beside the file that names them, unless their whole path is said."""
        if name == "controls" and isinstance(value, list):
            return [{n: self._beside(n, v) for n, v in use.items()} if isinstance(use, dict) else use for use in value]
        plain = name in ("image", "mask") and isinstance(value, str) and not is_rule(value)
        return str(Path(self.source.path).parent / Path(value).expanduser()) if plain else value

    def _missing(self, items: list[Item]) -> list[Item]:
        """Each request once, and none whose pictures are all there."""
        todo = {item.key: item for item in items}
        return [item for item in todo.values() if not all(map(self.store.has, item.names))]

    def _made(self, todo: Iterator[Item], wanted: Callable[[], bool]) -> Iterator[tuple[Item, Result | LdmError]]:
        """Results as they come; so many requests at a time, exact ones by themselves."""
        gathering, doing, ended = Gathering[Step](ROWS), dict[Run[Step], Item](), list[tuple[Item, Result | LdmError]]()

        def heard(run: Run[Step], told: Step | Ended) -> None:
            item = doing[run]
            if isinstance(told, Ended):
                del doing[run]
                if told.error is not None:
                    ended.append((item, told_of(told.error)))
                return
            ended.extend((item, result) for result in told.done)

        waiting = next(todo, None)
        while (doing or waiting is not None) and wanted():
            while waiting is not None and self._joins(waiting, doing):
                run = Run(self.pipeline.run(waiting.request))
                doing[run] = waiting
                gathering.runs.append(run)
                waiting = next(todo, None)
            gathering.turn(heard)
            yield from ended
            ended.clear()
        for run in list(gathering.runs):
            gathering.leave(run)

    def _joins(self, item: Item, doing: Mapping[Run[Step], Item]) -> bool:
        if not doing:
            return True
        alone = item.request.exact or any(other.request.exact for other in doing.values())
        return len(doing) < self.together and not alone

    @staticmethod
    def _line(item: Item, error: str | None) -> dict[str, Any]:
        told: dict[str, Any] = {"line": item.line.number, "key": item.key, "prompt": item.request.prompt}
        return told | ({"error": error} if error else {"seed": item.request.seed, "pictures": item.names})


def name_of(key: str, place: int) -> str:
    return f"{key}-{place:04d}"


def _png(result: Result) -> bytes:
    return as_png(result.picture, chunks(result.recipe, False, result.picture.text))


def _told(error: LdmError) -> str:
    return f"{error.what.rstrip('.')}: {error.why}"[:LONGEST]
