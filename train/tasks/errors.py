"""How far a picture is from another, one number an example; pictures are [n,3,H,W] in [-1,1], taken in fp32."""

from __future__ import annotations

from torch import Tensor

from ldm.metrics import reconstruction


def l1(a: Tensor, b: Tensor) -> Tensor:
    """[n] mean |a - b|."""
    return (a.float() - b.float()).abs().flatten(1).mean(1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """[n] mean (a - b)^2."""
    return (a.float() - b.float()).square().flatten(1).mean(1)


def gradients(a: Tensor, b: Tensor) -> Tensor:
    """[n] mean |d(a - b)/dy| + mean |d(a - b)/dx|, differences of neighbouring pixels: edges that are not sharp."""
    apart = a.float() - b.float()
    return apart.diff(dim=2).abs().flatten(1).mean(1) + apart.diff(dim=3).abs().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """[n] in dB; `a` cut to [-1,1] as a saved picture is."""
    return reconstruction.psnr((a + 1) / 2, (b + 1) / 2)
