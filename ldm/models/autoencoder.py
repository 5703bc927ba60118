"""Pictures to latents and back. Scale and shift live here; nobody else knows 0.18215."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.tiling import tiles, window


class Autoencoder:
    """Wraps AutoencoderKL, VQModel or AutoencoderTiny. Pictures are [B,3,H,W] in [-1,1]; latents have unit variance."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config: Any = model.config
        self.scale = float(getattr(self.config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(self.config, "shift_factor", None) or 0.0)
        self.retried = False  # a half-precision decode came out non-finite and was repeated in fp32

    @property
    def factor(self) -> int:
        """How many pixels a latent covers, per side."""
        channels = getattr(self.config, "block_out_channels", None) or self.config.decoder_block_out_channels
        return int(2 ** (len(channels) - 1))

    @property
    def channels(self) -> int:
        return int(self.config.latent_channels)

    @torch.no_grad()
    def encode(self, picture: Tensor, generators: Sequence[Generator]) -> Tensor:
        """One latent for each generator, drawn from the posterior of the (single or equally many) pictures."""
        dtype = next(self.model.parameters()).dtype
        encoded = self.model.encode(picture.to(self._device, dtype))
        latents = []
        for i, generator in enumerate(generators):
            latents.append(_draw(encoded, min(i, len(picture) - 1), generator))
        return (torch.cat(latents).float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """[B,3,H,W] fp32 in [-1,1], in tiles of `tile` pixels if asked; a half-precision overflow is redone in fp32."""
        dtype = next(self.model.parameters()).dtype
        if self.config.get("force_upcast") and dtype == torch.float16:
            return self._decode_fp32(latents, tile)
        picture = self._decode(latents.to(self._device, dtype), tile)
        if torch.isfinite(picture).all():
            return picture
        if dtype != torch.float32:
            self.retried = True
            picture = self._decode_fp32(latents, tile)
            if torch.isfinite(picture).all():
                return picture
        raise LdmError(
            Code.NUMERIC,
            "the decoded picture has non-finite numbers",
            "the autoencoder overflowed, in fp32 too: its weights or the latents are broken",
            "Check the model with `ldm models show`, or take another autoencoder with --vae.",
        )

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _decode(self, latents: Tensor, tile: int | None) -> Tensor:
        z = latents / self.scale + self.shift
        if tile is None:
            return torch.as_tensor(self.model.decode(z, return_dict=False)[0]).float()
        return tiled_decode(self.model, z, tile // self.factor, self.factor)

    def _decode_fp32(self, latents: Tensor, tile: int | None) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        nn.Module.float(self.model)  # past diffusers' own `to`, which logs advice about loading
        try:
            return self._decode(latents.to(self._device, torch.float32), tile)
        finally:
            nn.Module.to(self.model, dtype)


def _draw(encoded: Any, row: int, generator: Generator) -> Tensor:
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        mean, std = posterior.mean[row : row + 1], posterior.std[row : row + 1]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
        return torch.as_tensor(mean + std * noise)
    return torch.as_tensor(encoded.latents[row : row + 1])


def tiled_decode(model: Any, z: Tensor, size: int, factor: int) -> Tensor:
    """Decode overlapping tiles of `size` latents and blend them with weights that fall to the tile's border."""
    height, width = z.shape[-2:]
    out = z.new_zeros(len(z), 3, height * factor, width * factor, dtype=torch.float32)
    total = torch.zeros_like(out[:1, :1])
    for top, left, bottom, right in tiles(height, width, size, max(size // 4, 1)):
        part = model.decode(z[..., top:bottom, left:right], return_dict=False)[0].float()
        weight = window(part.shape[-2], part.shape[-1], max(size // 4, 1) * factor).to(part)
        where = (..., slice(top * factor, bottom * factor), slice(left * factor, right * factor))
        out[where] += part * weight
        total[where] += weight
    return out / total
