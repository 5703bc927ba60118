"""Where the networks run, in which type of numbers, and what moves when a card is small."""

from __future__ import annotations

import difflib
import os
from typing import Literal, TypeVar

import torch
from torch import nn

from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.text import TextEncoder

Offload = Literal["none", "model"]
KINDS = ("cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Movable = TypeVar("Movable", nn.Module, Autoencoder, TextEncoder)


def pick_device(name: str) -> torch.device:
    """ "auto" takes a CUDA card, else Apple's, else the CPU; a named one must be there."""
    there = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if "cuda" in there else there[-1])
    kind, colon, number = name.partition(":")
    if kind not in KINDS or (colon and not number.isdecimal()):
        near = difflib.get_close_matches(kind, (*KINDS, "auto"), n=1)
        raise LdmError(
            Code.USAGE,
            f"device {name!r} is unknown",
            f"devices are auto, {', '.join(KINDS)}, and a card by its number as cuda:1",
            f"Write {near[0]}." if near else "Choose one of those.",
        )
    cards = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in there or (number and int(number) >= cards):
        raise LdmError(
            Code.RESOURCE,
            f"device {name!r} is not there",
            f"this machine and this torch offer: {', '.join(there)}",
            "Choose one of those, or auto.",
        )
    return torch.device(name)


def own_card() -> None:
    """Each process of a launch has a card of its own, if there are several, as if it were the only one."""
    rank, cards = os.environ.get("LOCAL_RANK", ""), torch.cuda.device_count()
    if rank.isdecimal() and cards > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(cards)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(rank) % len(seen)]


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is float16 on a card and float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    full = ALIASES.get(name, name)
    if full not in DTYPES:
        raise LdmError(
            Code.USAGE,
            f"dtype {name!r} is unknown",
            "it is not a type that networks run in",
            f"Choose one of: auto, {', '.join(DTYPES)}.",
        )
    return DTYPES[full]


def place(part: Movable, device: torch.device) -> Movable:
    """The part, on the device (moved only if it is not there already)."""
    if isinstance(part, TextEncoder):
        for tower in part.towers:
            place(tower.model, device)
        return part
    module = part.model if isinstance(part, Autoencoder) else part
    weight = next(module.parameters(), None)
    if weight is not None and weight.device != device:
        module.to(device)
    return part
