"""The machine that a figure was measured on, to be named beside it."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train.machine import processor


def machine() -> dict[str, str | int]:
    """Processor, cores, versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def write(name: str, figures: dict[str, Any], folder: Path = Path("docs/results")) -> Path:
    """Figures with their machine and day, as `docs/results/NAME.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    told = {"measured": time.strftime("%Y-%m-%d"), "machine": machine(), "figures": figures}
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return path
