"""A trained model, sampled by the project's own loop for reports: many prompts in a call, the same noise each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.images import from_tensor
from ldm.metrics import reconstruction
from ldm.models.adapters import AdapterStack
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent import Cond, Control
from ldm.models.unet import UNet
from ldm.store.parts import load_parts
from pipelines.adapting import read_adapter
from train.tasks.captions import Captions
from train.tasks.latents import moments
from train.tasks.sampling import Look, pictures, start_noise

AT_ONCE = 50  # pictures in a call
Pictures = Sequence[np.ndarray]  # each [H,W,3] in [0,1]


class Sampled:
    """Every autoencoder and every kind of output will do."""

    def __init__(self, folder: Path, look: Look, lora: Path | None = None) -> None:
        parts = load_parts(folder)
        if lora is not None:
            towers = [tower for _, tower in parts.towers]
            stack = AdapterStack(parts.unet, towers, parts.family, parts.fingerprint)
            stack.use([(read_adapter(lora), 1.0, None)])
        self.look, self.scheduler, self.fingerprint = look, parts.scheduler, parts.fingerprint
        self.vae = Autoencoder(parts.vae)
        self.network = UNet(parts.unet, parts.prediction)
        self.captions = Captions(parts.towers, trained=False)

    @torch.no_grad()
    def pictures(self, texts: Sequence[str], hints: Pictures = (), control: Any = None) -> list[np.ndarray]:
        """One for each text, along its hint if there is a control; picture i always begins with the same noise."""
        made: list[np.ndarray] = []
        side = int(self.network.config.sample_size)
        for start in range(0, len(texts), AT_ONCE):
            some = list(texts[start : start + AT_ONCE])
            controls = (Control(control, as_tensor(hints[start : start + AT_ONCE])),) if control is not None else ()
            cond = Cond(text=self.captions.states(some), controls=controls)
            null = Cond(text=self.captions.empty(len(some)), controls=controls)
            noise = start_noise(start, (self.vae.channels, side, side), len(some), torch.device("cpu"))
            made += from_tensor(pictures(self.network, self.vae, self.scheduler, noise, cond, null, self.look))
        return made

    @torch.no_grad()
    def round_trip(self, shown: Pictures, decode: Any = None) -> list[np.ndarray]:
        """What the autoencoder makes of pictures, or another decoder of its latents."""
        made: list[np.ndarray] = []
        for start in range(0, len(shown), AT_ONCE):
            x = as_tensor(shown[start : start + AT_ONCE]) * 2 - 1
            latents = (moments(self.vae, x)[0] - self.vae.shift) * self.vae.scale
            made += from_tensor((decode or self.vae.decode)(latents).clamp(-1, 1))
        return made


def as_tensor(pictures: Pictures) -> Tensor:
    """[N,3,H,W] of arrays [H,W,3]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


def psnr(shown: Pictures, made: Pictures) -> float:
    """In dB, mean over pictures."""
    return round(float(reconstruction.psnr(as_tensor(made), as_tensor(shown)).mean()), 2)
