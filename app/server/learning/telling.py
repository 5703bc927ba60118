"""A training as callers see it: no folder, no process, and addresses for what can be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.server.learning.asking import OUT
from app.server.learning.planning import with_photos
from app.server.learning.record import REPORT, Record


def told(record: Record, folder: Path, brief: bool = False) -> dict[str, Any]:
    """Ready for JSON; in brief, for lists."""
    story, home = record.story, f"/v1/trainings/{record.id}"
    found: dict[str, Any] = {
        "id": record.id, "state": record.state, "request": record.asked,
        "created": record.created, "started": record.started, "ended": record.ended, **story.progress(),
        "plan": None if story.plan is None else with_photos(story.plan, record.asked["photos"]),
        "measures": story.measured[-1] if story.measured else None,
        "adapter": record.adapter, "embedding": record.embedding,
        "report": f"{home}/report" if (folder / record.id / REPORT).is_file() else None,
        "verdict": None if story.result is None else {k: story.result.get(k) for k in ("verdict", "flags", "step")},
        "error": record.failure,
    }  # fmt: skip
    if not brief:
        found |= {"curves": story.curves, "samples": samples(record, folder)}
    if record.state not in ("planning", "running"):
        found["eta"] = found["doing"] = None
    if record.unwanted and record.state in ("planning", "running"):
        found["cancelling"] = True
    return found


def samples(record: Record, folder: Path) -> list[dict[str, Any]]:
    """Pictures that were drawn to judge by, at each step that was measured and before the first; the same prompts and
    noise at each."""
    home, lie = f"/v1/trainings/{record.id}/samples", folder / record.id / OUT / "samples"
    steps = [0, *(m["step"] for m in record.story.measured)] if record.story.measured else []
    counts = {step: len(list((lie / str(step)).glob("subject-*.png"))) for step in steps}
    return [{"step": step, "pictures": [f"{home}/{step}/{n}" for n in range(count)]} for step, count in counts.items()]


def end_of(record: Record) -> dict[str, Any]:
    """The last event."""
    found: dict[str, Any] = {"state": record.state, "adapter": record.adapter, "embedding": record.embedding}
    return found | ({} if record.failure is None else {"error": dict(record.failure)})
