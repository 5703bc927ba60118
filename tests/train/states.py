"""Small states of a run that are a function of the step, for tests of what is written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint import State


def state(step: int, size: int = 64, **meta: Any) -> State:
    """Tensors of several types and shapes; the same step gives the same bits."""

    def tensors(*names: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        return {name: torch.randn(size, 8, generator=generator) for name in names}

    model = tensors("net.a", "net.b") | {"net.half": torch.full((3,), step / 7, dtype=torch.bfloat16)}
    model |= {"net.count": torch.tensor(step), "net.used": torch.tensor([True, False]), "net.none": torch.empty(0, 4)}
    ema = {name: value * 0.5 for name, value in tensors("net.a").items()}
    return State(step, model, ema, {"net.a/exp_avg": torch.ones(size, 8) * step}, {"step": step, **meta})


def differences(found: State, wanted: State) -> list[str]:
    """What is not bit for bit the same in two states."""
    lines = []
    for part in ("model", "ema", "optimizer"):
        a, b = found.part(part), wanted.part(part)
        lines += [f"{part} {name} is missing" for name in set(a) ^ set(b)]
        lines += [
            f"{part} {name} differs"
            for name in set(a) & set(b)
            if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])
        ]
    if (found.step, dict(found.meta)) != (wanted.step, dict(wanted.meta)):
        lines.append(f"step or meta differ: {found.step} {found.meta} and {wanted.step} {wanted.meta}")
    return lines


def names(run: Path) -> list[str]:
    """What lies in the state folder, hidden things too."""
    return sorted(path.name for path in (run / "state").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
