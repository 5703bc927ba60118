"""A small autoencoder without norms, for previews and for few steps (TAESD, Bohan 2023)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.nets.base import Net, Part

LAYERS = {"relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU, "gelu": nn.GELU, "mish": nn.Mish}


class TinyBlock(Part):
    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], LAYERS[act](), convs[1], LAYERS[act](), convs[2])
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fuse(self.conv(x) + x)
        return out


class TinyHalf(nn.Module):
    """Layers in a row."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)


class TinyCoder(Net):
    STOCK = "AutoencoderTiny"
    DEFAULTS = MappingProxyType({
        "in_channels": 3, "out_channels": 3, "encoder_block_out_channels": (64, 64, 64, 64),
        "decoder_block_out_channels": (64, 64, 64, 64), "act_fn": "relu", "upsample_fn": "nearest",
        "latent_channels": 4, "upsampling_scaling_factor": 2, "num_encoder_blocks": (1, 3, 3, 3),
        "num_decoder_blocks": (3, 3, 3, 1), "latent_magnitude": 3, "latent_shift": 0.5, "force_upcast": False,
        "scaling_factor": 1.0, "shift_factor": 0.0,
    })  # fmt: skip

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.encoder, self.decoder = TinyHalf(*self._down()), TinyHalf(*self._up())

    def _down(self) -> list[nn.Module]:
        c, layers = self.config, list[nn.Module]()
        for i, (width, count) in enumerate(zip(c.encoder_block_out_channels, c.num_encoder_blocks, strict=True)):
            first = nn.Conv2d(c.in_channels, width, 3, padding=1)
            layers.append(first if i == 0 else nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [TinyBlock(width, c.act_fn) for _ in range(count)]
        return [*layers, nn.Conv2d(c.encoder_block_out_channels[-1], c.latent_channels, 3, padding=1)]

    def _up(self) -> list[nn.Module]:
        c = self.config
        widths, counts = c.decoder_block_out_channels, c.num_decoder_blocks
        layers: list[nn.Module] = [nn.Conv2d(c.latent_channels, widths[0], 3, padding=1), LAYERS[c.act_fn]()]
        for i, (width, count) in enumerate(zip(widths, counts, strict=True)):
            layers += [TinyBlock(width, c.act_fn) for _ in range(count)]
            if i < len(widths) - 1:
                layers.append(nn.Upsample(scale_factor=c.upsampling_scaling_factor, mode=c.upsample_fn))
                layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        return [*layers, nn.Conv2d(widths[-1], c.out_channels, 3, padding=1)]

    def encode(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder.layers(x.add(1).div(2))
        return out

    def decode(self, z: Tensor) -> Tensor:
        """Latents beyond 3 are bent back, for what lies there says nothing."""
        return torch.as_tensor(self.decoder.layers(torch.tanh(z / 3) * 3).mul(2).sub(1))
