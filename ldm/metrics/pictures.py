"""Pictures as numbers in [0,1], whether they come as such or as bytes: many are kept as bytes, and seen in parts."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(pictures: Tensor) -> Tensor:
    """[n,3,H,W] in [0,1], of such or of uint8."""
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
