"""One interface for every family of generative models: one trainer teaches them all, one protocol measures them.

A family is a file of this folder that has a record `Settings` and a class `Model(settings, form)`; its name is that of
the file, and nothing else has to be told of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import ValidationError
from torch import Generator, Tensor, nn

from ldm import baselines
from ldm.config import Strict
from ldm.data.draws import Draws
from ldm.errors import Code, LdmError

Losses = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Form:
    """What is to be modelled: pictures [n,channels,side,side], and how many classes they have (0: nobody says)."""

    side: int
    classes: int = 0
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side

    @property
    def dims(self) -> int:
        return self.channels * self.side * self.side


@dataclass(frozen=True)
class Part:
    """Parameters that move together, in turns of their own: every so many steps, from and to a share of the run. With
    `average` what is looked at and measured is a moving average of them."""

    name: str
    params: Sequence[nn.Parameter]
    rate: float = 1.0
    every: int = 1
    start: float = 0.0
    end: float = 1.0
    average: bool = True


@dataclass(frozen=True)
class Facts:
    """What a family can do whoever trains it, for the table: bits per dimension "exact", an upper "bound", or "none";
    passes through its network for one sample; whether its Jacobian is free of form; what it cannot do."""

    name: str
    paper: str
    group: Literal["simple", "vae", "gan", "flow", "autoregressive", "energy", "diffusion"]
    likelihood: Literal["exact", "bound", "none"]
    passes: str
    free_form: bool
    cannot: str


class Family(nn.Module):
    """x [n,C,H,W] in [-1,1], of 256 shades; label [n] of int64, or None where nobody says which."""

    form: Form
    facts: ClassVar[Facts]
    conditional: ClassVar[bool] = True  # whether it can be told a class
    first: ClassVar[int] = 64  # pictures that `begin` is given
    exact: bool = True  # whether n micro-batches give the gradients of one batch
    exception: str = ""  # why not, in one sentence

    @classmethod
    def facts_by(cls, settings: Any) -> Facts:
        """Of what its `Settings` make of the family."""
        return cls.facts

    def parts(self) -> list[Part]:
        """Whose turn it is, at each step in this order."""
        return [Part("model", list(self.parameters()))]

    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """Some pictures of the training before the first step: scales and centres that are taken from data."""

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        """[n] losses of a part's turn, and figures [n] for the log. All chance comes from `draws`."""
        raise NotImplementedError

    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        """[count,C,H,W] in [-1,1]; label [count] where a class is asked for."""
        raise NotImplementedError

    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        """[n]: -log2 p(x) / (C H W), or an upper bound of it; `facts.likelihood` says which."""
        raise LdmError(
            Code.USAGE,
            f"{self.facts.name} tells no likelihood.",
            self.facts.cannot,
            "Compare it by its samples.",
        )


def families() -> list[str]:
    """Their names, which are those of the files that hold a `Settings` and a `Model`."""
    files = (p for folder in baselines.__path__ for p in Path(folder).glob("*.py"))
    return sorted(p.stem for p in files if "\nclass Settings(" in p.read_text("utf-8"))


def _module(name: str) -> Any:
    if name not in (known := families()):
        raise LdmError(
            Code.USAGE, f"There is no family {name!r}.", f"There are {', '.join(known)}.", "Choose one of these."
        )
    return importlib.import_module(f"ldm.baselines.{name}")


def model_of(name: str) -> type[Family]:
    model: type[Family] = _module(name).Model
    return model


def facts_of(name: str, options: Mapping[str, Any] | None = None) -> Facts:
    return model_of(name).facts_by(settings_of(name, options or {}))


def settings_of(name: str, options: Mapping[str, Any]) -> Strict:
    """The family's own record, checked."""
    record = _module(name).Settings
    try:
        made: Strict = record(**options)
    except ValidationError as error:
        told = error.errors()[0]
        where = ".".join(map(str, told["loc"])) or "options"
        known = ", ".join(record.model_fields)
        raise LdmError(
            Code.USAGE,
            f"task.options.{where} of the family {name}: {told['msg']}.",
            f"It has {known}.",
            "Mend the value.",
        ) from error
    return made


def make(name: str, options: Mapping[str, Any], form: Form, seed: int) -> Family:
    """A new model of a family; its weights come from `seed`."""
    settings = settings_of(name, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Family = _module(name).Model(settings, form)
    return model
