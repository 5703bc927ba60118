"""Pictures to latents and back. Scale and shift live here; nobody else knows 0.18215."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ldm.errors import Code, LdmError
from ldm.models.nets.coder import Posterior
from ldm.models.nets.known import ours
from ldm.models.tiling import tiles, window


class Autoencoder:
    """Wraps the network of one: KL, VQ or tiny. Pictures are [B,3,H,W] in [-1,1]; latents have unit variance."""

    def __init__(self, model: Any) -> None:
        self.model = ours(model)
        self.config: Any = self.model.config
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
        return int(self.config.get("vq_embed_dim") or self.config.latent_channels)

    @torch.no_grad()
    def encode(self, picture: Tensor, generators: Sequence[Generator], tile: int | None = None) -> Tensor:
        """One latent for each generator, drawn from the posterior of the (single or equally many) pictures."""

        def posterior_of(dtype: torch.dtype) -> Tensor:
            pixels = picture.to(self._device, dtype)
            if tile is None or max(pixels.shape[-2:]) <= tile:
                return self._posterior(pixels)
            return in_tiles(self._posterior, pixels, tile // self.factor * self.factor, 1, self.factor)

        posterior = self._guarded(posterior_of, "encoded picture")
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
        self.model.float()
        try:
            done = work(torch.float32)
        finally:
            self.model.to(dtype)
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
        if isinstance(encoded, Posterior):
            return torch.cat([encoded.mean, encoded.std])
        return torch.cat([encoded, torch.zeros_like(encoded)])

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _decode(self, latents: Tensor, tile: int | None) -> Tensor:
        z = latents / self.scale + self.shift
        if tile is None or max(z.shape[-2:]) * self.factor <= tile:
            return self._pixels(z)
        return in_tiles(self._pixels, z, tile // self.factor, self.factor, 1)

    def _pixels(self, z: Tensor) -> Tensor:
        return torch.as_tensor(self.model.decode(z))


def _draw(mean: Tensor, std: Tensor, generator: Generator) -> Tensor:
    """mean + std * noise; the noise is drawn on the CPU, as everywhere."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    return mean + std * noise if bool((std > 0).any()) else mean


def in_tiles(work: Callable[[Tensor], Tensor], x: Tensor, size: int, up: int, down: int) -> Tensor:
    """`work`, which makes each pixel `up` pixels or `down` pixels one, in overlapping tiles of `size` that are blended.

    Tiles begin on multiples of `down`; weights fall towards a tile's border.
    """
    height, width = (side // down for side in x.shape[-2:])
    side, overlap = max(size // down, 2), max(size // down // 4, 1)
    out = total = None
    for top, left, bottom, right in tiles(height, width, side, overlap):
        part = work(x[..., top * down : bottom * down, left * down : right * down]).float()
        weight = window(part.shape[-2], part.shape[-1], overlap * up).to(part)
        if out is None or total is None:
            out = part.new_zeros(*part.shape[:2], height * up, width * up)
            total = torch.zeros_like(out[:1, :1])
        where = (..., slice(top * up, bottom * up), slice(left * up, right * up))
        out[where] += part * weight
        total[where] += weight
    assert out is not None and total is not None
    return out / total
