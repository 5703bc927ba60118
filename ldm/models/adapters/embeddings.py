"""Textual inversion: new words for the text encoders, read from the five shapes in which they are shared.

1. diffusers: {token: [n,d]}, [1,d] or [d], also one key per vector (token, token_1, ...)
2. A1111 and kohya: {"emb_params": [n,d]}
3. A1111, converted from a pickle: {"string_to_param.*": [n,d]} or {"*": [n,d]}
4. XL: {"clip_l": [n,768], "clip_g": [n,1280]}, or text_encoders_0 and text_encoders_1
5. one tensor under a name that says nothing: the file's own name is the token
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.adapters.base import hint
from ldm.models.adapters.keys import split

_TOWERS = {"clip_l": "clip_l", "text_encoders_0": "clip_l", "clip_g": "clip_g", "text_encoders_1": "clip_g"}
_NAMELESS = frozenset(
    {
        "emb_params",
        "*",
        "embedding",
        "embeddings",
        "emb",
        "weight",
        "vector",
        "vectors",
        "tensor",
        "param",
        "params",
        "data",
    }
)
_WIDTH_G = 1280  # the second tower of XL; every other width belongs to the first or only tower
_MOST = 75  # vectors that fit between the start and end of one chunk of text


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word and its vectors [n, d] for each tower; n is the same in all towers."""

    token: str
    vectors: Mapping[str, Tensor]  # clip_l: the first or only tower, clip_g: the second of XL
    family: str | None = None
    source: str = "embedding"

    @property
    def count(self) -> int:
        return int(next(iter(self.vectors.values())).shape[0])

    def for_towers(self, widths: Sequence[int]) -> tuple[Tensor, ...]:
        """The vectors for text towers of these widths, in their order; an error, unless each tower gets its own."""
        held = {tower: int(vectors.shape[1]) for tower, vectors in self.vectors.items()}
        chosen = [tower for tower in ("clip_l", "clip_g") if tower in held]
        if list(widths) == [_WIDTH_G] and held.get("clip_g") == _WIDTH_G:
            chosen = ["clip_g"]  # the refiner has the second tower of XL only
        if [held[tower] for tower in chosen] != list(widths):
            made = " and ".join(f"{tower} of width {width}" for tower, width in held.items())
            base = " and ".join(
                f"{place} of width {width}" for place, width in zip(("clip_l", "clip_g"), widths, strict=False)
            )
            raise LdmError(
                Code.MODEL,
                f"{self.source}: the embedding {self.token!r} was made for another base model.",
                f"It holds vectors for {made}; the base model has the text tower {base or 'none'}.",
                "Use an embedding that was trained for this model family.",
            )
        return tuple(self.vectors[tower] for tower in chosen)

    def tensors(self, dialect: Literal["diffusers", "a1111"] = "diffusers") -> dict[str, Tensor]:
        """The same embedding for a file: {token: [n,d]} or {"emb_params": [n,d]}, XL as clip_l and clip_g."""
        if len(self.vectors) > 1:
            return {tower: vectors.contiguous() for tower, vectors in self.vectors.items()}
        name = self.token if dialect == "diffusers" else "emb_params"
        return {name: next(iter(self.vectors.values())).contiguous()}


def parse_embedding(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, stem: str = "embedding"
) -> Embedding:
    """The embedding held by these tensors; `stem` is the file's name without ending, and the token of last resort."""
    metadata = metadata or {}
    if not tensors or any(split(key) for key in tensors):
        held = "a LoRA or another adapter of weights" if tensors else "no tensors"
        raise _not_an_embedding(stem, f"it holds {held}")
    family = hint(metadata, ()).family
    towers = {_TOWERS[key]: tensor for key, tensor in tensors.items() if key in _TOWERS}
    if towers:
        if len(towers) != len(tensors):
            extra = [key for key in tensors if key not in _TOWERS]
            raise _not_an_embedding(stem, f"beside its towers it holds {', '.join(map(repr, extra[:3]))}")
        vectors: dict[str, Tensor] = {
            tower: _vectors(stem, tower, towers[tower]) for tower in ("clip_l", "clip_g") if tower in towers
        }
        if len({len(one) for one in vectors.values()}) > 1:
            counts = " and ".join(f"{len(one)} for {tower}" for tower, one in vectors.items())
            raise _not_an_embedding(stem, f"its towers have different numbers of vectors: {counts}")
        return Embedding(_named(metadata, stem), vectors, family, stem)
    token, whole = _single(tensors, metadata, stem)
    tower = "clip_g" if whole.shape[1] == _WIDTH_G else "clip_l"
    return Embedding(token, {tower: whole}, family, stem)


def _single(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], stem: str) -> tuple[str, Tensor]:
    if len(tensors) == 1:
        key, tensor = next(iter(tensors.items()))
        nameless = key in _NAMELESS or re.fullmatch(r"string_to_param[./]?\*?(?:\..*)?", key)
        return _named(metadata, stem) if nameless else key, _vectors(stem, key, tensor)
    params = [key for key in tensors if key.startswith("string_to_param")]
    if len(params) == 1 and all(
        key.startswith("string_to_") for key in tensors
    ):  # beside it, string_to_token holds 265
        return _named(metadata, stem), _vectors(stem, params[0], tensors[params[0]])
    first = min(tensors, key=len)
    wanted = [first, *(f"{first}_{index}" for index in range(1, len(tensors)))]
    if set(wanted) != set(tensors):
        some = ", ".join(map(repr, list(tensors)[:3]))
        raise _not_an_embedding(stem, f"it holds {len(tensors)} tensors with unrelated names: {some}")
    rows = [_vectors(stem, key, tensors[key]) for key in wanted]
    if len({row.shape[1] for row in rows}) > 1:
        raise _not_an_embedding(stem, f"its vectors have different widths: {sorted({row.shape[1] for row in rows})}")
    return first, torch.cat(rows)


def _vectors(stem: str, key: str, tensor: Tensor) -> Tensor:
    """[d] or [n,d] as [n,d]."""
    whole = tensor[None] if tensor.ndim == 1 else tensor
    if whole.ndim != 2 or not whole.is_floating_point() or not 1 <= whole.shape[0] <= _MOST or whole.shape[1] < 2:
        shape = f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
        raise _not_an_embedding(stem, f"{key!r} is {shape}, and not 1 to {_MOST} vectors [n,d]")
    if not bool(torch.isfinite(whole).all()):
        raise _not_an_embedding(stem, f"{key!r} holds NaN or infinite values")
    return whole


def _named(metadata: Mapping[str, str], stem: str) -> str:
    """The file's name, as people type it; only a metadata entry that is meant as the token comes before it."""
    return metadata.get("ldm.token") or stem


def _not_an_embedding(stem: str, why: str) -> LdmError:
    return LdmError(
        Code.FILE,
        f"{stem}: this file is no textual-inversion embedding.",
        f"{why[0].upper()}{why[1:]}.",
        "Choose an embedding file; a LoRA is loaded with --lora, a whole model with --model.",
    )
