"""How a training went so far, from what its process told: read again from its file when the server starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MOST = 500  # points of a curve; the latest
BEGUN = {"begun": True}  # the line that the server itself writes before each start
CURVES = ("subject", "prompt", "drift", "copies", "leak")  # of the measures

Heard = Literal["state", "progress", "measured", "nothing"]


@dataclass(eq=False)
class Story:
    """`hear` each line; everything is ready for JSON."""

    plan: dict[str, Any] | None = None
    steps: int | None = None
    step: int = 0
    running: bool = False  # else it is still being planned
    doing: dict[str, Any] | None = None  # what is made ready before the first step
    loss: list[tuple[int, float]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    _times: list[tuple[float, int]] = field(default_factory=list)  # of the first step of this start, and of the last

    def hear(self, record: Mapping[str, Any]) -> Heard:
        """Takes a line in, and says what kind of news it is."""
        kind = next((kind for kind in _KINDS if kind in record), None)
        if kind is None:
            return "nothing"
        news: Heard = _KINDS[kind](self, record)
        return news

    @property
    def eta(self) -> float | None:
        """Seconds that are left: as planned at first, by the clock towards the end, when all kinds of work were met."""
        if self.steps is None or self.result is not None:
            return None
        left, done = self.steps - self.step, self.step / self.steps
        total = (self.plan or {}).get("cost", {}).get("total")
        planned = None if total is None else total * left / self.steps
        if len(self._times) < 2:
            return planned
        (began, first), (now, last) = self._times
        paced = (now - began) / max(1, last - first) * left
        return paced if planned is None else float((1 - done) * planned + done * paced)

    @property
    def curves(self) -> dict[str, list[list[float]]]:
        """Points [step, value] by the name of the curve."""
        told = {"loss": [list(point) for point in self.loss[-MOST:]]}
        told["validation"] = [[m["step"], m["validation"]] for m in self.measured if m.get("validation") is not None]
        for name in CURVES:
            values = ((m["step"], m["measures"].get(name)) for m in self.measured)
            told[name] = [[step, value] for step, value in values if value is not None]
        return told

    def progress(self) -> dict[str, Any]:
        """How far it is."""
        eta = None if self.eta is None else round(self.eta, 1)
        loss = self.loss[-1][1] if self.loss else None
        return {"step": self.step, "steps": self.steps, "eta": eta, "loss": loss, "doing": self.doing}

    def _begun(self, record: Mapping[str, Any]) -> Heard:
        self.result = self.error = self.doing = None
        self.running = False
        self._times.clear()
        return "nothing"

    def _planned(self, record: Mapping[str, Any]) -> Heard:
        self.plan = dict(record["plan"])
        self.steps = self.plan["steps"]
        return "state"

    def _costs(self, record: Mapping[str, Any]) -> Heard:
        self.plan = {**(self.plan or {}), "cost": record["cost"]}
        self.running = True
        return "state"

    def _runs(self, record: Mapping[str, Any]) -> Heard:
        """It begins, or goes on from what was saved last: what came after that is made again."""
        told = record["run"]
        self.steps, self.step, self.running, self.doing = told["steps"], told["done"], True, None
        self.loss = [point for point in self.loss if point[0] <= self.step]
        self._times.clear()
        return "state"

    def _figures(self, record: Mapping[str, Any]) -> Heard:
        losses = [value for name, value in record["figures"].items() if name.rpartition("/")[2] == "loss"]
        if losses and losses[0] is not None:
            self.loss.append((record["step"], losses[0]))
        return "nothing"  # a line of its progress comes beside it

    def _goes_on(self, record: Mapping[str, Any]) -> Heard:
        told = record["progress"]
        if told["what"] == "steps":
            self.step, self.doing = told["done"], None
            self._times[1 if self._times else 0 :] = [(time.monotonic(), self.step)]
        else:
            self.doing, self.running = dict(told), True
        return "progress"

    def _looked(self, record: Mapping[str, Any]) -> Heard:
        told = record["measured"]
        self.measured = [m for m in self.measured if m["step"] < told["step"]] + [told]
        return "measured"

    def _ends(self, record: Mapping[str, Any]) -> Heard:
        self.result = record["result"]
        return "nothing"

    def _fails(self, record: Mapping[str, Any]) -> Heard:
        self.error = record["error"]
        return "nothing"


_KINDS = {
    "begun": Story._begun, "plan": Story._planned, "cost": Story._costs, "run": Story._runs,
    "figures": Story._figures, "progress": Story._goes_on, "measured": Story._looked, "result": Story._ends,
    "error": Story._fails,
}  # fmt: skip
