"""Optimisers: which one moves which parameters, how fast at which step, and their state as named tensors and JSON.

The learning rate is a function of the step alone, so nothing of it needs to be saved. State goes to a checkpoint by the
names of the parameters, not by their order, and comes back to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.extras import install
from train.config import OptimSettings
from train.eight_bit import AdamW8bit
from train.muon import Muon
from train.sharding import placed

# Fields that would act on nothing with this kind, and are refused unless they have their default value.
IDLE = {
    "adamw": ("muon_lr",),
    "adamw8bit": ("muon_lr",),
    "sgd": ("muon_lr",),
    "muon": (),
    "schedule_free": ("muon_lr", "decay_from", "floor", "ema", "snapshots"),
}
# Weights that are tables, or lie at the edge of a network: Muon is for matrices between hidden layers.
OUTER = ("embedding.weight", "embedding", "quant_conv.weight", "encoder.conv_in.weight", "conv_out.weight")
NARROW = 4  # a matrix with fewer rows or columns touches pixels or numbers, not hidden channels
_MEMORY = ("k", "weight_sum", "lr_max")  # what schedule-free keeps beside its tensors


def rate(settings: OptimSettings, step: int, steps: int) -> float:
    """The share of the peak learning rate at `step` of `steps`: warm-up times decay, in (0,1]."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.decay == "constant" or settings.kind == "schedule_free":
        return warm
    begin = settings.decay_from * steps
    x = min(1.0, max(0.0, (step - begin) / max(1.0, steps - begin)))
    fall = 0.5 + 0.5 * math.cos(math.pi * x) if settings.decay == "cosine" else 1.0 - x
    return warm * (settings.floor + (1.0 - settings.floor) * fall)


def is_hidden(name: str, shape: torch.Size) -> bool:
    """Whether a parameter `network.path` is a matrix between hidden layers."""
    if name.startswith("words."):  # learned vectors are rows of a table
        return False
    if len(shape) < 2 or min(shape[0], shape[1]) < NARROW or name.endswith(OUTER):
        return False
    inside = name.partition(".")[2]
    return not inside.startswith(("conv_in.", "controlnet_"))


class Optimiser:
    """The optimiser of one phase. With `kind: muon` there are two, each with its own parameters and peak rate.

    `dtype` is that of arithmetic which bears less precision than the weights have.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        settings: OptimSettings,
        factor: float,
        steps: int,
        dtype: torch.dtype = torch.float32,
        rates: Callable[[str], float] | None = None,
    ) -> None:
        check(settings)
        self.params, self.settings, self.steps = dict(params), settings, steps
        hidden = {n: p for n, p in params.items() if settings.kind == "muon" and is_hidden(n, p.shape)}
        others = {n: p for n, p in params.items() if n not in hidden}
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if others:
            self._parts.append((_build(_grouped(others, rates), settings), settings.lr * factor))
        if hidden:
            groups = [{"params": list(some.values()), "share": share} for share, some in _grouped(hidden, rates)]
            muon = Muon(groups, lr=settings.muon_lr, decay=settings.weight_decay, dtype=dtype)
            self._parts.append((muon, settings.muon_lr * factor))
        self._home = {p: part for part, _ in self._parts for group in part.param_groups for p in group["params"]}

    def step(self, step: int) -> float:
        """Moves the parameters along their gradients; returns the learning rate."""
        share = rate(self.settings, step, self.steps)
        for part, peak in self._parts:
            for group in part.param_groups:
                group["lr"] = peak * share * group["share"]
            part.step()
        return self._parts[0][1] * share

    def zero(self) -> None:
        for p in self.params.values():
            p.grad = None

    def average(self) -> dict[str, Tensor]:
        """What this optimiser itself takes for the result, where that is not the parameters: schedule-free steps from
        y and answers with x, y = (1 - beta) z + beta x (Defazio et al. 2024, eq. 3)."""
        if self.settings.kind != "schedule_free":
            return {}
        state, beta = self._parts[0][0].state, self.settings.betas[0]
        return {n: p.detach().lerp(state[p]["z"], 1 - 1 / beta) for n, p in self.params.items() if "z" in state[p]}

    def tensors(self) -> dict[str, Tensor]:
        """Its state, by `parameter/quantity`."""
        return {
            f"{name}/{key}": value
            for name, p in self.params.items()
            for key, value in self._home[p].state[p].items()
            if isinstance(value, Tensor)
        }

    def numbers(self) -> dict[str, Any]:
        """The rest of its state, as JSON."""
        groups = [{k: g[k] for k in _MEMORY if k in g} for part, _ in self._parts for g in part.param_groups]
        return {"kind": self.settings.kind, "groups": groups}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Takes over the state that `tensors` and `numbers` gave, possibly on another device or number of processes."""
        if numbers["kind"] != self.settings.kind:
            raise LdmError(
                Code.USAGE,
                f"This run was begun with optim.kind={numbers['kind']}, and is to go on with {self.settings.kind}.",
                "One optimiser cannot go on from the memory of another.",
                f"Set optim.kind={numbers['kind']}, or begin a new run with another run.out.",
            )
        for full, tensor in tensors.items():
            name, _, key = full.rpartition("/")
            p = self.params[name]
            self._home[p].state[p][key] = placed(tensor, p)
        groups = [group for part, _ in self._parts for group in part.param_groups]
        for group, memory in zip(groups, numbers["groups"], strict=True):
            group.update(memory)


class LossScale:
    """Multiplies an fp16 loss so that small gradients do not vanish: halved when something overflows, doubled after
    2000 good steps (Micikevicius et al. 2018). One for each phase, decided for all its optimisers and processes."""

    FIRST, PATIENCE = 2.0**16, 2000

    def __init__(self) -> None:
        self.value, self.good = self.FIRST, 0

    def update(self, finite: bool) -> None:
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good == self.PATIENCE:
            self.value, self.good = self.value * 2, 0

    def numbers(self) -> dict[str, float]:
        return {"value": self.value, "good": self.good}

    def load(self, numbers: Mapping[str, float]) -> None:
        self.value, self.good = numbers["value"], int(numbers["good"])


def check(settings: OptimSettings) -> None:
    """Refuses fields that this kind of optimiser would ignore, or cannot work with."""
    if settings.kind == "schedule_free" and not settings.betas[0]:
        raise LdmError(
            Code.USAGE,
            "optim.betas=[0, ...] does not go with optim.kind=schedule_free.",
            "The weights it answers with lie between two others, at the place that the first number says.",
            "Set optim.betas=[0.9,0.99], or choose another optim.kind.",
        )
    fields = type(settings).model_fields
    for name in IDLE[settings.kind]:
        if getattr(settings, name) != fields[name].default:
            raise LdmError(
                Code.USAGE,
                f"optim.{name} does nothing with optim.kind={settings.kind}.",
                "Schedule-free keeps its own average and needs no decay."
                if settings.kind == "schedule_free"
                else "Only optim.kind=muon has a second learning rate.",
                f"Leave optim.{name} out, or choose another optim.kind.",
            )


Group = tuple[float, dict[str, nn.Parameter]]  # the share of the learning rate, and who moves at it


def _grouped(params: Mapping[str, nn.Parameter], rates: Callable[[str], float] | None) -> list[Group]:
    """Parameters by their share of the learning rate, in the order in which shares first come."""
    groups: dict[float, dict[str, nn.Parameter]] = {}
    for name, p in params.items():
        groups.setdefault(1.0 if rates is None else rates(name), {})[name] = p
    return list(groups.items())


def _build(shares: Sequence[Group], settings: OptimSettings) -> torch.optim.Optimizer:
    """Decay acts on matrices only: a scale or a bias that is pulled to zero says something else."""
    groups: list[dict[str, Any]] = []
    for share, params in shares:
        matrices = [p for p in params.values() if p.dim() >= 2]
        vectors = [p for p in params.values() if p.dim() < 2]
        groups += [
            {"params": matrices, "weight_decay": settings.weight_decay, "share": share},
            {"params": vectors, "weight_decay": 0.0, "share": share},
        ]
    groups = [group for group in groups if group["params"]]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.betas[0])
    if settings.kind == "schedule_free":
        return _schedule_free(groups, settings)
    if settings.kind == "adamw8bit":
        return AdamW8bit(groups, lr=settings.lr, betas=settings.betas)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def _schedule_free(groups: list[dict[str, Any]], settings: OptimSettings) -> torch.optim.Optimizer:
    try:
        from schedulefree import AdamWScheduleFree  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise LdmError(
            Code.USAGE,
            "optim.kind=schedule_free needs the package schedulefree, which is not installed.",
            "It is part of the extra `train`.",
            f"Install it: {install('train')}; or set optim.kind=adamw.",
        ) from None
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=settings.lr, betas=settings.betas)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer
