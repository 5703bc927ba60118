"""Tiles cover everything, blend without seams, and a network in tiles is the network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent import Cond, Control
from ldm.models.tiling import crop, pooled_mask, tiled, tiles, window
from tests import components

LEVEL = Level(*(torch.tensor([v]) for v in (500, 0.6, 0.8, 0, 1)))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 40), st.data())
@settings(max_examples=100, deadline=None)
def test_tiles_cover_and_overlap(height: int, width: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    seen = torch.zeros(height, width)
    for top, left, bottom, right in tiles(height, width, size, overlap):
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert (bottom - top, right - left) == (min(size, height), min(size, width))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1


def test_windows_never_vanish() -> None:
    assert window(8, 8, 3).min() > 0
    assert window(8, 8, 3).max() == 1


def pointwise(x: Tensor, level: Level, conds: list[Cond]) -> list[Prediction]:
    """A network that looks at one latent at a time: tiles must change nothing at all."""
    shift = [0.0 if c.channels is None else c.channels for c in conds]
    return [Prediction(torch.tanh(x) + s) for s in shift]


def test_a_pointwise_network_is_the_same_in_tiles() -> None:
    x = torch.randn(2, 4, 19, 23)
    conds = [Cond(), Cond(channels=torch.randn(2, 4, 19, 23))]
    whole, parts = pointwise(x, LEVEL, conds), tiled(pointwise, 8, 3, 8)(x, LEVEL, conds)
    for a, b in zip(whole, parts, strict=True):
        assert (a.clean - b.clean).abs().max() < 1e-5


def test_one_tile_is_the_whole(tiny_sd1: object) -> None:
    x = torch.randn(1, 4, 8, 8)
    said = tiled(pointwise, 64, 16, 8)(x, LEVEL, [Cond()])
    assert torch.allclose(said[0].clean, pointwise(x, LEVEL, [Cond()])[0].clean, atol=1e-6)


def test_maps_are_cut_and_shared_controls_stay_shared() -> None:
    control = Control(nn.Identity(), torch.arange(64.0).view(1, 1, 8, 8), mask=torch.ones(1, 1, 4, 4))
    one, two = crop([Cond(controls=(control,)), Cond(controls=(control,))], (1, 2, 3, 4), 2)
    assert one.controls[0] is two.controls[0]
    assert one.controls[0].hint.shape == (1, 1, 4, 4)
    assert one.controls[0].hint[0, 0, 0, 0] == control.hint[0, 0, 2, 4]
    assert one.controls[0].mask is not None
    assert one.controls[0].mask.shape == (1, 1, 2, 2)


def test_a_latent_is_painted_if_any_of_its_pixels_is() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 9, 3] = 0.4
    small = pooled_mask(mask, 8)
    assert small.flatten().tolist() == pytest.approx([0, 0, 0.4, 0])


def test_tiled_decode_is_near_the_whole_decode() -> None:
    vae = Autoencoder(components.vae())
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, parts = vae.decode(latents), vae.decode(latents, tile=48)
    assert parts.shape == whole.shape
    error = (parts - whole).pow(2).mean()
    assert 10 * torch.log10(4 / error) >= 35  # PSNR in dB for a range of 2


def test_a_half_precision_overflow_is_redone_in_fp32() -> None:
    model = nn.Module.half(components.vae(force_upcast=False))
    model.decoder.conv_out.bias.data.fill_(0)
    model.decoder.conv_in.weight.data.mul_(3e4)  # overflows fp16, not fp32
    vae = Autoencoder(model)
    assert torch.isfinite(vae.decode(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 50)).all()
    assert vae.retried
    assert next(model.parameters()).dtype == torch.float16
