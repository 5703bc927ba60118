"""What a model, an adapter or a control is, from its headers, in plain words: nothing is loaded, and no folder told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.failing import without_folders
from app.server.asking import own_side
from app.server.catalog import Catalog, brief_of
from app.server.fitting import fits
from ldm.errors import LdmError
from ldm.store.describe import describe
from ldm.store.find import TINY_DECODER, whose
from ldm.store.header import printable
from ldm.store.shards import headers_of

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
INSIDE = {
    "model.diffusion_model.": "unet", "first_stage_model.": "vae", "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder", "conditioner.embedders.1.": "text_encoder_2",
}  # in a single file  # fmt: skip
ENTRIES, LONGEST = 64, 500  # of metadata: how many, and characters of each
LICENCE = re.compile(r"^license(?:_name)?:[ \t]*['\"]?([^\s'\"#]{1,80})", re.MULTILINE)


def listed(catalog: Catalog, name: str, path: Path) -> dict[str, Any]:
    """What a list tells of it."""
    told = brief_of(path)
    return {"source": catalog.source(name, path), "kind": told.kind, "family": told.family, "size": told.size}


def listed_model(catalog: Catalog, name: str, path: Path) -> dict[str, Any]:
    """`object`, `created` and `owned_by` are for clients of OpenAI."""
    told = {"id": name, "object": "model", "created": int(path.stat().st_mtime), "owned_by": "ldm"}
    told |= {"side": own_side(path), "controls": sorted(catalog.controls(name))}
    return told | listed(catalog, name, path)


def listed_adapter(catalog: Catalog, name: str, path: Path) -> dict[str, Any]:
    """`model` is the one here that it was made for; `base` is what that one was called where it was made."""
    metadata = brief_of(path).metadata
    told = {"name": name, **listed(catalog, name, path)}
    told |= {"model": base_of(catalog, name, path), "base": metadata.get("ldm.base_name")}
    return told | {"word": metadata.get("modelspec.trigger_phrase")}


def base_of(catalog: Catalog, name: str, path: Path) -> str | None:
    """The model here that an adapter was made for."""
    if catalog.source(name, path) == "shipped":
        return whose(name)
    made_for = brief_of(path).metadata.get("ldm.base_fingerprint")
    models = catalog.models().items() if made_for else ()
    return next((model for model, where in models if brief_of(where).fingerprint == made_for), None)


def about_model(catalog: Catalog, name: str) -> dict[str, Any]:
    """A model from its headers."""
    path = catalog.model(name)
    told = {"name": name, **_described(catalog, name, path), "parts": parts_of(path), "side": own_side(path)}
    return told | {"controls": sorted(catalog.controls(name))}


def about_control(catalog: Catalog, name: str) -> dict[str, Any]:
    """A control, and which models it fits."""
    path = catalog.any_control(name)
    return {"name": name, **_described(catalog, name, path), "fits": _fits(catalog, path)}


def about_adapter(catalog: Catalog, name: str) -> dict[str, Any]:
    """An adapter or embedding, what it changes, and which models it fits."""
    path = catalog.adapter(name)
    told = listed_adapter(catalog, name, path) | _described(catalog, name, path)
    try:
        told |= _embedding(path) if told["kind"] == "textual inversion" else _lora(path)
    except LdmError as error:  # a file whose header is right may hold an adapter that is not
        told["problem"] = {"what": (safe := without_folders(error)).what, "why": safe.why, "fix": safe.fix}
    return told | {"fits": _fits(catalog, path)}


def _fits(catalog: Catalog, path: Path) -> list[dict[str, Any]]:
    return [fit._asdict() for fit in fits(path, catalog.models())]


def _described(catalog: Catalog, name: str, path: Path) -> dict[str, Any]:
    told = describe(path)
    return listed(catalog, name, path) | {
        "parameters": told.parameters,
        "tensors": told.tensors,
        "dtypes": dict(told.dtypes),
        "prediction": told.prediction,
        "reason": told.reason,
        "inpainting": told.inpainting,
        "fingerprint": told.fingerprint,
        "licence": licence_of(path, told.metadata),
        "metadata": shown(told.metadata),
    }


def _lora(path: Path) -> dict[str, Any]:
    from ldm.models.adapters import inspect
    from pipelines.adapting import read_adapter

    told = asdict(inspect(read_adapter(path), norms=False))
    words = [printable(word) for word in told["words"]]
    kept = ("dialect", "kinds", "ranks", "alphas", "targets")
    return {name: told[name] for name in kept} | {
        "unknown": [printable(name) for name in told["unknown"][:ENTRIES]],
        "words": words,
        "made_for": printable(told["base"], 200),
    }


def _embedding(path: Path) -> dict[str, Any]:
    from ldm.models.adapters import parse_embedding
    from ldm.store.weights import load_weights

    weights = load_weights(path)
    embedding = parse_embedding(weights, weights.metadata, path.stem)
    vectors = {tower: list(values.shape) for tower, values in embedding.vectors.items()}
    return {"word": printable(embedding.token), "vectors": vectors}


def parts_of(path: Path) -> dict[str, int]:
    """The parts of a model, and how many parameters each has."""
    counts: Counter[str] = Counter()
    if not path.is_dir():
        for header in headers_of(path).values():
            for name, entry in header.tensors.items():
                part = next((part for prefix, part in INSIDE.items() if name.startswith(prefix)), "other")
                counts[part] += entry.count
        return dict(counts)
    for folder in sorted(inside for inside in path.iterdir() if inside.is_dir()):
        if folder.name in PARTS or folder.name.startswith("controlnet-") or folder.name == TINY_DECODER:
            counts[folder.name] = describe(folder).parameters if any(folder.glob("*.safetensors*")) else 0
    return dict(counts)


def licence_of(path: Path, metadata: Mapping[str, str]) -> str | None:
    """As the metadata or the card of a model tell it."""
    if told := metadata.get("modelspec.license") or metadata.get("license"):
        return printable(" ".join(told.split()))
    card = path / "README.md"
    if not (path.is_dir() and card.is_file()):
        return None
    with card.open("rb") as file:
        text = file.read(1 << 14).decode("utf-8", "replace")
    front = text[3:].partition("\n---")[0] if text.startswith("---") else ""
    found: Iterable[str] = LICENCE.findall(front)
    return next((printable(name) for name in reversed(list(found)) if name != "other"), None)


def shown(metadata: Mapping[str, str]) -> dict[str, str]:
    """Printable, and cut to a length that people read."""
    some = sorted(metadata.items())[:ENTRIES]
    return {printable(name): printable(" ".join(text[: LONGEST * 4].split()), LONGEST) for name, text in some}
