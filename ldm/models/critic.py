"""A critic of pictures: PatchGAN, its hinge losses, and the weight that keeps it in balance with other losses.

Norms look at one example alone (groups, not batches), so that what the critic says of a picture does not depend on the
pictures beside it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

_SLOPE = 0.2
_MOST = 1e4  # of the adaptive weight, as in Esser et al.'s own runs


class PatchCritic(nn.Module):
    """Scores [n,1,h,w] of overlapping patches of pictures [n,3,H,W] in [-1,1]; above 0 is "real" (Isola et al. 2017).

    `layers` convolutions of side 4 halve the picture, two more of stride 1 follow; the side must be at least
    `smallest(layers)`. Weights start at N(0, 0.02), as there.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for i, (narrow, wide) in enumerate(pairwise(widths)):
            stride = 2 if i + 1 < layers else 1
            norm = nn.GroupNorm(_groups(wide), wide)
            parts += [nn.Conv2d(narrow, wide, 4, stride, 1, bias=False), norm, nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, picture: Tensor) -> Tensor:
        scores: Tensor = self.layers(picture)
        return scores


def smallest(layers: int) -> int:
    """The least side of a picture that leaves one score: two convolutions of stride 1 take a pixel each."""
    return 3 << layers


def _groups(width: int) -> int:
    """Groups of at least four channels, 32 at most, that divide the width."""
    fitting = [g for g in range(1, 33) if width % g == 0 and width // g >= 4]
    return fitting[-1] if fitting else 1


def critic_loss(real: Tensor, made: Tensor) -> Tensor:
    """[n] hinge losses (Lim & Ye 2017): (mean max(0, 1 - D(real)) + mean max(0, 1 + D(made))) / 2."""
    return 0.5 * (_mean(functional.relu(1 - real)) + _mean(functional.relu(1 + made)))


def maker_loss(made: Tensor) -> Tensor:
    """[n]: - mean D(made)."""
    return -_mean(made)


def _mean(scores: Tensor) -> Tensor:
    return scores.float().flatten(1).mean(1)


def adaptive_weight(fed: Tensor, last: nn.Conv2d, pull: Tensor, push: Tensor) -> Tensor:
    """lambda = |d other / d w| / (|d judged / d w| + 1e-4), at most 1e4, no gradient of its own: at the weights w of
    the last layer both losses pull equally hard (Esser et al. 2021, eq. 7).

    `fed` [n,C,H,W] is what the layer was given, `pull` and `push` [n,3,H,W] are the derivatives of the other loss and
    of the critic's by what it made of it. So nothing behind the layer is gone through, and neither loss twice.
    """
    with torch.autocast(fed.device.type, enabled=False):
        other, judged = (_kernel(fed.detach().float(), last, grad.float()).norm() for grad in (pull, push))
    weight: Tensor = (other / (judged + 1e-4)).clamp(max=_MOST)
    return weight


def _kernel(fed: Tensor, layer: nn.Conv2d, grad: Tensor) -> Tensor:
    """The derivative by the layer's weight, from that by its output."""
    padding = layer.padding if not isinstance(layer.padding, str) else layer.kernel_size[0] // 2
    shape = list(layer.weight.shape)
    kernel: Tensor = conv2d_weight(fed, shape, grad, layer.stride, padding, layer.dilation)  # type: ignore[no-untyped-call]
    return kernel
