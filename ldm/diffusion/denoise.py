"""Modifiers: functions from networks and denoisers to denoisers. Guidance, kept regions and clamps live here, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ldm.diffusion.level import Kind, Level
from ldm.diffusion.sample import Denoiser, Prediction
from ldm.errors import Code, LdmError

Branches = Callable[[Tensor, Level, tuple[str, ...]], dict[str, Prediction]]


@dataclass(frozen=True)
class Guidance:
    """How the predictions with and without the prompt are combined; `kind` is the network's own output space."""

    scale: float = 7.5
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    method: Literal["cfg", "apg", "cfg-zero"] = "cfg"
    apg_eta: float = 0.0
    apg_norm: float = 0.0
    apg_momentum: float = 0.0
    zero_steps: int = 0
    pag: float = 0.0
    kind: Kind = "epsilon"

    @property
    def needs_null(self) -> bool:
        return self.scale > 1.0

    def acts(self, level: Level) -> bool:
        """Whether guidance is on at this level; outside its interval the plain conditional prediction stands."""
        done = float(level.progress[0])
        return self.interval[0] <= done < self.interval[1]


def guided(branches: Branches, guidance: Guidance) -> Denoiser:
    """One denoiser from the branches "cond", "null" and "perturbed" (Ho & Salimans 2022, and what came after).

    `branches` evaluates the named ones in a single call. Differences are taken in clean space, where they equal those
    in any linear space; what is not linear (rescale, CFG-zero*) is computed in the network's output space, in fp32.
    """
    if guidance.zero_steps and guidance.kind != "flow":
        raise LdmError(
            Code.USAGE,
            f"guidance.zero_steps={guidance.zero_steps} does not fit this model",
            f"it stands still for the first steps of a flow; the model predicts {guidance.kind}",
            "Leave zero_steps at 0.",
        )
    average: list[Tensor] = []  # APG's running mean of differences, of this run alone

    def denoise(x: Tensor, level: Level) -> Prediction:
        wanted = ["cond"]
        if guidance.acts(level):
            wanted += ["null"] * guidance.needs_null + ["perturbed"] * (guidance.pag > 0)
        said = branches(x, level, tuple(wanted))
        cond = said["cond"]
        clean = cond.clean
        if "null" in said:
            clean = _combine(cond.clean, said["null"].clean, x, level, guidance, average)
        if "perturbed" in said:  # Ahn 2024: away from what the network sees without self-attention
            clean = clean + guidance.pag * (cond.clean - said["perturbed"].clean)
        if guidance.rescale > 0 and clean is not cond.clean:
            clean = _rescaled(clean, cond.clean, x, level, guidance)
        if int(level.index[0]) < guidance.zero_steps:
            clean = level.clean(torch.zeros_like(x), x, "flow")
        return replace(cond, clean=clean)

    return denoise


def _combine(cond: Tensor, null: Tensor, x: Tensor, level: Level, guidance: Guidance, average: list[Tensor]) -> Tensor:
    if guidance.method == "apg":
        return _projected(cond, null, guidance, average)
    if guidance.method == "cfg-zero":
        c, u = level.output(cond, x, guidance.kind), level.output(null, x, guidance.kind)
        best = _dot(c, u) / (_dot(u, u) + 1e-8)  # Fan 2025, eq. 10: the multiple of u nearest to c
        return level.clean(best * u + guidance.scale * (c - best * u), x, guidance.kind)
    return null + guidance.scale * (cond - null)


def _projected(cond: Tensor, null: Tensor, guidance: Guidance, average: list[Tensor]) -> Tensor:
    """APG (Sadat 2024): the part of the difference along the prediction, which over-saturates, is scaled by eta."""
    diff = cond - null
    if guidance.apg_momentum:
        diff = diff + guidance.apg_momentum * average[0] if average else diff
        average[:] = [diff]
    if guidance.apg_norm > 0:
        norm = _dot(diff, diff).sqrt()
        diff = diff * (guidance.apg_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
    along = _dot(diff, cond) / _dot(cond, cond).clamp_min(1e-12) * cond
    return cond + (guidance.scale - 1) * (diff - along + guidance.apg_eta * along)


def _rescaled(clean: Tensor, cond: Tensor, x: Tensor, level: Level, guidance: Guidance) -> Tensor:
    """Lin 2023, section 3.4: the guided output gets back the spread of the conditional one, by a share `rescale`."""
    out, plain = level.output(clean, x, guidance.kind), level.output(cond, x, guidance.kind)
    dims = tuple(range(1, out.dim()))
    fitted = out * (plain.std(dims, keepdim=True) / out.std(dims, keepdim=True))
    return level.clean(guidance.rescale * fitted + (1 - guidance.rescale) * out, x, guidance.kind)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product over everything but the batch, [B,1,1,1]."""
    return (a * b).sum(dim=tuple(range(1, a.dim())), keepdim=True)


def keeping(denoise: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """Inpainting with any network: where the mask does not paint, the prediction is the known latent.

    mask [B or 1,1,h,w] in [0,1]: 1 is painted in every step, grey g only in the last part g of the run (differential
    masks, Levin & Fried 2023), 0 never. Within a step it is binary.
    """

    def kept(x: Tensor, level: Level) -> Prediction:
        said = denoise(x, level)
        paint = mask >= 1 - level.progress.to(mask).view(-1, 1, 1, 1)
        return replace(said, clean=torch.where(paint, said.clean, known))

    return kept


def clamped(denoise: Denoiser, limit: float) -> Denoiser:
    """Predictions kept in [-limit, limit]: for models of pixels whose scheduler asks for it."""

    def inside(x: Tensor, level: Level) -> Prediction:
        said = denoise(x, level)
        return replace(said, clean=said.clean.clamp(-limit, limit))

    return inside
