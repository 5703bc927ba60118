"""/v1: comparisons of families of models that this machine has made."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.server.api import Serving
from app.server.families import families

router = APIRouter(prefix="/v1")


@router.get("/families", tags=["beside"], summary="What `ldm compare` found here")
def found(service: Serving) -> dict[str, Any]:
    """The nearest family first, below what held-out pictures reach; intervals in brackets. An unfinished comparison
    tells how many of its cells are done."""
    return {"families": families(service)}
