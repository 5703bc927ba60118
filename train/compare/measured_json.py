"""What was measured, in the form of the files that keep it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ldm.metrics.measured import Measured


def as_json(measured: Measured) -> dict[str, Any]:
    told: dict[str, Any] = {
        "figures": {
            name: {**asdict(figure.estimate), "protocol": asdict(figure.protocol)}
            for name, figure in measured.figures.items()
        },
        "protocol": asdict(measured.figures["fid"].protocol),
        "notes": list(measured.notes),
        "nearest": measured.copies.nearest[:16].tolist(),
        "memorisation": {"bound": measured.copies.bound, "z": round(measured.copies.z, 3)},
    }
    if measured.balance is not None:
        balance = measured.balance
        told["classes"] = {"shares": balance.shares, "lost": balance.lost, "covered": balance.covered}
    return told
