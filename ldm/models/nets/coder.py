"""Autoencoders of pictures: with a normal posterior (KL) or with a table of codes (VQ) in the middle (Rombach 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.nets.attention import picture, pixels
from ldm.models.nets.base import Net, Part, each, only
from ldm.models.nets.resnet import Downsample, Resnet, Upsample

EPS = 1e-6
COMMON: Mapping[str, Any] = MappingProxyType({
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",), "block_out_channels": (64,), "layers_per_block": 1,
    "norm_num_groups": 32, "sample_size": 32, "mid_block_add_attention": True, "scaling_factor": 0.18215,
})  # fmt: skip


class Posterior(NamedTuple):
    """Of a latent: a mean and the logarithm of a variance, bounded as always."""

    mean: Tensor
    log_variance: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.log_variance)


class PixelAttention(nn.Module):
    """One head over all pixels of the smallest feature map, beside a way past it."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)
        h = self.group_norm(h.transpose(1, 2)).transpose(1, 2)
        q, k, v = (part(h)[:, None] for part in (self.to_q, self.to_k, self.to_v))
        h = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return torch.as_tensor(h.transpose(-1, -2).reshape(x.shape) + x)


class Stage(Part):
    """Residual blocks of one width, and another side at the end."""

    def __init__(
        self, inside: int, out: int, count: int, groups: int, *, half: bool = False, twice: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [Resnet(inside if j == 0 else out, out, None, groups=groups, eps=EPS) for j in range(count)]
        )
        self.downsamplers = nn.ModuleList([Downsample(out, padding=0)]) if half else None
        self.upsamplers = nn.ModuleList([Upsample(out)]) if twice else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for change in (self.downsamplers, self.upsamplers):
            if change is not None:
                x = change[0](x)
        return x


class Middle(Part):
    def __init__(self, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, width, None, groups=groups, eps=EPS) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(width, groups)]) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return torch.as_tensor(self.resnets[1](x))


class Encoder(nn.Module):
    def __init__(self, config: Mapping[str, Any], out: int) -> None:
        super().__init__()
        widths, groups = tuple(config["block_out_channels"]), config["norm_num_groups"]
        only(("DownEncoderBlock2D",), each(config["down_block_types"], len(widths)))
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                Stage(widths[max(i - 1, 0)], width, config["layers_per_block"], groups, half=i < len(widths) - 1)
                for i, width in enumerate(widths)
            ]
        )
        self.mid_block = Middle(widths[-1], groups, config["mid_block_add_attention"])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    def __init__(self, config: Mapping[str, Any], inside: int) -> None:
        super().__init__()
        widths, groups = tuple(config["block_out_channels"])[::-1], config["norm_num_groups"]
        only(("UpDecoderBlock2D",), each(config["up_block_types"], len(widths)))
        self.conv_in = nn.Conv2d(inside, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups, config["mid_block_add_attention"])
        self.up_blocks = nn.ModuleList(
            [
                Stage(widths[max(i - 1, 0)], width, config["layers_per_block"] + 1, groups, twice=i < len(widths) - 1)
                for i, width in enumerate(widths)
            ]
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config["out_channels"], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


class KLCoder(Net):
    STOCK = "AutoencoderKL"
    SETTLED = MappingProxyType({"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)})
    DEFAULTS = MappingProxyType({
        **COMMON, "latent_channels": 4, "shift_factor": None, "force_upcast": True, "use_quant_conv": True,
        "use_post_quant_conv": True,
    })  # fmt: skip

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        channels = self.config.latent_channels
        self.encoder, self.decoder = Encoder(self.config, 2 * channels), Decoder(self.config, channels)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if self.config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if self.config.use_post_quant_conv else None

    def moments(self, x: Tensor) -> Tensor:
        """Mean and logarithm of the variance, one after the other in the channels, as the network says them."""
        h = self.encoder(x)
        return torch.as_tensor(h if self.quant_conv is None else self.quant_conv(h))

    def encode(self, x: Tensor) -> Posterior:
        mean, log_variance = self.moments(x).chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return out


class VQCoder(Net):
    STOCK = "VQModel"
    SETTLED = MappingProxyType({
        "act_fn": ("silu", "swish"), "norm_type": ("group",), "lookup_from_codebook": (False,),
        "force_upcast": (False, True),
    })  # fmt: skip
    DEFAULTS = MappingProxyType({
        **COMMON, "latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None,
    })  # fmt: skip

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        channels = self.config.latent_channels
        width = channels if self.config.vq_embed_dim is None else self.config.vq_embed_dim
        self.encoder, self.decoder = Encoder(self.config, channels), Decoder(self.config, channels)
        self.quant_conv = nn.Conv2d(channels, width, 1)
        self.quantize = Codes(self.config.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Before it is rounded to codes."""
        return torch.as_tensor(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor, *, rounded: bool = True) -> Tensor:
        out: Tensor = self.decoder(self.post_quant_conv(self.quantize(z) if rounded else z))
        return out


class Codes(nn.Module):
    """Each place of a latent becomes the nearest of a table."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / count, 1.0 / count)

    def nearest(self, z: Tensor) -> Tensor:
        """[B*h*w]: the number of the nearest code of each place."""
        return torch.cdist(pixels(z).reshape(-1, z.shape[1]), self.embedding.weight).argmin(dim=1)

    def forward(self, z: Tensor) -> Tensor:
        found = picture(self.embedding(self.nearest(z)).view(len(z), -1, z.shape[1]), z)
        return (z + (found - z).detach()).contiguous()  # gradients go past the rounding
