"""The networks against those of diffusers and transformers: the same names, and the same numbers to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel, VQModel
from torch import nn

from ldm.models.nets.attention import Words
from ldm.models.nets.base import Net, Part, unfilled
from ldm.models.nets.coder import KLCoder
from ldm.models.nets.controlnet import ControlNet
from ldm.models.nets.known import NETWORKS, ours
from ldm.models.nets.tiny import TinyCoder
from ldm.models.nets.unet import UNet2D
from tests import components
from tests.components import seeded

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TIME = torch.tensor([17, 801])
UNETS: dict[str, Callable[[], UNet2DConditionModel]] = {
    "plain": components.unet,
    "nine channels": lambda: components.unet(9),
    "learned variance": lambda: components.unet(out_channels=8),
    "linear projections": lambda: components.unet(use_linear_projection=True, attention_head_dim=(4, 8)),
    "three levels": lambda: components.unet(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32, 32), layers_per_block=(1, 2, 1), transformer_layers_per_block=(1, 2, 1),
    ),
    "no attention in the middle": lambda: components.unet(mid_block_type="UNetMidBlock2D"),
    "no middle": lambda: components.unet(mid_block_type=None),
    "words alone": lambda: components.unet(only_cross_attention=True),
    "sines first": lambda: components.unet(flip_sin_to_cos=False, freq_shift=1),
}  # fmt: skip


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("side", [8, 11])
def test_a_unet_says_what_that_of_diffusers_says(name: str, side: int) -> None:
    stock = UNETS[name]()
    x, words = drawn(2, stock.config.in_channels, side, side), drawn(2, 7, components.TEXT)
    assert torch.equal(ours(stock)(x, TIME, words), stock(x, TIME, words).sample)


def test_sizes_and_pooled_words_are_told_to_xl() -> None:
    for stock in (components.unet_xl(), components.unet_refiner()):
        x, words = drawn(2, 4, 8, 8), drawn(2, 7, stock.config.cross_attention_dim)
        pooled, sizes = drawn(2, components.TEXT_G), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        sizes = sizes[:, : 5 if stock.config.cross_attention_dim == components.TEXT_G else 6]
        wanted = stock(x, TIME, words, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
        assert torch.equal(ours(stock)(x, TIME, words, pooled=pooled, sizes=sizes), wanted)
        with pytest.raises(ValueError, match="pooled words"):
            ours(stock)(x, TIME, words)


def test_classes_and_a_guidance_scale_are_told() -> None:
    stock, x, words = components.unet(num_class_embeds=5, time_cond_proj_dim=16), drawn(2, 4, 8, 8), drawn(2, 7, 32)
    label, scale = torch.tensor([1, 4]), drawn(2, 16, seed=3)
    wanted = stock(x, TIME, words, class_labels=label, timestep_cond=scale).sample
    assert torch.equal(ours(stock)(x, TIME, words, label=label, guidance=scale), wanted)
    with pytest.raises(ValueError, match="classes"):
        ours(stock)(x, TIME, words)


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_a_controlnet_steers_as_that_of_diffusers(guess: bool, pool: bool) -> None:
    unet = components.unet()
    stock = components.controlnet(unet)
    stock.register_to_config(global_pool_conditions=pool)
    x, words, hint = drawn(2, 4, 8, 8), drawn(2, 7, 32), drawn(2, 3, 16, 16).sigmoid()
    told = {"controlnet_cond": hint, "conditioning_scale": 0.7, "guess_mode": guess}
    down, middle = stock(x, TIME, words, return_dict=False, **told)
    mine = ours(stock)(x, TIME, words, hint, weight=0.7, guess=guess)
    assert all(torch.equal(a, b) for a, b in zip([*mine[0], mine[1]], [*down, middle], strict=True))
    wanted = unet(x, TIME, words, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
    assert torch.equal(ours(unet)(x, TIME, words, residuals=mine), wanted)


def test_a_controlnet_begins_as_the_way_down_and_changes_nothing() -> None:
    unet = ours(components.unet())
    control = ControlNet.beside(unet, (8, 16)).eval()
    x, words, hint = drawn(2, 4, 8, 8), drawn(2, 7, 32), drawn(2, 3, 16, 16)
    residuals = control(x, TIME, words, hint)
    assert torch.equal(unet(x, TIME, words, residuals=residuals), unet(x, TIME, words))
    assert torch.equal(control.down_blocks[0].resnets[0].conv1.weight, unet.down_blocks[0].resnets[0].conv1.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {"layers_per_block": 2, "latent_channels": 8},
    ],
)
def test_kl_autoencoders(changes: dict[str, Any]) -> None:
    stock = components.vae(**changes)
    picture, z = drawn(2, 3, 16, 24), drawn(2, stock.config.latent_channels, 8, 12)
    mine, wanted = ours(stock).encode(picture), stock.encode(picture).latent_dist
    assert torch.equal(mine.mean, wanted.mean)
    assert torch.equal(mine.std, wanted.std)
    assert torch.equal(ours(stock).decode(z), stock.decode(z).sample)


def test_vq_autoencoders() -> None:
    with seeded(2):
        stock = VQModel(
            block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, num_vq_embeddings=32,
        ).eval()  # fmt: skip
    picture = drawn(2, 3, 16, 16)
    z = stock.encode(picture).latents
    assert torch.equal(ours(stock).encode(picture), z)
    assert torch.equal(ours(stock).decode(z), stock.decode(z).sample)


def test_tiny_autoencoders() -> None:
    with seeded(2):
        stock = AutoencoderTiny(
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 2),
            num_decoder_blocks=(2, 1),
        ).eval()  # fmt: skip
    picture, z = drawn(2, 3, 16, 16), drawn(2, 4, 8, 8) * 4
    assert torch.equal(ours(stock).encode(picture), stock.encode(picture).latents)
    assert torch.equal(ours(stock).decode(z), stock.decode(z).sample)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("masked", [False, True])
def test_text_towers(act: str, masked: bool) -> None:
    ids = torch.tensor([[5, 9, 12, 30, 7], [8, 2, 30, 30, 30]])
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]]) if masked else None
    for stock in (components.text_tower(hidden_act=act), components.projected_tower(hidden_act=act)):
        mine, wanted = ours(stock)(ids, mask), stock(ids, mask, output_hidden_states=True)
        assert all(torch.equal(a, b) for a, b in zip(mine.states, wanted.hidden_states, strict=True))
        pooled = wanted.text_embeds if hasattr(wanted, "text_embeds") else wanted.pooler_output
        assert torch.equal(mine.pooled, pooled)


def test_taken_over_they_share_their_numbers() -> None:
    stock = components.unet()
    mine = ours(stock)
    assert ours(mine) is mine
    stock.conv_in.weight.zero_()
    assert mine.conv_in.weight.abs().max() == 0
    assert {name: t.data_ptr() for name, t in mine.state_dict().items()} == {
        name: t.data_ptr() for name, t in stock.state_dict().items()
    }
    other = nn.Linear(2, 2)
    assert ours(other) is other


def test_recomputing_changes_no_gradient() -> None:
    unet, x, words = ours(components.unet()).train().requires_grad_(), drawn(2, 4, 8, 8), drawn(2, 7, 32)
    told = []
    with torch.enable_grad():
        for on in (False, True):
            unet.recompute(on)
            unet.zero_grad()
            unet(x, TIME, words).square().sum().backward()
            told.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"unheard_of": 1}, "has no unheard_of"),
        ({"act_fn": "mish"}, "act_fn='mish' is not built here"),
        ({"down_block_types": ("KDownBlock2D",) * 4}, "kind KDownBlock2D are not built here"),
        ({"block_out_channels": (32, 64)}, "values for 2 blocks"),
    ],
)
def test_what_is_not_built_here_is_said(fields: dict[str, Any], said: str) -> None:
    with unfilled(), pytest.raises((TypeError, ValueError), match=said):
        UNet2D(**fields)


def test_published_configurations_say_nothing_as_null() -> None:
    """Those of XL say `"upcast_attention": null`, and the like."""
    nothing = ("upcast_attention", "center_input_sample", "dual_cross_attention", "resnet_skip_time_act")
    with unfilled():
        assert UNet2D(**dict.fromkeys(nothing)).config.upcast_attention is None


def test_the_tiny_autoencoder_recomputes_as_well_and_nothing_twice() -> None:
    with unfilled():
        tiny, vae = TinyCoder(), KLCoder(down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",))
    for net in (tiny, vae):
        net.recompute()
        parts = {name for name, module in net.named_modules() if isinstance(module, Part) and module.recomputed}
        assert parts
        assert not any(one != other and one.startswith(f"{other}.") for one in parts for other in parts)


def test_without_storage_nothing_is_drawn() -> None:
    state = torch.get_rng_state()
    for kind in NETWORKS.values():
        with unfilled():
            made = kind()
        assert isinstance(made, Net)
        assert {p.device.type for p in made.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)


def test_keys_and_values_of_a_prompt_are_computed_once_and_again_for_other_weights() -> None:
    unet, x, states = ours(components.unet()), drawn(2, 4, 8, 8), drawn(2, 7, 32)
    layer, words, computed = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2, Words(states), []
    layer.to_k.register_forward_hook(lambda *_: computed.append(1))
    for _ in range(3):
        assert torch.equal(unet(x, TIME, words), unet(x, TIME, states))
    assert len(computed) == 4
    layer.to_k.weight.mul_(1.5)  # in place, as an optimiser does
    assert torch.equal(unet(x, TIME, words), unet(x, TIME, states))
    layer.to_k.weight.data = layer.to_k.weight * 1.5  # as an adapter is put in
    assert torch.equal(unet(x, TIME, words), unet(x, TIME, states))
    with torch.enable_grad():  # there is nothing to keep where weights learn
        assert torch.equal(unet(x, TIME, words), unet(x, TIME, states))
