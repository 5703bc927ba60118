"""Pictures to latents and back. Scale and shift live here; nobody else knows 0.18215."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        posterior = self._guarded(lambda dtype: self._posterior(picture.to(self._device, dtype)), "encoded picture")
        mean, std = posterior.chunk(2)
        rows = [min(i, len(mean) - 1) for i in range(len(generators))]
        drawn = [_draw(mean[r : r + 1], std[r : r + 1], g) for r, g in zip(rows, generators, strict=True)]
        return (torch.cat(drawn).float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """[B,3,H,W] fp32 in [-1,1], in tiles of `tile` pixels if asked."""
        return self._guarded(
            lambda dtype: self._decode(latents.to(self._device, dtype), tile).float(), "decoded picture"
        )

    def _guarded(self, work: Callable[[torch.dtype], Tensor], what: str) -> Tensor:
        """Work in the autoencoder's own type; in fp32 if it says that half precision overflows, or if it did."""
        dtype = next(self.model.parameters()).dtype
        if not (self.config.get("force_upcast") and dtype == torch.float16):
            done = work(dtype)
            if torch.isfinite(done).all():
                return done
            self.retried = dtype != torch.float32
        nn.Module.float(self.model)  # past diffusers' own `to`, which logs advice about loading
        try:
            done = work(torch.float32)
        finally:
            nn.Module.to(self.model, dtype)
        if torch.isfinite(done).all():
            return done
        raise LdmError(
            Code.NUMERIC,
            f"the {what} has non-finite numbers",
            "the autoencoder overflowed, in fp32 too: its weights or its input are broken",
            "Check the model with `ldm models show`, or take another autoencoder with --vae.",
        )

    def _posterior(self, picture: Tensor) -> Tensor:
        """Means and deviations, one after the other along the batch; a plain code has deviation 0."""
        encoded = self.model.encode(picture)
        if hasattr(encoded, "latent_dist"):
            return torch.cat([encoded.latent_dist.mean, encoded.latent_dist.std])
        return torch.cat([encoded.latents, torch.zeros_like(encoded.latents)])

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _decode(self, latents: Tensor, tile: int | None) -> Tensor:
        z = latents / self.scale + self.shift
        if tile is None or max(z.shape[-2:]) * self.factor <= tile:
            return torch.as_tensor(self.model.decode(z, return_dict=False)[0])
        return tiled_decode(self.model, z, max(tile // self.factor, 1), self.factor)


def _draw(mean: Tensor, std: Tensor, generator: Generator) -> Tensor:
    """mean + std * noise; the noise is drawn on the CPU, as everywhere."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    return mean + std * noise if bool((std > 0).any()) else mean


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
