"""The loss agrees with the conversions of Level, and its weights with the paper's table."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from ldm.diffusion.level import Kind, Level
from ldm.diffusion.loss import denoising_loss, min_snr_weight, target

KINDS: tuple[Kind, ...] = get_args(Kind)


def levels(kind: Kind, count: int = 5) -> Level:
    sigma = torch.linspace(0.1, 0.95, count, dtype=torch.float64)
    alpha = 1.0 - sigma if kind == "flow" else (1.0 - sigma**2).sqrt()
    index = torch.zeros(count, dtype=torch.long)
    return Level(index, alpha, sigma, index, index + 1)


def pair(count: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, count, 3, 4, 4, generator=g, dtype=torch.float64)
    return clean, noise


@pytest.mark.parametrize("kind", KINDS)
def test_target_is_what_level_converts(kind: Kind) -> None:
    clean, noise = pair()
    level = levels(kind)
    x = level.noisy(clean, noise)
    aim = target(clean, noise, level, kind)
    assert (aim - level.output(clean, x, kind)).abs().max() < 1e-12
    assert (level.clean(aim, x, kind) - clean).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_output_costs_nothing_and_a_unit_error_costs_one(kind: Kind) -> None:
    clean, noise = pair()
    level = levels(kind)
    aim = target(clean, noise, level, kind)
    assert denoising_loss(aim, clean, noise, level, kind).abs().max() == 0.0
    off = denoising_loss(aim + 1.0, clean, noise, level, kind)
    assert off.shape == (5,)
    assert off.dtype == torch.float32
    assert (off - 1.0).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_losses_are_the_same_for_every_kind(kind: Kind) -> None:
    """The same wrong clean latent costs min(SNR, gamma) |error|^2, whatever the network puts out."""
    clean, noise = pair()
    level = levels(kind)
    x = level.noisy(clean, noise)
    wrong = clean + 0.3
    output = level.output(wrong, x, kind)
    snr = (level.alpha / level.sigma) ** 2
    expected = snr.clamp(max=5.0) * 0.09
    loss = denoising_loss(output, clean, noise, level, kind) * min_snr_weight(level, kind)
    assert (loss - expected.float()).abs().max() < 1e-5


def test_min_snr_of_known_values() -> None:
    """Hang et al. 2023, section 3.4: epsilon min(SNR, g)/SNR, v min(SNR, g)/(SNR + 1)."""
    level = levels("epsilon")
    snr = (level.alpha / level.sigma) ** 2
    assert (min_snr_weight(level, "epsilon") - snr.clamp(max=5.0) / snr).abs().max() < 1e-12
    assert (min_snr_weight(level, "v_prediction") - snr.clamp(max=5.0) / (snr + 1.0)).abs().max() < 1e-12
    assert min_snr_weight(level, "epsilon").max() == 1.0
    floored = min_snr_weight(level, "v_prediction", floor=0.2)
    assert (floored - snr.clamp(min=0.2, max=5.0) / (snr + 1.0)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_ends_of_the_schedule_are_finite(kind: Kind, sigma: float) -> None:
    clean, noise = (t[:1].float() for t in pair())
    one = torch.ones(1)
    level = Level(one, one - sigma, one * sigma, one * 0, one)
    loss = denoising_loss(torch.zeros_like(clean), clean, noise, level, kind)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(loss * min_snr_weight(level, kind)).all()
    if kind != "epsilon":
        assert min_snr_weight(level, kind, floor=0.2).max() <= 5.0


def test_half_precision_output_is_compared_in_fp32() -> None:
    clean, noise = (t.float() for t in pair())
    level = levels("epsilon")
    output = (noise + 300.0).half()
    assert (denoising_loss(output, clean, noise, level, "epsilon") / 300.0**2 - 1.0).abs().max() < 1e-3


def test_a_mask_says_what_counts() -> None:
    clean, noise = (t.float() for t in pair())
    level = levels("epsilon")
    mask = torch.zeros(5, 1, 4, 4)
    mask[:, :, :2] = 1.0
    wrong = noise.clone()
    wrong[:, :, 2:] += 100.0
    wrong[:, :, :2] += 2.0
    assert (denoising_loss(wrong, clean, noise, level, "epsilon", mask=mask) - 4.0).abs().max() < 1e-4
    whole = denoising_loss(wrong, clean, noise, level, "epsilon")
    assert (denoising_loss(wrong, clean, noise, level, "epsilon", mask=mask * 0 + 1) / whole - 1).abs().max() < 1e-6
    assert denoising_loss(wrong, clean, noise, level, "epsilon", mask=mask * 0).abs().max() == 0
