"""The change that an adapter makes to one weight, from the factors it is stored as.

Every change is a matrix dW [out, in * kernel]; the weight of a convolution is seen as such a matrix too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Delta(ABC):
    """dW = scale * matrix, with scale = alpha / rank, or 1 where either is not known."""

    factors: Mapping[str, Tensor]  # role -> tensor, as stored
    alpha: float | None
    declared: int | None  # the rank that the metadata names

    kind = ""

    @property
    @abstractmethod
    def rank(self) -> int | None: ...

    @abstractmethod
    def _matrix(self, f: Mapping[str, Tensor]) -> Tensor: ...

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.alpha is not None and self.rank else 1.0

    def matrix(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        """dW [out, in * kernel], scaled."""
        factors = {role: tensor.to(device, dtype) for role, tensor in self.factors.items()}
        small = next(role for role in ("up", "hada_w1_b", "lokr_w1", "lokr_w1_b", "diff") if role in factors)
        factors[small] = factors[small] * self.scale  # dW is linear in each factor, and a factor is small
        return self._matrix(factors)

    def shape(self) -> tuple[int, int]:
        """[out, in * kernel], found without computing; a RuntimeError says that the factors do not fit each other."""
        rows, columns = self._matrix({role: tensor.to("meta") for role, tensor in self.factors.items()}).shape
        return rows, columns

    def norm(self) -> float:
        """|dW|, Frobenius."""
        return float(self.matrix("cpu").norm())


class LowRank(Delta):
    """dW = up . down (Hu 2021); with a core for convolutions, dW[o,i,k] = up[o,a] mid[a,b,k] down[b,i] (LoCon)."""

    kind = "lora"

    @property
    def rank(self) -> int:
        return self.factors["down"].shape[0]

    def _matrix(self, f: Mapping[str, Tensor]) -> Tensor:
        up, down = f["up"].flatten(1), f["down"].flatten(1)
        if "mid" in f:
            return torch.einsum("oa,abk,bi->oik", up, f["mid"].flatten(2), down).flatten(1)
        return up @ down

    def shape(self) -> tuple[int, int]:
        """By itself where that is easy: shapes of products bring in torch's compiler, which takes seconds."""
        if "mid" in self.factors:
            return super().shape()
        up, down = (self.factors[role].flatten(1) for role in ("up", "down"))
        if up.shape[1] != down.shape[0]:
            raise RuntimeError(f"up has {up.shape[1]} columns and down {down.shape[0]} rows")
        return up.shape[0], down.shape[1]

    def norm(self) -> float:
        if "mid" in self.factors:
            return super().norm()
        up, down = (self.factors[role].to("cpu", torch.float32).flatten(1) for role in ("up", "down"))
        # |BA|^2 = tr(B'B AA'): two rank x rank matrices instead of one of the size of the weight
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()) * abs(self.scale)


class Hadamard(Delta):
    """LoHa: dW = (w1a . w1b) * (w2a . w2b), elementwise (Hyeon-Woo 2021); each product may have a core t."""

    kind = "loha"

    @property
    def rank(self) -> int:
        return self.factors["hada_w1_b"].shape[0]

    def _matrix(self, f: Mapping[str, Tensor]) -> Tensor:
        return _product(f, "hada_w1", f.get("hada_t1")) * _product(f, "hada_w2", f.get("hada_t2"))


class Kronecker(Delta):
    """LoKr: dW = kron(w1, w2), each whole or as a product (Yeh 2023)."""

    kind = "lokr"

    @property
    def rank(self) -> int | None:
        products = [self.factors[role].shape[0] for role in ("lokr_w1_b", "lokr_w2_b") if role in self.factors]
        return products[0] if products else self.declared

    def _matrix(self, f: Mapping[str, Tensor]) -> Tensor:
        w1 = f["lokr_w1"] if "lokr_w1" in f else _product(f, "lokr_w1", None)
        w2 = f["lokr_w2"].flatten(1) if "lokr_w2" in f else _product(f, "lokr_w2", f.get("lokr_t2"))
        return torch.kron(w1, w2)


class Difference(Delta):
    """The whole difference, stored as it is."""

    kind = "full"

    @property
    def rank(self) -> None:
        return None

    def _matrix(self, f: Mapping[str, Tensor]) -> Tensor:
        return as_matrix(f["diff"])


def _product(f: Mapping[str, Tensor], name: str, core: Tensor | None) -> Tensor:
    """a[out,r] . b[r,in * kernel]; with a core t[r,r,kernel] the factor a is stored as [r,out]."""
    a, b = f[f"{name}_a"], f[f"{name}_b"].flatten(1)
    if core is None:
        return a.flatten(1) @ b
    return torch.einsum("abk,bi,ao->oik", core.flatten(2), b, a.flatten(1)).flatten(1)


def as_matrix(weight: Tensor) -> Tensor:
    """A weight of any layer as [out, in * kernel]."""
    return weight.reshape(weight.shape[0], -1)


def build(factors: Mapping[str, Tensor], alpha: float | None, declared: int | None) -> Delta:
    """The change that these factors mean; a KeyError names a factor that is missing."""
    for first, kind, needed in (
        ("hada_", Hadamard, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
        ("lokr_", Kronecker, ()),
        ("diff", Difference, ("diff",)),
        ("", LowRank, ("down", "up")),
    ):
        if any(role.startswith(first) for role in factors):
            _demand(factors, needed if first != "lokr_" else _kronecker_roles(factors))
            return kind(dict(factors), alpha, declared)
    raise KeyError("a factor")


def _kronecker_roles(factors: Mapping[str, Tensor]) -> tuple[str, ...]:
    needed: list[str] = []
    for name in ("lokr_w1", "lokr_w2"):
        needed += [name] if name in factors else [f"{name}_a", f"{name}_b"]
    return tuple(needed)


def _demand(factors: Mapping[str, Tensor], needed: tuple[str, ...]) -> None:
    for role in needed:
        if role not in factors:
            raise KeyError(role)


@dataclass(frozen=True, eq=False)
class Magnitude:
    """DoRA's length of every row (or, in LyCORIS files, of every input channel) of the weight: m [n]."""

    values: Tensor
    per_input: bool

    @staticmethod
    def read(values: Tensor, role: str, rows: int) -> Magnitude:
        """peft stores [out] or [1,out,1,1]; LyCORIS [out,1,..] or, per input channel, [1,in,..]."""
        of_rows = values.ndim <= 1 or values.shape[0] == rows or (role == "magnitude" and values.numel() == rows)
        return Magnitude(values.reshape(-1), per_input=not of_rows and values.numel() != 1)

    def rescale(self, weight: Tensor) -> Tensor:
        """m * V / |V| for V [out, in * kernel], the norm taken along all other axes (Liu 2024)."""
        m = self.values.to(weight.device, weight.dtype)
        if not self.per_input:
            return weight * (m[:, None] / _length(weight, (1,)))
        cube = weight.reshape(weight.shape[0], len(m), -1)
        return (cube * (m[None, :, None] / _length(cube, (0, 2)))).reshape(weight.shape)


def _length(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The Euclidean length along these axes, kept from zero so that a row of zeros stays one."""
    length: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    return length.clamp(min=torch.finfo(weight.dtype).tiny)
