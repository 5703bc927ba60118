"""What every task that denoises does with a batch: latents, words, noise levels, noise, and the loss of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.data.batch import Batch
from ldm.diffusion.level import Kind, Level
from ldm.diffusion.loss import denoising_loss, min_snr_weight, variational_bound
from ldm.diffusion.training import Posterior, Schedule, scheduler_config, spread_times
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent import Cond
from ldm.models.unet import UNet
from train.draws import Draws
from train.task import Setting
from train.tasks.captions import Captions
from train.tasks.latents import check_sides, latents, latents_with_hole, picture
from train.tasks.settings import Noise
from train.tasks.shapes import holes

STEADY = 4  # fixed noise levels of a validation loss: the middles of four equal parts of the schedule


@dataclass(frozen=True, eq=False)
class Rows:
    """One forward pass of n examples at L noise levels: row l * n + i is level l of example i."""

    clean: Tensor  # [L n,C,h,w]
    noise: Tensor
    x: Tensor
    level: Level
    cond: Cond  # the words, and of XL the sizes; beside the latent mask and masked picture of a 9-channel network
    examples: int  # n
    mask: Tensor | None = None  # [L n,1,h,w] in [0,1]: what of a picture counts

    @property
    def inputs(self) -> Tensor:
        """x, and what stands beside it."""
        return self.x if self.cond.channels is None else torch.cat([self.x, self.cond.channels], dim=1)

    @property
    def states(self) -> Tensor:
        """[L n,length,D]."""
        assert self.cond.text is not None
        return self.cond.text

    def each(self, values: Tensor) -> Tensor:
        """[n] means over the levels of an example, from [L n]."""
        return values.view(-1, self.examples).mean(0)


@dataclass(frozen=True, eq=False)
class Denoising:
    """How a batch becomes noisy. Everything random is a function of the places of its examples."""

    vae: Autoencoder
    captions: Captions
    schedule: Schedule
    kind: Kind
    noise: Noise
    inpaint: bool = False
    levels: int = 1
    drop: float = 0.0

    def rows(self, draws: Draws, batch: Batch, *, steady: bool = False) -> Rows:
        """What the network is shown. `steady`: the same levels for every batch, captions kept, nothing offset."""
        clean, channels = self._clean(draws, batch)
        levels = STEADY if steady else self.levels
        level = self.schedule.level(self._steady(clean) if steady else self._times(draws))
        noise = _stacked(draws.normal("noise", (levels, *clean.shape[1:])))
        if self.noise.offset and not steady:
            noise = noise + self.noise.offset * _stacked(draws.normal("offset", (levels, clean.shape[1], 1, 1)))
        cond = self.captions.told(draws, batch, 0.0 if steady else self.drop)
        if self.captions.xl:
            cond = replace(cond, sizes=sizes_of(clean, self.vae.factor))
        cond = repeated(replace(cond, channels=channels), levels)
        clean = clean.repeat(levels, 1, 1, 1)
        mask = batch.extra.get("mask")
        if mask is not None:
            mask = interpolate(mask, size=clean.shape[-2:], mode="area").repeat(levels, 1, 1, 1)
        return Rows(clean, noise, level.noisy(clean, noise), level, cond, len(batch), mask)

    def losses(self, output: Tensor, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """[n] losses, and the figures [n] that they are made of: squared error, and the bound in bits a dimension."""
        channels = rows.x.shape[1]
        output, variance = output.float().tensor_split([channels], dim=1)
        error = denoising_loss(output, rows.clean, rows.noise, rows.level, self.kind, mask=rows.mask)
        figures = {"error": rows.each(error)}
        loss = error
        if self.noise.weighting == "min_snr":
            loss = error * min_snr_weight(rows.level, self.kind, self.noise.gamma, self.noise.floor).to(error)
        if self.noise.bound and variance.shape[1]:
            bound = self._bound(output, variance, rows)
            figures["bound"] = rows.each(bound)
            loss = loss + self.noise.bound * len(self.schedule) * bound
        return rows.each(loss), figures

    def judged(self, output: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Figures [n] of steady rows: the unweighted error over all levels, at the lowest and at the highest noise."""
        channels = rows.x.shape[1]
        shown, aim = output[:, :channels], (rows.clean, rows.noise, rows.level, self.kind)
        error = denoising_loss(shown, *aim, mask=rows.mask).view(STEADY, -1)
        figures = {"loss": error.mean(0), "loss.low_noise": error[0], "loss.high_noise": error[-1]}
        if self.noise.bound and output.shape[1] > channels:
            figures["bound"] = rows.each(self._bound(output[:, :channels], output[:, channels:], rows))
        return figures

    def _bound(self, output: Tensor, variance: Tensor, rows: Rows) -> Tensor:
        predicted = rows.level.clean(output.detach(), rows.x, self.kind)
        posterior = Posterior.at(self.schedule, rows.level.t)
        return variational_bound(rows.clean, predicted, rows.x, variance, rows.level.t, posterior, rows.mask)

    def _times(self, draws: Draws) -> Tensor:
        """[L n] in [0,1): over the whole batch and all its levels, one in each equal part of the times' density."""
        u = torch.cat([(draws.stratified(f"time.{i}") + i) / self.levels for i in range(self.levels)])
        noise = self.noise
        return spread_times(u, noise.times, mean=noise.mean, spread=noise.spread, power=noise.power)

    def _steady(self, like: Tensor) -> Tensor:
        """[STEADY n], the same for each example."""
        return ((torch.arange(STEADY, device=like.device) + 0.5) / STEADY).repeat_interleave(len(like))

    def _clean(self, draws: Draws, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not self.inpaint:
            return latents(self.vae, draws, batch), None
        return latents_with_hole(self.vae, draws, batch, holes(draws, *picture(batch).shape[-2:]))


def answer(network: UNet, rows: Rows) -> Tensor:
    """What a network says to rows, as it says it, with gradients."""
    told = network.arguments(rows.cond, torch.float32)
    said: Tensor = network.model(rows.inputs, rows.level.t, **told)
    return said


def conditions(
    captions: Captions, texts: Sequence[str], noise: Tensor, factor: int, channels: Tensor | None = None
) -> tuple[Cond, Cond]:
    """Texts and the empty prompt as a network is told them for pictures that begin as `noise`."""
    sizes = sizes_of(noise, factor) if captions.xl else None
    told = captions.read(texts), captions.null(len(texts))
    cond, null = (replace(each, sizes=sizes, channels=channels) for each in told)
    return cond, null


def sizes_of(latents: Tensor, factor: int) -> Tensor:
    """XL's sizes [n,6] of pictures that are shown whole: original, crop, target."""
    height, width = (side * factor for side in latents.shape[-2:])
    return latents.new_tensor([[height, width, 0, 0, height, width]]).repeat(len(latents), 1)


def repeated(cond: Cond, levels: int) -> Cond:
    """The same for each of several levels: row l * n + i is example i."""
    told = {
        name: tensor for name in ("text", "pooled", "sizes", "channels") if (tensor := getattr(cond, name)) is not None
    }
    return replace(cond, **{name: t.repeat(levels, *[1] * (t.dim() - 1)) for name, t in told.items()})


def _stacked(drawn: Tensor) -> Tensor:
    """[n,L,...] as [L n,...]."""
    return drawn.transpose(0, 1).flatten(0, 1)


def check_sizes(setting: Setting, vae: Autoencoder, unet: Mapping[str, Any], width: int, where: object) -> None:
    """Autoencoder, U-Net and text tower fit each other and the pictures; said before anything is trained."""
    channels = int(unet["in_channels"])
    if channels not in (vae.channels, 2 * vae.channels + 1):
        raise LdmError(
            Code.MODEL,
            f"{where} takes {channels} channels, and the autoencoder's latents have {vae.channels}",
            "the U-Net works on those latents",
            f"Set in_channels and out_channels to {vae.channels}, or name another autoencoder.",
        )
    text = unet["cross_attention_dim"]
    if (text if isinstance(text, int) else max(text)) != width:
        raise LdmError(
            Code.MODEL,
            f"{where} reads text {text} wide, and the text tower is {width} wide",
            "cross-attention takes the tower's hidden states as they are",
            f"Set cross_attention_dim to {width}, or name another text tower.",
        )
    step = vae.factor * 2 ** (len(unet["block_out_channels"]) - 1)
    if (size := setting.size) % step:
        raise LdmError(
            Code.USAGE,
            f"data.size={size} does not fit {where}",
            f"autoencoder and U-Net halve a picture {step.bit_length() - 1} times: its sides are multiples of {step}",
            f"Use {max(1, round(size / step)) * step}.",
        )
    check_sides(setting, vae.factor, f"the autoencoder of {where}")


def noise_for(own: Mapping[str, Any], noise: Noise | None, kind: Kind) -> Noise:
    """How noise is drawn for a model that stays as it is: evenly, or as asked. Its levels and what it predicts are its
    own, and what `task.noise` says of them must agree. It learns no variances."""
    asked = {} if noise is None else {name: getattr(noise, name) for name in noise.model_fields_set}
    flow = str(own.get("_class_name", "")).startswith("FlowMatch")
    its: dict[str, Any] = {"kind": kind, "zero_snr": bool(own.get("rescale_betas_zero_snr"))}
    its |= {"shift": float(own.get("shift") or 1.0), "schedule": "flow" if flow else "scaled_linear"}
    if "schedule" in asked and _levels(scheduler_config("v_prediction", asked["schedule"])) == _levels(own):
        its["schedule"] = asked["schedule"]
    for name, value in its.items():
        if asked.get(name, value) != value:
            raise LdmError(
                Code.USAGE,
                f"task.noise.{name}={asked[name]} does not fit the model",
                f"it stays as it is, and has {_levels(own) if name == 'schedule' else value}",
                f"Leave task.noise.{name} out.",
            )
    try:
        return Noise(**{**asked, **its, "bound": 0.0})
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise LdmError(
            Code.USAGE, "task.noise does not fit the model", why, "Change that key, or leave it out."
        ) from None


def _levels(scheduler: Mapping[str, Any]) -> str:
    """What the noise levels of a scheduler come from."""
    told = (scheduler.get(key) for key in ("beta_schedule", "beta_start", "beta_end"))
    return "betas " + " ".join(map(str, told)) if "beta_schedule" in scheduler else "a flow's levels"
