"""An adapter in memory: its parts, one per layer, read from the tensors and metadata of a safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.adapters.base import BaseHint, hint
from ldm.models.adapters.deltas import Delta, Magnitude, as_matrix, build
from ldm.models.adapters.keys import TEXT, TEXT_2, UNET, Key, dotted, split, unread_kind

_COUNTED = {"down", "up", "mid", "diff", "lokr_t2"} | {
    f"{stem}_{side}" for stem in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2") for side in "ab"
}
COMPONENT = "ldm.component"  # whose layers a file holds that does not name its network; peft's do not
_IN_TEXT = ("encoder.", "embeddings.", "final_layer_norm", "text_projection")
_FACTORS = _COUNTED | {"hada_t1", "hada_t2", "lokr_w1", "lokr_w2"}


@dataclass(frozen=True, eq=False)
class Part:
    """What an adapter does to one layer: W' = W + w (new(W) - W), and b' = b + w bias."""

    component: str  # unet, text_encoder, text_encoder_2, or "" where the file does not say
    path: str  # the layer's name in diffusers
    flat: str  # the layer's name as the file has it, with underscores
    delta: Delta | None
    magnitude: Magnitude | None
    bias: Tensor | None
    shape: tuple[int, int] | None  # of dW
    keys: tuple[str, ...]

    @property
    def kind(self) -> str:
        kind = self.delta.kind if self.delta else "full"
        return kind if self.magnitude is None else ("dora" if kind == "lora" else f"{kind}+dora")

    def change(self, weight: Tensor) -> Tensor:
        """new(W) - W at full strength: dW, or m (W + dW) / |W + dW| - W with DoRA."""
        if self.delta is None:
            return torch.zeros_like(weight)
        change = self.delta.matrix(weight.device, weight.dtype)
        if self.magnitude is not None:
            matrix = as_matrix(weight)
            change = self.magnitude.rescale(matrix + change) - matrix
        return change.reshape(weight.shape)


def component_of(part: Part) -> str:
    """The network of a part; where its file does not name it, by its layer."""
    return part.component or (TEXT if part.path.startswith(_IN_TEXT) else UNET)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter file. `unknown` keys are kept, so that applying it can refuse them by name."""

    name: str
    dialect: str
    parts: tuple[Part, ...]
    unknown: tuple[str, ...]
    total: int  # tensors in the file
    metadata: Mapping[str, str]
    base: BaseHint
    any_base: bool = False  # whoever uses it lets it pass on relatives of its base

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(sorted({part.component for part in self.parts}))

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({part.kind for part in self.parts}))


def parse_adapter(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str = "adapter"
) -> Adapter:
    """The adapter held by these tensors, whichever of the dialects they are written in.

    The tensors stay as they are (mapped files stay mapped). For a peft folder, pass its `adapter_config.json` as the
    metadata entry `lora_adapter_metadata`: rank and alpha are written nowhere else.
    """
    metadata = dict(metadata or {})
    config = _config(metadata, name)
    groups: dict[tuple[str, str], dict[str, tuple[str, Key]]] = {}
    unknown: list[str] = []
    for text in tensors:
        key = split(text)
        if key is None or (held := groups.setdefault((key.component, key.flat), {})).get(key.role):
            unknown.append(text)
        else:
            held[key.role] = (text, key)
    whose = metadata.get(COMPONENT, "")
    layers = [group for group in groups.values() if _FACTORS & group.keys() or "diff_b" in group]
    parts = tuple(_part(name, tensors, layer, config, whose) for layer in layers)
    used = {key for part in parts for key in part.keys}
    unknown += [text for group in groups.values() for text, _ in group.values() if text not in used]
    said = hint(metadata, tensors)
    if not parts:
        raise _not_an_adapter(name, tensors, said)
    dialects = [key.dialect for group in groups.values() for _, key in group.values()]
    return Adapter(name, max(set(dialects), key=dialects.count), parts, tuple(unknown), len(tensors), metadata, said)


def _part(
    name: str,
    tensors: Mapping[str, Tensor],
    group: Mapping[str, tuple[str, Key]],
    config: Mapping[str, Any],
    component: str,
) -> Part:
    some_text, key = next(iter(group.values()))
    held = {role: tensors[text] for role, (text, _) in group.items()}
    path = dotted(key.path)
    factors = {role: tensor for role, tensor in held.items() if role in _FACTORS}
    for role, tensor in held.items():
        if role != "alpha" and not tensor.is_floating_point():
            raise _damaged(name, group[role][0], f"its values are {tensor.dtype}, not floating point numbers")
    rank, alpha = _rank_and_alpha(name, held, config, key.component, path)
    try:
        delta = build(factors, alpha, rank) if factors else None
    except KeyError as missing:
        raise _damaged(name, some_text, f"its layer has no factor {missing.args[0]!r}") from None
    try:
        shape = delta.shape() if delta else None
    except (RuntimeError, IndexError, ValueError):
        found = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in factors.items())
        raise _damaged(name, some_text, f"its factors do not fit each other: {found}") from None
    bias = held.get("diff_b")
    if bias is None and "up_bias" in held and delta is not None:
        bias = held["up_bias"].float() * delta.scale
    magnitude = _magnitude(name, group, held, shape)
    component = key.component or component
    return Part(component, path, key.flat, delta, magnitude, bias, shape, tuple(text for text, _ in group.values()))


def _magnitude(
    name: str, group: Mapping[str, tuple[str, Key]], held: Mapping[str, Tensor], shape: tuple[int, int] | None
) -> Magnitude | None:
    role = "dora_scale" if "dora_scale" in held else "magnitude"
    if role not in held:
        return None
    if shape is None:
        raise _damaged(name, group[role][0], "it rescales a layer that has no other change")
    magnitude = Magnitude.read(held[role], role, shape[0])
    count = magnitude.values.numel()
    fits = shape[1] % count == 0 if magnitude.per_input else count in (1, shape[0])
    if not fits:
        raise _damaged(name, group[role][0], f"{count} lengths do not fit a change of {shape[0]} x {shape[1]}")
    return magnitude


def _rank_and_alpha(
    name: str, held: Mapping[str, Tensor], config: Mapping[str, Any], component: str, path: str
) -> tuple[int | None, float | None]:
    """The tensor `alpha` speaks first, then the peft configuration; None: the file says nothing, and the scale is 1."""
    own = {key.removeprefix(f"{component}."): value for key, value in config.items() if key.startswith(f"{component}.")}
    own = own or {key: value for key, value in config.items() if not key.startswith((UNET, TEXT, TEXT_2))}
    rank = _patterned(own, "rank_pattern", path, own.get("r"))
    alpha = _patterned(own, "alpha_pattern", path, own.get("lora_alpha", own.get("alpha")))
    try:
        rank = None if rank is None else int(rank)
        if "alpha" in held:
            alpha = float(held["alpha"].reshape(()))
        elif alpha is not None:
            alpha = float(alpha) * (math.sqrt(rank) if own.get("use_rslora") and rank else 1.0)  # alpha / sqrt(rank)
    except (TypeError, ValueError, RuntimeError):
        raise _damaged(name, path, f"alpha {held.get('alpha', alpha)!r} or rank {rank!r} is not a number") from None
    if alpha is not None and not math.isfinite(alpha):
        raise _damaged(name, path, f"its alpha is {alpha}")
    return rank, alpha


def _patterned(config: Mapping[str, Any], field: str, path: str, default: Any) -> Any:
    """peft's per-layer exceptions; a pattern is taken as a name or the end of one, never run as an expression."""
    pattern = config.get(field) or {}
    if isinstance(pattern, dict):
        for written, value in pattern.items():
            end = written.removeprefix("^").removeprefix("text_model.")
            if path == end or path.endswith("." + end):
                return value
    return default


def _config(metadata: Mapping[str, str], name: str) -> Mapping[str, Any]:
    text = metadata.get("lora_adapter_metadata")
    if not text:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise _damaged(name, "lora_adapter_metadata", "it is not a JSON object")
    return config


def _damaged(name: str, key: str, why: str) -> LdmError:
    return LdmError(
        Code.FILE,
        f"{name}: the adapter is damaged at {key!r}.",
        f"{why[0].upper()}{why[1:]}.",
        "Fetch the file again, or save it again with the program that trained it.",
    )


def _not_an_adapter(name: str, tensors: Mapping[str, Tensor], said: BaseHint) -> LdmError:
    some = ", ".join(repr(key) for key in list(tensors)[:3]) or "none at all"
    kinds = {kind for key in tensors if (kind := unread_kind(key))}
    if kinds:
        what = f"{name}: adapters of the kind {', '.join(sorted(kinds))} are not supported."
        fix = (
            "Use a LoRA, LoHa, LoKr, DoRA or full-difference file, or merge this one with the program that trained it."
        )
    else:
        what = f"{name}: this file holds no adapter."
        fix = "Choose a LoRA file; a textual inversion is loaded as an embedding, a whole model with --model."
    why = f"Its keys are {some}" + (f", which belong to the family {said.family}." if said.family else ".")
    return LdmError(Code.FILE, what, why, fix)
