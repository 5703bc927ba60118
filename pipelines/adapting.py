"""Adapters and embeddings of a request, put into the weights and the words of a model, and taken out again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.errors import Code, LdmError
from ldm.models.adapters import Adapter, AdapterStack, Embedding, parse_adapter, parse_embedding
from ldm.models.text import TextEncoder
from ldm.store.find import adapter_file, find_tagged, peft_config
from ldm.store.parts import Parts
from ldm.store.shards import read_json
from ldm.store.weights import load_weights
from pipelines.recipe import AdapterSource, Source, source_of
from pipelines.request import LoraUse, Request

Tag = tuple[str, float, float | None]


@dataclass(frozen=True, eq=False)
class Acting:
    """What acts in a batch: adapters with their weights, embeddings, where they came from, what was reported."""

    key: tuple[object, ...]
    items: tuple[tuple[Adapter, float, float | None], ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    adapter_sources: tuple[AdapterSource, ...] = ()
    embedding_sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()


class Adapting:
    """The adapters of one model. Files are read again only when they changed."""

    def __init__(self, parts: Parts, text: TextEncoder) -> None:
        models = [tower for _, tower in parts.towers]
        self._stack = AdapterStack(parts.unet, models, parts.family, parts.fingerprint)
        self._text = text
        self._widths = [int(m.config.hidden_size) for m in models]
        self._acting: Acting | None = None

    def use(self, request: Request, tags: Sequence[Tag]) -> Acting:
        """Exactly the adapters of the request and of the tags in its prompt; none is left from an earlier request."""
        tagged = (LoraUse(path=find_tagged(n, request.lora_folder), weight=w, text_weight=t) for n, w, t in tags)
        loras = (*request.loras, *tagged)
        key = (loras, *(stamp(u.path) for u in loras), *(stamp(p) for p in request.embeddings))
        if self._acting is None or self._acting.key != key:
            self.install(_read(key, loras, request.embeddings))
        assert self._acting is not None
        return self._acting

    def install(self, acting: Acting) -> None:
        """Put these adapters into the weights, unless they are there: another run may have come between."""
        if acting is self._acting:
            return
        self._acting = None  # whatever fails below, the next request starts anew
        report = self._stack.use(acting.items)
        self._text.clear_embeddings()
        words = []
        for embedding in acting.embeddings:
            self._text.add_embedding(embedding.token, embedding.for_towers(self._widths))
            vectors = f"{embedding.count} vector{'' if embedding.count == 1 else 's'}"
            words.append(f"{embedding.source}: the word {embedding.token!r} stands for {vectors}")
        if not acting.notes:
            object.__setattr__(acting, "notes", (*map(str, report.applied), *words))
        self._acting = acting


def _read(key: tuple[object, ...], loras: Sequence[LoraUse], embeddings: Sequence[Path]) -> Acting:
    """The files of a request, read and hashed."""
    return Acting(
        key,
        tuple((read_adapter(u.path, u.any_base), u.weight, u.text_weight) for u in loras),
        tuple(read_embedding(p) for p in embeddings),
        tuple(
            AdapterSource(**source_of(u.path).model_dump(), weight=u.weight, text_weight=u.text_weight) for u in loras
        ),
        tuple(source_of(p) for p in embeddings),
    )


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells a file (or peft's two) from its earlier self without reading it."""
    file = adapter_file(path)
    try:
        found = [(each, each.stat()) for each in (file, peft_config(file)) if each is not None]
    except OSError as error:
        raise LdmError(
            Code.FILE, f"{path.name} was not found", error.strerror or "it cannot be read", "Check the path."
        ) from error
    return tuple((str(each.resolve()), status.st_mtime_ns, status.st_size) for each, status in found)


def read_embedding(path: Path) -> Embedding:
    weights = load_weights(path)
    return parse_embedding(weights, weights.metadata, path.stem)


def read_adapter(path: Path, any_base: bool = False) -> Adapter:
    """An adapter from a file, or from peft's two (its alpha is in `adapter_config.json` alone). `any_base` lets it pass
    on relatives of its base."""
    file = adapter_file(path)
    weights = load_weights(file)
    told, name = weights.metadata, file.name
    if (config := peft_config(file)) is not None:
        told = told | {"lora_adapter_metadata": json.dumps(read_json(config))}
        name = file.resolve().parent.name
    return replace(parse_adapter(weights, told, name), any_base=any_base)


def check_tags(request: Request, tags: Iterable[Tag]) -> None:
    """Each of these tags has its file: asked before anything is made in vain."""
    for name in dict.fromkeys(name for name, *_ in tags):
        find_tagged(name, request.lora_folder)
