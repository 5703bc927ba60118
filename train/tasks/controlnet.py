"""The ControlNet task (Zhang 2023): a copy of the U-Net's down path learns to steer the frozen U-Net by a hint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.diffusion.training import Schedule
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent import Cond, Control
from ldm.models.nets.controlnet import ControlNet
from ldm.models.unet import UNet
from ldm.store.parts import load_controlnet, load_parts
from pipelines.fit import check_control
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks.captions import Captions
from train.tasks.denoising import Denoising, Rows, check_sizes, noise_for
from train.tasks.latents import moments, whole_hole
from train.tasks.parts import changed, is_new, new_network, owned, read_architecture, refuse_told, save_network, seeded
from train.tasks.sampling import Look, evaluating, examples, pictures, start_noise
from train.tasks.settings import ControlSettings
from train.tasks.shapes import varied

EMBEDDING = (16, 32, 96, 256)  # channels of the hint's own layers: one more than the autoencoder halves a picture


class ControlTask:
    """Hints come as `extra["hint"]`, [n,3,H,W] in [0,1]. At first nothing changes: the last convolutions are zero."""

    exact = True
    exception = ""
    copies = 1  # of what is trained is written, and nothing of the model

    def __init__(self, settings: ControlSettings, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.parts = load_parts(settings.model)
        refuse_told(self.parts.unet.config, settings.model)
        self.vae = Autoencoder(self.parts.vae)
        self.captions = Captions(self.parts.towers, trained=False)
        check_sizes(setting, self.vae, self.parts.unet.config, self.captions.width, settings.model)
        self.network = UNet(self.parts.unet, self.parts.prediction)
        self.control: Any = self._control()
        check_control(self.network, self.control, str(settings.controlnet))
        self.scheduler = self.parts.scheduler
        self.denoising = Denoising(
            self.vae,
            self.captions,
            Schedule.of(self.scheduler),
            self.network.kind,
            noise_for(self.scheduler, settings.noise, self.network.kind),
            self.network.inpaints,
            drop=settings.drop_caption,
        )

    def _control(self) -> Any:
        """A new ControlNet from the U-Net, one of another architecture with what fits of it, or given weights."""
        given, unet = self.settings.controlnet, self.parts.unet
        if given is not None and not is_new(given):
            return owned(load_controlnet(given))
        if given is not None:
            control = new_network("ControlNetModel", read_architecture(given), str(given), self.setting.seed)
            copy_matching(unet, control)
            return control
        halvings = self.vae.factor.bit_length() - 1
        embedding = (*EMBEDDING, *(EMBEDDING[-1],) * halvings)[: halvings + 1]
        with seeded(self.setting.seed):
            control = ControlNet.beside(unet, embedding)
        if self.network.inpaints:  # a control is shown the latent alone
            control = changed(control, in_channels=self.network.latent_channels)
        return control.train().requires_grad_(True)

    def networks(self) -> dict[str, nn.Module]:
        return {"controlnet": self.control}

    def frozen(self) -> dict[str, nn.Module]:
        return {"unet": self.parts.unet, "vae": self.vae.model, "text": self.captions.model}

    def phases(self) -> list[Phase]:
        return [Phase("control", list(self.control.parameters()), average=True)]

    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        return None

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        hint = self._hint(batch)
        rows = self.denoising.rows(turn.draws, batch)
        output = self.output(rows, varied(hint, turn.draws) if self.settings.vary else hint)
        each, figures = self.denoising.losses(output, rows)
        return turn.mean(each), {name: turn.mean(value.detach()) for name, value in figures.items()}

    def output(self, rows: Rows, hint: Tensor) -> Tensor:
        """What the frozen U-Net says with the control's residuals added; hint [n,3,H,W]."""
        hint = hint.repeat(len(rows.x) // len(hint), 1, 1, 1)
        down, mid = self.control(rows.x, rows.level.t, rows.states, hint)
        return torch.as_tensor(self.parts.unet(rows.inputs, rows.level.t, rows.states, residuals=(down, mid)))

    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        with evaluating(self.control):
            rows = self.denoising.rows(draws, batch, steady=True)
            return self.denoising.judged(self.output(rows, self._hint(batch)), rows)

    def preview(self, seed: int) -> dict[str, Tensor]:
        """A few hints of the data set, the pictures that they were made of, and what is made of the hints."""
        with evaluating(self.control):
            device = next(self.control.parameters()).device
            batch = examples(self.setting).to(device)
            hint, count = self._hint(batch), len(batch)
            side = [s // self.vae.factor for s in hint.shape[-2:]]
            noise = start_noise(seed, (self.vae.channels, *side), count, device)
            control = Control(self.control, hint)
            channels = self._channels(seed, batch)
            cond = Cond(self.captions.states(batch.text or ("",) * count), channels=channels, controls=(control,))
            null = replace(cond, text=self.captions.empty(count))
            made = pictures(self.network, self.vae, self.scheduler, noise, cond, null, Look())
            shown = {} if batch.image is None else {"originals": batch.image}
            return {"hints": hint * 2 - 1, **shown, "pictures": made}

    def cached_latents(self, image: Tensor) -> dict[str, Tensor]:
        """What a latent cache keeps of pictures [n,3,H,W]."""
        return dict(zip(("mean", "std"), moments(self.vae, image), strict=True))

    def cached_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What a text cache keeps of captions."""
        return self.captions.cached(texts)

    def _channels(self, seed: int, batch: Batch) -> Tensor | None:
        """For an inpainting model: everything is to be painted, so that the hint alone decides."""
        if not self.network.inpaints or batch.image is None:
            return None
        return whole_hole(self.vae, batch, seed)

    def _hint(self, batch: Batch) -> Tensor:
        if "hint" not in batch.extra:
            raise LdmError(
                Code.USAGE,
                "the data set has no hints",
                "a ControlNet learns from pairs of a hint and a picture",
                "Set data.hint (to canny, lines, ...), or put the hints beside the pictures.",
            )
        return batch.extra["hint"]

    def save(self, folder: Path) -> None:
        save_network(self.control, folder)


@torch.no_grad()
def copy_matching(unet: nn.Module, control: nn.Module) -> None:
    """Where the control has the U-Net's layers, it starts from their weights."""
    known = dict(unet.named_parameters())
    for name, parameter in control.named_parameters():
        if name in known and known[name].shape == parameter.shape and "controlnet" not in name:
            parameter.copy_(known[name])
