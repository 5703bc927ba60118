"""How alike two adapters are: the angle between their changes, layer by layer and as a whole."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.adapters.adapter import Adapter, Part, component_of
from ldm.models.adapters.summary import block


@dataclass(frozen=True)
class Comparison:
    """Norms and cosines of |dW| at weight 1, before DoRA's rescaling. A cosine of 1: the same direction."""

    names: tuple[str, str]
    kinds: tuple[tuple[str, ...], tuple[str, ...]]
    layers: tuple[int, int]
    shared: int  # layers that both change
    norms: tuple[float, float]
    cosine: float
    blocks: dict[str, float]  # block -> cosine of what both change there
    same: bool  # every factor of every layer is equal to the bit


def compare(one: Adapter, other: Adapter) -> Comparison:
    """Layers are matched by component and name; a layer that one of them leaves alone adds to its norm only."""
    left, right = _parts(one), _parts(other)
    products: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    squares = [sum(part.delta.norm() ** 2 for part in side.values() if part.delta) for side in (left, right)]
    for key in left.keys() & right.keys():
        a, b = left[key], right[key]
        if a.shape != b.shape:
            raise LdmError(
                Code.MODEL,
                f"{one.name} and {other.name} are for bases of different widths.",
                f"{key[1]} is changed by {_size(a)} and by {_size(b)}.",
                "Compare adapters of one base.",
            )
        if a.delta is not None and b.delta is not None:
            into = products[block(key[0], key[1])]
            into[0] += inner(a, b)
            into[1] += a.delta.norm() ** 2
            into[2] += b.delta.norm() ** 2
    total = sum(product for product, _, _ in products.values())
    return Comparison(
        (one.name, other.name),
        (one.kinds, other.kinds),
        (len(left), len(right)),
        len(left.keys() & right.keys()),
        (math.sqrt(squares[0]), math.sqrt(squares[1])),
        _cosine(total, squares[0], squares[1]),
        {name: _cosine(*values) for name, values in sorted(products.items())},
        left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left),
    )


def inner(a: Part, b: Part) -> float:
    """<dW_a, dW_b>; of two LoRAs tr((up_a' up_b)(down_b down_a')), which needs no matrix of the layer's size."""
    assert a.delta is not None and b.delta is not None
    f, g = a.delta.factors, b.delta.factors
    if a.delta.kind == b.delta.kind == "lora" and "mid" not in f and "mid" not in g:
        ups = _flat(f["up"]).T @ _flat(g["up"])
        downs = _flat(f["down"]) @ _flat(g["down"]).T
        return float((ups * downs).sum()) * a.delta.scale * b.delta.scale
    return float((a.delta.matrix("cpu").double() * b.delta.matrix("cpu").double()).sum())


def _flat(factor: Tensor) -> Tensor:
    return factor.double().flatten(1)


def _parts(adapter: Adapter) -> Mapping[tuple[str, str], Part]:
    return {(component_of(part), part.path): part for part in adapter.parts}


def _size(part: Part) -> str:
    return " x ".join(map(str, part.shape)) if part.shape else "a bias alone"


def _cosine(product: float, a: float, b: float) -> float:
    return product / math.sqrt(a * b) if a > 0 and b > 0 else 0.0


def _equal(a: Part, b: Part) -> bool:
    if a.kind != b.kind or (a.delta is None) != (b.delta is None):
        return False
    if a.delta is not None and b.delta is not None:
        f, g = a.delta.factors, b.delta.factors
        if a.delta.scale != b.delta.scale or f.keys() != g.keys():
            return False
        if not all(
            f[role].shape.numel() == g[role].shape.numel() and torch.equal(f[role].flatten(), g[role].flatten())
            for role in f
        ):
            return False
    lengths = [None if p.magnitude is None else p.magnitude.values for p in (a, b)]
    return _same(*lengths) and _same(a.bias, b.bias)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a.flatten(), b.flatten()))
