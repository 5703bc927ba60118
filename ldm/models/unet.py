"""A U-Net (with any ControlNets) as a `Network`: several conditions in one call, clean latents out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.diffusion.level import Kind, Level
from ldm.diffusion.sample import Prediction
from ldm.errors import Code, LdmError
from ldm.models.latent import Cond, Control
from ldm.models.nets.attention import Words
from ldm.models.nets.known import ours

READ = 16  # rows of words whose keys and values are kept, besides those of the last call


class UNet:
    """Stacks the conditions of a call into one batch, adds control residuals, converts the output to clean latents.

    Latents and conversions are fp32; the network runs in its own type.
    """

    def __init__(self, model: nn.Module, kind: Kind, *, reads_once: bool = False) -> None:
        """`model`: a `UNet2D`, or one of diffusers. `reads_once`: keys and values of a prompt are kept from call
        to call, until `forget`; for weights that do not learn."""
        self.reads_once = reads_once
        self.model, self.kind = ours(model), kind
        self._read = list[tuple[tuple[Tensor, ...], Words]]()  # prompts of the last calls, the latest one first

    def meaning(self, kind: Kind) -> UNet:
        """The same network, its output read as another kind."""
        other = copy.copy(self)
        other.kind = kind
        return other

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def inpaints(self) -> bool:
        """Whether the network is shown mask and masked picture: 9 channels are 4 + 1 + 4."""
        return int(self.config.in_channels) == 9

    @property
    def latent_channels(self) -> int:
        """Channels of the latent, without those of mask and masked picture."""
        return 4 if self.inpaints else int(self.config.in_channels)

    @property
    def told_scale(self) -> bool:
        """Whether the network is told the guidance scale, and needs no second call for it."""
        return getattr(self.config, "time_cond_proj_dim", None) is not None

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
        count, batch = len(conds), len(x)
        told = join([replace(c, controls=()) for c in conds], batch)
        stacked, level = torch.cat([x] * count), level.expand(batch).repeat(count)
        dtype = next(self.model.parameters()).dtype
        inputs = stacked if told.channels is None else torch.cat([stacked, told.channels.to(stacked)], dim=1)
        call = self.arguments(told, dtype)
        if told.text is not None and self.reads_once:
            call["words"] = self._words(tuple(c.text for c in conds if c.text is not None), call["words"])
        output = self.model(
            inputs.to(dtype),
            level.t,
            **call,
            perturb=self._perturbed(conds, batch) if any(c.perturb for c in conds) else None,
            residuals=self._residuals(stacked.to(dtype), level, conds, told, dtype),
        ).float()
        variance = None
        if output.shape[1] == 2 * x.shape[1]:  # improved DDPM: the second half is the learned variance
            output, variance = output.chunk(2, dim=1)
        clean = level.clean(output, stacked, self.kind)
        variances = [None] * count if variance is None else list(variance.chunk(count))
        return [Prediction(c, v) for c, v in zip(clean.chunk(count), variances, strict=True)]

    def forget(self) -> None:
        """What was kept of prompts, and of the weights that it was computed of, is let go."""
        self._read = []

    def _words(self, texts: tuple[Tensor, ...], joined: Tensor) -> Words:
        """Those of an earlier call, if it was told the same: a run reads its prompt at every step."""
        for held, words in self._read:
            fits = words.states.shape == joined.shape and words.states.dtype == joined.dtype
            # Equal numbers are looked for on a processor alone: elsewhere that would wait for a card.
            if fits and (_alike(held, texts) or (joined.device.type == "cpu" and torch.equal(words.states, joined))):
                return words
        words, rows = Words(joined), len(joined)
        kept = [(texts, words)]
        for held, other in self._read:
            if (rows := rows + len(other.states)) <= READ:
                kept.append((held, other))
        self._read = kept
        return words

    def arguments(self, told: Cond, dtype: torch.dtype) -> dict[str, Any]:
        """How the model is told a condition, besides what stands beside the latent."""
        call: dict[str, Any] = {"words": None if told.text is None else told.text.to(dtype), "label": told.label}
        if told.pooled is not None:
            call |= {"pooled": told.pooled.to(dtype), "sizes": told.sizes}
        if told.guidance is not None:
            call["guidance"] = guidance_embedding(told.guidance, int(self.config.time_cond_proj_dim)).to(dtype)
        return call

    def _perturbed(self, conds: Sequence[Cond], batch: int) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        names = frozenset().union(*(c.perturb for c in conds))
        return {n: torch.tensor([n in c.perturb for c in conds], device=device).repeat_interleave(batch) for n in names}

    def _residuals(
        self, x: Tensor, level: Level, conds: Sequence[Cond], told: Cond, dtype: torch.dtype
    ) -> tuple[list[Tensor], Tensor] | None:
        """The summed residuals of all controls; rows whose condition lacks a control get zeros from it."""
        batch = len(x) // len(conds)
        down: list[Tensor] | None = None
        mid: Tensor | None = None
        for control in dict.fromkeys(c for cond in conds for c in cond.controls):
            weight = control.weight_at(level)
            if weight == 0.0:
                continue
            rows = torch.tensor([control in c.controls for c in conds], device=x.device).repeat_interleave(batch)
            more, centre = _control(control, weight, x, level, told, rows, dtype)
            down = more if down is None else [a + b for a, b in zip(down, more, strict=True)]
            mid = centre if mid is None else mid + centre
        return None if down is None or mid is None else (down, mid)


def _alike(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _control(
    control: Control, weight: float, x: Tensor, level: Level, told: Cond, rows: Tensor, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """One ControlNet on the rows that it is meant for; zeros elsewhere, and outside its mask."""
    repeat = int(rows.sum()) // len(control.hint) if len(control.hint) else 1
    assert told.text is not None
    down, mid = control.network(
        x[rows],
        level.t[rows],
        told.text[rows].to(dtype),
        control.hint.to(x.device, dtype).repeat(repeat, 1, 1, 1),
        weight=weight,
        guess=control.guess,
        pooled=None if told.pooled is None else told.pooled[rows].to(dtype),
        sizes=None if told.sizes is None else told.sizes[rows],
    )
    return [_placed(d, control.mask, rows) for d in down], _placed(mid, control.mask, rows)


def _placed(residual: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
    if mask is not None:
        fitted = F.interpolate(mask.to(residual), size=residual.shape[-2:], mode="area")
        residual = residual * fitted.repeat(len(residual) // len(fitted), 1, 1, 1)
    if bool(rows.all()):
        return residual
    full = residual.new_zeros(len(rows), *residual.shape[1:])
    full[rows] = residual
    return full


def join(conds: Sequence[Cond], batch: int) -> Cond:
    """Several conditions for the same x as one, stacked along the batch. All must name the same kinds of condition."""
    stacked: dict[str, Any] = {}
    for name in ("text", "pooled", "sizes", "label", "guidance", "channels"):
        parts = [getattr(c, name) for c in conds]
        if all(p is None for p in parts):
            continue
        if any(p is None for p in parts) or len({p.shape[1:] for p in parts}) > 1:
            shapes = ", ".join("none" if p is None else str(tuple(p.shape)) for p in parts)
            raise LdmError(
                Code.BUG,
                f"conditions cannot share a call: {name} is {shapes}",
                "each must have the same shape",
                "Encode with the same `chunks`.",
            )
        stacked[name] = torch.cat([p.expand(batch, *p.shape[1:]) if len(p) == 1 else p for p in parts])
    return Cond(**stacked)


def guidance_embedding(scale: Tensor, size: int) -> Tensor:
    """The sinusoidal embedding of a guidance scale, [B,size], for guidance-distilled networks (Meng 2022; Luo 2023)."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=scale.device) * (-torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (scale.float() - 1)[:, None] * 1000 * frequencies[None]
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(embedding, (0, size % 2))
