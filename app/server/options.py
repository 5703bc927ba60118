"""What a form needs to offer: solvers and spacings, detectors, guidance, and what each model is given by itself."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, get_args

from app.server.asking import HERE, own_side
from app.server.hints import hints
from app.server.service import Service
from ldm.errors import LdmError
from ldm.models.prompt import DIALECTS
from ldm.store.sampling import read_sampling
from pipelines.request import GuidanceUse, Request
from pipelines.suited import request_of, settled

OWN = {*HERE, "prompt", "seed", "image", "mask", "controls", "loras", "embeddings"}  # of each request alone


def options(service: Service) -> dict[str, Any]:
    """`auto`, of solvers and spacings, is what suits the model."""
    service.worker.bring_in()
    from ldm.diffusion.schedule import SPACINGS  # late: the table of solvers brings torch
    from ldm.diffusion.solver import SOLVERS, spacing_table

    table = {name: [spacing for spacing, takes in row.items() if takes] for name, row in spacing_table().items()}
    return {
        "solvers": [
            {"name": name, "spacings": table[name], "spacing": spec.default, "flow": spec.space == "flow"}
            for name, spec in SOLVERS.items()
        ],
        "spacings": list(SPACINGS),
        "guidance": GuidanceUse.model_json_schema()["properties"],
        "fills": list(get_args(Request.model_fields["fill"].annotation)),
        "dialects": list(DIALECTS),
        "hints": hints(service),
        "defaults": dict(_each(service.catalog.models(), _defaults)),
        "adapters": {n: told for n, told in _each(service.catalog.adapters(), _suited).items() if told},
    }


def _each(there: dict[str, Path], tell: Any) -> dict[str, dict[str, Any]]:
    """One whose settings cannot be read is left out: a request for it says why."""
    told: dict[str, dict[str, Any]] = {}
    for name, path in there.items():
        with contextlib.suppress(LdmError):
            told[name] = tell(path)
    return told


def _defaults(path: Path) -> dict[str, Any]:
    """What a request for this model has where it says nothing."""
    request = request_of("", settled(path, "", {}))
    told = request.model_dump(mode="json", exclude=OWN, exclude_none=True)
    return {"side": own_side(path), "guidance_scale": request.guidance.scale, **told}


def _suited(path: Path) -> dict[str, Any]:
    """What an adapter asks for, before its model does."""
    told = read_sampling(path).model_dump(exclude_none=True)
    return {"guidance_scale" if name == "guidance" else name: value for name, value in told.items()}
