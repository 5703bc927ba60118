"""Several adapters as one: for each layer sum_i w_i dW_i, exactly where ranks may add up, else of a lower rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.adapters.adapter import Adapter, Part, component_of, parse_adapter
from ldm.models.adapters.base import refuse_other_base
from ldm.models.adapters.factors import Factors, joined, nearest, shortened
from ldm.models.adapters.stack import AdapterStack

Layer = tuple[str, str]  # component and name
_CANCELLED = 1e-10  # a sum with less than this of its terms' squares is their rounding
PHRASE = "modelspec.trigger_phrase"


@dataclass(frozen=True, eq=False)
class Mixed:
    """The sum, the share of |dW|^2 (over all layers) that its rank leaves out, and of how many layers nothing is left:
    their terms cancel, or were zero."""

    adapter: Adapter
    left_out: float
    idle: int = 0


@dataclass(eq=False)
class _Sum:
    """What is known of one layer's change."""

    weight: Tensor | None  # of the base, where there is one at hand
    terms: list[tuple[Part, float]] = field(default_factory=list)

    @property
    def square(self) -> float:
        """Of the terms' own norms."""
        return sum((weight * part.delta.norm()) ** 2 for part, weight in self.terms if part.delta)

    @property
    def dtype(self) -> torch.dtype:
        """The widest of the files' types: what was saved in half precision stays that small."""
        kept = [t.dtype for part, _ in self.terms if part.delta for t in part.delta.factors.values()]
        kept += [part.bias.dtype for part, _ in self.terms if part.bias is not None]
        wide = kept[0]
        for other in kept[1:]:
            wide = torch.promote_types(wide, other)
        return wide


def mixed(
    items: Sequence[tuple[Adapter, float]],
    name: str,
    rank: int | None = None,
    base: AdapterStack | None = None,
) -> Mixed:
    """One adapter that does what `items` do together at these weights.

    Without a rank only LoRAs are summed, and exactly. With one, every kind is; DoRA needs the base, whose weights it
    rescales, and so do convolutions whose factors do not tell their kernel.
    """
    adapters = [adapter for adapter, _ in items]
    _check_relatives(adapters)
    if base is not None:
        for adapter in adapters:
            refuse_other_base(adapter.name, adapter.base, base.family, base.fingerprint, adapter.any_base)
    tensors: dict[str, Tensor] = {}
    left_out = square = 0.0
    idle = 0
    for (component, layer), one in _collected(items, base).items():
        stem = f"{component}.{layer}"
        if (bias := _bias(one)) is not None:
            tensors[f"{stem}.diff_b"] = bias.to(one.dtype)
        if all(part.delta is None for part, _ in one.terms):
            continue
        made = _factors(one, rank, f"{component}.{layer}")
        left_out, square = left_out + made.left_out, square + made.square
        if made.rank and made.square > _CANCELLED * one.square:
            down, up = _shaped(made, one)
            tensors |= {f"{stem}.lora_A.weight": down.to(one.dtype), f"{stem}.lora_B.weight": up.to(one.dtype),
                        f"{stem}.alpha": torch.tensor(float(made.rank))}  # fmt: skip
        else:
            idle += 1
    if not tensors:
        what, why = f"{name} would be empty.", "The changes cancel each other, or are all zero."
        raise LdmError(Code.MODEL, what, why, "Give other weights.")
    told = _agreed([adapter.metadata for adapter in adapters])
    return Mixed(parse_adapter(tensors, told, name), left_out / square if square else 0.0, idle)


def _collected(items: Sequence[tuple[Adapter, float]], base: AdapterStack | None) -> dict[Layer, _Sum]:
    """The terms of every layer. Of a base, every tensor has its place, or an error names those without one."""
    sums: dict[Layer, _Sum] = {}
    for adapter, weight in items:
        if adapter.unknown:
            what = f"{adapter.name}: {len(adapter.unknown)} of {adapter.total} tensors are not understood."
            why = f"Summing would lose {', '.join(map(repr, adapter.unknown[:3]))}."
            raise LdmError(
                Code.MODEL, what, why, "Use a LoRA or one of its relatives that `ldm adapter inspect` knows."
            )
        found: list[tuple[Layer, Tensor | None, Part]]
        if base is None:
            found = [((component_of(part), part.path), None, part) for part in adapter.parts]
        else:
            found = [((component, layer), own, part) for component, layer, own, part in base.bound(adapter)]
        for key, own, part in found:
            sums.setdefault(key, _Sum(own)).terms.append((part, weight))
    return sums


def _bias(one: _Sum) -> Tensor | None:
    terms = [weight * part.bias.float() for part, weight in one.terms if part.bias is not None]
    return torch.stack(terms).sum(0) if terms else None


def _factors(one: _Sum, rank: int | None, where: str) -> Factors:
    """The sum of a layer's terms as one product."""
    plain = [(part, weight) for part, weight in one.terms if part.delta is not None]
    if all(_is_plain(part) for part, _ in plain):
        up, down = joined([(*_pair(part), weight) for part, weight in plain])
        if rank is not None:
            return shortened(up, down, rank)
        return Factors(up, down, 0.0, float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0)))
    if any(part.delta is not None and _is_vector(part.delta.factors) for part, _ in plain):
        what, why = f"{where} is not summed.", "It is the change of a norm, of which no LoRA can be made."
        raise LdmError(Code.USAGE, what, why, "Put it into a model: --into MODEL.")
    kinds = ", ".join(sorted({part.kind for part, _ in plain if not _is_plain(part)}))
    if rank is None:
        what, why = (
            f"{where} is not summed.",
            f"Its kind is {kinds}, of which only a LoRA near it can be made.",
        )
        raise LdmError(Code.USAGE, what, why, "Name the rank of that LoRA: --rank 16.")
    if one.weight is None and any(part.magnitude is not None for part, _ in plain):
        what, why = f"{where} is not summed.", "DoRA rescales the weights of its base, which is not at hand."
        raise LdmError(Code.USAGE, what, why, "Name the base: --base MODEL.")
    total: Tensor | None = None
    for part, weight in plain:
        assert part.delta is not None
        exact = part.delta.matrix("cpu") if one.weight is None else part.change(one.weight.float())
        change = weight * exact.reshape(exact.shape[0], -1)
        total = change if total is None else total + change
    assert total is not None
    return nearest(total, rank)


def _is_vector(factors: Mapping[str, Tensor]) -> bool:
    return max(tensor.ndim for tensor in factors.values()) < 2


def _is_plain(part: Part) -> bool:
    return part.kind == "lora" and part.delta is not None and "mid" not in part.delta.factors


def _pair(part: Part) -> tuple[Tensor, Tensor]:
    """up and down in fp32, the scale in `up`."""
    assert part.delta is not None
    factors = part.delta.factors
    return factors["up"].float().flatten(1) * part.delta.scale, factors["down"].float().flatten(1)


def _shaped(made: Factors, one: _Sum) -> tuple[Tensor, Tensor]:
    """down [r,in,kh,kw] and up [out,r,1,1] of a convolution; both as they are of a linear layer."""
    shapes = [one.weight.shape] if one.weight is not None else []
    for part, _ in one.terms:
        if part.delta is not None and part.delta.kind in ("lora", "full") and "mid" not in part.delta.factors:
            shapes.append(part.delta.factors["down" if part.delta.kind == "lora" else "diff"].shape)
        elif part.delta is not None and "mid" in part.delta.factors:
            kernel = part.delta.factors["mid"].shape[2:]
            shapes.append(torch.Size((1, part.delta.factors["down"].shape[1], *kernel)))
    known = max(shapes, key=len, default=None)
    if known is None or len(known) <= 2:
        if known is None and _of_convolution(one):
            what, why = (
                f"{one.terms[0][0].path} is not summed.",
                "Its factors do not tell the kernel of the convolution.",
            )
            raise LdmError(Code.USAGE, what, why, "Name the base: --base MODEL.")
        return made.down.contiguous(), made.up.contiguous()
    return made.down.reshape(made.rank, *known[1:]).contiguous(), made.up[:, :, None, None].contiguous()


def _of_convolution(one: _Sum) -> bool:
    """Or maybe: the projections around attention are convolutions in some families, and linear in others."""
    ends = [part.path.rsplit(".", 1)[-1] for part, _ in one.terms]
    return any("conv" in end or end in ("proj_in", "proj_out") for end in ends)


def _check_relatives(adapters: Sequence[Adapter]) -> None:
    """Adapters of two families change other layers under other names; of two models of our own, other weights."""
    for what, read in (("family", _family), ("base model", _own_base)):
        said = {read(adapter): adapter.name for adapter in adapters if read(adapter) is not None}
        if len(said) > 1:
            raise LdmError(
                Code.MODEL,
                f"{' and '.join(said.values())} were made for another {what} each.",
                f"Their files name {' and '.join(map(str, said))}.",
                "Sum adapters of one base.",  # !FILE lets models of our own pass
            )


def _family(adapter: Adapter) -> str | None:
    return adapter.base.family


def _own_base(adapter: Adapter) -> str | None:
    return adapter.base.fingerprint if adapter.base.family == "own" and not adapter.any_base else None


def _agreed(told: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all files say alike of their base and licence, and all words that call something; ranks, titles and hashes
    of each are gone."""
    base = ("ldm.base_fingerprint", "ldm.base_family", "ldm.base_name")
    kept = (*base, "ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.license")
    first = told[0]
    agreed = {key: first[key] for key in kept if key in first and all(other.get(key) == first[key] for other in told)}
    words = dict.fromkeys(each[PHRASE] for each in told if each.get(PHRASE))
    return agreed | ({PHRASE: ", ".join(words)} if words else {})
