"""What real pictures reach by the yardsticks: those held out, measured as if a model had drawn them. A scale for what
models reach, of which none is meant to be better."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.metrics.measured import Reference, measure
from ldm.store.write import staged
from train.compare.measured_json import as_json
from train.compare.reference import Pictures

SCALE = "held-out.json"


def measure_scale(out: Path, kept: Pictures, reference: Reference) -> None:
    """Into the folder of a comparison, once."""
    told = as_json(measure(kept.held_out, reference))
    with staged(out / SCALE) as stage:
        stage.write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def scale_of(out: Path) -> Mapping[str, Any] | None:
    """None of a folder that is older than this file."""
    path = out / SCALE
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
