"""How long a prompt is for a model, and which of its words fall outside: read as a job reads it, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.generate import DEFAULT_MODEL
from app.server.asking import Ask, read_as
from app.server.service import Service
from ldm.models.prompt import Explanation, clean, parse, resolve
from ldm.models.prompt import explain as explained
from ldm.store.tokenizers import Reader, readers_of
from pipelines.request import Request

SPEAKING = ("prompt", "negative", "dialect", "steps", "seed", "loras", "embeddings")  # what words depend on
Learned = tuple[Mapping[str, int], ...]  # for each text tower: words of embeddings, and how many vectors each has


def tokens(service: Service, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of both texts of a request: tokens, windows, and the words that fall outside. Other fields say nothing here."""
    ask = read_as(Ask, given)
    asked = {"model": DEFAULT_MODEL} | ask.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    fields = {name: asked[name] for name in ("model", *SPEAKING) if name in asked}
    request = service.understanding.request(fields | {"seed": max(0, asked.get("seed", 0))})  # -1: any
    service.limits.check(request, (8, 8))  # so many steps, which a text may change at
    path = service.catalog.model(asked["model"])
    service.worker.bring_in()
    readers = _readers(path, _stamp(path))
    learned = _learned(request, readers)
    texts = {"prompt": request.prompt, "negative": request.negative or ""}
    return {"model": asked["model"]} | {name: _told(text, request, readers, learned) for name, text in texts.items()}


def _told(text: str, request: Request, readers: Sequence[Reader], learned: Learned) -> dict[str, Any]:
    """Where the text changes during the run, the longest of it counts, as all of it is padded to that."""
    outside, longest, windows = list[str](), 0, 1
    for each in _moments(text, request, readers, learned):
        told = set(outside)
        outside += [word for word in max((one.dropped for one in each), key=len) if word not in told]
        longest = max(longest, *(sum(map(len, one.chunks)) for one in each))
        windows = max(windows, *(len(one.chunks) for one in each))
    vocabulary = readers[0].vocabulary
    size = {"limit": vocabulary.room, "windows": windows, "window": vocabulary.positions}
    return {"count": longest, **size, "outside": outside}


def _moments(text: str, request: Request, readers: Sequence[Reader], learned: Learned) -> Iterator[list[Explanation]]:
    """For each different text of the run what every tower is told."""
    parsed = parse(resolve(text, seed=request.seed).text, request.dialect, steps=request.steps)
    for at in {parsed.at(fraction): fraction for fraction in (0.0, *parsed.switches)}.values():
        pairs = zip(readers, learned, strict=True)
        yield [explained(parsed, reader.vocabulary, at=at, learned=known) for reader, known in pairs]


def _learned(request: Request, readers: Sequence[Reader]) -> Learned:
    """The words that embeddings bring."""
    if not request.embeddings:
        return tuple({} for _ in readers)
    from pipelines.adapting import read_embedding  # late: it brings torch

    words: list[dict[str, int]] = [{} for _ in readers]
    for embedding in map(read_embedding, request.embeddings):
        vectors = embedding.for_towers([reader.width for reader in readers])
        for known, rows in zip(words, vectors, strict=True):
            known[clean(embedding.token)] = len(rows)
    return tuple(words)


@lru_cache(maxsize=8)
def _readers(path: Path, stamp: tuple[int, ...]) -> tuple[Reader, ...]:
    """Read again where its files have changed."""
    return tuple(readers_of(path))


def _stamp(path: Path) -> tuple[int, ...]:
    files = sorted(path.glob("tokenizer*/*")) if path.is_dir() else [path]
    return tuple(file.stat().st_mtime_ns for file in files)
