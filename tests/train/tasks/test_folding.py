"""Statistics of latents, folded into weights: the rotation, the moments, and added convolutions."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import LdmError
from ldm.models.nets.coder import VQCoder
from ldm.models.nets.known import ours
from tests import components
from tests.components import seeded
from train.tasks.folding import even_rotation, folded, measured, with_outer


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("seed", range(5))
def test_a_rotation_spreads_variance_evenly(channels: int, seed: int) -> None:
    with seeded(seed):
        root = torch.randn(channels, channels, dtype=torch.float64) * torch.logspace(
            -2, 2, channels, dtype=torch.float64
        )
    covariance = root @ root.T
    turn = even_rotation(covariance)
    assert float((turn @ turn.T - torch.eye(channels, dtype=torch.float64)).abs().max()) < 1e-10
    even = (turn @ covariance @ turn.T).diagonal()
    assert float((even - covariance.trace() / channels).abs().max()) < 1e-8 * float(covariance.trace())


def test_nothing_is_turned_where_variance_is_even_already() -> None:
    assert torch.equal(even_rotation(torch.eye(4, dtype=torch.float64)), torch.eye(4, dtype=torch.float64))


def test_moments_are_those_of_all_pictures_together() -> None:
    with seeded(3):
        pictures = [torch.randn(n, 3, 8, 8) for n in (1, 5, 2)]
    moments = measured(lambda x: (2 * x + 1, 0.5 * torch.ones_like(x)), pictures)
    whole = (2 * torch.cat(pictures) + 1).double().transpose(0, 1).flatten(1)
    assert float((moments.mean - whole.mean(1)).abs().max()) < 1e-6
    assert float((moments.covariance - torch.cov(whole, correction=0)).abs().max()) < 1e-5
    assert float((moments.std - (whole.var(1, correction=0) + 0.25).sqrt()).abs().max()) < 1e-6


def test_no_pictures_is_said() -> None:
    with pytest.raises(LdmError, match="no pictures"):
        measured(lambda x: (x, x), [])


def test_added_convolutions_do_nothing() -> None:
    bare, x = ours(components.vae(use_quant_conv=False, use_post_quant_conv=False)), torch.rand(2, 3, 16, 16)
    wider = with_outer(bare)
    assert wider.config.use_quant_conv and wider.quant_conv is not None and wider.post_quant_conv is not None
    with torch.no_grad():
        a, b = (torch.cat(vae.encode(x)) for vae in (bare, wider))
        c, d = (vae.decode(a[:2]) for vae in (bare, wider))
    assert float((a - b).abs().max()) < 1e-6 and float((c - d).abs().max()) < 1e-6
    whole = ours(components.vae())
    assert with_outer(whole) is whole


def test_a_channel_that_says_nothing_keeps_its_scale() -> None:
    vae, x = ours(components.vae()), torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        vae.quant_conv.weight[1] = 0
        vae.quant_conv.weight[5] = 0
        vae.quant_conv.bias[5] = -200.0  # no noise either: the deviation is 0
    encode = lambda p: (vae.encode(p).mean, vae.encode(p).std)  # noqa: E731
    with torch.no_grad():
        unit = folded(vae, measured(encode, [x]))
        before = vae.decode(vae.encode(x).mean)
        z = unit.encode(x).mean
        after = unit.decode(z)
    assert bool(torch.isfinite(z).all()) and float((before - after).abs().max()) < 1e-5


def test_folding_leaves_every_code_where_it_was_nearest() -> None:
    """Channels of very unlike size, where scaling each by its own would choose other codes."""
    with seeded(4):
        vae = VQCoder(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=3, num_vq_embeddings=50, layers_per_block=1
        ).eval()
        vae.quantize.embedding.weight.data.normal_().mul_(torch.tensor([5.0, 1.0, 0.1]))
        vae.quant_conv.weight.data.mul_(torch.tensor([50.0, 10.0, 1.0]).view(3, 1, 1, 1))
        x = torch.rand(8, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        unit = folded(vae, measured(lambda p: (vae.encode(p), torch.zeros(len(p), 3, 16, 16)), [x]))
        h, z = vae.encode(x), unit.encode(x)
        codes, chosen = vae.quantize.nearest(h), unit.quantize.nearest(z)
        apart = (vae.decode(h) - unit.decode(z)).abs().max()
    assert len(codes.unique()) > 10 and torch.equal(codes, chosen)
    assert float(apart) <= 1e-5
    assert float((z.var((0, 2, 3), correction=0) - 1).abs().max()) < 1e-4 and unit.config.scaling_factor == 1.0
