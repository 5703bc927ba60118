"""LPIPS (Zhang et al. 2018) from weights that the user has: the trunk of VGG-16 or AlexNet and its linear heads.

The file is safetensors and holds both, under the names of the `lpips` package (`net.slice1.0.weight`,
`lin0.model.1.weight`) or the trunk under torchvision's (`features.0.weight`). Everything else in it is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.errors import Code, LdmError
from ldm.models.perceptual import Perceptual

_TRUNK = re.compile(r"(?:net\.slice\d\.|net\.features\.|features\.)(\d+)\.(weight|bias)")
_HEAD = re.compile(r"lin(?:s\.)?(\d)\.(?:model\.1\.)?weight")
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1,1], as in the lpips package


@dataclass(frozen=True)
class _Plan:
    """A trunk: stages of convolutions (index in torchvision's `features`, stride, padding); features are taken behind
    each stage, and `pooled` before the next (side of the pooling, stride 2) where its number is listed."""

    stages: Sequence[Sequence[tuple[int, int, int]]]
    pooled: Sequence[int]
    side: int


_PLANS = {
    3: _Plan(
        [
            [(0, 1, 1), (2, 1, 1)],
            [(5, 1, 1), (7, 1, 1)],
            [(10, 1, 1), (12, 1, 1), (14, 1, 1)],
            [(17, 1, 1), (19, 1, 1), (21, 1, 1)],
            [(24, 1, 1), (26, 1, 1), (28, 1, 1)],
        ],
        (1, 2, 3, 4),
        2,
    ),
    11: _Plan([[(0, 4, 2)], [(3, 1, 2)], [(6, 1, 1)], [(8, 1, 1)], [(10, 1, 1)]], (1, 2), 3),
}  # by the side of the first kernel: VGG-16, AlexNet


class Trunk(nn.Module):
    """Features [n,C,h,w] of five depths for pictures [n,3,H,W] in [-1,1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self, plan: _Plan, kernels: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.plan = plan
        for index, (weight, bias) in kernels.items():
            self.register_buffer(f"weight_{index}", weight.detach().float().clone())
            self.register_buffer(f"bias_{index}", bias.detach().float().clone())
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, picture: Tensor) -> list[Tensor]:
        x = (picture - self.shift) / self.scale
        features = []
        for number, stage in enumerate(self.plan.stages):
            if number in self.plan.pooled:
                x = functional.max_pool2d(x, self.plan.side, 2)
            for index, stride, padding in stage:
                kernel = getattr(self, f"weight_{index}"), getattr(self, f"bias_{index}")
                x = functional.relu(functional.conv2d(x, *kernel, stride, padding))
            features.append(x)
        return features


def lpips(tensors: Mapping[str, Tensor], where: str) -> Perceptual:
    """The measure that a file's tensors hold; an error names what is missing."""
    kernels: dict[int, dict[str, Tensor]] = {}
    heads: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _TRUNK.fullmatch(name):
            kernels.setdefault(int(match.group(1)), {})[match.group(2)] = tensor
        elif match := _HEAD.fullmatch(name):
            heads[int(match.group(1))] = tensor
    first = kernels.get(0, {}).get("weight")
    plan = None if first is None else _PLANS.get(first.shape[-1])
    wanted = [index for stage in plan.stages for index, _, _ in stage] if plan else []
    missing = [f"features.{i}.{kind}" for i in wanted for kind in ("weight", "bias") if kind not in kernels.get(i, {})]
    missing += [f"lin{depth}.model.1.weight" for depth in range(5) if depth not in heads]
    if plan is None or missing:
        raise LdmError(
            Code.MODEL,
            f"{where} is not a file of LPIPS weights.",
            f"It lacks {', '.join(missing[:3])}." if plan else "It has no first layer of VGG-16 or AlexNet.",
            "Save the state_dict of lpips.LPIPS(net='vgg'), or net='alex', as one safetensors file.",
        )
    trunk = Trunk(plan, {i: (kernels[i]["weight"], kernels[i]["bias"]) for i in wanted})
    return Perceptual(trunk, [heads[depth].reshape(-1) for depth in range(5)])
