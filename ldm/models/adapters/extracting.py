"""The LoRA that lies between two models: for each layer the product of low rank nearest to tuned - base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.adapters.adapter import Adapter, parse_adapter
from ldm.models.adapters.factors import nearest


@dataclass(frozen=True, eq=False)
class Extracted:
    """The adapter; what its rank leaves out of |dW|^2; the share of all change that lies in no layer a LoRA changes
    (norms, biases, embeddings)."""

    adapter: Adapter
    left_out: float
    elsewhere: float


def extracted(
    base: Mapping[str, nn.Module],
    tuned: Mapping[str, nn.Module],
    name: str,
    *,
    rank: int | None = None,
    keep: float = 0.98,
    convolutions: bool = True,
) -> Extracted:
    """`base` and `tuned`: networks by component. Without a rank each layer gets the smallest that keeps the share
    `keep` of its |dW|^2."""
    tensors: dict[str, Tensor] = {}
    inside = outside = left_out = 0.0
    for component, network in base.items():
        layers = {layer: m for layer, m in network.named_modules() if _has_lora(m, convolutions)}
        for parameter, change in _changes(component, network, tuned[component]):
            layer, _, field = parameter.rpartition(".")
            square = float(change.double().square().sum())
            if field != "weight" or layer not in layers:
                outside += square
                continue
            inside += square
            made = nearest(change.flatten(1), rank, keep)
            left_out += made.left_out
            if made.rank:
                down, up = made.down, made.up
                if change.dim() == 4:
                    down, up = down.reshape(made.rank, *change.shape[1:]), up[:, :, None, None]
                stem = f"{component}.{layer}"
                tensors |= {
                    f"{stem}.lora_A.weight": down.contiguous(),
                    f"{stem}.lora_B.weight": up.contiguous(),
                    f"{stem}.alpha": torch.tensor(float(made.rank)),
                }
    if not tensors:
        raise LdmError(
            Code.MODEL,
            "There is nothing to extract.",
            "Both models have the same weights in every layer that a LoRA can change.",
            "Name the model that was tuned, and the one that it was tuned from.",
        )
    return Extracted(parse_adapter(tensors, {}, name), left_out / inside, outside / (inside + outside))


def _has_lora(module: nn.Module, convolutions: bool) -> bool:
    return isinstance(module, nn.Linear) or (convolutions and isinstance(module, nn.Conv2d))


def _changes(component: str, base: nn.Module, tuned: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """tuned - base of every parameter that changed; an error, if they are not of one architecture."""
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    odd = [n for n in ours if n not in theirs or theirs[n].shape != ours[n].shape]
    odd += [n for n in theirs if n not in ours]
    if odd:
        raise LdmError(
            Code.MODEL,
            "The two models are of different architectures.",
            f"{len(odd)} tensors of {component} differ in name or shape: {', '.join(odd[:3])}.",
            "Name the model that was tuned, and the one that it was tuned from.",
        )
    for name, parameter in ours.items():
        change = theirs[name].detach().float() - parameter.detach().float()
        largest = float(change.abs().max()) if change.numel() else 0.0
        if not math.isfinite(largest):
            what, why = f"{component}.{name} is not finite.", "A weight that is NaN or infinite has no difference."
            raise LdmError(Code.NUMERIC, what, why, "Use another version of the file.")
        if largest > 0:
            yield name, change
