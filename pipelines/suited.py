"""The settings that suit a model and the adapters over it (`sampling.json`), where a user says nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.errors import LdmError
from ldm.models.prompt import tagged
from ldm.store.find import find_adapter, find_tagged
from ldm.store.sampling import read_sampling


def suited(model: Path, prompt: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request. What an adapter says goes before what the model says, and later ones before earlier ones."""
    told = read_sampling(model).request_fields()
    for adapter in _adapters(prompt, fields):
        told |= read_sampling(adapter).request_fields()
    return told


def _adapters(prompt: str, fields: Mapping[str, Any]) -> Iterator[Path]:
    """Those of the fields, then those of tags in the prompt; what is missing is said when the request is looked at."""
    for use in fields.get("loras") or ():
        path = use.get("path") if isinstance(use, Mapping) else getattr(use, "path", None)
        if isinstance(path, str | Path):
            yield find_adapter(path)
    folder = fields.get("lora_folder")
    for name in tagged(prompt):
        with contextlib.suppress(LdmError, TypeError):
            yield find_tagged(name, Path(folder) if folder else None)
