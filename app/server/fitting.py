"""Which of the models that are here an adapter, an embedding or a control fits, as far as headers tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from app.server.catalog import brief_of
from ldm.errors import LdmError
from ldm.store.detect import Facts, facts_of_config, facts_of_shapes
from ldm.store.header import Header
from ldm.store.shards import headers_of, read_json

WIDTHS = {"sd1": [768], "sd2": [1024], "xl": [768, 1280], "xl-refiner": [1280]}  # of the text towers of single files
UNTOLD = "Its file does not say what it was made for: only trying it tells."


class Fit(NamedTuple):
    """`fits` is None where headers do not tell."""

    model: str
    fits: bool | None
    why: str


def fits(path: Path, models: Mapping[str, Path]) -> list[Fit]:
    """What is at the path, held against each of the models."""
    kind = brief_of(path).kind
    header = _header(path)
    judge = {"lora": _adapter, "textual inversion": _embedding, "controlnet": _control}.get(kind)
    return [] if judge is None else [Fit(name, *judge(path, header, model)) for name, model in models.items()]


def _header(path: Path) -> Header:
    """Of a file, or of the folder of a control."""
    if path.is_dir():
        path = min(path.glob("*.safetensors"), key=lambda file: len(file.name))
    headers = headers_of(path)
    tensors = {name: entry for header in headers.values() for name, entry in header.tensors.items()}
    return Header(tensors, {k: v for header in headers.values() for k, v in header.metadata.items()})


def _adapter(path: Path, header: Header, model: Path) -> tuple[bool | None, str]:
    """As when it is loaded: by the fingerprint of the base, else by the family."""
    from ldm.models.adapters.base import hint, refuse_other_base

    own, base = brief_of(path), brief_of(model)
    said = hint(header.metadata, header.tensors)
    if said.family is None and not said.fingerprint:
        said = replace(said, family=own.family)
    try:
        refuse_other_base(path.stem, said, base.family or "", base.fingerprint, any_base=False)
    except LdmError as error:
        return False, error.what.partition(": ")[2][:1].upper() + error.what.partition(": ")[2][1:]
    if said.fingerprint and said.fingerprint == base.fingerprint:
        return True, "It was made for this very model."
    if said.family is not None and said.family == base.family and said.family != "own":
        return True, f"Both are of the family {said.family}."
    return None, UNTOLD


def _embedding(path: Path, header: Header, model: Path) -> tuple[bool | None, str]:
    """By the widths of its vectors."""
    held = sorted({shape[-1] for name, shape in header.shapes.items() if shape and not re.search("to_token", name)})
    wanted = sorted(_widths(model))
    if not wanted:
        return None, UNTOLD
    right = held == wanted or (wanted == [1280] and 1280 in held)
    texts = [" and ".join(map(str, widths)) for widths in (held, wanted)]
    return right, f"Its vectors are {texts[0]} wide; the text of the model is {texts[1]} wide."


def _widths(model: Path) -> list[int]:
    """Of the text towers."""
    if not model.is_dir():
        return WIDTHS.get(brief_of(model).family or "", [])
    configs = [model / name / "config.json" for name in ("text_encoder", "text_encoder_2")]
    told = [read_json(config).get("hidden_size") for config in configs if config.is_file()]
    return [width for width in told if isinstance(width, int)]


def _control(path: Path, header: Header, model: Path) -> tuple[bool | None, str]:
    """By the widths of both networks."""
    shapes = {name.removeprefix("control_model."): shape for name, shape in header.shapes.items()}
    own = facts_of_config(read_json(path / "config.json")) if path.is_dir() else facts_of_shapes(shapes)
    base = _facts(model)
    if own is None or base is None:
        return None, UNTOLD
    right = (own.width, own.text, own.added) == (base.width, base.text, base.added)
    return right, f"It has {own}; the model has {base}."


def _facts(model: Path) -> Facts | None:
    if model.is_dir():
        return facts_of_config(read_json(model / "unet" / "config.json"))
    return facts_of_shapes(_header(model).shapes)
