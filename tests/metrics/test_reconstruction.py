"""What comes back of a picture, against other people's code and by known cases."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldm.metrics.reconstruction import feature_distance, psnr, ssim


def test_errors_and_structure_agree_with_torchmetrics() -> None:
    draws = torch.Generator().manual_seed(0)
    real = torch.rand(4, 3, 24, 24, generator=draws)
    made = (real + 0.1 * torch.randn(real.shape, generator=draws)).clamp(0, 1)
    for i in range(4):
        one = slice(i, i + 1)
        assert float(psnr(made[one], real[one])) == pytest.approx(
            float(peak_signal_noise_ratio(made[one], real[one], data_range=1.0)), abs=1e-3
        )
    theirs = structural_similarity_index_measure(made, real, data_range=1.0, reduction="none")
    # Theirs leaves out places whose window reaches beyond the edge; ours mirrors the picture there.
    assert torch.allclose(ssim(made, real).float(), theirs, atol=0.02)
    inner = ssim(made.repeat(1, 1, 3, 3), real.repeat(1, 1, 3, 3))
    large = [x.repeat(1, 1, 3, 3) for x in (made, real)]
    wide = structural_similarity_index_measure(*large, data_range=1.0, reduction="none")
    assert torch.allclose(inner.float(), wide, atol=3e-3)


def test_what_comes_back_whole_is_perfect() -> None:
    real = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ssim(real, real), torch.ones(2).double())
    assert psnr(real, real).tolist() == [100, 100]
    assert float(psnr(real * 0 + 0.5, real * 0)[0]) == pytest.approx(10 * math.log10(4))


def test_a_stranger_is_as_far_as_strangers_are() -> None:
    features = torch.randn(300, 20, generator=torch.Generator().manual_seed(2))
    assert float(feature_distance(features, features).max()) == 0
    assert float(feature_distance(features.roll(1, 0), features).mean()) == pytest.approx(1, abs=0.05)
