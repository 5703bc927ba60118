"""The settings that suit a model and the adapters over it (`sampling.json`), where a user says nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ldm.config.explain import explain
from ldm.errors import LdmError
from ldm.models.prompt import tagged
from ldm.store.find import find_adapter, find_tagged
from ldm.store.sampling import read_sampling
from pipelines.request import Request


def settled(model: Path, prompt: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request over those that suit the model and its adapters: who gives one part of the guidance has not
    said the others, and who gives a spacing or levels of noise did not ask for a solver that cannot take them."""
    told = suited(model, prompt, fields)
    if fields.get("spacing", "auto") != "auto" or fields.get("sigmas") is not None:
        told.pop("solver", None)
    return merged(told, {name: _said(value) for name, value in fields.items()})


def suited(model: Path, prompt: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter says goes before what the model says, and later ones before earlier ones."""
    return read_sampling(model).overlaid(*map(read_sampling, _adapters(prompt, fields))).request_fields()


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields, the second over the first."""
    made = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(made.get(name), dict)
        made[name] = merged(made[name], value) if both else value
    return made


def request_of(prompt: str, fields: dict[str, Any]) -> Request:
    """A request of a prompt and fields; what is wrong is told as everywhere, with the name that was meant."""
    given = {"prompt": prompt, **fields}
    try:
        return Request(**given)
    except ValidationError as error:
        raise explain(error, Request, given, lambda path: "in the call") from None


def _said(value: Any) -> Any:
    """Of a record what was given to it, not what it has by default."""
    return {name: getattr(value, name) for name in value.model_fields_set} if isinstance(value, BaseModel) else value


def _adapters(prompt: str, fields: Mapping[str, Any]) -> Iterator[Path]:
    """Those of the fields, then those of tags in the prompt; what is missing or no adapter is said when the request is
    looked at. One of weight 0 changes nothing, so it says nothing either."""
    uses = fields.get("loras")
    for use in uses if isinstance(uses, list | tuple) else ():
        told = use if isinstance(use, Mapping) else vars(use) if isinstance(use, BaseModel) else {}
        if isinstance(path := told.get("path"), str | Path) and told.get("weight", 1.0) != 0:
            yield find_adapter(path)
    given = fields.get("lora_folder")
    for name in dict.fromkeys(tagged(prompt)):
        with contextlib.suppress(LdmError, TypeError):
            yield find_tagged(name, given if isinstance(given, Mapping) else Path(given) if given else None)
