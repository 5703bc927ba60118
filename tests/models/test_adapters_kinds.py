"""LoHa, LoKr, LoCon with a core, full differences and DoRA's two axes, against peft's and torch's own layers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ldm.models.adapters import parse_adapter
from tests.models.adapter_bases import add_peft, make_stack, make_unet, predict, unet_of

CLOSE = 1e-5
MIXED = ["to_q", "ff.net.0.proj", "proj_in", "conv1", "conv_in", "conv_shortcut"]


def peft_file(config: Any) -> tuple[dict[str, Tensor], dict[str, str], Tensor]:
    """(tensors, metadata, the picture that peft itself computes)."""
    torch.manual_seed(7)
    model = get_peft_model(make_unet(), config)
    tensors = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    written = json.dumps(config.to_dict(), default=list)
    return tensors, {"lora_adapter_metadata": written}, predict(model.base_model.model)


CONFIGS = {
    "loha": LoHaConfig(r=4, alpha=12, target_modules=MIXED, init_weights=False),
    "loha-core": LoHaConfig(r=4, alpha=40, target_modules=MIXED, init_weights=False, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=3, target_modules=MIXED, init_weights=False),
    "lokr-core": LoKrConfig(r=1, alpha=3, target_modules=MIXED, init_weights=False, use_effective_conv2d=True),
    "lokr-both": LoKrConfig(
        r=1, alpha=2, target_modules=MIXED, init_weights=False, decompose_both=True, use_effective_conv2d=True
    ),
    "lokr-whole": LoKrConfig(r=16, alpha=8, target_modules=MIXED, init_weights=False),
    "lokr-patterns": LoKrConfig(
        r=2, alpha=3, target_modules=MIXED, init_weights=False, rank_pattern={"to_q": 1}, alpha_pattern={"conv1": 1}
    ),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_lycoris_kinds_equal_the_forward_of_peft(name: str) -> None:
    tensors, metadata, expected = peft_file(CONFIGS[name])
    if name.endswith(("core", "both")):
        assert any("_t2" in key for key in tensors)
    stack = make_stack("sd1")
    base = predict(unet_of(stack))
    adapter = parse_adapter(tensors, metadata)
    assert adapter.kinds == (name[:4],) and adapter.dialect == "peft"
    stack.use([(adapter, 1.0, None)])
    difference = float((predict(unet_of(stack)) - expected).abs().max())
    assert difference <= CLOSE * max(1.0, float(expected.abs().max()))
    assert float((expected - base).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["loha", "loha-core", "lokr", "lokr-both"])
def test_kohya_spelling_of_the_same_factors(name: str) -> None:
    tensors, metadata, _ = peft_file(CONFIGS[name])
    kohya: dict[str, Tensor] = {}
    for key, value in tensors.items():
        layer, role = key.removeprefix("base_model.model.").rsplit(".", 1)
        kohya[f"lora_unet_{layer.replace('.', '_')}.{role}"] = value
        kohya[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(float(CONFIGS[name].alpha))
    ours, theirs = make_stack("sd1"), make_stack("sd1")
    ours.use([(parse_adapter(kohya), 1.0, None)])
    theirs.use([(parse_adapter(tensors, metadata), 1.0, None)])
    # where both factors are whole, kohya's alpha counts for nothing, and peft still divides by its r
    ranked = [part.path for part in parse_adapter(kohya).parts if part.delta and part.delta.rank]
    assert ranked
    for path in ranked:
        mine, peer = (unet_of(stack).get_parameter(f"{path}.weight") for stack in (ours, theirs))
        assert torch.equal(mine, peer)


def test_locon_core_equals_three_convolutions() -> None:
    down, mid, up = (
        nn.Conv2d(8, 3, 1, bias=False),
        nn.Conv2d(3, 3, 3, padding=1, bias=False),
        nn.Conv2d(3, 8, 1, bias=False),
    )
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {
        f"{stem}.lora_down.weight": down.weight.data,
        f"{stem}.lora_mid.weight": mid.weight.data,
        f"{stem}.lora_up.weight": up.weight.data,
        f"{stem}.alpha": torch.tensor(6.0),
    }
    stack = make_stack("sd1")
    layer = unet_of(stack).get_submodule("down_blocks.0.resnets.0.conv1")
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        expected = layer(x) + 0.5 * 6 / 3 * up(mid(down(x)))
        stack.use([(parse_adapter(tensors), 0.5, None)])
        assert float((layer(x) - expected).abs().max()) <= CLOSE


@pytest.mark.parametrize("layer", ["conv_in", "time_embedding.linear_1"])
@pytest.mark.parametrize("axis", [0, 1])
def test_dora_along_either_axis_equals_torch_weight_norm(layer: str, axis: int) -> None:
    stack = make_stack("sd1")
    module = unet_of(stack).get_submodule(layer)
    source = module.weight.data.clone()
    change = 0.1 * torch.randn(source.shape)
    module.weight.data = source + change
    normal = weight_norm(module, dim=axis)
    scale = normal.parametrizations.weight.original0
    scale.data *= 1 + torch.rand_like(scale)
    expected = normal.weight.data.clone()
    nn.utils.parametrize.remove_parametrizations(module, "weight")
    module.weight.data = source
    stem = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {f"{stem}.diff": change, f"{stem}.dora_scale": scale.data.clone()}
    fresh = make_stack("sd1")
    fresh.use([(parse_adapter(tensors), 1.0, None)])
    merged = unet_of(fresh).get_submodule(layer).weight.data
    assert float((merged - expected).abs().max()) <= CLOSE
    fresh.use([(parse_adapter(tensors), 0.25, None)])  # a part of the way from the base
    quarter = unet_of(fresh).get_submodule(layer).weight.data
    assert float((quarter - (0.75 * source + 0.25 * expected)).abs().max()) <= CLOSE


def test_full_differences_of_weights_biases_and_norms() -> None:
    stack = make_stack("sd1")
    unet = unet_of(stack)
    norm, conv = unet.conv_norm_out, unet.conv_out
    tensors = {
        "lora_unet_conv_norm_out.w_norm": torch.randn(8),
        "lora_unet_conv_norm_out.b_norm": torch.randn(8),
        "diffusion_model.out.2.diff": torch.randn(conv.weight.shape),
        "diffusion_model.out.2.diff_b": torch.randn(4),
    }
    expected = [
        p.data + 0.5 * d
        for p, d in zip([norm.weight, norm.bias, conv.weight, conv.bias], tensors.values(), strict=True)
    ]
    report = stack.use([(parse_adapter(tensors), 0.5, None)])
    found = [norm.weight, norm.bias, conv.weight, conv.bias]
    assert all(torch.equal(a.data, b) for a, b in zip(found, expected, strict=True))
    assert "4 of 4 tensors applied to 2 layers" in str(report)


def test_lora_bias_equals_peft() -> None:
    network = add_peft(make_unet(), ["conv1", "linear_1"], lora_bias=True)
    for name, parameter in network.named_parameters():
        if "lora_B" in name and name.endswith("bias"):
            parameter.data.normal_()
    tensors = {f"unet.{key}": value for key, value in get_peft_model_state_dict(network).items()}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 6})}
    stack = make_stack("sd1")
    stack.use([(parse_adapter(tensors, metadata), 1.0, None)])
    assert float((predict(unet_of(stack)) - predict(network)).abs().max()) <= CLOSE


def test_factors_of_a_1x1_convolution_fit_a_linear_layer_and_the_reverse() -> None:
    path = "mid_block.attentions.0.proj_in"
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    for kind, axes in (("xl", (1, 1)), ("sd1", ())):  # linear in XL, a convolution in SD 1
        stack = make_stack(kind)
        weight = unet_of(stack).get_parameter(f"{path}.weight")
        expected = weight.data.clone() + (up @ down).reshape(weight.shape)
        stem = f"lora_unet_{path.replace('.', '_')}"
        tensors = {
            f"{stem}.lora_down.weight": down.reshape(2, 16, *axes),
            f"{stem}.lora_up.weight": up.reshape(16, 2, *axes),
        }
        stack.use([(parse_adapter(tensors), 1.0, None)])
        assert float((weight.data - expected).abs().max()) <= CLOSE
