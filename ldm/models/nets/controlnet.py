"""A ControlNet (Zhang 2023): a copy of the way down that sees a hint, and adds to what the U-Net has seen."""

from __future__ import annotations

from itertools import pairwise
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.nets.attention import Words
from ldm.models.nets.unet import SETTLED, SHAPE, Shape, Stem, UNet2D

NOT_ITS_OWN = ("sample_size", "out_channels", "up_block_types", "dropout", "time_cond_proj_dim")


class ControlNet(Stem):
    STOCK = "ControlNetModel"
    SETTLED = SETTLED
    DEFAULTS = MappingProxyType({
        **{name: value for name, value in SHAPE.items() if name not in NOT_ITS_OWN},
        "conditioning_channels": 3, "controlnet_conditioning_channel_order": "rgb",
        "conditioning_embedding_out_channels": (16, 32, 96, 256), "global_pool_conditions": False,
    })  # fmt: skip

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        config = self.config
        shape = Shape(config)
        self._build(shape, config.mid_block_type)
        self.controlnet_cond_embedding = Hint(
            config.conditioning_channels, tuple(config.conditioning_embedding_out_channels), shape.widths[0]
        )
        self.controlnet_down_blocks = nn.ModuleList([nn.Conv2d(width, width, 1) for width in seen(shape)])
        self.controlnet_mid_block = nn.Conv2d(shape.widths[-1], shape.widths[-1], 1)
        self._called()
        last = (*self.controlnet_down_blocks, self.controlnet_mid_block, self.controlnet_cond_embedding.conv_out)
        for parameter in (p for layer in last for p in layer.parameters()):
            nn.init.zeros_(parameter)  # at first it changes nothing

    @classmethod
    def beside(cls, unet: UNet2D, embedding: tuple[int, ...]) -> Self:
        """One that begins as the way down of a U-Net; `embedding`: channels of the hint's own layers."""
        shared = {name: value for name, value in unet.config.items() if name in cls.DEFAULTS or name in cls.SETTLED}
        made = cls(**shared, conditioning_embedding_out_channels=embedding)
        made.load_state_dict({**made.state_dict(), **_common(unet, made)})
        return made

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        words: Tensor | Words | None,
        hint: Tensor,
        *,
        weight: float = 1.0,
        guess: bool = False,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """`guess`: weights that fall from the middle to the first layer, for a network that is not told any words."""
        if self.config.controlnet_conditioning_channel_order == "bgr":
            hint = hint.flip(1)
        time = self.moment(t, len(x), None, None, pooled, sizes)
        x, down = self.descend(self.conv_in(x) + self.controlnet_cond_embedding(hint), time, words, None)
        middle = x if self.mid_block is None else self.mid_block(x, time, words, None)
        down = [layer(h) for layer, h in zip(self.controlnet_down_blocks, down, strict=True)]
        middle = self.controlnet_mid_block(middle)
        if guess and not self.config.global_pool_conditions:
            scales = torch.logspace(-1, 0, len(down) + 1, device=x.device) * weight
            down, middle = [h * s for h, s in zip(down, scales[:-1], strict=True)], middle * scales[-1]
        else:
            down, middle = [h * weight for h in down], middle * weight
        if self.config.global_pool_conditions:
            down, middle = [h.mean((2, 3), keepdim=True) for h in down], middle.mean((2, 3), keepdim=True)
        return down, middle


def _common(unet: UNet2D, control: ControlNet) -> dict[str, Tensor]:
    """The U-Net's tensors of what both have."""
    parts = ("conv_in.", "time_embedding.", "class_embedding.", "add_embedding.", "down_blocks.", "mid_block.")
    own = control.state_dict()
    return {name: t for name, t in unet.state_dict().items() if name.startswith(parts) and name in own}


class Hint(nn.Module):
    """A hint of eight times the side, brought to that of the latent."""

    def __init__(self, channels: int, widths: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for inside, width in pairwise(widths):
            self.blocks.append(nn.Conv2d(inside, inside, 3, padding=1))
            self.blocks.append(nn.Conv2d(inside, width, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        h = F.silu(self.conv_in(hint))
        for layer in self.blocks:
            h = F.silu(layer(h))
        out: Tensor = self.conv_out(h)
        return out


def seen(shape: Shape) -> list[int]:
    """Channels of all that is seen on the way down."""
    widths = [shape.widths[0]]
    for i, (width, layers) in enumerate(zip(shape.widths, shape.layers, strict=True)):
        widths += [width] * (layers + (i < len(shape.widths) - 1))
    return widths
