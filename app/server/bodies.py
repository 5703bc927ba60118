"""Bodies of requests, as OpenAPI tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

FILE = {"type": "string", "format": "binary"}
FORM = {"type": "object", "properties": {"file": FILE}}  # with one file


def body_of(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """One of these kinds, each with its schema."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": told} for kind, told in kinds.items()}}}


def schema_of(record: type[BaseModel]) -> dict[str, Any]:
    return record.model_json_schema(ref_template="#/components/schemas/{model}")


def json_of(record: type[BaseModel]) -> dict[str, Any]:
    """A record as JSON."""
    return body_of({"application/json": schema_of(record)})


PICTURE = body_of({"image/*": FILE, "multipart/form-data": FORM})
