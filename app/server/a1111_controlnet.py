"""/controlnet as clients of A1111's extension ask for it: what there is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.server.api import Serving

router = APIRouter(prefix="/controlnet", tags=["as A1111's"])


@router.get("/version", summary="Of what is spoken")
def version() -> dict[str, int]:
    return {"version": 2}


@router.get("/model_list", summary="Controls")
def model_list(service: Serving) -> dict[str, Any]:
    return {"model_list": sorted(service.catalog.controls())}


@router.get("/module_list", summary="Detectors")
def module_list() -> dict[str, Any]:
    from ldm.data.hints import HINTS

    return {"module_list": list(HINTS)}
