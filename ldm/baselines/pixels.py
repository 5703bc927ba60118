"""The network of the families that denoise pictures: a U-Net told of the level and, if there is one, of the class."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn

from ldm.baselines.blocks import row_of
from ldm.baselines.family import Form
from ldm.errors import Code, LdmError

GROUPS = 8


def _widths(side: int) -> tuple[int, ...]:
    """Of each size, as multiples of the first: on large pictures half of the side is no wider, where it would take most
    of the time."""
    return (1, 1, 2) if side >= 32 else (1, 2, 2) if side >= 16 else (1, 2)


class PixelNet(nn.Module):
    """[n,C,side,side] to [n,out,side,side]; attention where the picture has 8 places a side."""

    def __init__(self, form: Form, width: int, out: int, layers: int = 1) -> None:
        super().__init__()
        self.form = form
        if width % GROUPS:
            why = f"Its norms are of {GROUPS} groups."
            raise LdmError(Code.USAGE, f"A width of {width} cannot be used.", why, f"Give a multiple of {GROUPS}.")
        widths = [width * w for w in _widths(form.side)]
        attends = [form.side >> i == 8 for i in range(len(widths))]
        made: Any = UNet2DModel(
            sample_size=form.side,
            in_channels=form.channels,
            out_channels=out,
            block_out_channels=widths,
            layers_per_block=layers,
            attention_head_dim=min(32, width),
            norm_num_groups=GROUPS,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
            num_class_embeds=form.classes + 1,
        )
        nn.init.zeros_(made.conv_out.weight)
        nn.init.zeros_(made.conv_out.bias)
        self.net = made

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        told = row_of(label, len(x), x.device)
        out: Tensor = self.net(x, t, class_labels=told, return_dict=False)[0]
        return out
