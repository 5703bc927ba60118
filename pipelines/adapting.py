"""Adapters and embeddings of a request, put into the weights and the words of a model, and taken out again."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import Code, LdmError
from ldm.models.adapters import Adapter, AdapterStack, parse_adapter, parse_embedding
from ldm.models.text import TextEncoder
from ldm.store.parts import Parts
from ldm.store.shards import read_json
from ldm.store.weights import load_weights
from pipelines.request import LoraUse, Request

Tag = tuple[str, float, float | None]


@dataclass(frozen=True)
class Acting:
    """What acts in a batch: files and weights, and what putting them in reported."""

    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class Adapting:
    """The adapters of one model; files are read once."""

    def __init__(self, parts: Parts, text: TextEncoder) -> None:
        models = [tower for _, tower in parts.towers]
        self._stack = AdapterStack(parts.unet, models, parts.family, parts.fingerprint)
        self._text = text
        self._widths = [int(m.config.hidden_size) for m in models]
        self._read: dict[Path, Adapter] = {}
        self._acting: Acting = Acting()

    def use(self, request: Request, tags: Sequence[Tag]) -> Acting:
        """Exactly the adapters of the request and of the tags in its prompt; none is left from an earlier request."""
        loras = (
            *request.loras,
            *(LoraUse(path=find_tagged(n, request.lora_folder), weight=w, text_weight=t) for n, w, t in tags),
        )
        if (loras, request.embeddings) == (self._acting.loras, self._acting.embeddings):
            return self._acting
        self._acting = Acting()  # if anything below fails, the base stands
        any_base = any(u.any_base for u in loras)
        report = self._stack.use([(self._adapter(u.path), u.weight, u.text_weight) for u in loras], any_base=any_base)
        words = self._words(request.embeddings)
        self._acting = Acting(loras, request.embeddings, tuple(str(a) for a in report.applied) + words)
        return self._acting

    def _adapter(self, path: Path) -> Adapter:
        if path not in self._read:
            self._read[path] = read_adapter(path)
        return self._read[path]

    def _words(self, files: Sequence[Path]) -> tuple[str, ...]:
        self._text.clear_embeddings()
        notes = []
        for path in files:
            weights = load_weights(path)
            embedding = parse_embedding(weights, weights.metadata, path.stem)
            self._text.add_embedding(embedding.token, embedding.for_towers(self._widths))
            notes.append(f"{path.name}: the word {embedding.token!r} stands for {embedding.count} vectors")
        return tuple(notes)


def read_adapter(path: Path) -> Adapter:
    """An adapter from a file, or from a folder as peft writes it (its alpha is in `adapter_config.json` alone)."""
    if not path.is_dir():
        weights = load_weights(path)
        return parse_adapter(weights, weights.metadata, path.name)
    weights = load_weights(path / "adapter_model.safetensors")
    config = json.dumps(read_json(path / "adapter_config.json"))
    return parse_adapter(weights, weights.metadata | {"lora_adapter_metadata": config}, path.name)


def find_tagged(name: str, folder: Path | None) -> Path:
    """The file of a `<lora:name:weight>` tag: in the given folder, else in `$LDM_HOME/loras`, else in `loras/` here."""
    home = os.environ.get("LDM_HOME")
    folders = [folder] if folder else [*([Path(home) / "loras"] if home else []), Path("loras")]
    known: list[str] = []
    for place in folders:
        files = {p.stem: p for p in sorted(place.glob("*.safetensors"))} if place.is_dir() else {}
        if name in files:
            return files[name]
        known += files
    near = difflib.get_close_matches(name, known, 1)
    raise LdmError(
        Code.FILE,
        f"adapter {name!r} of the prompt's <lora:...> tag was not found",
        f"looked for {name}.safetensors in {', '.join(str(f) for f in folders)}",
        f"Write <lora:{near[0]}:...>."
        if near
        else "Put the file there, name its folder with --lora-folder, or give the file with --lora.",
    )
