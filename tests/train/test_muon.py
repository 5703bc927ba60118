"""Muon makes matrices orthogonal, and steps as the one of torch does."""

from __future__ import annotations

import torch
from torch import nn

from train.muon import Muon, orthogonal


def test_singular_values_come_near_one() -> None:
    g = torch.Generator().manual_seed(0)
    for rows, cols in ((8, 8), (16, 48), (48, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(3, rows, cols, generator=g), rounds=8))
        assert 0.6 < values.min() <= values.max() < 1.3


def test_singular_vectors_stay() -> None:
    """U S V^T becomes about U V^T: the product with the true one is near the identity."""
    x = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(x[0], full_matrices=False)
    product = orthogonal(x)[0] @ (u @ v).T
    assert (product - torch.diag(torch.diagonal(product))).abs().max() < 0.25
    assert torch.diagonal(product).min() > 0.5


def test_equals_the_optimiser_of_torch() -> None:
    """torch rounds to bfloat16 inside, so steps agree to a few hundredths of the rate."""
    start = torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = Muon([ours], lr=0.02, momentum=0.95, decay=0.1)
    b = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.1)
    for step in range(5):
        gradient = torch.randn(12, 20, generator=torch.Generator().manual_seed(10 + step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    moved = (ours - start).abs().max()
    assert moved > 0.02
    assert (ours - theirs).abs().max() < 0.03 * moved


def test_half_precision_inside_moves_weights_as_full_precision_does() -> None:
    start = torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(start.clone())
        weight.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(10))
        Muon([weight], lr=0.02, decay=0.0, dtype=dtype).step()
        assert weight.dtype == torch.float32
        moved[dtype] = weight.detach() - start
    full, half = moved.values()
    assert 0 < (full - half).norm() < 0.05 * full.norm()


def test_weights_of_one_shape_do_not_mix() -> None:
    """Three convolutions stepped together equal each one stepped alone."""
    g = torch.Generator().manual_seed(3)
    together = [nn.Parameter(torch.randn(4, 3, 3, 3, generator=g)) for _ in range(3)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    for p, q in zip(together, alone, strict=True):
        p.grad = torch.randn(p.shape, generator=g)
        q.grad = p.grad.clone()
        Muon([q]).step()
    Muon(together).step()
    assert max((p - q).abs().max() for p, q in zip(together, alone, strict=True)) < 1e-6
