"""Several adapters merged into the weights of a pipeline's networks, and taken out again without a trace.

W' = W + sum_i w_i (new_i(W) - W), always computed from the kept source W: the order of the adapters does not matter
beyond rounding, weight 0 is the base, and `clear` puts the source tensor itself back.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.adapters.adapter import Adapter, Part
from ldm.models.adapters.base import family_of_width, refuse_other_base
from ldm.models.adapters.keys import TEXT, TEXT_2, UNET, aliases, flat, split, unread_kind

Item = tuple[Adapter, float, float | None]  # adapter, weight in the U-Net, weight in the text encoders (None: the same)


@dataclass(frozen=True)
class Applied:
    """What one adapter did: norm = |w dW| over all layers, relative to the norm of the layers it touched."""

    name: str
    tensors: int
    total: int
    layers: int
    weight: float
    text_weight: float
    norm: float
    relative: float

    def __str__(self) -> str:
        weight = f"{self.weight:g}" + ("" if self.text_weight == self.weight else f" (text {self.text_weight:g})")
        share = 100 * self.relative
        percent = f"{share:.2g}" if share < 99.5 else f"{share:.0f}"
        layers = f"{self.layers} layer{'' if self.layers == 1 else 's'}"
        return (
            f"{self.name}: {self.tensors} of {self.total} tensors applied to {layers} at weight {weight}, "
            f"norm {self.norm:.3g} ({percent} % of the touched weights)"
        )


@dataclass(frozen=True)
class Report:
    """What `use` did; `recomputed` counts the weights that had to be merged anew."""

    applied: tuple[Applied, ...] = ()
    recomputed: int = 0

    def __str__(self) -> str:
        return "\n".join(map(str, self.applied)) or "no adapters"


@dataclass(frozen=True)
class _Term:
    """One adapter's share in one parameter."""

    index: int
    name: str
    part: Part
    weight: float
    is_bias: bool

    def change(self, source: Tensor) -> Tensor:
        if not self.is_bias:
            return self.part.change(source)
        assert self.part.bias is not None
        return self.part.bias.to(source.device, source.dtype).reshape(source.shape)


@dataclass
class _Touched:
    """A parameter that is not the base's at the moment, with the source to which it returns."""

    parameter: nn.Parameter
    source: Tensor
    recipe: tuple[tuple[Part, float], ...]
    norms: tuple[float, ...] = ()
    size: float = 0.0
    changed: bool = False
    finite: bool = True

    def restore(self) -> None:
        # the model may have moved or changed its type since; otherwise this is the very tensor it was loaded with
        self.parameter.data = self.source.to(self.parameter.device, self.parameter.dtype)


class AdapterStack:
    """The adapters of one set of networks. Nobody else may change the weights between `use` and `clear`."""

    def __init__(
        self, unet: nn.Module, text_encoders: Sequence[nn.Module], family: str, fingerprint: str | None = None
    ) -> None:
        self.family, self.fingerprint = family, fingerprint
        towers = (TEXT_2,) if family == "xl-refiner" else (TEXT, TEXT_2)
        self._networks = {UNET: unet, **dict(zip(towers, text_encoders, strict=False))}
        self._layers = {component: _layers(network) for component, network in self._networks.items()}
        self._names = {component: aliases(layers) for component, layers in self._layers.items()}
        self._touched: dict[tuple[str, str], _Touched] = {}

    def use(self, items: Sequence[Item]) -> Report:
        """Make the weights those of the base with exactly these adapters; only layers whose recipe changed are merged.

        After an error the weights are the base's: nobody ever computes with half a stack.
        """
        try:
            plan, layers = self._plan(items)
            return self._report(items, layers, plan, self._merge(plan))
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Put every source tensor back: the networks are bit for bit what they were."""
        for touched in self._touched.values():
            touched.restore()
        self._touched.clear()

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """By component."""
        return self._networks

    def bound(self, adapter: Adapter) -> Iterator[tuple[str, str, Tensor, Part]]:
        """(component, layer, weight of the base, part) for every part; an error, if one has no place here."""
        for component, layer, part in self._bind(adapter):
            touched = self._touched.get((component, f"{layer}.weight"))
            weight = self._layers[component][layer].get_parameter("weight").data if touched is None else touched.source
            yield component, layer, weight, part

    def _plan(self, items: Sequence[Item]) -> tuple[dict[tuple[str, str], list[_Term]], list[int]]:
        """The terms of every parameter that changes, and the layers of each adapter counted; a misfit is an error."""
        plan: dict[tuple[str, str], list[_Term]] = {}
        layers: list[int] = []
        for index, (adapter, weight, text_weight) in enumerate(items):
            unet_weight, tower_weight = _weights(adapter.name, weight, text_weight)
            refuse_other_base(adapter.name, adapter.base, self.family, self.fingerprint, adapter.any_base)
            bound = self._bind(adapter)
            layers.append(len(bound))
            for component, layer, part in bound:
                strength = unet_weight if component == UNET else tower_weight
                for field, held in (("weight", part.delta), ("bias", part.bias)):
                    if strength != 0 and held is not None:
                        term = _Term(index, adapter.name, part, strength, field == "bias")
                        plan.setdefault((component, f"{layer}.{field}"), []).append(term)
        return plan, layers

    def _merge(self, plan: dict[tuple[str, str], list[_Term]]) -> int:
        for key in self._touched.keys() - plan.keys():
            self._touched.pop(key).restore()
        recomputed = 0
        for key, terms in plan.items():
            recipe = tuple((term.part, term.weight) for term in terms)
            touched = self._touched.get(key)
            if touched is not None and touched.recipe == recipe:
                continue
            if touched is None:
                parameter = self._networks[key[0]].get_parameter(key[1])
                touched = self._touched[key] = _Touched(parameter, parameter.data, recipe)
            _compute(touched, terms)
            if not touched.finite:
                raise _not_finite(terms, key)
            touched.recipe = recipe
            recomputed += 1
        return recomputed

    def _report(
        self, items: Sequence[Item], layers: list[int], plan: dict[tuple[str, str], list[_Term]], recomputed: int
    ) -> Report:
        squares, sizes, wanted = [0.0] * len(items), [0.0] * len(items), [False] * len(items)
        changed = False
        for key, terms in plan.items():
            touched = self._touched[key]
            changed = changed or touched.changed
            for term, norm in zip(terms, touched.norms, strict=True):
                squares[term.index] += norm**2
                sizes[term.index] += touched.size**2
                wanted[term.index] = True
        applied = []
        for index, (adapter, weight, text_weight) in enumerate(items):
            norm = math.sqrt(squares[index])
            if wanted[index] and (norm == 0 or (not changed and sum(wanted) == 1)):
                raise _no_effect(adapter, norm)
            relative = norm / math.sqrt(sizes[index]) if sizes[index] else 0.0
            text = weight if text_weight is None else text_weight
            applied.append(
                Applied(adapter.name, adapter.total, adapter.total, layers[index], weight, text, norm, relative)
            )
        return Report(tuple(applied), recomputed)

    def _bind(self, adapter: Adapter) -> list[tuple[str, str, Part]]:
        """(component, layer, part) for every part of the adapter; an error, if one has no layer or another shape."""
        bound: list[tuple[str, str, Part]] = []
        unmatched: list[str] = list(adapter.unknown)
        wrong: list[str] = []
        silent = self._silent(adapter)
        for part in adapter.parts:
            component = part.component or silent
            layer = self._names.get(component, {}).get(part.flat)
            if layer is None:
                unmatched += part.keys
            elif problem := _misfit(part, self._layers[component][layer]):
                wrong.append(f"{component}.{layer}: {problem}")
            else:
                bound.append((component, layer, part))
        if unmatched:
            raise _partial(adapter, unmatched, self._layers)
        if wrong:
            raise _other_width(adapter, wrong, self.family)
        return bound

    def _silent(self, adapter: Adapter) -> str:
        """The component that keys without a component mean: the one that knows most of their layers, and fits."""
        parts = [part for part in adapter.parts if not part.component]

        def known(component: str) -> tuple[int, int]:
            names, layers = self._names[component], self._layers[component]
            found = [(layers[names[part.flat]], part) for part in parts if part.flat in names]
            return len(found), -sum(bool(_misfit(part, layer)) for layer, part in found)

        return max(self._networks, key=known)


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    }


def _compute(touched: _Touched, terms: list[_Term]) -> None:
    """W' = W + sum w (new(W) - W), summed in fp32 or better and rounded once."""
    parameter = touched.parameter
    with torch.no_grad():
        source = touched.source.to(parameter.device, parameter.dtype)
        exact = source.to(torch.promote_types(source.dtype, torch.float32))
        total, norms = exact.clone(), []
        for term in terms:
            change = term.change(exact)
            norms.append(abs(term.weight) * float(change.norm()))
            total.add_(change, alpha=term.weight)
        merged = total.to(parameter.dtype)
        touched.norms, touched.size = tuple(norms), float(exact.norm())
        # a change longer than eps |W| moves at least one value of W by more than its rounding
        clear = len(norms) == 1 and norms[0] > torch.finfo(merged.dtype).eps * touched.size
        touched.changed = clear or not torch.equal(merged, source)
        touched.finite = math.isfinite(float(merged.sum(dtype=exact.dtype)))  # one NaN or infinity spoils the sum
        parameter.data = merged


def _misfit(part: Part, layer: nn.Module) -> str:
    """Why this part does not fit this layer; empty if it does."""
    weight = layer.get_parameter("weight")
    rows, columns = weight.shape[0], weight[0].numel()
    if part.shape is not None and part.shape != (rows, columns):
        return f"the adapter changes {part.shape[0]} x {part.shape[1]}, the base has {rows} x {columns}"
    if part.bias is not None:
        bias = getattr(layer, "bias", None)
        if bias is None or bias.numel() != part.bias.numel():
            held = "none" if bias is None else bias.numel()
            return f"the adapter changes a bias of {part.bias.numel()} values, the base has {held}"
    return ""


def _weights(name: str, weight: float, text_weight: float | None) -> tuple[float, float]:
    text = weight if text_weight is None else text_weight
    if not (math.isfinite(weight) and math.isfinite(text)):
        raise LdmError(
            Code.USAGE,
            f"{name}: the weight {weight} (text {text}) is not a finite number.",
            "A weight multiplies the adapter's change before it is added to the base.",
            "Give a number such as 0.8.",
        )
    return weight, text


def _nearest(key: str, known: Mapping[str, Iterable[str]]) -> Iterator[str]:
    parsed = split(key)
    wanted = f"{parsed.component or UNET}_{parsed.flat}" if parsed else flat(key)
    table = {
        f"{component}_{flat(layer)}": f"{component}.{layer}" for component, layers in known.items() for layer in layers
    }
    for close in difflib.get_close_matches(wanted, table, n=1, cutoff=0.5):
        yield table[close]


def _partial(adapter: Adapter, unmatched: list[str], known: Mapping[str, Iterable[str]]) -> LdmError:
    first = ", ".join(repr(key) for key in unmatched[:3]) + (", ..." if len(unmatched) > 3 else "")
    near = [name for key in unmatched[:3] for name in _nearest(key, known)]
    names = f"; the nearest layers of the base are {', '.join(dict.fromkeys(near))}" if near else ""
    kinds = {kind for key in adapter.unknown if (kind := unread_kind(key))}
    unread = f" Keys of the kind {', '.join(sorted(kinds))} are not supported." if kinds else ""
    return LdmError(
        Code.MODEL,
        f"{adapter.name}: only {adapter.total - len(unmatched)} of {adapter.total} tensors fit the base model.",
        f"It has no place for {first}{names}.{unread}",
        "Use an adapter made for this base model, or `ldm adapter inspect` to see what this one changes.",
    )


def _other_width(adapter: Adapter, wrong: list[str], family: str) -> LdmError:
    widths = {part.shape[1] for part in adapter.parts if part.shape and part.path.endswith("attn2.to_k")}
    made = {found for width in widths if (found := family_of_width(width)) and found != family}
    guess = f" It looks made for the family {made.pop()}." if made else ""
    return LdmError(
        Code.MODEL,
        f"{adapter.name}: this adapter was made for a base model of other widths ({len(wrong)} layers differ).",
        f"{'; '.join(wrong[:3])}.{guess}",
        f"Use an adapter made for this base model (family {family}).",
    )


def _no_effect(adapter: Adapter, norm: float) -> LdmError:
    why = (
        "All its changes are zero"
        if norm == 0
        else f"Its change (norm {norm:.3g}) is lost in the rounding of the weights' type"
    )
    return LdmError(
        Code.MODEL,
        f"{adapter.name}: this adapter has no effect on any weight.",
        f"{why}: the picture would be that of the base model.",
        "Train it for longer, choose another file, raise its weight, or leave it out.",
    )


def _not_finite(terms: list[_Term], key: tuple[str, str]) -> LdmError:
    names = ", ".join(dict.fromkeys(term.name for term in terms))
    return LdmError(
        Code.NUMERIC,
        f"{names}: {key[0]}.{key[1]} is not finite after merging.",
        "The adapter holds NaN or infinite values, or its weight is too large for the type of the weights.",
        "Use another version of the file, a smaller weight, or --dtype float32.",
    )
